"""One round as rows and as a picture: who did what when, in which order, what is said of it, and what is drawn.

Two devices by hand: a step takes them 2 s and 4 s, half of it the forward pass, then layers 3, 2, 1 and 0 in 0.4, 0.3, 0.2
and 0.1 s (twice that on the slow one). A message takes 0.5 s either way.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import fedsim
from fedsim.dashboard.figures import PHASE_WORDS, PHASES
from fedsim.dashboard.timeline import (
    draw_round,
    missing,
    round_facts,
    round_timeline,
    rounds_to_show,
    timeline_frame,
)
from fedsim.dashboard.timeline_words import decision, ordinal
from fedsim.facts import BadInput
from fedsim.statistics.reading import read_run
from tests.run_folders import write_run

LINK = {"rate_bits_per_s": 1e300, "latency_s": 0.5}
TWO = {
    "n_devices": 2,
    "compute": {"layer_s": [0.1, 0.2, 0.3, 0.4], "forward_s": 1.0, "device_factor": [1.0, 2.0]},
    "uplink": LINK,
    "downlink": LINK,
}
POLICIES = {
    "fedavg": {"local_steps": 3, "n_sampled": 9, "over_selected": 2},
    "drop_stragglers": {"local_steps": 3, "deadline_s": 5.0},
    "stsyn": {"k": 3, "local_steps": 3},
    "salf": {"deadline_s": 1.7},
    "fedbuff": {"local_steps": 2, "buffer_size": 4},
}


def scenario(kind, fleet, n_rounds=3, **parameters):
    n = fleet["n_devices"]
    return fedsim.from_dict(
        {
            "name": "rounds",
            "fleet": fleet,
            "data": {"kind": "gaussian_blobs", "n_samples": 10 * max(n, 12), "n_features": 8, "n_classes": 4},
            "model": {"kind": "mlp", "widths": [8, 8, 8]},
            "training": {"batches": "with_replacement", "batch_size": 4},
            "policies": [{"kind": kind, **parameters}],
            "seeds": [1],
            "stop": {"n_rounds": n_rounds},
            "train": False,
        }
    )


def played(out, kind, fleet, n_rounds=3, **parameters):
    return read_run(next(fedsim.run(scenario(kind, fleet, n_rounds, **parameters), out=out).glob("*/seed-*")))


def drawn_luck(n):
    step_factor = {"kind": "exponential", "mean": 1.0}
    speeds = np.linspace(0.5, 2.0, n).round(3).tolist()
    return {"n_devices": n, "compute": {"step_s": speeds, "step_factor": step_factor}, "uplink": LINK, "downlink": LINK}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A dozen devices under each policy; six rounds."""
    out = tmp_path_factory.mktemp("runs")
    return {kind: played(out / kind, kind, drawn_luck(12), 6, **p) for kind, p in POLICIES.items()}


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """1,000 devices, fifty of them over-selected."""
    parameters = {"local_steps": 5, "n_sampled": 950, "over_selected": 50}
    return played(tmp_path_factory.mktemp("crowd"), "fedavg", drawn_luck(1_000), 1, **parameters)


def segments(frame, device):
    """(phase, step, layer, from, to) of the device."""
    own = frame[frame["device"] == device]
    columns = own[["phase", "step", "layer", "start_s", "end_s"]].itertuples(index=False)
    return [(phase, step, layer, round(a, 9), round(b, 9)) for phase, step, layer, a, b in columns]


# ---- by hand --------------------------------------------------------------------------------------------------------


def test_a_round_is_cut_into_download_steps_layers_upload_and_waiting(tmp_path):
    frame = timeline_frame(played(tmp_path, "fedavg", TWO, local_steps=2), 0)
    assert segments(frame, 0) == [
        ("download", -1, -1, 0.0, 0.5),
        ("compute", 0, -1, 0.5, 2.5),
        ("compute", 1, 3, 2.5, 3.9),
        ("compute", 1, 2, 3.9, 4.2),
        ("compute", 1, 1, 4.2, 4.4),
        ("compute", 1, 0, 4.4, 4.5),
        ("upload", -1, -1, 4.5, 5.0),
        ("waiting", -1, -1, 5.0, 9.0),
    ]
    assert segments(frame, 1)[-1] == ("upload", -1, -1, 8.5, 9.0)
    assert "device 0, task 0: 2 of 2 steps; done at 4.5 s, arrived at 5 s; here step 1, 0.5 to 2.5 s" in set(
        frame["words"]
    )


def test_times_count_from_the_round_s_start(tmp_path):
    run = played(tmp_path, "fedavg", TWO, local_steps=2)
    first, third = timeline_frame(run, 0), timeline_frame(run, 2)
    assert run.rounds["start_s"][2] == 18.0
    np.testing.assert_allclose(third[["start_s", "end_s"]], first[["start_s", "end_s"]], rtol=1e-12, atol=1e-12)


def test_work_that_a_stop_makes_worthless_is_dropped_and_so_is_all_of_a_task_of_which_nothing_enters(tmp_path):
    """The fast device has two steps at 4.5 s; then both stop. The slow one has one at 4.5 s exactly."""
    run = played(tmp_path / "k1", "stsyn", TWO, k=1, local_steps=2)
    assert {phase for phase, *_ in segments(timeline_frame(run, 0), 1)} == {"download", "compute", "upload"}
    run = played(tmp_path / "step", "stsyn", TWO, k=1, local_steps=3)  # at 6.5 s: half of the slow one's second step
    assert ("dropped", 1, -1, 4.5, 6.5) in segments(timeline_frame(run, 0), 1)
    run = played(tmp_path / "none", "stsyn", TWO, k=1, local_steps=1)  # at 2.5 s: nothing complete
    frame = timeline_frame(run, 0)
    assert segments(frame, 1) == [
        ("dropped", -1, -1, 0.0, 0.5),
        ("dropped", 0, -1, 0.5, 2.5),
        ("waiting", -1, -1, 2.5, 3.0),
    ]
    assert "device 1, task 0: 0 steps; stopped at 2.5 s with nothing complete" in frame["words"].iloc[-1]


def test_of_a_device_that_was_stopped_in_its_first_step_the_layers_are_seen(tmp_path):
    """Deadline 4.1 s: the slow device has 3.6 s of its 4 s, the forward pass and layers 3 (1.3 s later) and 2."""
    frame = timeline_frame(played(tmp_path, "salf", TWO, deadline_s=4.1), 0)
    assert segments(frame, 1) == [
        ("download", -1, -1, 0.0, 0.5),
        ("compute", 0, 3, 0.5, 3.3),
        ("compute", 0, 2, 3.3, 3.9),
        ("dropped", 0, -1, 3.9, 4.1),
        ("upload", -1, -1, 4.1, 4.6),
    ]
    words = frame[frame["device"] == 1]["words"].iloc[1]
    assert words.startswith("device 1, task 0: 2 of 4 layers; stopped at 4.1 s, arrived at 4.6 s; here step 1, layer ")


def test_a_cancelled_task_is_drawn_until_it_was_cancelled(tmp_path):
    """The slow device is in its first step when the fast one arrives at 3 s."""
    frame = timeline_frame(played(tmp_path, "k_sync", TWO, k=1), 0)
    assert segments(frame, 1) == [("dropped", -1, -1, 0.0, 0.5), ("dropped", 0, -1, 0.5, 3.0)]
    assert frame["words"].iloc[-1].startswith("device 1, task 0: 0 of 1 step; cancelled at 3 s")


def test_tasks_of_a_server_that_does_not_wait_are_cut_off_at_the_round_s_ends(tmp_path):
    """Two steps: the fast device arrives at 5, 10, ... s, the slow one at 9 s: round 1 is 5 ... 9 s."""
    run = played(tmp_path, "fedbuff", TWO, local_steps=2, buffer_size=1)
    frame = timeline_frame(run, 1)
    assert segments(frame, 1)[0] == ("compute", 1, 3, 0.0, 2.3)  # since 4.5 s on the clock
    assert segments(frame, 0)[-1][:2] == ("compute", 1)
    assert segments(frame, 0)[-1][4] == 4.0
    assert "still under way at the round's end" in frame[frame["device"] == 0]["words"].iloc[0]
    assert "1 of 2 steps" in frame[frame["device"] == 0]["words"].iloc[0]
    drawn = draw_round(run, 1)
    assert "Tasks may have been sent before the round" in drawn.caption
    assert drawn.title.startswith("Round 1 of fedbuff")
    assert "1 upload entered the model, of 2 devices at work, after 4 s" in drawn.title


# ---- laws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("number", range(6))
def test_every_device_does_one_thing_at_a_time_from_the_start_to_the_end(runs, kind, number):
    run = runs[kind]
    frame, facts = timeline_frame(run, number), round_facts(run, number)
    assert set(frame["phase"]) <= set(PHASES)
    assert (frame["end_s"] > frame["start_s"]).all()
    for _, own in frame.groupby("device"):
        np.testing.assert_allclose(own["start_s"].iloc[1:], own["end_s"].iloc[:-1], rtol=0, atol=1e-12)
        np.testing.assert_allclose([own["start_s"].iloc[0], own["end_s"].iloc[-1]], [0.0, facts.length_s], atol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in POLICIES if kind != "fedbuff"])
def test_the_order_is_that_in_which_work_was_done_and_the_dropped_come_last(runs, kind):
    run = runs[kind]
    frame, tasks = timeline_frame(run, 2), run.tasks_of_round(2)
    assert sorted(frame["row"].unique()) == list(range(frame["device"].nunique()))
    in_order = tasks.set_index("device").loc[frame.drop_duplicates("row").sort_values("row")["device"]]
    is_used = in_order["outcome"].eq("used").to_numpy()
    assert not np.diff(is_used.astype(int)).max(initial=-1) > 0
    assert in_order["computed_s"][is_used].is_monotonic_increasing
    assert (in_order["n_steps"][is_used].diff().fillna(-1) <= 0).all() or kind != "stsyn"


def test_a_device_whose_upload_comes_too_late_is_last_however_soon_its_work_was_done(tmp_path):
    """The fast device is done at 2.5 s, but its link takes 9 s."""
    fleet = TWO | {"uplink": LINK | {"latency_s": [9.0, 0.5]}}
    frame = timeline_frame(played(tmp_path, "drop_stragglers", fleet, local_steps=1, deadline_s=9.5), 0)
    assert frame.drop_duplicates("row").sort_values("row")["device"].tolist() == [1, 0]
    assert segments(frame, 0)[-1] == ("dropped", -1, -1, 2.5, 9.5)


@pytest.mark.parametrize("kind", POLICIES)
def test_what_is_drawn_as_computed_and_used_are_the_milestones(runs, kind):
    run = runs[kind]
    frame, milestones = timeline_frame(run, 1), run.milestones_of_round(1)
    milestones = milestones.merge(run.tasks_of_round(1)[["device", "ordinal", "outcome"]], on=["device", "ordinal"])
    start_s = run.rounds["start_s"][1]
    used = milestones.query("outcome == 'used' and ended_s > @start_s")
    ends_s = frame[(frame["phase"] == "compute") & frame["outcome"].eq("used")][["device", "end_s"]].round(9)
    drawn = set(ends_s.itertuples(index=False, name=None))
    for device, ended_s in used[["device", "ended_s"]].itertuples(index=False):
        assert (device, round(ended_s - start_s, 9)) in drawn


# ---- which rounds, and what is missing ------------------------------------------------------------------------------


def test_rounds_to_show_are_the_longest_the_shortest_the_middle_the_first_the_last_then_spread(tmp_path):
    run = read_run(write_run(tmp_path, "a", 1, [0.5], round_s=[3, 1, 9, 4, 5, 0, 6, 2, 7, 8]))
    # By length 1 2 3 4 5 6 7 8 9: round 4 is in the middle; round 5 takes no time.
    assert rounds_to_show(run, 5) == [2, 1, 4, 0, 9]
    assert rounds_to_show(run, 2) == [2, 1]
    assert sorted(rounds_to_show(run, 50)) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert len(rounds_to_show(run, 7)) == 7
    assert rounds_to_show(read_run(write_run(tmp_path / "none", "a", 1, [0.5], round_s=[])), 3) == []


def test_a_run_without_tasks_says_so(tmp_path):
    run = read_run(write_run(tmp_path, "a", 1, [0.5]))
    drawn = draw_round(run, 0)
    assert (
        missing(run) == "This run kept no tasks; set record_tasks: true and run it again (--again) to see its rounds."
    )
    assert drawn.frame.empty
    assert not drawn.figure.data
    assert drawn.caption == missing(run)
    assert drawn.title == "Round 0 of a, seed 1 took 1 s; what its devices did is not known."


def test_an_older_run_is_drawn_without_steps_and_says_so(tmp_path):
    run = played(tmp_path, "stsyn", TWO, k=1, local_steps=3)
    tasks = pd.read_parquet(run.folder / "tasks.parquet").drop(columns=["asked_steps", "ended_s"])
    tasks.to_parquet(run.folder / "tasks.parquet")
    rounds = pd.read_parquet(run.folder / "rounds.parquet").drop(columns=["decided_s", "decided_by", "decided_n"])
    rounds.to_parquet(run.folder / "rounds.parquet")
    (run.folder / "milestones.parquet").unlink()
    run = read_run(run.folder)
    drawn = draw_round(run, 0)
    assert segments(drawn.frame, 1) == [
        ("download", -1, -1, 0.0, 0.5),
        ("compute", -1, -1, 0.5, 6.5),
        ("upload", -1, -1, 6.5, 7.0),
    ]
    assert drawn.caption.endswith("This run did not time its steps and layers; run it again (--again) to see them.")
    assert "white line" not in drawn.caption
    assert not [trace for trace in drawn.figure.data if trace.meta.get("is_ink")]


@pytest.mark.parametrize("number", [-1, 3, 99])
def test_a_round_that_is_not_there_is_refused(tmp_path, number):
    run = read_run(write_run(tmp_path, "a", 1, [0.5]))
    with pytest.raises(BadInput, match=f"there is no round {number}; choose from 0 to 2"):
        draw_round(run, number)


# ---- words ----------------------------------------------------------------------------------------------------------


def test_the_finding_counts_the_devices_heard_and_the_computing_that_was_dropped(tmp_path):
    """Of the slow device's 6 s 4 s count, of the fast one's 6 s all: a sixth is dropped."""
    title = draw_round(played(tmp_path, "stsyn", TWO, k=1, local_steps=3), 0).title
    assert title == (
        "Round 0 of stsyn, seed 1: the work of 2 of 2 devices entered the model after 7 s; "
        "16.7 % of the computing was dropped."
    )


@pytest.mark.parametrize(
    ("kind", "words", "dash"),
    [
        ("fedavg", "9th arrival", "solid"),
        ("drop_stragglers", "deadline", "dot"),
        ("stsyn", "3rd finisher", "solid"),
        ("salf", "deadline", "dot"),
        ("fedbuff", "an arrival", "solid"),
    ],
)
def test_the_end_of_the_wait_is_a_vertical_dotted_for_a_deadline(runs, kind, words, dash):
    run = runs[kind]
    facts = round_facts(run, 2)
    assert decision(facts) == words
    (line,) = [trace for trace in draw_round(run, 2).figure.data if trace.meta.get("is_ink")]
    decided_s, start_s = run.rounds.loc[2, ["decided_s", "start_s"]]
    assert list(line.x) == [decided_s - start_s] * 2
    assert line.line.dash == dash


def test_numbers_in_a_row_are_named_as_in_english():
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 102, 113)] == [
        *("1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "102nd", "113th")
    ]


# ---- the picture ----------------------------------------------------------------------------------------------------


def bars(figure, phase):
    """(row, from, to) of a phase's bars."""
    own = [trace for trace in figure.data if trace.type == "bar" and trace.meta.get("phase") == phase and trace.base]
    drawn = [zip(trace.y, trace.base, trace.x, strict=True) for trace in own]
    return sorted((row, base, base + length) for part in drawn for row, base, length in part)


@pytest.mark.parametrize("kind", POLICIES)
def test_few_devices_have_a_bar_for_every_segment(runs, kind):
    drawn = draw_round(runs[kind], 1)
    for phase, own in drawn.frame.groupby("phase"):
        expected = np.array(sorted(own[["row", "start_s", "end_s"]].itertuples(index=False, name=None)))
        np.testing.assert_allclose(bars(drawn.figure, phase), expected, rtol=2e-5, atol=1e-4)


def test_layers_are_lighter_towards_the_input(tmp_path):
    figure = draw_round(played(tmp_path, "fedavg", TWO, local_steps=1), 0).figure
    shaded = sorted((trace for trace in figure.data if "shade" in trace.meta), key=lambda trace: trace.base[0])
    lightness = [sum(int(trace.marker.color[i : i + 2], 16) for i in (1, 3, 5)) for trace in shaded]
    assert len(shaded) == 4
    assert lightness == sorted(lightness)
    assert lightness[0] < lightness[-1]


def test_a_white_line_ends_every_step_but_the_last(tmp_path):
    figure = draw_round(played(tmp_path, "fedavg", TWO, local_steps=3), 0).figure
    (ticks,) = [trace for trace in figure.data if trace.name == "end of a step"]
    assert [x for x in ticks.x if x is not None] == pytest.approx([2.5, 2.5, 4.5, 4.5, 4.5, 4.5, 8.5, 8.5])


@pytest.mark.parametrize("kind", POLICIES)
def test_the_legend_is_the_same_in_every_timeline(runs, crowd, kind):
    for figure in (draw_round(runs[kind], 1).figure, draw_round(crowd, 0).figure):
        shown = [trace.name for trace in figure.data if trace.showlegend is not False]
        assert shown == [PHASE_WORDS[phase] for phase in ("download", "compute", "upload", "dropped")]


def test_names_of_layers_are_text_and_no_markup(tmp_path):
    run = played(tmp_path, "fedavg", TWO, local_steps=1)
    manifest = json.loads((run.folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["layers"][3]["name"] = "<b>out</b>"
    (run.folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    figure = draw_round(read_run(run.folder), 0).figure
    words = [one for trace in figure.data if trace.type == "bar" and trace.base for one in trace.customdata]
    assert any("&lt;b&gt;out&lt;/b&gt;" in one for one in words)
    assert not any("<b>" in one for one in words)


def areas(figure):
    """Device-seconds of each phase as painted: what lies behind is covered by what is drawn later."""
    painted, total = {}, 0.0
    shapes = [trace for trace in figure.data if trace.type == "scatter" and trace.fill == "toself"]
    for trace in reversed(shapes):
        covered = 0.0
        x, y = (
            np.array([np.nan if value is None else value for value in values], float) for values in (trace.x, trace.y)
        )
        breaks = np.flatnonzero(np.isnan(x))
        for begin, end in zip([0, *(breaks[:-1] + 1)], breaks, strict=True):
            px, py = x[begin:end], y[begin:end]
            covered += abs(np.sum(px * np.roll(py, -1) - np.roll(px, -1) * py)) / 2
        painted[trace.meta["phase"]] = covered - total
        total = covered
    return painted


def test_the_area_of_a_phase_is_the_time_that_the_devices_spent_in_it(crowd):
    """Ends are rounded to a 400th of the round, so each segment may miss by one of these at most."""
    drawn = draw_round(crowd, 0)
    span_s = drawn.frame["end_s"] - drawn.frame["start_s"]
    one_tick_s = round_facts(crowd, 0).length_s / 400
    painted = areas(drawn.figure)
    for phase in ("download", "compute", "upload", "dropped"):
        own = drawn.frame["phase"] == phase
        n_blocks = drawn.frame[own].groupby("row").ngroups  # a device's segments of a phase follow one another
        assert painted[phase] == pytest.approx(span_s[own].sum(), abs=one_tick_s * n_blocks)
    assert painted["dropped"] > 0


def test_many_devices_share_rows_and_those_of_whom_nothing_is_kept_stand_apart(crowd):
    drawn = draw_round(crowd, 0)
    marks = [trace for trace in drawn.figure.data if trace.type == "scatter" and trace.mode == "markers"]
    words = list(dict.fromkeys(marks[0].customdata))
    assert 40 <= len(words) <= 75
    assert words[0].startswith("places 1 to 20:<br>")
    is_lost = ["computing" not in one for one in words]
    assert is_lost == sorted(is_lost)
    assert words[is_lost.index(True)].startswith("places 951 to ")
    assert "1,000 devices in the order" in drawn.caption
    assert len(drawn.figure.to_json()) < 200_000


def test_a_zoom_gives_these_places_a_row_each(crowd):
    drawn = draw_round(crowd, 0, devices=(200, 240))
    rows = {row for row, *_ in bars(drawn.figure, "download")}
    assert rows == set(range(200, 240))
    assert list(drawn.figure.layout.yaxis.range) == [239.5, 199.5]
    order = drawn.frame.drop_duplicates("row").sort_values("row")["device"]
    assert list(drawn.figure.layout.yaxis.ticktext) == [str(device) for device in order[200:240]]
    assert drawn.caption.startswith("Places 201 to 240 of 1,000 devices")


def test_places_beyond_the_devices_are_cut_off_and_none_at_all_refused(crowd):
    assert list(draw_round(crowd, 0, devices=(990, 5_000)).figure.layout.yaxis.range) == [999.5, 989.5]
    with pytest.raises(BadInput, match="devices 1000 to 1010: this round has 1000; choose from 0 to 1000"):
        draw_round(crowd, 0, devices=(1_000, 1_010))


def test_the_two_halves_draw_what_the_whole_draws(runs):
    run = runs["stsyn"]
    frame, facts = timeline_frame(run, 1), round_facts(run, 1)
    by_halves = round_timeline(frame, facts, layer_names=run.layer_names)
    assert by_halves.to_json() == draw_round(run, 1).figure.to_json()
