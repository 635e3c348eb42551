"""HeteroFL against `parts_by_hand.py`: losses of every version and round ends, and what it reduces to.

Full-batch gradients in float64 and fixed times, as in `test_numpy.py`, whose world this is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.agreement import by_hand, parts_by_hand
from tests.agreement.by_hand import Layers, World
from tests.agreement.parts_by_hand import Task, leading
from tests.agreement.test_numpy import WIDTHS, both_engines, run, scenario, world

__all__ = ["world"]  # a fixture

RATES = (1.0, 0.5, 0.25, 1 / 3, 0.5, 1.0, 0.1, 0.25, 0.75)  # of 14 and 32 units: whole numbers and others
N_ROUNDS = 6


def of(folder: Path, w: World, policy: dict[str, Any], engine: str = "auto", **training: Any) -> dict[str, Any]:
    """The tables of the run, evaluated after every round."""
    values = scenario(folder, w, policy, engine, N_ROUNDS)
    values["training"] |= training
    return run({**values, "evaluation": {"every_n_rounds": 1}}).tables


def played(
    w: World,
    rates: list[dict[int, float]],
    *,
    local_steps: int,
    scaler: bool = True,
    masked: bool = True,
    by_samples: bool = False,
    dilute: bool = False,
) -> tuple[list[float], list[float]]:
    """Losses after every round and their ends; rates: of the devices asked in each round."""
    layers: Layers = w.start
    losses, ends_s, now_s = [], [], 0.0
    for own in rates:
        tasks = {
            d: Task.of(w.widths, leading(w.widths, rate), w.shards[d], is_scaled=scaler, is_masked=masked)
            for d, rate in own.items()
        }
        weight = {d: float(len(w.shards[d][1])) if by_samples else 1.0 for d in own}
        layers = parts_by_hand.averaged(w, layers, tasks, local_steps, weight, dilute=dilute)
        now_s += max(parts_by_hand.round_trip_s(w, d, task.units, local_steps) for d, task in tasks.items())
        losses.append(by_hand.loss(layers, w.test))
        ends_s.append(now_s)
    return losses, ends_s


def assert_same(tables: dict[str, Any], losses: list[float], ends_s: list[float]) -> None:
    np.testing.assert_allclose(tables["evaluations"]["loss"][1:], losses, rtol=1e-10)
    np.testing.assert_allclose(tables["rounds"]["end_s"], ends_s, rtol=1e-12)


def fixed(rates: tuple[float, ...] = RATES) -> list[dict[int, float]]:
    return [dict(enumerate(rates))] * N_ROUNDS


# ---- this file's own arithmetic -------------------------------------------------------------------------------------


def test_gradients_of_a_masked_and_scaled_part_are_difference_quotients(world: World) -> None:
    """Central differences of the masked loss; their error is of order h^2 + rounding / h."""
    rows = world.shards[0]
    task = Task.of(WIDTHS, leading(WIDTHS, 0.5), rows, is_scaled=True, is_masked=True)
    assert 1 < len(task.classes) < 10
    start = parts_by_hand.cut(world.start, task.units)
    found = parts_by_hand.gradients(start, rows, task)

    def loss(layers: Layers) -> float:
        h = rows[0]
        for i, ((weight, bias), scale) in enumerate(zip(layers, task.scales, strict=True)):
            h = (h @ weight.T + bias) * scale
            h = h if i == 2 else np.maximum(h, 0)
        kept = np.zeros_like(h)
        kept[:, task.classes] = h[:, task.classes]
        return float(np.mean(np.log(np.exp(kept).sum(axis=1)) - kept[np.arange(len(h)), rows[1]]))

    absent = next(c for c in range(10) if c not in task.classes)
    present = int(task.classes[0])
    for layer, tensor, index in [
        (0, 0, (3, 20)),
        (1, 0, (15, 2)),
        (1, 1, (4,)),
        (2, 0, (present, 7)),
        (2, 0, (absent, 7)),
    ]:
        values = []
        for h in (1e-5, -1e-5):
            moved = [(weight.copy(), bias.copy()) for weight, bias in start]
            moved[layer][tensor][index] += h
            values.append(loss(moved))
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(found[layer][tensor][index], abs=1e-8)
    assert found[2][0][absent].tolist() == [0.0] * 16


# ---- the rule -------------------------------------------------------------------------------------------------------


@both_engines
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("scaler", [True, False])
def test_each_element_is_averaged_over_the_devices_that_hold_it(
    tmp_path: Path, world: World, engine: str, scaler: bool, masked: bool
) -> None:
    policy = {"kind": "heterofl", "rates": list(RATES), "local_steps": 3, "scaler": scaler, "masked_loss": masked}
    tables = of(tmp_path, world, policy, engine)
    assert_same(tables, *played(world, fixed(), local_steps=3, scaler=scaler, masked=masked))


@pytest.mark.parametrize("by_samples", [False, True])
@pytest.mark.parametrize("dilute", [False, True])
def test_averages_may_be_weighted_and_diluted(tmp_path: Path, world: World, dilute: bool, by_samples: bool) -> None:
    weighting = "n_samples" if by_samples else "uniform"
    policy = {"kind": "heterofl", "rates": list(RATES), "local_steps": 2, "dilute": dilute, "weighting": weighting}
    tables = of(tmp_path, world, policy)
    assert_same(tables, *played(world, fixed(), local_steps=2, dilute=dilute, by_samples=by_samples))


@both_engines
def test_momentum_and_weight_decay_act_on_the_part(tmp_path: Path, world: World, engine: str) -> None:
    world = replace(world, momentum=0.5, weight_decay=0.02, learning_rate=0.1)
    policy = {"kind": "heterofl", "rates": list(RATES), "local_steps": 3}
    assert_same(of(tmp_path, world, policy, engine), *played(world, fixed(), local_steps=3))


def test_levels_are_the_largest_that_the_budget_pays(tmp_path: Path, world: World) -> None:
    """Two steps within 2.5 s."""
    share = {r: parts_by_hand.step_share(WIDTHS, leading(WIDTHS, r)) for r in (1.0, 0.5, 0.25, 0.125, 0.0625)}
    rates = tuple(max(r for r in share if 2 * share[r] * step_s <= 2.5) for step_s in world.step_s)
    assert len(set(rates)) == 3
    policy = {"kind": "heterofl", "budget_s": 2.5, "local_steps": 2}
    assert_same(of(tmp_path, world, policy), *played(world, fixed(rates), local_steps=2))


def test_rates_that_change_hands_are_trained_by_those_who_have_them(tmp_path: Path, world: World) -> None:
    """Whose rate was which is read from what was uploaded; the rest is computed by hand."""
    policy = {
        "kind": "heterofl", "rates": list(RATES), "assignment": "dynamic", "n_sampled": 6, "local_steps": 2
    }  # fmt: skip
    tables = of(tmp_path, world, policy)
    rate_of = {parts_by_hand.message_bits(leading(WIDTHS, rate)) / 8: rate for rate in RATES}
    rates: list[dict[int, float]] = [{} for _ in range(N_ROUNDS)]
    tasks = tables["tasks"]
    for number, device, n_bytes in zip(tasks["round"], tasks["device"], tasks["uploaded_bytes"], strict=True):
        rates[number][int(device)] = rate_of[float(n_bytes)]
    rates = [dict(sorted(own.items())) for own in rates]
    assert {len(own) for own in rates} == {6}
    assert any(own[d] != RATES[d] for own in rates for d in own)
    assert_same(tables, *played(world, rates, local_steps=2))


# ---- what it reduces to ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [{}, {"batch_size": 8}], ids=str)
@pytest.mark.parametrize("weighting", ["uniform", "n_samples"])
@pytest.mark.parametrize(
    "how", [{"rates": [1.0] * 9}, {"budget_s": 1e9}, {"rates": [1.0] * 9, "dilute": True}], ids=str
)
def test_with_every_device_at_full_width_it_is_fedavg(
    tmp_path: Path, world: World, how: dict[str, Any], weighting: str, training: dict[str, Any]
) -> None:
    common = {"local_steps": 3, "weighting": weighting}
    own = of(tmp_path, world, {"kind": "heterofl", "masked_loss": False, **how, **common}, **training)
    same = of(tmp_path, world, {"kind": "fedavg", **common}, **training)
    assert_same(own, same["evaluations"]["loss"][1:], same["rounds"]["end_s"])
