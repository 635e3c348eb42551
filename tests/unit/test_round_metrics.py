"""What the tables say of each round beyond the clock: classes, staleness, waste, how far the model moved, label mixes.

First by hand on rounds told to the book; then on played runs, recounted from the tasks one by one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

import fedsim
from fedsim import weights
from fedsim.evaluations import Evaluations, Grid
from fedsim.facts import AggregateReport, Contributions, Evaluation
from fedsim.policies.drop_stragglers import DropStragglers
from fedsim.policies.k_sync import KSync
from fedsim.policies.salf import Salf
from fedsim.policies.stsyn import STSyn
from fedsim.records import RunBook
from fedsim.run import World, simulate
from fedsim.speed_classes import SpeedClasses
from fedsim.timing.book import ClosedJobs, ClosedRound
from fedsim.timing.server import SimServer
from fedsim.timing.untrained import Untrained
from fedsim.training.settings import ServerOptimizer
from tests.contract.test_stories import Story, fedasync, fedbuff
from tests.fakes import equal_layers
from tests.learning import bench

ALIKE = SpeedClasses.of(np.ones(4))
TWO_SPEEDS = SpeedClasses.of(np.array([1.0, 3.0, 1.0, 3.0]))
SHAPE = replace(equal_layers(2), n_parameters=np.array([30, 10]))


def contributions(device, *, n_steps, depth=None, version=None):
    device = np.array(device, dtype=np.int64)
    n_steps = np.array(n_steps, dtype=np.int64)
    depth = np.array([2] * len(device) if depth is None else depth, dtype=np.int64)
    return Contributions(
        device=device,
        ordinal=np.zeros_like(device),
        version=np.zeros_like(device) if version is None else np.array(version, dtype=np.int64),
        n_steps=n_steps,
        partial_depth=np.where(n_steps > 0, 0, depth),
        task_depth=np.full_like(device, 2),
        n_samples=np.ones_like(device),
        arrived_s=np.ones(len(device)),
        n_layers=2,
    )


def jobs(device, outcome, *, uploaded_bytes, downloaded_bytes):
    device = np.array(device, dtype=np.int64)
    zeros = np.zeros(len(device))
    names = ("sent_s", "downloaded_s", "computed_s", "arrived_s", "device_flops")
    return ClosedJobs(
        device=device,
        ordinal=np.zeros_like(device),
        version=np.zeros_like(device),
        asked_steps=np.ones_like(device),
        n_steps=np.ones_like(device),
        depth=np.ones_like(device),
        ended_s=0.0,
        **dict.fromkeys(names, zeros),
        uploaded_bytes=np.array(uploaded_bytes, dtype=float),
        downloaded_bytes=np.array(downloaded_bytes, dtype=float),
        outcome=outcome,
    )


def closed(used, table, version=1, change_norm=None):
    report = AggregateReport(version, is_finite=True, computed_flops=0.0, change_norm=change_norm)
    return ClosedRound(0.0, 1.0, 4, used, np.array(table, dtype=float).reshape(-1, 2), 0.0, report)


def book(speed=TWO_SPEEDS, **settings):
    return RunBook(Untrained(SHAPE), None, speed=speed, **settings)


def table(kept, name="rounds"):
    return pd.DataFrame(kept.tables()[name])


# ---- rounds told by hand --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record_tasks", [True, False])
def test_updates_steps_and_weight_are_counted_by_class(record_tasks):
    """Device 0 is fast, 1 and 3 are slow; 3 reached the output layer only, which holds 10 of 40 parameters."""
    kept = book(record_tasks=record_tasks)
    used = contributions([0, 1, 3], n_steps=[4, 2, 0], depth=[2, 2, 1])
    # A row of zeros is a contribution that was not used; a weight in a layer that is not held moves nothing.
    kept.round_closed(closed(used, [[0.5, 0.4], [0.0, 0.0], [0.3, 0.2], [0.9, 0.4]]))
    found = table(kept, "classes")
    assert found["round"].tolist() == [0, 0]
    assert found["speed_class"].tolist() == [0, 1]
    assert found["n_used"].tolist() == [1, 2]
    assert found["n_steps"].tolist() == [4, 2]
    fast, slow = 0.5 * 0.75 + 0.4 * 0.25, (0.3 * 0.75 + 0.2 * 0.25) + 0.4 * 0.25
    assert found["weight_sum"].tolist() == pytest.approx([fast, slow])


def test_a_fleet_without_classes_is_one_class():
    for speed in (ALIKE, None):
        kept = book(speed)
        kept.round_closed(closed(contributions([2, 3], n_steps=[1, 1]), [[0.5, 0.5]] * 2))
        found = table(kept, "classes")
        assert found[["speed_class", "n_used", "n_steps"]].to_numpy().tolist() == [[0, 2, 2]]
        assert found["weight_sum"].tolist() == [1.0]


def test_staleness_is_how_many_versions_the_model_had_moved_on():
    """By the third round the model is at version 2; the round's own version does not count."""
    kept = book()
    kept.round_closed(closed(contributions([0], n_steps=[1]), [[1, 1]], version=1))
    kept.round_closed(closed(contributions([1], n_steps=[1], version=[1]), [[1, 1]], version=2))
    kept.round_closed(closed(contributions([0, 1, 2], n_steps=[1] * 3, version=[0, 2, 1]), [[1, 1]] * 3, version=3))
    assert table(kept)["staleness_mean"].tolist() == [0.0, 0.0, 1.0]
    assert table(kept)["staleness_max"].tolist() == [0.0, 0.0, 2.0]


def test_an_empty_round_has_no_staleness_and_no_class_was_heard_in_it():
    kept = book()
    kept.round_closed(closed(contributions([], n_steps=[]), [], version=0))
    assert table(kept)[["staleness_mean", "staleness_max"]].isna().all(axis=None)
    assert table(kept, "classes")[["n_used", "n_steps", "weight_sum"]].to_numpy().tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("record_tasks", [True, False])
def test_bytes_are_wasted_by_every_job_that_was_not_used(record_tasks):
    """Of two that were taken one is used; what was cancelled on its way and what was empty came to nothing."""
    kept = book(record_tasks=record_tasks)
    kept.jobs_closed(jobs([3, 0], "taken", uploaded_bytes=[80, 40], downloaded_bytes=[100, 100]))
    kept.jobs_closed(jobs([1], "cancelled", uploaded_bytes=[7], downloaded_bytes=[100]))
    kept.jobs_closed(jobs([2], "empty", uploaded_bytes=[0], downloaded_bytes=[60]))
    kept.round_closed(closed(contributions([3], n_steps=[1]), [[1, 1]]))
    kept.jobs_closed(jobs([1], "taken", uploaded_bytes=[80], downloaded_bytes=[100]))
    kept.round_closed(closed(contributions([1], n_steps=[1]), [[1, 1]], version=2))
    found = table(kept)
    assert found["uploaded_bytes"].tolist() == [127, 80]
    assert found["wasted_uploaded_bytes"].tolist() == [47, 0]
    assert found["wasted_downloaded_bytes"].tolist() == [260, 0]


def test_how_far_the_model_moved_is_unknown_where_nothing_was_trained():
    kept = book()
    kept.round_closed(closed(contributions([0], n_steps=[1]), [[1, 1]], change_norm=np.array([0.25, 2.0])))
    kept.round_closed(closed(contributions([0], n_steps=[1]), [[1, 1]], version=2))
    assert table(kept, "layers")["change_norm"].tolist() == pytest.approx([0.25, 2.0, np.nan, np.nan], nan_ok=True)


# ---- played runs, recounted from their tasks ------------------------------------------------------------------------

FLEET = {
    "n_devices": 6,
    "compute": {"step_s": [1.0, 3.0, 1.5, 1.0, 3.0, 1.5], "task_factor": {"kind": "exponential"}},
    "uplink": {"rate_bits_per_s": 20_000.0},
    "downlink": {"rate_bits_per_s": 40_000.0, "latency_s": 0.1},
}
POLICIES = {
    "drop_stragglers": DropStragglers(deadline_s=2.5, local_steps=1),
    "diluted": DropStragglers(deadline_s=2.5, local_steps=1, dilute=True),
    "k_sync": KSync(k=3),
    "stsyn": STSyn(k=3, local_steps=2),
    "stsyn, most updated dropped": STSyn(k=3, local_steps=2, cap_factor=2.0, drop_most_updated=True),
    "salf": Salf(deadline_s=1.0),
    "fedasync": Story(fedasync),
    "fedbuff": Story(fedbuff),
}


def play(tiny, policy):
    """The tables of 25 rounds on three speeds as frames by name, and the parameters of each layer."""
    loaded = fedsim.from_dict(tiny(fleet=FLEET, train=False, seeds=[4]))
    world = World.of(loaded, loaded.scenario.seed_sets[0]).planned_for(loaded.contenders[0])
    kept = RunBook(Untrained(world.shape), None, n_rounds=25, speed=world.speed)
    assert SimServer(world.weather, kept.learner, kept).play(policy).reason == "stop.n_rounds is reached"
    tables = {name: pd.DataFrame(columns) for name, columns in kept.tables().items()}
    return tables | {"devices": pd.DataFrame(world.devices())}, world.shape.n_parameters


@pytest.fixture(scope="module", params=POLICIES)
def played(tiny, request):
    return play(tiny, POLICIES[request.param])


def by_round(tasks, column):
    return tasks.groupby("round")[column].sum().reindex(range(25), fill_value=0)


def test_the_updates_and_steps_of_a_class_are_those_of_its_devices_tasks(played):
    tables, _ = played
    used = tables["tasks"].query("outcome == 'used'").merge(tables["devices"], on="device")
    found = tables["classes"].set_index(["round", "speed_class"])
    counted = used.groupby(["round", "speed_class"])["n_steps"].agg(["size", "sum"]).reindex(found.index, fill_value=0)
    assert found["n_used"].tolist() == counted["size"].tolist()
    assert found["n_steps"].tolist() == counted["sum"].tolist()
    assert found["n_used"].groupby("round").sum().tolist() == tables["rounds"]["n_contributions"].tolist()
    assert found["n_used"].sum() >= 25


def test_the_weights_of_the_classes_add_up_to_those_of_the_layers(played):
    tables, n_parameters = played
    of_layers = tables["layers"].pivot_table(index="round", columns="layer", values="weight_sum").to_numpy()
    of_classes = tables["classes"].groupby("round")["weight_sum"].sum().to_numpy()
    np.testing.assert_allclose(of_classes, of_layers @ n_parameters / n_parameters.sum(), rtol=1e-12)


def test_what_was_wasted_is_what_the_tasks_that_were_not_used_had_moved(played):
    tables, _ = played
    ended = tables["tasks"].query("outcome != 'open' and round < 25")
    for of in ("uploaded_bytes", "downloaded_bytes"):
        lost = by_round(ended[ended["outcome"] != "used"], of)
        np.testing.assert_allclose(tables["rounds"][f"wasted_{of}"], lost, rtol=1e-12)
        used = by_round(ended[ended["outcome"] == "used"], of)
        np.testing.assert_allclose(tables["rounds"][of] - tables["rounds"][f"wasted_{of}"], used, rtol=1e-9)


def test_staleness_is_that_of_the_versions_that_the_tasks_pulled(played):
    tables, _ = played
    before = tables["rounds"]["version"].shift(fill_value=0)
    used = tables["tasks"].query("outcome == 'used'")
    staleness = (before[used["round"]].to_numpy() - used["version"]).groupby(used["round"]).agg(["mean", "max"])
    filled = tables["rounds"].loc[staleness.index]
    np.testing.assert_allclose(filled["staleness_mean"], staleness["mean"], rtol=1e-12)
    assert filled["staleness_max"].tolist() == staleness["max"].tolist()
    assert tables["rounds"]["staleness_mean"].isna().sum() == (tables["rounds"]["n_contributions"] == 0).sum()


def test_only_policies_that_do_not_wait_use_stale_updates(tiny):
    largest = {name: play(tiny, policy)[0]["rounds"]["staleness_max"].max() for name, policy in POLICIES.items()}
    assert {name for name, staleness in largest.items() if staleness > 0} == {"fedasync", "fedbuff"}


def test_devices_are_listed_only_where_tasks_are(tiny):
    loaded = fedsim.from_dict(tiny(fleet=FLEET, train=False, record_tasks=False))
    result = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])
    assert set(result.tables) == {"rounds", "layers", "classes", "evaluations"}
    assert [one["n_devices"] for one in result.manifest["speed_classes"]] == [2, 2, 2]


def test_the_manifest_describes_the_classes_by_seconds_devices_samples_and_labels(tiny):
    loaded = fedsim.from_dict(
        tiny(
            fleet=FLEET,
            data={**tiny()["data"], "partition": {"kind": "by_speed"}},
            evaluation={"every_s": 2.0, "n_rows": 5},
        )
    )
    result = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])
    classes = result.manifest["speed_classes"]
    assert [(one["name"], one["unit_s"]) for one in classes] == [("fastest", 1.0), ("middle", 1.5), ("slowest", 3.0)]
    assert sum(one["samples_share"] for one in classes) == pytest.approx(1.0)
    world = World.of(loaded, loaded.scenario.seed_sets[0])
    slowest = np.concatenate([world.dealt.samples[1], world.dealt.samples[4]])
    labels = world.dealt.data.train_labels[slowest]
    assert classes[2]["label_share"] == pytest.approx([(labels == label).mean() for label in range(3)])
    assert classes[2]["samples_share"] == pytest.approx(len(slowest) / 80)
    final = result.manifest["final"]
    n_of_label = np.bincount(world.dealt.data.test_labels, minlength=3)
    assert final["accuracy"] == pytest.approx(n_of_label @ final["label_accuracy"] / 20)


# ---- label mixes in the evaluations ---------------------------------------------------------------------------------


class Reciting:
    """A learner that is asked for nothing but one evaluation."""

    shape = SHAPE

    def __init__(self, label_accuracy):
        self.label_accuracy = None if label_accuracy is None else np.array(label_accuracy)

    def evaluate(self, n_rows=None):
        return Evaluation(0.5, 1.0, self.label_accuracy)


@pytest.mark.parametrize(
    ("label_shares", "label_accuracy", "slowest", "fastest"),
    [
        ([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]], [0.8, 0.4], 0.5, 0.8),
        ([[1.0, 0.0], [0.25, 0.75]], [0.8, np.nan], np.nan, 0.8),  # no row of label 1 was evaluated
        (None, [0.8, 0.4], np.nan, np.nan),  # one class of devices
        ([[1.0, 0.0], [0.25, 0.75]], None, np.nan, np.nan),  # no classes of data
    ],
)
def test_each_evaluation_has_the_accuracy_on_the_mixes_of_the_slowest_and_the_fastest(
    label_shares, label_accuracy, slowest, fastest
):
    shares = None if label_shares is None else np.array(label_shares)
    kept = Evaluations(Reciting(label_accuracy), Grid(step_s=1.0), label_shares=shares)
    kept.before_change(0.5, 0, {})
    assert kept.rows["accuracy_slowest"] == pytest.approx([slowest], nan_ok=True)
    assert kept.rows["accuracy_fastest"] == pytest.approx([fastest], nan_ok=True)


@pytest.mark.parametrize("n_rows", [None, 300, 1])
def test_the_accuracy_of_a_label_is_that_of_its_rows_and_no_row_passes_twice(n_rows):
    """Against one pass over all rows by torch's own functions; of one row only its label has an accuracy."""
    at = bench("mlp")
    found = at.learner.evaluate(n_rows)
    inputs, labels = at.learner.evaluation.between(0, 700 if n_rows is None else n_rows)
    w = at.learner.weights
    hidden = functional.relu(functional.linear(functional.relu(functional.linear(inputs, w[0], w[1])), w[2], w[3]))
    out = functional.linear(hidden, w[4], w[5])
    is_right, labels = (out.argmax(1) == labels).numpy(), labels.numpy()
    by_hand = [is_right[labels == label].mean() if (labels == label).any() else np.nan for label in range(3)]
    assert found.label_accuracy == pytest.approx(by_hand, nan_ok=True)
    assert found.accuracy == is_right.mean()
    assert found.loss == pytest.approx(float(functional.cross_entropy(out, torch.from_numpy(labels))), rel=1e-12)


# ---- how far the model moved ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "server_optimizer", [None, ServerOptimizer(kind="sgd", momentum=0.9, learning_rate=0.5), ServerOptimizer("adam")]
)
def test_the_change_of_a_layer_is_what_its_parameters_moved_in_the_aggregate(server_optimizer):
    """In the second aggregate the input layer gets no update; without momentum it stays where it is."""
    at = bench("mlp", server_optimizer=server_optimizer)
    for version, work in enumerate([at.work([0, 1], n_steps=2), at.work([2, 3], partial_depth=2, version=1)]):
        before = [w.clone() for w in at.learner.weights]
        report = at.aggregate(work, weights.layer_mean(work), version=version)
        squares = [float((a - b).square().sum()) for a, b in zip(at.learner.weights, before, strict=True)]
        by_hand = np.sqrt(np.array(squares).reshape(-1, 2).sum(axis=1))  # a weight and a bias each
        assert report.change_norm == pytest.approx(by_hand, rel=1e-12)
        assert (report.change_norm[1:] > 0).all()
        assert (report.change_norm[0] > 0) == (version == 0)
