"""Slow devices that hold the last digits, from the scenario to the report: what must come out is known beforehand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import fedsim
from fedsim.cli import main
from fedsim.run import World
from fedsim.statistics.summary import summary

SCENARIO = {
    "name": "three_speeds",
    # Nothing is drawn anew: with a deadline of 4 s the slowest, 5 s a step, never finish one, and the others always do.
    "fleet": {"n_devices": 12, "compute": {"step_s": [1.0] * 4 + [2.0] * 4 + [5.0] * 4}},
    "data": {"kind": "digits", "partition": {"kind": "by_speed"}},
    "model": {"kind": "mlp", "widths": [32]},
    "training": {"learning_rate": 0.3},
    "policies": [
        {"kind": "fedavg", "local_steps": 1},
        {"kind": "drop_stragglers", "deadline_s": 4.0, "local_steps": 1, "label": "drop"},
        {"kind": "drop_stragglers", "deadline_s": 4.0, "local_steps": 1, "dilute": True, "label": "diluted"},
    ],
    "seeds": [1, 2],
    "evaluation": {"every_s": 10.0},
    "stop": {"simulated_s": 400},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of the runs, with summary and report."""
    folder = fedsim.run(fedsim.from_dict(SCENARIO), out=tmp_path_factory.mktemp("runs"))
    main_ends(["report", str(folder)])
    return folder


def main_ends(arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


@pytest.fixture(scope="module")
def rows(results):
    """The rows of the summary, by policy and seed."""
    return {(row["policy"], row["seed"]): row for row in summary(fedsim.read(results))}


def test_each_class_has_the_share_that_its_speed_and_the_deadline_give_it(rows):
    third, half = pytest.approx(1 / 3), pytest.approx(1 / 2)
    for seed in (1, 2):
        for share in ("device_share", "update_share", "step_share", "weight_share"):
            assert rows["fedavg", seed][share] == {"fastest": third, "middle": third, "slowest": third}
        for policy in ("drop", "diluted"):
            for share in ("update_share", "step_share", "weight_share"):
                assert rows[policy, seed][share] == {"fastest": half, "middle": half, "slowest": 0.0}


def test_who_is_never_heard_is_not_served(rows):
    """Nobody else holds 7, 8 and 9, and a model that never saw them cannot name them."""
    for seed in (1, 2):
        heard, never = (rows[policy, seed]["mix_accuracy"] for policy in ("fedavg", "drop"))
        assert never["fastest"] > 0.8
        assert never["slowest"] < 0.2 < heard["slowest"]


def test_the_accuracy_on_a_mix_is_that_of_the_labels_counted_device_by_device(results, rows):
    loaded = fedsim.from_dict(SCENARIO)
    for run in fedsim.read(results):
        world = World.of(loaded, next(s for s in loaded.scenario.seed_sets if s.seed == run.seed))
        labels = Counter(world.dealt.data.train_labels[np.concatenate(world.dealt.samples[8:])].tolist())
        accuracy = run.manifest["final"]["label_accuracy"]
        by_hand = sum(n * accuracy[label] for label, n in labels.items()) / labels.total()
        assert rows[run.label, run.seed]["mix_accuracy"]["slowest"] == pytest.approx(by_hand)
        last = run.evaluations.iloc[-1]
        assert last["accuracy_slowest"] == pytest.approx(by_hand)  # the grid has an evaluation at the end, on all rows
        n_of_label = np.bincount(world.dealt.data.test_labels, minlength=10)
        assert last["accuracy"] == pytest.approx(n_of_label @ np.array(accuracy) / n_of_label.sum())


def test_dividing_by_all_who_were_asked_makes_the_first_step_shorter_by_the_share_that_came(results):
    """From the same weights, with the same 8 of 12 updates; float32 keeps seven digits."""
    first = {(run.label, run.seed): run.layers.query("round == 0")["change_norm"] for run in fedsim.read(results)}
    for seed in (1, 2):
        np.testing.assert_allclose(first["diluted", seed], first["drop", seed] * 8 / 12, rtol=1e-5)


def test_what_the_slowest_do_for_nothing_is_a_third_of_the_downloads_and_none_of_the_uploads(rows):
    """They never come to upload; every round they compute for 4 of the 5 s of a step that is then thrown away."""
    for seed in (1, 2):
        drop = rows["drop", seed]
        assert drop["wasted_uploaded_bytes"] == 0
        assert drop["wasted_downloaded_bytes"] == pytest.approx(drop["downloaded_bytes"] / 3)
        assert 1 - drop["used_flops_share"] == pytest.approx(drop["wasted_flops"] / drop["device_flops"])
        # Four of twelve devices have done at most four fifths of a step where eight have done a whole one.
        assert 0 < drop["wasted_flops"] <= drop["device_flops"] * 3.2 / 11.2 * (1 + 1e-9)
        assert rows["fedavg", seed]["wasted_flops"] == rows["fedavg", seed]["wasted_downloaded_bytes"] == 0
        assert drop["staleness_max"] == 0


def test_the_report_tells_it(results):
    page = (results / "report.html").read_text(encoding="utf-8")
    assert (
        "The slowest devices, 33.3 % of all, sent 0 % (drop) to 33.3 % (fedavg) of the updates that were used." in page
    )
    for heading in ("Who was heard: median over seeds", "Effective step: root-mean-square", "Wasted of this: median"):
        assert heading in page
