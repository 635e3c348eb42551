"""FedDrop against `parts_by_hand.py`: losses of every version and round ends, and what it reduces to.

Full-batch gradients in float64 and fixed times, as in `test_numpy.py`, whose world this is. The units of each part are
drawn here anew, by NumPy's own Philox at the address that fedsim/training/subnetworks.py documents.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.agreement import by_hand, parts_by_hand
from tests.agreement.by_hand import Layers, World
from tests.agreement.parts_by_hand import Task, Units, n_kept
from tests.agreement.test_numpy import DATA_SEED, WIDTHS, both_engines, run, scenario, world

__all__ = ["world"]  # a fixture

SHARES = (1.0, 0.5, 0.25, 0.6, 0.5, 1.0, 0.1, 0.25, 0.75)
N_ROUNDS = 6


def drawn(widths: tuple[int, ...], share: float, device: int, ordinal: int) -> Units:
    """Of each hidden layer the units with the least uniforms; key: (data seed, name), counter: (0, layer, task, device)."""
    key = [DATA_SEED, int.from_bytes(hashlib.sha256(b"subnetwork").digest()[:8], "little")]
    units = [np.arange(widths[0])]
    for layer, n in enumerate(widths[1:-1]):
        philox = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=[0, layer, ordinal, device])
        uniforms = np.random.Generator(philox).random(n)
        units.append(np.sort(np.argsort(uniforms)[: n_kept(share, n)]))
    return [*units, np.arange(widths[-1])]


def of(folder: Path, w: World, policy: dict[str, Any], engine: str = "auto", **training: Any) -> dict[str, Any]:
    """The tables of the run, evaluated after every round."""
    values = scenario(folder, w, policy, engine, N_ROUNDS)
    values["training"] |= training
    return run({**values, "evaluation": {"every_n_rounds": 1}}).tables


def played(
    w: World, shares: tuple[float, ...], *, local_steps: int, fill: str, scaler: bool = True, by_samples: bool = False
) -> tuple[list[float], list[float]]:
    """Losses after every round and their ends."""
    layers: Layers = w.start
    losses, ends_s, now_s = [], [], 0.0
    weight = {d: float(len(w.shards[d][1])) if by_samples else 1.0 for d in range(w.n_devices)}
    for number in range(N_ROUNDS):
        tasks = {
            d: Task.of(w.widths, drawn(w.widths, share, d, number), w.shards[d], is_scaled=scaler, is_masked=False)
            for d, share in enumerate(shares)
        }
        layers = parts_by_hand.averaged(w, layers, tasks, local_steps, weight, dilute=fill == "global")
        now_s += max(parts_by_hand.round_trip_s(w, d, task.units, local_steps) for d, task in tasks.items())
        losses.append(by_hand.loss(layers, w.test))
        ends_s.append(now_s)
    return losses, ends_s


def assert_same(tables: dict[str, Any], losses: list[float], ends_s: list[float]) -> None:
    np.testing.assert_allclose(tables["evaluations"]["loss"][1:], losses, rtol=1e-10)
    np.testing.assert_allclose(tables["rounds"]["end_s"], ends_s, rtol=1e-12)


@both_engines
@pytest.mark.parametrize("scaler", [True, False])
@pytest.mark.parametrize("fill", ["global", "contributors"])
def test_each_task_trains_its_own_draw_of_units(
    tmp_path: Path, world: World, engine: str, fill: str, scaler: bool
) -> None:
    policy = {"kind": "feddrop", "kept_shares": list(SHARES), "local_steps": 3, "fill": fill, "scaler": scaler}
    tables = of(tmp_path, world, policy, engine)
    assert_same(tables, *played(world, SHARES, local_steps=3, fill=fill, scaler=scaler))


@pytest.mark.parametrize("fill", ["global", "contributors"])
def test_averages_may_be_weighted_by_samples(tmp_path: Path, world: World, fill: str) -> None:
    policy = {"kind": "feddrop", "kept_shares": list(SHARES), "local_steps": 2, "fill": fill, "weighting": "n_samples"}
    assert_same(of(tmp_path, world, policy), *played(world, SHARES, local_steps=2, fill=fill, by_samples=True))


def test_shares_are_the_largest_twentieths_that_meet_the_deadline(tmp_path: Path, world: World) -> None:
    """Two steps, download and upload within 4.5 s."""

    def needed_s(device: int, share: float) -> float:
        return parts_by_hand.round_trip_s(world, device, drawn(WIDTHS, share, device, 0), 2)

    twentieths = [k / 20 for k in range(1, 21)]
    shares = tuple(max(s for s in twentieths if needed_s(d, s) <= 4.5) for d in range(world.n_devices))
    assert len(set(shares)) > 3
    tables = of(tmp_path, world, {"kind": "feddrop", "deadline_s": 4.5, "local_steps": 2})
    assert_same(tables, *played(world, shares, local_steps=2, fill="global"))
    assert (np.diff([0.0, *tables["rounds"]["end_s"]]) <= 4.5).all()


@pytest.mark.parametrize("training", [{}, {"batch_size": 8}], ids=str)
@pytest.mark.parametrize("weighting", ["uniform", "n_samples"])
@pytest.mark.parametrize(
    "how", [{"kept_shares": [1.0] * 9}, {"deadline_s": 1e9}, {"deadline_s": 1e9, "fill": "contributors"}], ids=str
)
def test_where_nothing_is_dropped_it_is_fedavg(
    tmp_path: Path, world: World, how: dict[str, Any], weighting: str, training: dict[str, Any]
) -> None:
    common = {"local_steps": 3, "weighting": weighting}
    own = of(tmp_path, world, {"kind": "feddrop", **how, **common}, **training)
    same = of(tmp_path, world, {"kind": "fedavg", **common}, **training)
    assert_same(own, same["evaluations"]["loss"][1:], same["rounds"]["end_s"])
