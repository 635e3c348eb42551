"""EmbracingFL against `by_hand.py`: losses and round ends to the last digits, what it reduces to, the paper's tiers.

Full-batch gradients in float64 and fixed times, as in `test_numpy.py`, whose world this is.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.facts import BatchPlan
from fedsim.models.resnet20 import Resnet20
from fedsim.policies.embracingfl import EmbracingFL
from fedsim.timing.fleet import Compute, Fleet
from fedsim.timing.foresight import Foresight
from fedsim.timing.weather import Weather
from fedsim.training.layers import Chain, measure
from tests.agreement import by_hand
from tests.agreement.by_hand import Round, World
from tests.agreement.test_numpy import WIDTHS, both_engines, run, scenario, world

__all__ = ["world"]  # a fixture

DEPTHS = (3, 2, 1, 1, 3, 2, 1, 1, 2)
BLOCK_IO_S = (0.5, 0.25, 0.125)  # of each layer, from the input
IO_S = {1: 0.75, 2: 0.5, 3: 0.0}  # the layers before the d output-most


def embracing(w: World, depths: tuple[int, ...], local_steps: int, *, by_samples: bool = False) -> Round:
    """Every step brings the layers before the device's own into memory; each layer's mean is over those who train it."""
    share = dict(enumerate(by_hand.step_shares(w.widths), start=1))
    ends_s = []
    for d, depth in enumerate(depths):
        at = w.ready_s
        for _ in range(local_steps):
            at += IO_S[depth] + w.step_s[d] * share[depth]
        ends_s.append(at + w.upload_s(d, depth))
    own = {d: [depth] * local_steps for d, depth in enumerate(depths)}
    return Round(max(ends_s), own, by_hand.shared_weights(w, own, by_samples=by_samples))


def of(folder: Path, w: World, policy: dict[str, Any], engine: str, n_rounds: int, **training: Any) -> tuple[Any, Any]:
    """Losses after every round, and when each ended."""
    values = scenario(folder, w, policy, engine, n_rounds)
    values["fleet"]["compute"]["block_io_s"] = list(BLOCK_IO_S)
    values["training"] |= training
    tables = run({**values, "evaluation": {"every_n_rounds": 1}}).tables
    return tables["evaluations"]["loss"][1:], tables["rounds"]["end_s"]


@both_engines
@pytest.mark.parametrize("by_samples", [False, True])
def test_each_layer_is_averaged_over_those_whose_memory_holds_it(
    tmp_path: Path, world: World, engine: str, by_samples: bool
) -> None:
    weighting = {"weighting": "n_samples"} if by_samples else {}
    policy = {"kind": "embracingfl", "depths": list(DEPTHS), "local_steps": 3, **weighting}
    losses, ends_s = of(tmp_path, world, policy, engine, 8)
    for n in range(1, 9):
        layers, own_ends_s = by_hand.play(world, lambda w, _: embracing(w, DEPTHS, 3, by_samples=by_samples), n)
        np.testing.assert_allclose(losses[n - 1], by_hand.loss(layers, world.test), rtol=1e-10)
    np.testing.assert_allclose(ends_s, own_ends_s, rtol=1e-12)


@pytest.mark.parametrize("training", [{}, {"batch_size": 8}], ids=str)
@pytest.mark.parametrize("weighting", ["uniform", "n_samples"])
def test_with_every_device_at_full_depth_it_is_fedavg(
    tmp_path: Path, world: World, weighting: str, training: dict[str, Any]
) -> None:
    """Nobody brings anything in: what it takes to do so is nobody's."""
    common = {"local_steps": 3, "weighting": weighting}
    losses, ends_s = of(tmp_path, world, {"kind": "embracingfl", "depths": [3] * 9, **common}, "auto", 6, **training)
    same, same_ends_s = of(tmp_path, world, {"kind": "fedavg", **common}, "auto", 6, **training)
    np.testing.assert_allclose(losses, same, rtol=1e-10)
    np.testing.assert_allclose(ends_s, same_ends_s, rtol=1e-12)


def test_memory_in_bytes_shares_of_it_and_depths_are_three_ways_to_say_the_same(tmp_path: Path, world: World) -> None:
    """A batch of 8 and float32: 4 bytes x (parameters + 8 x outputs) of the last one, two and three layers."""
    own = [(n_in + 1) * n_out + 8 * n_out for n_in, n_out in pairwise(WIDTHS)]
    needed = {depth: 4.0 * sum(own[3 - depth :]) for depth in (1, 2, 3)}
    by_memory = scenario(tmp_path, world, {"kind": "embracingfl", "local_steps": 2}, "auto", 3)
    by_memory["fleet"]["memory_bytes"] = [needed[depth] for depth in DEPTHS]
    by_share = scenario(
        tmp_path,
        world,
        {"kind": "embracingfl", "local_steps": 2, "capacity_shares": [needed[d] / needed[3] for d in DEPTHS]},
        "auto",
        3,
    )
    by_depth = scenario(tmp_path, world, {"kind": "embracingfl", "local_steps": 2, "depths": list(DEPTHS)}, "auto", 3)
    depths = []
    for values in (by_memory, by_share, by_depth):
        values["training"]["batch_size"] = 8
        tasks = run({**values, "train": False, "evaluation": {}}).tables["tasks"]
        first = tasks["round"] == 0
        depths.append(tasks["depth"][first][np.argsort(tasks["device"][first])].tolist())
    assert depths[0] == depths[1] == depths[2] == list(DEPTHS)


# ---- the paper's tiers ----------------------------------------------------------------------------------------------


def test_published_capacities_are_the_whole_network_and_what_is_left_without_three_and_six_blocks() -> None:
    """Of 11 blocks (stem, nine residual ones, head): all, the last 7, the last 4. 0.42 and 0.16 are rounded 0.41702 and
    0.15570, so that they pay for their tiers, and the next block would not fit."""
    chain = Chain.of(Resnet20(shortcut="projection_every_stage", norm="batch").build((3, 32, 32), 10), (3, 32, 32))
    shape = measure(chain, (3, 32, 32))
    plan = BatchPlan(np.full(6, 320), 32)
    setting = Foresight(Weather(Fleet(6, Compute(step_s=1.0)), shape, plan, fleet_seed=1, clock_seed=1))
    policy = EmbracingFL(capacity_shares=(1.0, 0.42, 0.16, 0.41702, 0.1557, 0.417))
    assert policy.problems(setting) == []
    assert policy.tiers(setting).tolist() == [11, 7, 4, 7, 3, 6]
    assert 0.1557 < 1_124_170 / 7_219_898, "too little for the last four"
