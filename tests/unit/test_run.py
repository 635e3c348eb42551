"""One run: what is refused before it, where it is evaluated, and what makes it a different run."""

from __future__ import annotations

from collections import Counter
from time import perf_counter

import numpy as np
import pandas as pd
import pytest
import torch

import fedsim
from fedsim.delays import Classes, Constant, Gamma
from fedsim.evaluations import Grid
from fedsim.facts import AggregateReport, BatchPlan, Evaluation
from fedsim.manifest import fingerprint
from fedsim.run import World, check, simulate
from fedsim.statistics.time_to_accuracy import sustained_s
from fedsim.timing.fleet import Compute, Fleet, Link
from fedsim.timing.weather import Weather
from tests.fakes import equal_layers


@pytest.mark.parametrize("horizon_s", [1.7, 2.0, 0.3])
def test_the_last_evaluation_is_at_the_horizon_however_the_grid_rounds(tiny, horizon_s):
    """200 x (1.7 / 200) is more than 1.7 in the last bit."""
    loaded = fedsim.from_dict(
        tiny(policies=[{"kind": "k_sync", "k": 1}], stop={"simulated_s": horizon_s}, evaluation={"n_points": 200})
    )
    times_s = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0]).tables["evaluations"]["time_s"]
    assert len(times_s) == 201
    assert times_s[-1] == horizon_s


# ---- when the model is evaluated ------------------------------------------------------------------------------------


class Reciting:
    """A learner that recites an accuracy for each version and remembers what it was asked to evaluate."""

    def __init__(self, shape, accuracy=(0.5,), n_rows=20, costs_s=(0.0, 0.0)):
        self.shape, self.accuracy, self.n_rows, self.costs_s = shape, accuracy, n_rows, costs_s
        self.version = 0
        self.asked = Counter()

    def aggregate(self, request):
        busy(self.costs_s[0])
        self.version = request.version + bool(request.weights.any())
        return AggregateReport(self.version, is_finite=True, computed_flops=0.0)

    def evaluate(self, n_rows=None):
        busy(self.costs_s[1])
        self.asked[self.version, min(n_rows or self.n_rows, self.n_rows)] += 1
        return Evaluation(self.accuracy[min(self.version, len(self.accuracy) - 1)], loss=1.0)


def busy(seconds):
    end = perf_counter() + seconds
    while perf_counter() < end:
        pass


@pytest.fixture
def recited(tiny, monkeypatch):
    """A function that plays a tiny scenario (20 test rows) with a reciting learner; the result and the learner."""

    def play(accuracy=(0.5,), costs_s=(0.0, 0.0), attributes=(), **changes):
        loaded = fedsim.from_dict(tiny(**changes))
        made = []

        def learner(world, *_):
            made.append(Reciting(world.shape, accuracy, costs_s=costs_s))
            made[-1].__dict__.update(attributes)
            return made[-1]

        monkeypatch.setattr(World, "learner", learner)
        result = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])
        return result, made[0]

    return play


SLOW = {"n_devices": 5, "compute": {"step_s": 0.5, "task_factor": {"kind": "exponential"}}}


def test_by_rounds_the_model_is_evaluated_at_zero_and_at_the_end_of_every_nth_round(recited):
    result, _ = recited(fleet=SLOW, evaluation={"every_n_rounds": 3}, stop={"n_rounds": 10})
    ends_s, evaluations = result.tables["rounds"]["end_s"], result.tables["evaluations"]
    assert evaluations["time_s"].tolist() == [0.0, ends_s[2], ends_s[5], ends_s[8]]
    assert evaluations["round"].tolist() == [0, 3, 6, 9]
    assert evaluations["version"].tolist() == [0, 3, 6, 9]
    assert len(set(np.diff(evaluations["time_s"]).round(6))) == 3  # the rounds differ in length


def test_by_rounds_costs_are_those_of_all_rounds_until_then(recited):
    result, _ = recited(fleet=SLOW, evaluation={"every_n_rounds": 3}, stop={"n_rounds": 7})
    rounds, evaluations = result.tables["rounds"], result.tables["evaluations"]
    for name in ("uploaded_bytes", "downloaded_bytes", "device_flops"):
        assert evaluations[name].tolist() == [0.0, rounds[name][:3].sum(), rounds[name][:6].sum()]


def test_a_run_in_which_no_round_closes_is_still_evaluated_once(recited):
    result, _ = recited(evaluation={"every_n_rounds": 3}, stop={"simulated_s": 0.5})
    assert result.tables["evaluations"]["time_s"].tolist() == [0.0]


@pytest.mark.parametrize("n_rows", [None, 7, 20, 50])
@pytest.mark.parametrize(
    "evaluation", [{"every_s": 0.3}, {"every_s": 5.0}, {"n_points": 4}, {"every_n_rounds": 1}, {"every_n_rounds": 4}]
)
@pytest.mark.parametrize(
    "policy",
    [{"kind": "k_sync", "k": 1}, {"kind": "drop_stragglers", "deadline_s": 0.4}],  # the other one has empty rounds
)
def test_the_same_weights_are_never_evaluated_twice_on_the_same_rows(recited, policy, evaluation, n_rows):
    _, learner = recited(
        policies=[policy],
        fleet={"n_devices": 5, "compute": {"step_s": 1.0, "task_factor": {"kind": "exponential"}}},
        evaluation=evaluation | ({} if n_rows is None else {"n_rows": n_rows}),
        stop={"n_rounds": 12, "simulated_s": 20.0},
    )
    assert (learner.version, 20) in learner.asked, "the last model was not evaluated on all rows"
    assert {asked: n for asked, n in learner.asked.items() if n > 1} == {}
    assert {rows for _, rows in learner.asked} <= {20, n_rows}


@pytest.mark.parametrize("every_n_rounds", [1, 2, 5])
@pytest.mark.parametrize("accuracy_seed", range(12))
def test_by_rounds_a_run_stops_with_the_round_at_which_its_record_shows_the_target_as_sustained(
    recited, every_n_rounds, accuracy_seed
):
    """Rounds of about 0.3 s: windows of 0.5 s hold several of them, and a fifth one comes after whole windows."""
    accuracy = np.random.default_rng(accuracy_seed).choice([0.7, 0.9], 200, p=[0.25, 0.75]).tolist()
    result, _ = recited(
        accuracy,
        policies=[{"kind": "k_sync", "k": 2}],
        fleet=SLOW,
        evaluation={"every_n_rounds": every_n_rounds, "targets": [0.6, 0.8], "sustain_s": 0.5},
        stop={"n_rounds": 150, "at_targets": True},
    )
    assert result.manifest["outcome"]["reason"] == "every target has been sustained"
    table, ends_s = result.tables["evaluations"], result.tables["rounds"]["end_s"]

    def reached_s(seen_from_s):
        seen = table["time_s"] <= seen_from_s
        return sustained_s(table["time_s"][seen], table["accuracy"][seen], 0.8, 0.5, seen_from_s)

    assert reached_s(ends_s[-1]) is not None
    assert len(ends_s) == 1 or reached_s(ends_s[-2]) is None


def test_a_target_held_for_a_whole_window_stays_sustained_though_the_next_evaluation_falls_below(recited):
    """Rounds take 2 s, windows 1 s: by the end of round 1 the window that began with it at 2 s has passed."""
    result, _ = recited(
        (0.1, 0.9, 0.1),
        evaluation={"every_n_rounds": 1, "targets": [0.8], "sustain_s": 1.0},
        stop={"n_rounds": 9, "at_targets": True},
    )
    assert result.tables["evaluations"]["accuracy"].tolist() == [0.1, 0.9, 0.1]
    assert result.manifest["outcome"]["reason"] == "every target has been sustained"


def test_seconds_and_rounds_between_evaluations_are_refused_together(tiny):
    with pytest.raises(fedsim.ScenarioError) as refused:
        fedsim.from_dict(tiny(evaluation={"every_s": 2.0, "every_n_rounds": 5}))
    assert str(refused.value) == (
        "<scenario>: evaluation: evaluate in simulated time or in rounds: keep one of every_s and every_n_rounds"
    )
    with pytest.raises(ValueError, match="state one of step_s and every_n_rounds"):
        Grid(step_s=2.0, every_n_rounds=5)


def test_a_resolved_scenario_by_rounds_is_read_back_as_it_was(tiny):
    loaded = fedsim.from_dict(tiny(evaluation={"every_n_rounds": 5}, stop={"simulated_s": 100}))
    assert fedsim.from_dict(loaded.resolved()).scenario.evaluation == loaded.scenario.evaluation
    assert loaded.scenario.grid_step_s is None


# ---- what a run says of itself --------------------------------------------------------------------------------------


def test_the_manifest_says_how_long_training_and_evaluation_took_and_no_table_does(recited):
    result, learner = recited(costs_s=(0.02, 0.01), evaluation={"every_n_rounds": 1, "n_rows": 7}, stop={"n_rounds": 3})
    real_s = result.manifest["real_s"]
    n_evaluations = learner.asked.total()
    assert n_evaluations == 5  # versions 0 to 3 on 7 rows, the last one on all
    assert real_s["training"] >= 3 * 0.02
    assert real_s["evaluation"] >= n_evaluations * 0.01
    assert real_s["training"] + real_s["evaluation"] <= real_s["total"]
    assert real_s["setup"] > 0
    assert not [name for table in result.tables.values() for name in table if "real" in name]


@pytest.mark.parametrize(
    ("notes", "is_reproducible"),
    [
        ([], True),
        (["fallback: dropout goes through the loop"], True),
        (["fallback: dropout goes through the loop", "out of memory: chunks were halved to 32 rows"], False),
    ],
)
def test_a_note_on_anything_but_a_fallback_makes_a_run_not_byte_reproducible(recited, notes, is_reproducible):
    manifest = recited(attributes={"notes": notes})[0].manifest
    assert manifest["notes"] == notes
    assert manifest["byte_reproducible"] is is_reproducible


def test_what_the_learner_says_of_its_kernels_and_its_machine_stands_in_the_manifest(recited):
    manifest = recited(attributes={"kernels": {"loop": 3}, "machine": {"n_threads": 1}})[0].manifest
    assert manifest["kernels"] == {"loop": 3}
    assert manifest["machine"]["torch"] == {"n_threads": 1}
    assert "python" in manifest["machine"]
    assert recited()[0].manifest["machine"]["torch"] == {}


# ---- what is refused, and what makes a different run ----------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA, so asking for it is no mistake")
def test_every_policys_own_settings_are_checked_before_the_first_run(tiny):
    policies = [{"kind": "k_sync", "k": 1}, {"kind": "k_sync", "k": 2, "training": {"device": "cuda"}}]
    with pytest.raises(fedsim.ScenarioError, match="device is cuda but torch finds none"):
        check(fedsim.from_dict(tiny(policies=policies)))


@pytest.mark.parametrize("law", [Constant(0.0), Classes((0.0, 1.0), (0.5, 0.5))])
def test_work_that_could_take_no_time_is_refused(law):
    with pytest.raises(ValueError, match="step_factor can be 0"):
        Compute(step_s=1.0, step_factor=law)
    with pytest.raises(ValueError, match="rate_bits_per_s can be 0"):
        Link(rate_bits_per_s=law)


def test_a_changed_rule_in_code_of_ones_own_is_a_different_run(tiny, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "own_rule_of_mine.py"
    text = (
        "from dataclasses import dataclass\nfrom typing import ClassVar\n\n\n@dataclass(frozen=True)\nclass Mine:\n"
        "    source: ClassVar[str] = 'mine'\n\n    def problems(self, setting):\n        return []\n\n"
        "    def rounds(self, server):\n        yield\n"
    )
    file.write_text(text)
    loaded = fedsim.from_dict(tiny(policies=[{"kind": "own_rule_of_mine:Mine"}]))
    before = fingerprint(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])
    assert fingerprint(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0]) == before
    file.write_text(text + "# another rule\n")
    assert fingerprint(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0]) != before


def test_persistent_luck_is_drawn_once_for_the_fleet_and_not_at_every_message():
    plan = BatchPlan(np.ones(8, dtype=np.int64), None)
    weather = Weather(Fleet(8, uplink=Link(Gamma(shape=2.0))), equal_layers(2), plan, 1, 1)
    first = weather.persistent(weather.fleet.uplink.rate_bits_per_s, "uplink.rate")
    assert weather.persistent(weather.fleet.uplink.rate_bits_per_s, "uplink.rate") is first


# ---- what the devices' updates looked like --------------------------------------------------------------------------


def test_updates_are_recorded_where_the_scenario_asks_and_change_nothing_else(tiny):
    plain, asked = (fedsim.from_dict(tiny(record_updates=wanted)) for wanted in (False, True))
    results = [simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0]) for loaded in (plain, asked)]
    assert "updates" not in results[0].tables
    updates = pd.DataFrame(results[1].tables["updates"])
    assert len(updates) == 3 * 5 * 4  # rounds, devices, layers
    assert (updates.squared_norm > 0).all()
    assert updates.squared_distance.notna().all()
    for name in ("layers", "tasks"):
        pd.testing.assert_frame_equal(*(pd.DataFrame(result.tables[name]) for result in results))
    computed = [result.tables["rounds"]["computed_flops"] for result in results]
    assert np.array_equal(*computed), "the updates of five small models fit the memory"


def test_the_only_update_of_a_round_is_no_distance_from_the_aggregate(tiny):
    loaded = fedsim.from_dict(tiny(record_updates=True, policies=[{"kind": "fedavg", "n_sampled": 1}]))
    result = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])
    updates = pd.DataFrame(result.tables["updates"])
    assert len(updates) == 3 * 4
    assert (updates.squared_norm > 0).all()
    assert (updates.squared_distance == 0).all()


def test_updates_of_a_run_that_trains_nothing_are_refused(tiny):
    with pytest.raises(fedsim.ScenarioError, match="record_updates is true but train is false"):
        fedsim.from_dict(tiny(record_updates=True, train=False))


def test_the_manifest_says_which_kernel_trained_what_and_how_torch_was_set_up(tiny):
    loaded = fedsim.from_dict(tiny())
    manifest = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0]).manifest
    assert sum(manifest["kernels"].values()) == 15
    assert manifest["byte_reproducible"] is True
    torch_facts = manifest["machine"]["torch"]
    assert {"n_threads", "matmul", "keeps_memory", "device", "chunk_rows", "tuning"} <= set(torch_facts)


def test_a_run_that_diverges_says_in_which_round_and_at_which_second(tiny):
    loaded = fedsim.from_dict(tiny(training={"local_steps": 2, "batch_size": 8, "learning_rate": 1e30}))
    result = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])
    outcome = result.manifest["outcome"]
    assert outcome["kind"] == "diverged"
    assert outcome["round"] == len(result.tables["rounds"]["round"]) >= 1
    assert outcome["simulated_s"] == result.tables["rounds"]["end_s"][-1]
