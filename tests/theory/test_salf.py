"""Layers reached by a deadline: published tables, exact enumeration, and whole rounds against plain NumPy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations, product
from typing import Any, Literal

import numpy as np
import pytest
from scipy import stats

from fedsim.delays import Exponential, Gamma, Lognormal, Uniform
from fedsim.facts import Array
from fedsim.theory import salf
from fedsim.theory.fleet import Fleet
from tests.theory.stories import N_LAYERS, Played, assert_agree, fleet, layered_tasks


@dataclass(frozen=True)
class Policy:
    deadline_s: float
    deadline_on: Literal["compute", "arrival"] = "compute"
    rule: Literal["contributors", "diluted", "inverse_probability"] = "contributors"
    p_l: Literal["oracle", "estimated", "none"] = "oracle"
    n_sampled: int | None = None
    wait_out: bool = False


# ---- reach ----------------------------------------------------------------------------------------------------------


def test_uniform_depths_give_the_published_table() -> None:
    q = salf.uniform_reach(4)
    np.testing.assert_allclose(q, [0.8, 0.6, 0.4, 0.2])
    np.testing.assert_allclose(salf.empty_probability(q, 6), [6.4e-5, 0.004096, 0.046656, 0.262144], rtol=1e-12)
    np.testing.assert_allclose(salf.correction_factor(q, 6), [1.000064, 1.004113, 1.048939, 1.355278], atol=5e-7)
    np.testing.assert_allclose(salf.uniform_reach(4, lowest=1), [1.0, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(
        salf.empty_probability(salf.uniform_reach(4, 1), 6), [0.0, 1 / 4096, 1 / 64, 729 / 4096], rtol=1e-12
    )


def test_exponential_layers_are_counted_by_a_poisson_process() -> None:
    found = salf.exponential_reach(5, layer_s=0.2, deadline_s=1.3, forward_s=0.15)
    np.testing.assert_allclose(found, stats.poisson.sf(np.arange(5), 1.15 / 0.2), rtol=1e-12)
    with_forward = salf.exponential_reach(5, layer_s=0.2, deadline_s=1.3, n_forward_layers=5)
    np.testing.assert_allclose(with_forward, stats.poisson.sf(np.arange(5, 10), 1.3 / 0.2), rtol=1e-12)
    assert salf.exponential_reach(3, layer_s=0.2, deadline_s=0.1, forward_s=0.15).tolist() == [0.0] * 3


def test_the_published_poisson_variant_always_has_the_output_layer() -> None:
    """min(Poisson(6.5) + 1, 4) >= b."""
    rng = np.random.default_rng(1)
    depth = np.minimum(rng.poisson(6.5, 400_000) + 1, 4)
    expected = (depth[:, None] >= np.arange(1, 5)).mean(axis=0)
    found = salf.published_poisson_reach(4, layer_s=0.2, deadline_s=1.3)
    assert found[0] == 1.0
    assert (np.abs(found - expected) <= 4 * np.sqrt(0.25 / 400_000)).all()


def test_a_scale_family_reaches_by_its_cdf() -> None:
    cost_s = np.array([0.5, 1.0, 2.0])
    np.testing.assert_allclose(salf.scaled_reach(cost_s, Exponential(), 1.0), -np.expm1(-1.0 / cost_s))
    assert salf.scaled_reach(cost_s, 1.0, 1.0).tolist() == [1.0, 1.0, 0.0]


# ---- what follows from it -------------------------------------------------------------------------------------------


def test_small_reach_keeps_its_digits() -> None:
    assert salf.correction_factor(np.array([1e-18]), 10)[0] == pytest.approx(1e17, rel=1e-9)


def test_contributors_and_touched_layers() -> None:
    mean, variance = salf.contributors(np.array([0.8, 0.2]), 6)
    np.testing.assert_allclose(mean, [4.8, 1.2])
    np.testing.assert_allclose(variance, [0.96, 0.96])
    assert salf.touched_share(np.array([0.5, 0.25]), 2) == pytest.approx((0.75 + 0.4375) / 2)
    assert salf.touched_share(np.array([0.5, 0.25]), 2, np.array([3, 1])) == pytest.approx((3 * 0.75 + 0.4375) / 4)


def all_sets(q: Array) -> list[tuple[tuple[int, ...], Fraction]]:
    """Who may reach a layer, with probabilities, exactly."""
    shares = [Fraction(float(x)) for x in q]
    found = []
    for who in product((0, 1), repeat=len(q)):
        p = Fraction(1)
        for is_in, share in zip(who, shares, strict=True):
            p *= share if is_in else 1 - share
        found.append((who, p))
    return found


def test_the_corrected_mean_has_the_stated_variance() -> None:
    """All 2^5 sets of contributors, enumerated."""
    updates, q = np.array([1.0, -0.5, 2.0, 0.25, 1.5]), 0.3
    p = 0.7**5
    values, weights = [], []
    for who, share in all_sets(np.full(5, q)):
        mine = updates[np.flatnonzero(who)]
        values.append(mine.mean() / (1 - p) if len(mine) else 0.0)
        weights.append(float(share))
    mean = np.dot(values, weights)
    assert mean == pytest.approx(updates.mean(), rel=1e-12)
    expected = np.dot(np.square(values), weights) - mean**2
    found = salf.debiased_variance(q, 5, mean_squared_norm=updates.mean() ** 2, spread=updates.var())
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("q", [(0.2, 0.8), (0.1, 0.1, 0.9, 0.5), (0.3,), (0.95, 0.77, 0.59, 0.41, 0.23, 0.05)])
def test_unequal_devices_enter_with_unequal_weights(q: tuple[float, ...]) -> None:
    """ "Unbiased" is about equal devices: (0.2, 0.8) weighs 1/7 and 6/7. All sets, enumerated."""
    expected = np.zeros(len(q))
    p_none = 1.0
    for who, share in all_sets(np.array(q)):
        if not any(who):
            p_none = float(share)
            continue
        expected += np.array(who) / sum(who) * float(share)
    np.testing.assert_allclose(salf.debiased_weights(np.array(q)), expected / (1 - p_none), rtol=1e-12)
    if q == (0.2, 0.8):
        np.testing.assert_allclose(salf.debiased_weights(np.array(q)), [1 / 7, 6 / 7], rtol=1e-12)


def test_round_times_without_transfers() -> None:
    found = salf.round_time(1, Exponential(), deadline_s=1.0)
    assert found.mean_s == pytest.approx(1 - np.exp(-1), rel=1e-12)


# ---- whole rounds ---------------------------------------------------------------------------------------------------

FLEETS: dict[str, tuple[Fleet, dict[str, Any]]] = {
    "equal": (fleet([1.0] * 4, step_factor=Gamma(shape=2.0)), {}),
    "unequal": (fleet([0.5, 1.0, 1.5, 4.0], task_factor=Lognormal(sigma=0.5), n_rows=[16, 8, 16, 4]), {}),
    "uploads": (
        fleet(
            [0.5, 1.0, 1.5, 4.0],
            download_s=[0.05, 0.1, 0.2, 1.2],
            latency_s=0.02,
            seconds_per_byte=[0.001, 0.0005, 0.0015, 0.001],
            step_factor=Exponential(mean=1.0, shift=0.3),
        ),
        {},
    ),
    "certain": (fleet([0.5, 0.9, 1.3, 4.0], download_s=0.1, latency_s=0.05, seconds_per_byte=0.001), {}),
    "drawn": (fleet([1.0] * 3, download_s=0.2, seconds_per_byte=0.002, lowest_depth=0), {"lowest": 0}),
    "drawn from 1": (fleet([1.0] * 3, download_s=0.2, seconds_per_byte=0.002, lowest_depth=1), {"lowest": 1}),
    "layers": (
        replace(
            fleet([1.0] * 3, latency_s=0.1, layer_factor=Exponential()), reach_share=np.array([0.25, 0.5, 0.75, 1.0])
        ),
        {"layer_law": Exponential()},
    ),
    "layers of another law": (
        replace(
            fleet([1.0] * 3, layer_factor=Uniform(low=0.5, high=1.5)), reach_share=np.array([0.25, 0.5, 0.75, 1.0])
        ),
        {"layer_law": Uniform(low=0.5, high=1.5)},
    ),
}
T = 1.0
N_ROUNDS = 60_000


def with_weights(played: Played, policy: Policy, reach: Array) -> Played:
    """The rule's own weights; reach: q of each device, `[device, layer]`."""
    held = np.arange(N_LAYERS) >= N_LAYERS - played.depth[:, :, None]
    if policy.rule == "contributors":
        if policy.p_l == "none":
            return played
        p = np.prod(1 - reach, axis=0)
        return replace(played, weights=played.weights / np.where(p < 1, 1 - p, 1.0))
    weights = held / played.n_asked
    return replace(played, weights=weights / np.where(reach > 0, reach, 1.0) if policy.rule != "diluted" else weights)


@pytest.mark.parametrize("name", FLEETS)
@pytest.mark.parametrize("deadline_on", ["compute", "arrival"])
@pytest.mark.parametrize("wait_out", [False, True])
def test_rounds_agree_with_numpy(name: str, deadline_on: Literal["compute", "arrival"], wait_out: bool) -> None:
    on, how = FLEETS[name]
    policy = Policy(T, deadline_on, wait_out=wait_out)
    on_arrival = deadline_on == "arrival"
    played = layered_tasks(on, on.n_devices, T, N_ROUNDS, 7, on_arrival=on_arrival, wait_out=wait_out, **how)
    reach = salf.fleet_reach(policy, on)
    without = ("round_s",) if name.startswith("layers") and on_arrival and not wait_out else ()
    assert_agree(salf.expected(policy, on), with_weights(played, policy, reach), without=without)


@pytest.mark.parametrize("rule", ["diluted", "inverse_probability"])
def test_the_other_rules_weights(rule: Literal["diluted", "inverse_probability"]) -> None:
    on, _ = FLEETS["uploads"]
    policy = Policy(T, rule=rule)
    played = layered_tasks(on, 4, T, N_ROUNDS, 8)
    assert_agree(salf.expected(policy, on), with_weights(played, policy, salf.fleet_reach(policy, on)))


@pytest.mark.parametrize("name", ["equal", "unequal", "uploads", "certain"])
def test_rounds_of_sampled_devices(name: str) -> None:
    on, _ = FLEETS[name]
    policy = Policy(T, n_sampled=2, p_l="none")
    played = layered_tasks(on, 2, T, N_ROUNDS, 9)
    assert_agree(salf.expected(policy, on), played)


def test_the_correction_of_a_sample_depends_on_who_is_asked() -> None:
    found = [one for one in salf.expected(Policy(T, n_sampled=2), FLEETS["uploads"][0]) if one.reason]
    assert {one.quantity for one in found} == {"correction_factor"}


def test_the_correction_of_a_sample_averages_to_one() -> None:
    """By all pairs: 1 unless neither of the two can reach the layer."""
    on, _ = FLEETS["uploads"]
    policy = Policy(T, n_sampled=2)
    reach = salf.fleet_reach(policy, on)
    expected = [
        np.mean([reach[list(pair), layer].any() for pair in combinations(range(4), 2)]) for layer in range(N_LAYERS)
    ]
    found = [one.mean for one in salf.expected(policy, on) if one.quantity == "weight_sum"]
    np.testing.assert_allclose(np.array(found, dtype=float), expected, rtol=1e-12)


def test_estimated_probabilities_have_no_closed_form_weights() -> None:
    found = [
        one for one in salf.expected(Policy(T, p_l="estimated"), FLEETS["equal"][0]) if one.quantity == "weight_sum"
    ]
    assert [one.reason for one in found] == ["needs p_l: oracle or none; an estimate depends on the rounds before"]


def test_a_generous_deadline_is_the_slowest_device() -> None:
    """Nobody is late with more than 1e-80: the tail of the slowest is kept to the last digit."""
    on = fleet([1.0, 2.0, 3.0], step_factor=Exponential())
    found = next(one for one in salf.expected(Policy(800.0), on) if one.quantity == "round_s")
    rates = 1 / np.array([1.0, 2.0, 3.0])
    expected = sum(1 / rates) - sum(1 / (a + b) for a, b in combinations(rates, 2)) + 1 / rates.sum()
    assert found.mean == pytest.approx(expected, rel=1e-12)
