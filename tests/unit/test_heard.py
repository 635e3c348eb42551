"""Who was heard, how far a version moves the model, and what was wasted: from run folders to summary, terminal and page.

The folders are made by hand, so that each number can be worked out beside them.
"""

from __future__ import annotations

import csv
import json

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from fedsim.commands.ending import heard as heard_at_the_end
from fedsim.dashboard import device_frames, figures, findings
from fedsim.dashboard.palette import styles
from fedsim.dashboard.report import report
from fedsim.statistics.effective_step import effective_step, of_the_largest
from fedsim.statistics.heard import heard
from fedsim.statistics.reading import BrokenRunError, read_run, read_scenario
from fedsim.statistics.summary import summarise, summary, write_summary
from tests.run_folders import add_classes, climb, write_run


def run_of(folder, label="a", seed=0, *, position=0, round_s=(1.0, 2.0, 4.0), **classes):
    """A finished run of three rounds with two classes: the fast devices send 3 updates a round, the slow ones 1."""
    made = write_run(folder, label, seed, climb(20), position=position, round_s=round_s)
    return read_run(add_classes(made, **{"n_used": [[3, 1]] * 3, **classes}))


# ---- shares ---------------------------------------------------------------------------------------------------------


def test_shares_are_of_the_whole_run_and_stand_beside_those_of_the_devices(tmp_path):
    """Rounds count by what they hold: 2 + 1 + 5 of 10 updates are fast, 9 of 12 steps, 0.5 of 2 in weight."""
    run = run_of(
        tmp_path,
        n_used=[[2, 1], [1, 1], [5, 0]],
        n_steps=[[3, 1], [1, 2], [5, 0]],
        weight_sum=[[0.25, 0.75], [0.125, 0.75], [0.125, 0.0]],
        n_devices=(3, 1),
    )
    fast, slow = heard(run)
    assert (fast.name, fast.unit_s, slow.name, slow.unit_s) == ("fastest", 1.0, "slowest", 2.0)
    assert (fast.device_share, fast.update_share, fast.step_share, fast.weight_share) == (0.75, 0.8, 0.75, 0.25)
    assert (slow.device_share, slow.update_share, slow.step_share, slow.weight_share) == (0.25, 0.2, 0.25, 0.75)


def test_a_run_in_which_no_update_was_used_has_no_shares(tmp_path):
    slow = heard(run_of(tmp_path, n_used=[[0, 0]] * 3))[1]
    assert (slow.device_share, slow.update_share, slow.step_share, slow.weight_share) == (0.5, None, None, None)


def test_a_class_is_served_as_well_as_the_final_model_does_on_its_labels(tmp_path):
    """0.2 x 0.9 + 0.8 x 0.4 = 0.5; a label that was never evaluated leaves those who hold it without an answer."""
    shares = [[1.0, 0.0, 0.0], [0.2, 0.8, 0.0]]
    run = run_of(tmp_path, label_share=shares, label_accuracy=[0.9, 0.4, None])
    assert [one.accuracy for one in heard(run)] == pytest.approx([0.9, 0.5])
    run = run_of(tmp_path, seed=1, label_share=[[1.0, 0.0, 0.0], [0.2, 0.7, 0.1]], label_accuracy=[0.9, 0.4, None])
    assert [one.accuracy for one in heard(run)] == [pytest.approx(0.9), None]


def test_without_labels_or_with_one_class_of_devices_there_is_no_accuracy_on_a_mix(tmp_path):
    assert [one.accuracy for one in heard(run_of(tmp_path))] == [None, None]
    one = run_of(tmp_path, seed=1, n_used=[[4]] * 3, names=("all",), n_devices=(4,), label_accuracy=[0.9, 0.4])
    assert [(each.name, each.update_share, each.accuracy) for each in heard(one)] == [("all", 1.0, None)]


# ---- effective step -------------------------------------------------------------------------------------------------


def test_the_effective_step_is_the_root_mean_square_over_versions_and_parameters(tmp_path):
    """Ten parameters a layer. Norms 3, 1 and 2 in three rounds: the root of (9 + 1 + 4) / 3 / 10."""
    run = run_of(tmp_path)
    run.layers["change_norm"] = [3.0, 0.0, 1.0, 0.5, 2.0, 0.0]
    assert effective_step(run) == {
        "input": pytest.approx(np.sqrt(14 / 3 / 10)),
        "output": pytest.approx(np.sqrt(0.25 / 3 / 10)),
    }


def test_an_aggregate_that_changed_nothing_is_no_version(tmp_path):
    run = run_of(tmp_path)
    run.layers["change_norm"] = [3.0, 3.0, 0.0, 0.0, 4.0, 4.0]
    run.rounds["version"] = [1, 1, 2]
    assert effective_step(run)["input"] == pytest.approx(np.sqrt(25 / 2 / 10))
    run.rounds["version"] = [0, 0, 0]
    assert effective_step(run) == {"input": None, "output": None}


def test_a_model_that_diverged_has_no_effective_step_in_the_layer_that_did(tmp_path):
    assert effective_step(run_of(tmp_path, change_norm=(np.inf, 0.5))) == {
        "input": None,
        "output": pytest.approx(0.5 / np.sqrt(10)),
    }


def test_steps_are_compared_with_the_largest_under_the_same_seed():
    """Seed 1 makes longer steps for all: it must not make those of seed 0 look small."""
    steps = [{"input": 0.6, "output": 0.2}, {"input": 6.0, "output": 2.0}]
    steps += [{"input": 0.3, "output": 0.8}, {"input": 6.0, "output": None}]
    shares = of_the_largest([0, 1, 0, 1], steps)
    assert shares[0] == pytest.approx({"input": 1.0, "output": 0.25})
    assert shares[1] == {"input": 1.0, "output": 1.0}
    assert shares[2] == {"input": 0.5, "output": 1.0}
    assert shares[3] == {"input": 1.0, "output": None}


def test_where_nothing_moved_there_is_no_largest_step():
    assert of_the_largest([0, 0], [{"input": 0.0}, {"input": None}]) == [{"input": None}, {"input": None}]


# ---- summary --------------------------------------------------------------------------------------------------------


def test_the_summary_holds_every_share_and_what_was_wasted(tmp_path):
    run = run_of(tmp_path, label_share=[[1.0, 0.0], [0.5, 0.5]], label_accuracy=[0.9, 0.1], staleness=2.0)
    row = summarise(run)
    assert row["device_share"] == {"fastest": 0.5, "slowest": 0.5}
    assert row["update_share"] == row["step_share"] == row["weight_share"] == {"fastest": 0.75, "slowest": 0.25}
    assert row["mix_accuracy"] == {"fastest": 0.9, "slowest": pytest.approx(0.5)}
    assert row["effective_step"] == pytest.approx({"input": 0.6 / np.sqrt(10), "output": 0.2 / np.sqrt(10)})
    assert (row["wasted_flops"], row["wasted_uploaded_bytes"], row["wasted_downloaded_bytes"]) == (750.0, 75, 150)
    assert (row["staleness_mean"], row["staleness_max"]) == (2.0, 2)


def test_staleness_is_a_mean_over_contributions_and_not_over_rounds(tmp_path):
    run = run_of(tmp_path)
    run.rounds[["staleness_mean", "staleness_max"]] = [[0.0, 0.0], [2.0, 4.0], [np.nan, np.nan]]
    run.rounds["n_contributions"] = [3, 1, 0]
    row = summarise(run)
    assert (row["staleness_mean"], row["staleness_max"]) == (0.5, 4)


def test_classes_and_layers_have_columns_of_their_own_in_the_table(tmp_path):
    runs = [run_of(tmp_path / "s", "a"), run_of(tmp_path / "s", "b", position=1, change_norm=(0.3, 0.2))]
    json_path, csv_path = write_summary(tmp_path / "s", summary(runs))
    assert json.loads(json_path.read_text())[1]["effective_step_share"] == pytest.approx({"input": 0.5, "output": 1.0})
    row = list(csv.DictReader(csv_path.read_text().splitlines()))[1]
    assert (row["update_share@slowest"], row["mix_accuracy@slowest"]) == ("0.25", "")
    assert float(row["effective_step_share@input"]) == pytest.approx(0.5)


# ---- runs from before -----------------------------------------------------------------------------------------------


def test_a_run_from_before_there_were_classes_is_read_and_says_nothing_of_them(tmp_path):
    run = read_run(write_run(tmp_path / "s", "old", 0, climb(20)))
    assert (run.speed_classes, heard(run), len(run.classes), run.devices) == ([], [], 0, None)
    row = summarise(run)
    assert (row["update_share"], row["staleness_mean"], row["staleness_max"]) == ({}, None, None)
    assert (row["wasted_flops"], row["wasted_uploaded_bytes"]) == (750.0, None)
    assert row["effective_step"] == {"input": None, "output": None}
    assert heard_at_the_end([run]) is None
    page = report("demo", [run])
    assert "These runs do not say how fast each device is. Run the scenario again (--again)" in page
    assert "Effective step" not in page
    assert "not recorded" in page


def test_a_run_whose_table_of_classes_is_gone_is_not_finished(tmp_path):
    folder = run_of(tmp_path / "s").folder
    (folder / "classes.parquet").unlink()
    with pytest.raises(BrokenRunError, match=r"no classes\.parquet"):
        read_run(folder)


# ---- terminal and page ----------------------------------------------------------------------------------------------

MIXES = {"label_share": [[1.0, 0.0], [0.5, 0.5]], "label_accuracy": [0.9, 0.1]}


@pytest.fixture
def runs(tmp_path):
    """Policy "even" hears slow and fast alike; "eager" mostly the fast ones, and moves the input layer half as far."""
    for seed in range(2):
        run_of(tmp_path / "demo", "even", seed, n_used=[[2, 2]] * 3, **MIXES)
        run_of(tmp_path / "demo", "eager", seed, position=1, change_norm=(0.3, 0.2), **MIXES)
    return read_scenario(tmp_path / "demo")


def told(table):
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_a_command_ends_with_who_was_heard_under_each_policy(runs):
    words = told(heard_at_the_end(runs))
    assert max(map(len, words.splitlines())) <= 100
    rows = [" ".join(line.split()) for line in words.splitlines() if line.startswith("e")]
    assert rows == ["even 50 % 50 % 90 % 1.00-1.00 25 % 16.7 %", "eager 25 % 50 % 90 % 0.50-1.00 25 % 16.7 %"]


def test_where_nobody_is_slow_for_good_only_steps_are_told_of(tmp_path):
    run = run_of(tmp_path, n_used=[[4]] * 3, names=("all",), n_devices=(4,))
    words = told(heard_at_the_end([run]))
    assert "slowest" not in words
    assert "1.00-1.00" in words
    page = report("demo", [run])
    assert "nobody is slow for good" in page
    assert "Effective step" in page
    assert "who_was_heard" not in page


def test_the_page_shows_who_was_heard_as_figure_and_table(runs):
    page = report("demo", runs)
    assert 'id="who_was_heard"' in page
    assert "The slowest devices, 50 % of all, sent 25 % (eager) to 50 % (even) of the updates that were used." in page
    table = page[page.index("Who was heard: median over seeds") : page.index("Devices are slow or fast by")]
    rows = [row.replace("</td>", " ").replace("<td>", "") for row in table.split("<tr>") if "eager" in row]
    assert ["fastest 1 s 50 % 75 % 75 % 75 % 90 %" in row for row in rows] == [True, False]
    assert "slowest 2 s 50 % 25 % 25 % 25 % 50 %" in rows[1]
    steps = page[page.index("Effective step: root-mean-square") :]
    steps = steps[: steps.index("</table>")]
    assert (steps.count("0.5 of the largest"), steps.count("1 of the largest")) == (1, 3)
    assert "uploads wasted" in page


def test_the_drawn_shares_add_up_over_all_rounds_and_seeds(runs):
    """A seed whose rounds hold more counts more: of "eager", 10 of 20 in each round of one seed, 1 of 4 of the other."""
    runs[2].classes["n_used"] = [10, 10] * 3
    frame = device_frames.heard_frame(runs)
    assert frame["policy"].tolist() == ["even", "even", "eager", "eager"]
    assert frame["speed_class"].tolist() == ["fastest", "slowest"] * 2
    assert frame["update_share"].tolist() == pytest.approx([0.5, 0.5, 13 / 24, 11 / 24])
    sums = frame.groupby("policy")[["device_share", "update_share", "step_share", "weight_share"]].sum()
    np.testing.assert_allclose(sums, 1.0)


def test_seeds_that_drew_other_fleets_are_put_together_by_the_names_of_their_classes(tmp_path):
    three = {"names": ("fastest", "middle", "slowest"), "n_devices": (1, 2, 1), "n_used": [[1, 2, 1]] * 3}
    run_of(tmp_path / "demo", "a", 0)
    run_of(tmp_path / "demo", "a", 1, **three)
    frame = device_frames.heard_frame(read_scenario(tmp_path / "demo")).set_index("speed_class")
    assert frame["place"].to_dict() == {"fastest": 0, "middle": 1, "slowest": 2}
    assert frame["device_share"].to_dict() == pytest.approx({"fastest": 3 / 8, "middle": 2 / 8, "slowest": 3 / 8})
    assert frame["update_share"].to_dict() == pytest.approx({"fastest": 4 / 8, "middle": 2 / 8, "slowest": 2 / 8})


def test_a_policy_that_used_no_update_has_no_bar_and_the_page_is_still_written(tmp_path):
    run_of(tmp_path / "demo", "mute", 0, n_used=[[0, 0]] * 3)
    mute = read_scenario(tmp_path / "demo")
    assert device_frames.heard_frame(mute).empty
    assert "none used" in report("demo", mute)
    run_of(tmp_path / "demo", "a", 0, position=1)
    both = read_scenario(tmp_path / "demo")
    assert device_frames.heard_frame(both)["policy"].tolist() == ["a", "a"]
    assert findings.who_was_heard(device_frames.heard_frame(both)).startswith(
        "The slowest devices, 50 % of all, sent 25 % (a)"
    )


def test_a_line_at_the_share_of_the_devices_crosses_the_bars_of_its_class(runs):
    figure = figures.who_was_heard(device_frames.heard_frame(runs), styles([("even", "x"), ("eager", "y")]))
    *bars, line = figure.data
    assert [bar.type for bar in bars] == ["bar", "bar"]
    assert [pd.isna(y) for y in line.y] == [False, False, True] * 2
    assert [y for y in line.y if not pd.isna(y)] == [0.5] * 4
    for place in (0, 1):
        left = min(place + bar.offset for bar in bars)
        right = max(place + bar.offset + bar.width for bar in bars)
        assert [x for x in line.x if x is not None][2 * place : 2 * place + 2] == pytest.approx([left, right])
