"""FedNova and FLANP against `by_hand.py`: losses and round ends to the last digits, and what they reduce to.

Full-batch gradients in float64 and fixed times, as in `test_numpy.py`, whose world this is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import fedsim
from fedsim import weights
from fedsim.expectations import fleet_of
from fedsim.facts import BatchPlan, Task
from fedsim.policies.fednova import FedNova
from fedsim.protocols import Rounds, Server, Setting, arrivals
from fedsim.run import RunResult, simulate
from fedsim.theory import fednova
from fedsim.timing.fleet import Compute, Fleet
from fedsim.timing.foresight import Foresight
from fedsim.timing.weather import Weather
from tests.agreement import by_hand
from tests.agreement.by_hand import Round, World
from tests.agreement.test_numpy import SIZES, assert_same, both_engines, run, scenario, world
from tests.fakes import equal_layers

__all__ = ["world"]  # a fixture

STEPS = (1, 2, 5, 3, 1, 4, 2, 7, 3)


def normalised(w: World, n_steps: tuple[int, ...], *, by_samples: bool = True, effective: float | None = None) -> Round:
    """tau_eff p_k / a_k, with a_k from SGD itself: v = m v + 1, moved by v in each step."""
    added_up = []
    for tau in n_steps:
        v = a = 0.0
        for _ in range(tau):
            v = w.momentum * v + 1.0
            a += v
        added_up.append(a)
    size = [float(len(rows[1])) if by_samples else 1.0 for rows in w.shards]
    p = [s / sum(size) for s in size]
    tau_eff = sum(share * a for share, a in zip(p, added_up, strict=True)) if effective is None else effective
    ends_s = [w.steps_end_s(d, tau) + w.upload_s(d, w.n_layers) for d, tau in enumerate(n_steps)]
    return Round(
        length_s=max(ends_s),
        depths={d: [w.n_layers] * tau for d, tau in enumerate(n_steps)},
        weights={d: [tau_eff * p[d] / added_up[d]] * w.n_layers for d in range(w.n_devices)},
    )


# ---- FedNova --------------------------------------------------------------------------------------------------------


@both_engines
@pytest.mark.parametrize("weighting", ["n_samples", "uniform"])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_fednova_divides_each_change_by_its_own_steps(
    tmp_path: Path, world: World, engine: str, weighting: str, momentum: float
) -> None:
    """The momentum stands in `training`, and the policy takes it from there."""
    world = replace(world, momentum=momentum, learning_rate=0.1)
    policy = {"kind": "fednova", "local_steps": list(STEPS), "weighting": weighting}
    assert_same(tmp_path, world, policy, lambda w, _: normalised(w, STEPS, by_samples=weighting == "n_samples"), engine)


@both_engines
def test_fednova_takes_as_many_effective_steps_as_are_stated(tmp_path: Path, world: World, engine: str) -> None:
    policy = {"kind": "fednova", "local_steps": list(STEPS), "effective_steps": 2.5}
    assert_same(tmp_path, world, policy, lambda w, _: normalised(w, STEPS, effective=2.5), engine)


@both_engines
def test_fednova_within_a_budget_does_the_steps_that_it_pays_for(tmp_path: Path, world: World, engine: str) -> None:
    """3.0 s are exactly 3, 2 and 4 steps of 1.0, 1.5 and 0.75 s, and 1 of 3.0 s."""
    world = replace(world, step_s=(1.0, 1.5, 3.0, 0.75, 4.5, 1.6, 2.5, 3.0 + 2**-20, 0.5))
    n_steps = (3, 2, 1, 4, 1, 1, 1, 1, 6)
    policy = {"kind": "fednova", "budget_s": 3.0}
    assert_same(tmp_path, world, policy, lambda w, _: normalised(w, n_steps), engine)


def final_loss(folder: Path, world: World, policy: dict[str, Any], **training: Any) -> tuple[float, list[float]]:
    values = scenario(folder, world, policy, "auto", 8)
    values["training"] |= training
    found: RunResult = run(values)
    return found.manifest["final"]["loss"], found.tables["rounds"]["end_s"].tolist()


@pytest.mark.parametrize("weighting", ["n_samples", "uniform"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_with_equal_steps_is_fedavg(tmp_path: Path, world: World, weighting: str, momentum: float) -> None:
    world = replace(world, momentum=momentum, learning_rate=0.1)
    both = [
        final_loss(tmp_path, world, {"kind": kind, "local_steps": 4, "weighting": weighting})
        for kind in ("fednova", "fedavg")
    ]
    assert both[0][0] == pytest.approx(both[1][0], rel=1e-10)
    assert both[0][1] == both[1][1]


def test_the_steps_within_a_budget_are_those_of_the_closed_form() -> None:
    """Bit by bit through the clock's mean times, or by epochs and what is left of them: batches of unequal sizes."""
    rng = np.random.default_rng(8)
    for _ in range(100):
        fleet = Fleet(n_devices=12, compute=Compute(step_s=tuple((rng.integers(1, 9, 12) / 8).tolist())))
        plan = BatchPlan(rng.integers(1, 60, 12), int(rng.integers(1, 20)))
        weather = Weather(fleet, equal_layers(3), plan, fleet_seed=1, clock_seed=1)
        policy = FedNova(budget_s=float(rng.integers(1, 200) / 8))
        assert policy.steps(Foresight(weather)).tolist() == fednova.n_steps(policy, fleet_of(weather)).tolist()


def test_a_budget_that_is_met_but_for_rounding_is_met() -> None:
    """Three steps of 0.1 s are 0.30000000000000004 s."""
    weather = Weather(
        Fleet(n_devices=1, compute=Compute(step_s=0.1)), equal_layers(3), BatchPlan(np.array([4]), None), 1, 1
    )
    assert FedNova(budget_s=0.3).steps(Foresight(weather)).tolist() == [3]


# ---- objective inconsistency ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Undivided:
    """FedAvg of devices that do unequal numbers of steps."""

    n_steps: tuple[int, ...]
    source: ClassVar[str] = "the method whose inconsistency arXiv 2007.07481 is about"

    def problems(self, _: Setting) -> list[str]:
        return []

    def rounds(self, server: Server) -> Rounds:
        while True:
            jobs = server.send(server.sample(), Task(n_steps=np.array(self.n_steps)))
            yield from server.wait(jobs, arrivals(len(jobs)))
            arrived = server.take(jobs)
            server.aggregate(arrived, weights.mean(arrived))


def above_the_least(policy: Any, learning_rate: float) -> float:
    """How far above the least possible loss the model settles: six quadratics with Hessians and optima of their own."""
    loaded = fedsim.from_dict(
        {
            "name": "inconsistency",
            "fleet": {"n_devices": 6},
            "model": {"kind": "quadratic", "layer_sizes": [2, 1]},
            "data": {
                "kind": "quadratic",
                "n_groups": 6,
                "n_pairs": 1,
                "n_parameters": 3,
                "condition": 3.0,
                "noise": 0.0,
                "partition": {"kind": "one_class"},
            },
            "training": {"learning_rate": learning_rate, "batch_size": "all", "dtype": "float64"},
            "policies": [{"kind": "fedavg"}],
            "seeds": [2],
            "evaluation": {"every_n_rounds": 10_000},
            # A round shrinks what is left by a factor below 1 - rate x (least eigenvalue 1/3): to e^-20 at the most.
            "stop": {"n_rounds": round(60 / learning_rate)},
        }
    ).with_policies([policy])
    found = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])
    rows = loaded.data.load(None, 2).test_inputs.astype(np.float64)  # y and the columns of A, one row a device
    a = rows[:, 3:].reshape(-1, 3, 3).transpose(0, 2, 1).reshape(-1, 3)
    left = np.linalg.lstsq(a, rows[:, :3].ravel(), rcond=None)[1]
    return float(found.manifest["final"]["loss"]) - float(left[0]) / 12  # half, and a mean over six


def test_fednova_settles_where_the_devices_mean_loss_is_least_as_the_rate_falls_and_undivided_changes_do_not() -> None:
    """The first is off by a distance proportional to the rate, and a loss to its square: a quarter where the rate halves.

    The second tends to the minimiser of the losses weighted by steps, whatever the rate.
    """
    n_steps = (1, 1, 2, 4, 6, 8)
    nova = [above_the_least(FedNova(local_steps=n_steps), rate) for rate in (0.04, 0.02, 0.01)]
    plain = [above_the_least(Undivided(n_steps), rate) for rate in (0.04, 0.02, 0.01)]
    to_a_quarter = np.divide(nova[:-1], nova[1:])
    assert (abs(to_a_quarter - 4.0) < 0.5).all()
    assert abs(to_a_quarter[1] - 4.0) < abs(to_a_quarter[0] - 4.0), "what is beyond the first order halves too"
    assert min(plain) > 100 * max(nova)


# ---- FLANP ----------------------------------------------------------------------------------------------------------


def flanp(w: World, n_first: int, n_rounds: int, grows: Callable[[int, int, float], bool]) -> tuple[Any, list[float]]:
    """The model and the rounds' ends. grows(number of the round, devices, norm of the last change)."""
    arrival_s = [w.steps_end_s(d, 2) + w.upload_s(d, w.n_layers) for d in range(w.n_devices)]
    order = sorted(range(w.n_devices), key=lambda d: arrival_s[d])
    layers, ends_s, n, now_s = w.start, [], n_first, 0.0
    for number in range(n_rounds):
        mine = order[:n]
        changes = [by_hand.local_change(w, layers, d, [w.n_layers] * 2, 0) for d in mine]
        mean = [[np.sum([c[i][j] for c in changes], axis=0) / n for j in (0, 1)] for i in range(w.n_layers)]
        layers = [(old[0] + by[0], old[1] + by[1]) for old, by in zip(layers, mean, strict=True)]
        now_s += max(arrival_s[d] for d in mine)
        ends_s.append(now_s)
        norm = float(np.sqrt(sum(float((part**2).sum()) for pair in mean for part in pair)))
        if n < w.n_devices and grows(number, n, norm):
            n = min(2 * n, w.n_devices)
    return layers, ends_s


@both_engines
@pytest.mark.parametrize(("rule", "n_last"), [("shrinking", 8), ("fixed", 9)])
def test_flanp_doubles_its_devices_when_the_model_moves_less_than_the_norm(
    tmp_path: Path, world: World, engine: str, rule: str, n_last: int
) -> None:
    """Devices 2, 4, 8 and 9; where the norm shrinks, later stages last longer."""

    def grows(_: int, n: int, norm: float) -> bool:
        return bool(norm <= 0.25 * (np.sqrt(2 / n) if rule == "shrinking" else 1.0))

    layers, ends_s = flanp(world, 2, 30, grows)
    policy = {"kind": "flanp", "n_first": 2, "local_steps": 2, "norm_below": 0.25, "norm_rule": rule}
    result = run(scenario(tmp_path, world, policy, engine, 30))
    np.testing.assert_allclose(result.tables["rounds"]["end_s"], ends_s, rtol=1e-12, atol=0)
    np.testing.assert_allclose(result.manifest["final"]["loss"], by_hand.loss(layers, world.test), rtol=1e-10)
    assert result.tables["rounds"]["n_contributions"][-1] == n_last


@both_engines
def test_flanp_follows_a_stated_schedule(tmp_path: Path, world: World, engine: str) -> None:
    """Three rounds of 2 devices, one of 4, then 8 for good."""
    layers, ends_s = flanp(world, 2, 10, lambda number, *_: number in (2, 3))
    policy = {"kind": "flanp", "n_first": 2, "local_steps": 2, "stages": [3, 1]}
    result = run(scenario(tmp_path, world, policy, engine, 10))
    np.testing.assert_allclose(result.tables["rounds"]["end_s"], ends_s, rtol=1e-12, atol=0)
    np.testing.assert_allclose(result.manifest["final"]["loss"], by_hand.loss(layers, world.test), rtol=1e-10)
    assert result.tables["rounds"]["n_contributions"].tolist() == [2, 2, 2, 4, *[8] * 6]


@pytest.mark.parametrize("weighting", ["n_samples", "uniform"])
def test_flanp_that_begins_with_all_devices_is_fedavg(tmp_path: Path, world: World, weighting: str) -> None:
    shared = {"local_steps": 2, "weighting": weighting}
    flanp_of_all = {"kind": "flanp", "n_first": len(SIZES), "norm_below": 100.0, **shared}
    both = [final_loss(tmp_path, world, policy) for policy in (flanp_of_all, {"kind": "fedavg", **shared})]
    assert both[0][0] == pytest.approx(both[1][0], rel=1e-10)
    assert both[0][1] == both[1][1]
