"""Tiers within a memory, and rounds of devices that train different depths, beside NumPy and beside counting."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.delays import Exponential, Gamma
from fedsim.facts import IntArray
from fedsim.theory import embracingfl, fedavg
from fedsim.theory.fleet import Fleet
from tests.theory.stories import N_LAYERS, SHAPE, Played, asked, assert_agree, fleet, mean_weights, step_ends_s


@dataclass(frozen=True)
class Policy:
    depths: tuple[int, ...] | None = None
    capacity_shares: tuple[float, ...] | None = None
    local_steps: int = 5
    n_sampled: int | None = None
    over_selected: int = 0  # of the FedAvg that it is compared with


UNIT_S = [1.0, 2.0, 0.5, 3.0, 1.0]
DEPTHS = (2, 1, 3, 3, 1)
BLOCK_S = np.array([0.5, 0.2, 0.1])  # of layers a, b, c
IO_S = np.array([0.8, 0.7, 0.5, 0.0])  # depth 0 ... 3: the layers before the d output-most


def played(on: Fleet, policy: Policy, depth: IntArray, n_rounds: int, seed: int) -> Played:
    """Those who are drawn train their depths, after bringing in the rest; all are waited for."""
    rng = np.random.default_rng(seed)
    n_asked, n = policy.n_sampled or on.n_devices, policy.local_steps
    share = (SHAPE.step_flops / SHAPE.step_flops[-1])[depth] + IO_S[depth] / on.unit_s
    ends_s, is_asked = step_ends_s(on, n_rounds, n, rng, share=share), asked(on, n_rounds, n_asked, rng)
    arrived_s = np.where(is_asked, ends_s[:, :, -1] + on.upload_s[np.arange(on.n_devices), depth], 0.0)
    depths = np.where(is_asked, depth, 0)
    whole = is_asked.astype(np.float64)
    return Played(
        on, n_asked, arrived_s.max(axis=1), depths, mean_weights(depths), n * is_asked.astype(np.int64), n, whole, depths, whole
    )  # fmt: skip


@pytest.mark.parametrize("n_sampled", [None, 2, 4])
def test_rounds_agree_with_numpy(n_sampled: int | None) -> None:
    on = fleet(
        UNIT_S,
        download_s=[0.1, 0.2, 0.1, 0.3, 0.0],
        latency_s=0.05,
        seconds_per_byte=[0.001, 0.002, 0.003, 0.001, 0.002],
        n_rows=[16, 8, 16, 4, 16],
        task_factor=Gamma(shape=2.0, mean=1.2),
        step_factor=Exponential(mean=1.0, shift=0.4) if n_sampled == 2 else None,
        block_io_s=np.tile(IO_S, (5, 1)),
    )
    policy = Policy(DEPTHS, None, 3, n_sampled)
    assert_agree(embracingfl.expected(policy, on), played(on, policy, np.array(DEPTHS), 60_000, seed=4))


def test_contributors_by_counting_all_ways_to_ask() -> None:
    on = fleet(UNIT_S)
    found = {(one.quantity, one.layer): one for one in embracingfl.expected(Policy(DEPTHS, n_sampled=3), on)}
    for layer in range(N_LAYERS):
        train = [depth >= N_LAYERS - layer for depth in DEPTHS]
        counts = np.array([sum(train[d] for d in subset) for subset in combinations(range(5), 3)])
        assert found["n_contributors", layer].mean == pytest.approx(counts.mean(), rel=1e-12)
        assert found["n_contributors", layer].variance == pytest.approx(counts.var(), rel=1e-12)
        assert found["is_layer_empty", layer].mean == pytest.approx((counts == 0).mean(), rel=1e-12)
        assert found["weight_sum", layer].mean == pytest.approx((counts > 0).mean(), rel=1e-12)


def test_one_device_alone_is_asked_every_time() -> None:
    (alone,) = [
        o for o in embracingfl.expected(Policy((3,)), fleet([1.0])) if o.quantity == "n_contributors" and o.layer == 0
    ]
    assert (alone.mean, alone.variance) == (1.0, 0.0)


def test_with_every_device_at_full_depth_it_is_fedavg() -> None:
    on = fleet(
        UNIT_S, download_s=0.2, latency_s=0.1, task_factor=Exponential(mean=1.0), block_io_s=np.tile(IO_S, (5, 1))
    )
    found = embracingfl.expected(Policy((3,) * 5, n_sampled=3), on)
    same = fedavg.expected(Policy(n_sampled=3), on)
    assert [(one.quantity, one.layer, one.device) for one in found] == [(o.quantity, o.layer, o.device) for o in same]
    np.testing.assert_allclose([one.mean for one in found], [o.mean for o in same], rtol=1e-9)  # type: ignore[arg-type]


def test_the_slowest_of_those_asked_by_hand() -> None:
    """Without luck: steps of 1 + 0.5, 2 and 0.5 + 2 s, two of them: 3, 4 and 5 s; of two drawn the later, 4, 5, 5 s."""
    found = embracingfl.round_time([1.0, 2.0, 0.5], [0.5, 0.0, 2.0], 2, n_sampled=2)
    assert found.mean_s == pytest.approx(14 / 3, rel=1e-12)
    assert found.variance_s2 == pytest.approx(2 / 9, rel=1e-9)
    assert embracingfl.round_time([1.0, 2.0, 0.5], [0.5, 0.0, 2.0], 2).mean_s == pytest.approx(5.0, rel=1e-12)


# ---- memory ---------------------------------------------------------------------------------------------------------

# Layers c, b, a from the output: 5, 20, 50 parameters and 2, 4, 5 activations a row.
NEEDED = {10: [4 * 25, 4 * 85, 4 * 185], 1: [4 * 7, 4 * 31, 4 * 86]}


@pytest.mark.parametrize("batch_size", NEEDED)
def test_memory_is_parameters_once_and_activations_for_each_row(batch_size: int) -> None:
    assert embracingfl.memory_bytes(SHAPE, batch_size)[1:].tolist() == NEEDED[batch_size]
    assert SHAPE.memory_bytes(batch_size).tolist() == embracingfl.memory_bytes(SHAPE, batch_size).tolist()


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(0, 2000)), min_size=1, max_size=9))
def test_a_tier_is_the_most_that_fits(devices: list[tuple[int, float]]) -> None:
    sizes, own = ([d[i] for d in devices] for i in (0, 1))
    found = embracingfl.tiers_within(SHAPE, sizes, own)  # type: ignore[arg-type]
    for tier, (rows, affordable) in zip(found.tolist(), devices, strict=True):
        needed = [4 * (n + rows * a) for n, a in ((5, 2), (25, 6), (75, 11))]
        assert tier == sum(each <= affordable for each in needed)


def test_memory_that_is_just_enough_is_enough() -> None:
    assert embracingfl.tiers_within(SHAPE, [10] * 4, [340.0, 339.0, 740.0, 99.0]).tolist() == [2, 1, 3, 0]


def test_shares_and_bytes_say_the_same() -> None:
    """340 of 740 bytes is a share of 17 / 37, which no binary number meets; it counts as met."""
    rows, shares = [10, 10, 1, 1], (1.0, 17 / 37, 31 / 86, 7 / 86)
    whole = np.array([740, 740, 344, 344])
    on = fleet([1.0] * 4, batch_size=np.array(rows), n_rows=rows)
    by_share = embracingfl.tiers(Policy(capacity_shares=shares), on)
    in_bytes = fleet([1.0] * 4, batch_size=np.array(rows), n_rows=rows, memory_bytes=np.rint(whole * np.array(shares)))
    assert by_share.tolist() == embracingfl.tiers(Policy(), in_bytes).tolist() == [3, 2, 2, 1]
