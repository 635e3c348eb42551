"""Stages of the fastest devices: who they are, how long their rounds last, and where no round is like the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

from fedsim.delays import Exponential, Gamma
from fedsim.theory import flanp
from fedsim.theory.fleet import Fleet
from tests.theory.stories import N_LAYERS, Played, assert_agree, fleet, mean_weights, shares, step_ends_s


@dataclass(frozen=True)
class Policy:
    n_first: int
    local_steps: int = 3
    norm_below: float | None = None
    stages: tuple[int, ...] | None = ()
    weighting: Literal["uniform", "n_samples"] = "uniform"


def played(on: Fleet, n_steps: int, asked: list[int], n_rounds: int, seed: int) -> Played:
    """Those asked are waited for."""
    is_in = np.isin(np.arange(on.n_devices), asked)
    ends_s = step_ends_s(on, n_rounds, n_steps, np.random.default_rng(seed))[:, :, -1]
    arrived_s = np.where(is_in, ends_s + on.upload_s[:, -1], 0.0)
    round_s = arrived_s.max(axis=1)
    depth = np.where(is_in, N_LAYERS, 0) * np.ones((n_rounds, 1), dtype=np.int64)
    took = is_in * np.ones((n_rounds, 1))
    return Played(
        on, len(asked), round_s, depth, mean_weights(depth), (n_steps * took).astype(np.int64), n_steps, took, depth,
        shares(round_s, np.zeros_like(arrived_s), np.broadcast_to(on.download_s, depth.shape)) * took,
    )  # fmt: skip


def test_the_fastest_are_found_and_of_equal_ones_the_first() -> None:
    assert flanp.fastest([2.0, 1.0, 2.0, 0.5, 2.0], 3).tolist() == [True, True, False, True, False]


def test_stages_double_until_all_are_asked() -> None:
    assert flanp.sizes(5, 30) == [5, 10, 20, 30]
    assert flanp.sizes(3, 20, growth_factor=1.5) == [3, 5, 8, 12, 18, 20]
    assert flanp.sizes(7, 7) == [7]


def test_a_stage_of_exponential_steps_is_the_largest_of_its_own_and_not_an_order_statistic_of_all() -> None:
    """Two devices of mean 1 and 2: E max = 1 + 2 - 1 / (1/1 + 1/2). The 2nd smallest of all three is sooner."""
    found = flanp.round_time(2, 1, Exponential(mean=1.0), device_factor=[2.0, 1.0, 2.5])
    assert found.mean_s == pytest.approx(3.0 - 2.0 / 3.0, rel=1e-9)


def test_a_schedule_lasts_as_long_as_its_rounds_together() -> None:
    """Ten rounds of the fastest, five of both."""
    means_s = [flanp.round_time(n, 2, 1.0, device_factor=[3.0, 1.0]).mean_s for n in (1, 2)]
    assert flanp.schedule_s([10, 5], means_s) == pytest.approx(10 * 2.0 + 5 * 6.0)


def test_the_order_counts_transfers_and_mean_steps() -> None:
    """Three steps of mean 2: 6, 12, 3 s of work, and 0, 0, 9.5 s of transfers."""
    on = fleet([1.0, 2.0, 0.5], download_s=[0.0, 0.0, 9.5], step_factor=Gamma(shape=2.0, mean=2.0))
    assert flanp.n_steps(Policy(2), on).tolist() == [3, 3, 0]


@pytest.mark.parametrize("weighting", ["uniform", "n_samples"])
def test_rounds_of_a_single_stage_agree_with_numpy(weighting: Literal["uniform", "n_samples"]) -> None:
    on = fleet(
        [1.0, 2.0, 0.5, 3.0, 1.0],
        download_s=[0.1, 0.2, 0.1, 0.3, 0.0],
        latency_s=0.05,
        seconds_per_byte=[0.001, 0.002, 0.003, 0.001, 0.002],
        n_rows=[16, 8, 16, 4, 16],
        step_factor=Exponential(mean=1.0, shift=0.4),
    )
    # Means of three steps: 3.1 + 0.05 + 0.3, 6.2 + ..., 1.6 + 0.05 + 0.9, 9.3 + ..., 3.0 + 0.05 + 0.6
    assert_agree(flanp.expected(Policy(3, weighting=weighting), on), played(on, 3, [0, 2, 4], 60_000, seed=7))


def test_several_stages_have_no_closed_form_but_each_stage_has() -> None:
    on = fleet([1.0, 2.0, 4.0])
    found = {one.quantity: one for one in flanp.expected(Policy(1, stages=(5,)), on)}
    assert found["round_s"].mean is None
    assert "its stages differ" in (found["round_s"].reason or "")
    assert [flanp.stage_round(Policy(1, stages=(5,)), on, n).mean_s for n in (1, 2, 3)] == [3.0, 6.0, 12.0]


def test_what_training_decides_is_not_told_at_all() -> None:
    found = flanp.expected(Policy(1, norm_below=0.1, stages=None), fleet([1.0, 2.0]))
    assert all(one.mean is None for one in found)
    assert {one.reason for one in found} == {
        "needs rounds that are alike, but which stage it is depends on training; a single stage has them (stages: [])"
    }


def test_a_first_stage_of_all_devices_never_grows() -> None:
    """Whatever would have ended it."""
    found = flanp.expected(Policy(2, norm_below=0.1, stages=None), fleet([1.0, 2.0]))
    assert next(one.mean for one in found if one.quantity == "round_s") == 6.0
