"""`fedsim validate` catches a broken clock, a broken policy and a broken trainer: each fault below is put in by hand.

Without a fault the same scenarios agree (the first test); with it at least one quantity must be refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim import weights
from fedsim.commands.comparing import Compared
from fedsim.commands.validate import validate
from fedsim.delays import Exponential
from fedsim.policies.embracingfl import EmbracingFL
from fedsim.policies.fednova import FedNova
from fedsim.policies.fedpmt import FedPMT
from fedsim.policies.heterofl import HeteroFL
from fedsim.policies.salf import Salf
from fedsim.timing.live_jobs import LiveJobs, Moment
from fedsim.timing.milestones import Progress, Work
from fedsim.timing.server import SimServer
from fedsim.timing.weather import Weather
from fedsim.training import cohort, loop, reference
from fedsim.training.server_step import ServerStep

EXPONENTIAL = {"step_s": 0.5, "step_factor": {"kind": "exponential", "mean": 2.0}}
STALLING = {"step_s": 1.0, "task_factor": {"kind": "gamma", "shape": 2.0}}
SPEEDS = {"step_s": 1.0, "device_factor": [0.5, 0.8, 1.0, 1.1, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0]}
TIES = {"step_s": 1.0, "device_factor": [0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 4.0]}

# name -> compute, policy: small fleets on which a few hundred rounds tell
SCENARIOS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "k_sync": (EXPONENTIAL, {"kind": "k_sync", "k": 4}),
    "stsyn": (EXPONENTIAL, {"kind": "stsyn", "k": 4, "local_steps": 3}),
    "salf": (STALLING, {"kind": "salf", "deadline_s": 0.45}),  # one round in 13 leaves the input layer empty
    "drop_stragglers": (TIES, {"kind": "drop_stragglers", "deadline_s": 3.0, "local_steps": 3}),
    "fedavg": (EXPONENTIAL, {"kind": "fedavg", "local_steps": 3}),
    "fedpmt": (SPEEDS, {"kind": "fedpmt", "budget_s": 3.0, "local_steps": 3}),
    "heterofl": (SPEEDS, {"kind": "heterofl", "budget_s": 3.0, "local_steps": 3}),
    "feddrop": (EXPONENTIAL, {"kind": "feddrop", "kept_shares": [0.3] * 10, "local_steps": 3}),
    "fednova": (SPEEDS, {"kind": "fednova", "budget_s": 6.0}),
    "flanp": (SPEEDS, {"kind": "flanp", "n_first": 4, "local_steps": 3, "stages": []}),
    "fedlama": (STALLING, {"kind": "fedlama", "interval_factor": 3, "relaxed": [0, 2], "n_sampled": 4}),
    "embracingfl": (
        {**STALLING, "block_io_s": 0.2},
        {"kind": "embracingfl", "depths": [3, 3, 3, 2, 2, 2, 1, 1, 1, 1], "n_sampled": 8},
    ),
}


def checked(name: str, n_rounds: int = 600) -> list[Compared]:
    compute, policy = SCENARIOS[name]
    loaded = fedsim.from_dict(
        {
            "name": "bites",
            "fleet": {"n_devices": 10, "compute": compute},
            "model": {"kind": "mlp", "widths": [6, 5]},
            "data": {"kind": "gaussian_blobs", "n_samples": 200, "n_features": 4, "n_classes": 2},
            "training": {"batch_size": 16, "batches": "with_replacement"},
            "policies": [policy],
            "seeds": [3],
            "stop": {"n_rounds": 10},
            "train": False,
        }
    )
    return validate([(None, loaded)], n_rounds=n_rounds)


def refused(rows: list[Compared]) -> list[str]:
    return [row.quantity for row in rows if row.agrees is False]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_right_simulator_agrees(name: str) -> None:
    rows = checked(name)
    assert refused(rows) == []
    assert sum(row.agrees is True for row in rows) >= 5


# ---- faults of the clock and of the policies ------------------------------------------------------------------------


def _one_layer_too_many(patch: pytest.MonkeyPatch) -> None:
    original = Work._layers_done

    def layers_done(self: Work, rows: Any, elapsed_s: Any, n_steps: Any, end_s: Any, running: Any) -> Any:
        found = original(self, rows, elapsed_s, n_steps, end_s, running)
        found[running] = np.minimum(found[running] + 1, self.depth[rows][running] - 1)
        return found

    patch.setattr(Work, "_layers_done", layers_done)


def _late_by_a_tie(patch: pytest.MonkeyPatch) -> None:
    """An upload that arrives exactly at the deadline is not in time."""
    original = LiveJobs.has_happened

    def has_happened(self: LiveJobs, devices: Any, at_s: Any, moment: Moment) -> Any:
        is_tie = np.isclose(self.elapsed_s(devices, moment), at_s, rtol=1e-12)
        return original(self, devices, at_s, moment) & ~is_tie

    patch.setattr(LiveJobs, "has_happened", has_happened)


def _rate_for_mean(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Exponential, "draw", lambda self, u: -np.log1p(-u) / self.mean)


def _no_correction(patch: pytest.MonkeyPatch) -> None:
    original = Salf._table
    patch.setattr(Salf, "_table", lambda self, *args: original(replace(self, p_l="none"), *args))


def _one_more_waited_for(patch: pytest.MonkeyPatch) -> None:
    original = LiveJobs.nth
    patch.setattr(
        LiveJobs, "nth", lambda self, live, at_s, n, now_s: original(self, live, at_s, min(n + 1, len(live)), now_s)
    )


def _equal_layer_shares(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Weather, "reach_cost", property(lambda self: np.linspace(0.25, 1.0, self.shape.n_layers + 1)))


def _forward_pass_forgotten(patch: pytest.MonkeyPatch) -> None:
    original = Weather.reach_cost.func  # type: ignore[attr-defined]  # of a cached property

    def reach_cost(self: Weather) -> Any:
        cost = original(self)
        return (cost - cost[0]) / (cost[-1] - cost[0])

    patch.setattr(Weather, "reach_cost", property(reach_cost))


def _one_tier_too_generous(patch: pytest.MonkeyPatch) -> None:
    original = FedPMT.widths
    patch.setattr(FedPMT, "widths", lambda self, setting: np.minimum(original(self, setting) + 1, setting.n_layers))


def _one_level_too_generous(patch: pytest.MonkeyPatch) -> None:
    original = HeteroFL.rates_of
    patch.setattr(HeteroFL, "rates_of", lambda self, setting: np.minimum(2 * original(self, setting), 1.0))


def _parts_cost_their_rate(patch: pytest.MonkeyPatch) -> None:
    """As if FLOPs shrank like the number of units."""
    original = Weather.reach_cost_of

    def reach_cost_of(self: Weather, part: Any) -> Any:
        own, of_all = (int(shape.n_activations[:-1].sum()) for shape in (part, self.shape))
        return original(self, self.shape) * own / of_all

    patch.setattr(Weather, "reach_cost_of", reach_cost_of)


def _one_step_more_than_charged_for(patch: pytest.MonkeyPatch) -> None:
    original = FedNova.steps
    patch.setattr(FedNova, "steps", lambda self, setting: original(self, setting) + 1)


def _changes_not_divided_by_their_steps(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FedNova, "_table", lambda self, arrived: weights.mean(arrived, self.weighting))


def _any_devices_for_the_fastest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimServer, "expected_s", lambda _, __, devices: -devices)


def _tasks_with(**changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    def fault(patch: pytest.MonkeyPatch) -> None:
        original = SimServer.send
        patch.setattr(SimServer, "send", lambda self, devices, task: original(self, devices, replace(task, **changes)))

    return fault


def _tiers_one_too_deep(patch: pytest.MonkeyPatch) -> None:
    original = EmbracingFL.tiers
    patch.setattr(EmbracingFL, "tiers", lambda self, setting: np.minimum(original(self, setting) + 1, setting.n_layers))


def _partial_step_counted(patch: pytest.MonkeyPatch) -> None:
    original = Work.progress

    def progress(self: Work, rows: Any, elapsed_s: Any) -> Progress:
        found = original(self, rows, elapsed_s)
        return found._replace(n_steps=np.minimum(found.n_steps + (found.step_share > 0), self.cap[rows]))

    patch.setattr(Work, "progress", progress)


FAULTS: list[tuple[str, Callable[[pytest.MonkeyPatch], None], str]] = [
    ("one layer too many", _one_layer_too_many, "salf"),
    ("a tie with the deadline is late", _late_by_a_tie, "drop_stragglers"),
    ("an exponential drawn with the rate for the mean", _rate_for_mean, "fedavg"),
    ("SALF's correction factor forgotten", _no_correction, "salf"),
    ("the (K+1)-th instead of the K-th arrival", _one_more_waited_for, "k_sync"),
    ("the (K+1)-th instead of the K-th finisher", _one_more_waited_for, "stsyn"),
    ("equal layer shares", _equal_layer_shares, "salf"),
    ("the forward pass forgotten", _forward_pass_forgotten, "salf"),
    ("a width one tier too generous", _one_tier_too_generous, "fedpmt"),
    ("a rate one level too generous", _one_level_too_generous, "heterofl"),
    ("seconds of a part that shrink like its units", _parts_cost_their_rate, "feddrop"),
    ("a straggler's partial step counted", _partial_step_counted, "stsyn"),
    ("a step beyond the budget", _one_step_more_than_charged_for, "fednova"),
    ("changes not divided by their steps", _changes_not_divided_by_their_steps, "fednova"),
    ("other devices than the fastest", _any_devices_for_the_fastest, "flanp"),
    ("relaxed layers pulled in every round", _tasks_with(pulls=None), "fedlama"),
    ("relaxed layers pushed in every round", _tasks_with(pushes=None), "fedlama"),
    ("a tier one layer too deep", _tiers_one_too_deep, "embracingfl"),
    ("blocks that come into memory by themselves", _tasks_with(is_block_by_block=False), "embracingfl"),
]


@pytest.mark.parametrize(("fault", "name"), [(f, n) for _, f, n in FAULTS], ids=[what for what, _, _ in FAULTS])
def test_a_broken_clock_or_policy_is_refused(
    fault: Callable[[pytest.MonkeyPatch], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    assert refused(checked(name)), "nothing was refused"


# ---- faults of the trainer ------------------------------------------------------------------------------------------
TRAINED = {
    "name": "bites",
    "fleet": {"n_devices": 6, "compute": {"step_s": 1.0, "step_factor": {"kind": "exponential"}}},
    "model": {"kind": "quadratic", "layer_sizes": [2, 1, 1]},
    "data": {
        "kind": "quadratic",
        "n_groups": 6,
        "n_parameters": 4,
        "hessian_spread": 0.0,
        "optimum_spread": 0.5,
        "noise": 0.05,
        "partition": {"kind": "one_class"},
    },
    "training": {
        "local_steps": 2,
        "learning_rate": 0.3,
        "batch_size": 4,
        "batches": "with_replacement",
        "dtype": "float64",
    },
    "seeds": [2],
    "evaluation": {"every_n_rounds": 5},
    "stop": {"n_rounds": 8},
}


# With random steps one replica in twenty would have no round at FedNova's first moment, and 30 may show none of them.
FLEETS: dict[str, dict[str, Any]] = {"fednova": {"fleet": {"n_devices": 6, "compute": {"step_s": 1.0}}}}


def trained(policy: dict[str, Any]) -> list[Compared]:
    loaded = fedsim.from_dict({**TRAINED, **FLEETS.get(policy["kind"], {}), "policies": [policy]})
    rows = validate([(None, loaded)], n_rounds=100, n_replicas=30)
    return [row for row in rows if row.quantity.startswith("loss")]


TRAINED_POLICIES: dict[str, dict[str, Any]] = {
    "fedavg": {"kind": "fedavg"},
    "salf": {"kind": "salf", "deadline_s": 0.2, "wait_out": True},  # p_l of the input layer: 0.3
    "stsyn": {"kind": "stsyn", "k": 3},
    "fedpmt": {"kind": "fedpmt", "depths": [3, 3, 2, 2, 1, 1]},
    "fednova": {"kind": "fednova", "local_steps": [1, 2, 3, 4, 5, 6]},
    "flanp": {"kind": "flanp", "n_first": 4, "stages": []},
    "embracingfl": {"kind": "embracingfl", "depths": [3, 3, 2, 2, 1, 1]},
}


@pytest.mark.parametrize("name", TRAINED_POLICIES)
def test_a_right_trainer_agrees(name: str) -> None:
    rows = trained(TRAINED_POLICIES[name])
    assert refused(rows) == []
    assert sum(row.agrees is True for row in rows) >= 4


def _one_step_more(patch: pytest.MonkeyPatch) -> None:
    original = cohort.Steps.of

    def of(contributions: Any) -> Any:
        whole = contributions.n_steps
        return original(replace(contributions, n_steps=whole + (whole > 0)))

    patch.setattr(cohort.Steps, "of", of)


def _one_layer_less(patch: pytest.MonkeyPatch) -> None:
    """The input-most layer that a device trains gets no change."""
    original = cohort.add_scaled

    def add_scaled(change: Any, parts: Any, first: int, scales: Any) -> None:
        original(change, [torch.zeros_like(parts[0]), *parts[1:]], first, scales)

    patch.setattr(loop, "add_scaled", add_scaled)


def _halved_rate(patch: pytest.MonkeyPatch) -> None:
    original = reference.learning_rate
    patch.setattr(reference, "learning_rate", lambda training, version: 0.8 * original(training, version))


def _applied_twice(patch: pytest.MonkeyPatch) -> None:
    original = ServerStep.apply

    def apply(self: ServerStep, weights: Any, change: Any, touched: Any) -> None:
        original(self, weights, [1.2 * c for c in change], touched)

    patch.setattr(ServerStep, "apply", apply)


TRAINER_FAULTS: list[tuple[str, Callable[[pytest.MonkeyPatch], None], str]] = [
    ("one local step too many", _one_step_more, "fedavg"),
    ("the last layer of a suffix lost", _one_layer_less, "fedpmt"),
    ("SALF's correction factor forgotten", _no_correction, "salf"),
    ("the rate too small", _halved_rate, "stsyn"),
    ("a sum applied too strongly", _applied_twice, "fedavg"),
    ("changes not divided by their steps", _changes_not_divided_by_their_steps, "fednova"),
]


@pytest.mark.parametrize(
    ("fault", "name"), [(f, n) for _, f, n in TRAINER_FAULTS], ids=[what for what, _, _ in TRAINER_FAULTS]
)
def test_a_broken_trainer_is_refused(
    fault: Callable[[pytest.MonkeyPatch], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    assert refused(trained(TRAINED_POLICIES[name])), "nothing was refused"
