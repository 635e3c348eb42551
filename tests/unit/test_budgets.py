"""Accuracy and time traded against each other, and what the devices did with their time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedsim
from fedsim.dashboard import budgets, device_frames, figures, findings, frames
from fedsim.dashboard.drawing import Drawing, Place, csv
from fedsim.dashboard.drawings import drawings
from fedsim.dashboard.places import place_data
from fedsim.dashboard.report import write_report
from fedsim.statistics.comparison import compare_targets
from fedsim.statistics.reading import BrokenRunError, read_scenario
from tests.conftest import TINY
from tests.run_folders import add_classes, climb, write_run


def two_policies(folder):
    """Evaluated every 10 s: slow climbs to 60 s, quick is done after 20 s."""
    write_run(folder, "slow", 0, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9])
    for seed, top in enumerate([0.6, 0.7, 0.8]):
        write_run(folder, "quick", seed, [0.1, 0.5, top], position=1)
    return read_scenario(folder)


def at(frame, budget_s, policy):
    """The row of the largest budget up to this one."""
    own = frame[(frame["policy"] == policy) & (frame["budget_s"] <= budget_s)]
    return own.iloc[-1]


def test_the_accuracy_at_a_budget_is_that_of_the_last_evaluation_by_then(tmp_path):
    frame = budgets.budget_frame(two_policies(tmp_path / "s"))
    assert (frame["budget_s"].min(), frame["budget_s"].max()) == (10.0, 60.0)
    row = at(frame, 19.9, "quick")
    assert (row["accuracy"], row["n_seeds"], row["has_ended"]) == (0.5, 3, False)
    assert at(frame, 29.9, "slow")["accuracy"] == 0.3


def test_a_run_that_ended_earlier_stands_for_its_last_accuracy_and_says_so(tmp_path):
    frame = budgets.budget_frame(two_policies(tmp_path / "s"))
    row = at(frame, 60.0, "quick")
    assert (row["accuracy"], row["low"], row["high"]) == (0.7, 0.6, 0.8)
    assert (row["has_ended"], row["known_s"]) == (True, 20.0)
    assert not at(frame, 60.0, "slow")["has_ended"]
    figure = figures.accuracy_at_budget(frame[frame["budget_s"] == 60.0])
    slow, quick = figure.data
    assert (slow.marker.symbol, quick.marker.symbol) == ("circle", "circle-open")
    assert quick.hovertemplate == (
        "quick: %{x:.1%} (60.0% to 80.0% over seeds) when its runs had ended, after 20 s<extra></extra>"
    )
    assert (
        findings.accuracy_at_budget(frame[frame["budget_s"] == 60.0]) == "With 60 s slow has the most: 90 % (median)."
    )


def test_a_run_that_was_never_evaluated_has_no_place_at_a_budget(tmp_path):
    write_run(tmp_path / "s", "clock alone", 0, [])
    assert budgets.budget_frame(read_scenario(tmp_path / "s")).empty


def test_the_front_holds_what_no_policy_had_sooner(tmp_path):
    """quick: 50 % after 10 s, 70 % after 20 s; slow is ahead with 90 % alone, after 60 s."""
    frame = budgets.front_frame(two_policies(tmp_path / "s"))
    front = frame[frame["is_front"]]
    assert list(zip(front["policy"], front["time_s"], front["accuracy"], strict=True)) == [
        ("slow", 60.0, 0.9),
        ("quick", 10.0, 0.5),
        ("quick", 20.0, 0.7),
    ]
    assert (
        findings.pareto_front(frame)
        == "The highest median accuracy so far has quick from 10 s on then slow from 60 s on."
    )


@given(st.lists(st.lists(st.sampled_from([0.1, 0.2, 0.4, 0.7]), min_size=2, max_size=6), min_size=1, max_size=3))
def test_nobody_on_the_front_is_beaten_and_whoever_is_not_on_it_is(tmp_path_factory, curves):
    folder = tmp_path_factory.mktemp("runs") / "s"
    for position, accuracy in enumerate(curves):
        write_run(folder, f"p{position}", 0, accuracy, position=position)
    frame = budgets.front_frame(read_scenario(folder))
    for i, row in frame.iterrows():
        others = frame.drop(index=i)
        sooner = (others["time_s"] < row["time_s"]) & (others["accuracy"] >= row["accuracy"])
        more = (others["time_s"] == row["time_s"]) & (others["accuracy"] > row["accuracy"])
        same = (others["time_s"] == row["time_s"]) & (others["accuracy"] == row["accuracy"])
        assert not (row["is_front"] and (sooner | more).any())
        assert row["is_front"] or (sooner | more | same).any()


def test_a_ring_stands_at_each_median_time_to_a_target(tmp_path):
    for seed, reached_at in enumerate([10, 20, 30]):
        write_run(tmp_path / "s", "a", seed, climb(reached_at))
    write_run(tmp_path / "s", "never", 0, climb(None), position=1)
    runs = [run for run in read_scenario(tmp_path / "s") if run.seed == 0 or run.label == "a"]
    reached = budgets.reached_frame(compare_targets([run for run in runs if run.label == "a"]))
    assert reached.to_dict("records") == [{"policy": "a", "target": 0.9, "time_s": 200.0}]
    assert budgets.reached_frame(compare_targets([run for run in runs if run.label == "never"])).empty
    ring = figures.curve(frames.curve_frame(runs, "time_s"), targets=[0.9], reached=reached).data[-1]
    assert (ring.x, ring.y, ring.marker.symbol) == ((200.0,), (0.9,), "circle-open")


# ---- what accuracy may be drawn against -----------------------------------------------------------------------------


def test_any_column_that_never_falls_is_an_axis(tmp_path):
    folder = write_run(tmp_path / "s", "a", 0, [0.1, 0.2, 0.3])
    path = folder / "evaluations.parquet"
    table = pd.read_parquet(path).assign(
        energy_joules=[0.0, 5.0, 5.0], temperature=[20.0, 30.0, 25.0], gap=[0, np.nan, 1]
    )
    table.to_parquet(path)
    runs = read_scenario(tmp_path / "s")
    assert frames.axes_of(runs) == [
        *["time_s", "round", "uploaded_bytes", "downloaded_bytes", "device_flops", "energy_joules"]
    ]
    drawn = figures.curve(frames.curve_frame(runs, "energy_joules"), over="energy_joules")
    assert drawn.layout.xaxis.title.text == "energy (joules)"
    assert findings.curve(frames.curve_frame(runs, "energy_joules"), "energy_joules", "accuracy") == (
        "With 5 joules energy the median accuracy is 30 % (a)."
    )


def test_without_evaluations_there_is_no_axis(tmp_path):
    write_run(tmp_path / "s", "a", 0, [])
    assert frames.axes_of(read_scenario(tmp_path / "s")) == []


# ---- what the devices did with their time ---------------------------------------------------------------------------

TASKS = pd.DataFrame(
    [
        # round, outcome, sent, downloaded, computed, arrived; rounds end at 5 and 10 s
        (0, "used", 0.0, 1.0, 3.0, 5.0),
        (0, "cancelled", 0.0, 1.0, np.nan, np.nan),  # until the round was closed
        (1, "empty", 5.0, 6.0, 8.0, np.nan),  # stopped after 3 s with nothing to send
        (1, "dropped", 5.0, 6.0, 7.0, 9.0),
        (2, "open", 8.0, 9.0, np.nan, np.nan),  # computing when the last round was closed
        (2, "open", 10.0, np.nan, np.nan, np.nan),  # sent as the last round was closed
    ],
    columns=["round", "outcome", "sent_s", "downloaded_s", "computed_s", "arrived_s"],
)


def with_tasks(folder, tasks):
    run = write_run(folder, "a", 0, [], round_s=[5.0, 5.0])
    tasks.to_parquet(run / "tasks.parquet")
    return read_scenario(folder)


def test_the_time_of_all_devices_is_divided_among_the_phases(tmp_path):
    """Four devices for 10 s: 40 device-seconds."""
    frame = device_frames.time_shares_frame(with_tasks(tmp_path / "s", TASKS))
    shares = dict(zip(frame["phase"], 40 * frame["share"], strict=True))
    assert shares == pytest.approx(
        {"download": 1.0 + 1.0, "compute": 2.0 + 1.0, "upload": 2.0, "dropped": 5.0 + 3.0 + 4.0, "waiting": 21.0}
    )
    assert findings.time_shares(frame) == "Devices spend 7.5 % (a) of their time computing what counts."
    assert [bar.name for bar in figures.time_shares(frame).data] == list(figures.PHASE_WORDS.values())


def test_runs_without_tasks_have_no_shares_of_time(tmp_path):
    write_run(tmp_path / "s", "a", 0, [])
    assert device_frames.time_shares_frame(read_scenario(tmp_path / "s")).empty


def test_a_table_of_tasks_that_cannot_be_read_is_named(tmp_path):
    runs = with_tasks(tmp_path / "s", TASKS.drop(columns="sent_s"))
    with pytest.raises(BrokenRunError, match=r"seed-0: tasks.parquet cannot be read .*run it again"):
        device_frames.time_shares_frame(runs)


@pytest.mark.parametrize("name", ["tasks", "milestones"])
def test_a_damaged_table_ends_a_report_with_one_line_that_names_it(tmp_path, name):
    loaded = fedsim.from_dict(TINY | {"train": False})
    folder = fedsim.run(loaded, out=tmp_path)
    path = next(folder.glob(f"*/*/{name}.parquet"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BrokenRunError, match=rf"{name}.parquet cannot be read \(.*\); run it again") as refused:
        write_report(folder, read_scenario(folder))
    assert "\n" not in str(refused.value)


# ---- who is served --------------------------------------------------------------------------------------------------


def test_each_class_is_served_by_the_accuracy_on_its_labels(tmp_path):
    """Two labels; the fastest hold the first alone, the slowest both alike."""
    for seed, first in enumerate([0.6, 0.8, 1.0]):
        run = write_run(tmp_path / "s", "a", seed, [0.5])
        add_classes(run, [[2, 2]] * 3, label_share=[[1.0, 0.0], [0.5, 0.5]], label_accuracy=[first, 0.4])
    frame = device_frames.served_frame(read_scenario(tmp_path / "s"))
    rows = frame.drop(columns=["policy", "place"]).to_dict("records")
    assert rows[0] == {"speed_class": "fastest", "accuracy": 0.8, "low": 0.6, "high": 1.0, "n_seeds": 3}
    assert rows[1] == pytest.approx({"speed_class": "slowest", "accuracy": 0.6, "low": 0.5, "high": 0.7, "n_seeds": 3})
    assert findings.served(frame) == "The accuracy on the labels of the slowest devices is 60 % (a)."


# ---- the list of figures --------------------------------------------------------------------------------------------


def test_every_figure_of_the_report_can_be_had_in_python(tmp_path):
    found = drawings(two_policies(tmp_path / "s"))
    assert [drawing.name for drawing in found][:3] == ["accuracy_over_time_s", "accuracy_at_budget", "pareto_front"]
    for drawing in found:
        assert drawing.title.endswith(".")
        assert all(trace.hovertemplate or trace.hoverinfo == "skip" for trace in drawing.figure.data), drawing.name


def test_a_figure_made_in_a_notebook_gives_its_policies_colours_of_their_own(tmp_path):
    slow, quick = figures.pareto_front(budgets.front_frame(two_policies(tmp_path / "s"))).data[:2]
    assert slow.line.color != quick.line.color


def test_a_frame_that_is_too_long_for_a_page_is_not_offered_there():
    frame = pd.DataFrame({"policy": "a", "x": range(5_001)})
    assert csv(frame) is None
    place = Place.of(Drawing("d", "Title.", "Caption.", figures.base_figure("x", "y"), frame))
    assert place_data(place)[""]["csv"] == {}
    assert csv(frame[:2]) == "policy,x\na,0\na,1\n"
