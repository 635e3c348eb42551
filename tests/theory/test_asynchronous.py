"""Staleness, throughput and fills beside exact counts along paths, second derivations, and simulated means.

Bounds are 4 standard errors over independent paths; seeds were written down once.
"""

from __future__ import annotations

import heapq
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from scipy import special

from fedsim.delays import AnyLaw, Constant, Empirical, Exponential, Gamma, Pareto, Uniform, Weibull
from fedsim.facts import Array
from fedsim.protocols import NoClosedForm
from fedsim.theory.asynchronous import (
    Staleness,
    exponential_fill,
    exponential_staleness,
    mean_fill_s,
    mean_staleness,
    mean_staleness_by_device,
    renewal_count_variance,
    staleness_variance,
    throughput_per_s,
    total_staleness,
)

MIXING = [
    Exponential(2.0),
    Exponential(2.0, shift=0.7),
    Gamma(0.5, 2.0),
    Gamma(2.0),
    Gamma(7.5, 3.0),
    Uniform(1.0, 4.0),
]
mixing = pytest.mark.parametrize("cycle", [*MIXING, Uniform(0.0, 3.0)], ids=repr)


def path(
    cycles: list[AnyLaw], n_updates: int, seed: int, n_per_version: int = 1
) -> tuple[list[int], list[int], list[int], list[float]]:
    """Device and staleness of each update, ages of what is under way at the end, and the times of versions."""
    rng = np.random.default_rng(seed)
    under_way = [(float(cycle.draw(np.array(rng.random()))), i, 0) for i, cycle in enumerate(cycles)]
    heapq.heapify(under_way)
    devices, late, version_s, version = [], [], [], 0
    for n in range(1, n_updates + 1):
        now_s, i, pulled = heapq.heappop(under_way)
        devices.append(i)
        late.append(version - pulled)
        if n % n_per_version == 0:
            version += 1
            version_s.append(now_s)
        heapq.heappush(under_way, (now_s + float(cycles[i].draw(np.array(rng.random()))), i, version))
    return devices, late, [version - pulled for _, _, pulled in under_way], version_s


def assert_mean(values: Array, expected: float) -> None:
    """values: one per independent path."""
    standard_error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - expected) < 4 * standard_error, (values.mean(), expected, standard_error)


@pytest.mark.parametrize("n_per_version", [1, 3, 7])
@pytest.mark.parametrize("n_updates", [1, 5, 100, 333])
def test_every_version_ages_all_models_but_one(n_per_version: int, n_updates: int) -> None:
    """Integers along a path, unequal laws, a heavy tail, and devices whose phases are locked."""
    cycles = [Constant(1.0), Constant(1.0), Pareto(1.2), Exponential(0.3), Uniform(0.5, 9.0)]
    _, late, under_way, _ = path(cycles, n_updates, 1, n_per_version)
    assert sum(late) + sum(under_way) == total_staleness(5, n_updates, n_per_version)


def test_mean_staleness_is_the_others_over_what_makes_a_version() -> None:
    assert mean_staleness(20) == 19
    assert mean_staleness(4, 2) == 1.5
    assert Staleness(1 / 4, 2).mean == pytest.approx(1.5, rel=1e-15)


def test_staleness_of_exponential_cycles_is_geometric() -> None:
    m, n = 5, np.arange(400)
    law = exponential_staleness([Exponential(3.0)] * m, device=2)
    np.testing.assert_allclose(law.pmf(n), (1 / m) * (1 - 1 / m) ** n, rtol=1e-12, atol=1e-16)
    assert law.mean == pytest.approx(m - 1, rel=1e-14)
    assert law.variance == pytest.approx(m * (m - 1), rel=1e-13)
    assert staleness_variance(m, Exponential(3.0)) == pytest.approx(m * (m - 1), rel=1e-14)


def test_unequal_devices_are_late_by_their_share_of_the_rate() -> None:
    cycles = [Exponential(1.0), Exponential(0.5), Exponential(4.0)]
    rates = np.array([1.0, 2.0, 0.25])
    others = (rates.sum() - rates) / rates
    np.testing.assert_allclose([exponential_staleness(cycles, i).mean for i in range(3)], others, rtol=1e-14)
    np.testing.assert_allclose(mean_staleness_by_device(cycles), others, rtol=1e-14)
    assert others @ rates / rates.sum() == pytest.approx(mean_staleness(3), rel=1e-14)


def test_mean_staleness_by_device_needs_no_mixing() -> None:
    """Cycles of 1, 2 and 4 s: in one of 4 s the others finish 4 and 2; exact over whole periods."""
    cycles = [Constant(1.0), Constant(2.0), Constant(4.0)]
    devices, late, _, _ = path(cycles, 7 * 1000, 0)
    seen = [np.mean(np.array(late)[np.array(devices) == i][10:-10]) for i in range(3)]
    np.testing.assert_allclose(mean_staleness_by_device(cycles), [0.75, 2.5, 6.0], rtol=1e-15)
    np.testing.assert_allclose(seen, [0.75, 2.5, 6.0], rtol=2e-3)
    assert throughput_per_s(cycles) == 1.75


def test_a_buffer_of_two_on_four_devices() -> None:
    law = Staleness(1 / 4, n_per_version=2)
    np.testing.assert_allclose(law.survival([1, 2, 3]), [0.65625, 0.36914, 0.20764], atol=5e-6)
    assert law.survival(0) == 1.0


@pytest.mark.parametrize(("share", "z"), [(1 / 4, 2), (0.05, 10), (0.6, 3), (0.01, 1), (1.0, 4)])
def test_a_buffered_staleness_counts_fills_that_begin_anywhere(share: float, z: int) -> None:
    """Second method, in fractions: others' arrivals are geometric, the buffer holds 0 ... Z-1 of them alike."""
    p, top = Fraction(share).limit_denominator(1000), 60
    arrivals = [p * (1 - p) ** n for n in range(top * z)]
    exact = [Fraction(0)] * top
    for held in range(z):
        for n, probability in enumerate(arrivals):
            if (held + n) // z < top:
                exact[(held + n) // z] += probability / z
    law = Staleness(float(p), z)
    np.testing.assert_allclose(law.pmf(np.arange(top - 1)), np.array(exact[:-1], dtype=float), rtol=1e-9, atol=1e-14)
    n = np.arange(200_000 // z)
    assert law.variance == pytest.approx(float(n**2 @ law.pmf(n)) - law.mean**2, rel=1e-9, abs=1e-12)


def test_simulated_staleness_under_a_buffer_agrees() -> None:
    m, z = 6, 4
    law = Staleness(1 / m, z)
    late = np.array([path([Exponential(2.0)] * m, 600, seed, z)[1][200:] for seed in range(100)])
    assert_mean(late.mean(axis=1), mean_staleness(m, z))
    assert_mean((late >= 2).mean(axis=1), float(law.survival(2)))
    assert_mean(((late - law.mean) ** 2).mean(axis=1), law.variance)


def test_erlang_cycles_have_the_published_variance() -> None:
    for m in (2, 5, 30):
        assert staleness_variance(m, Gamma(2.0, 5.0)) == pytest.approx(11 / 18 * (m - 1) + (m - 1) ** 2 / 2, rel=1e-13)


def test_constant_cycles_make_every_update_equally_late() -> None:
    assert staleness_variance(7, Constant(3.0)) == 0.0
    _, late, _, _ = path([Constant(3.0)] * 7, 700, 0)
    assert set(late[7:]) == {6}


@mixing
def test_the_variance_is_what_v_of_the_cycle_averages_to(cycle: AnyLaw) -> None:
    """Second method: E[v(X)] through the quantiles, v from sums of cycles, instead of through residual lives."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    p = (1 + nodes) / 2
    # Crowds the nodes at both ends, where quantile functions have roots or grow without bound.
    part, density = special.betainc(15.0, 15.0, p), np.exp(14 * np.log(p * (1 - p)) - special.betaln(15.0, 15.0))
    least_s = float(cycle.draw(np.array(0.0)))
    mean_v = 0.0
    for low, high in pairwise(np.unique([0.0, *cycle.cdf(least_s * np.arange(2, 40)), 1.0])):  # v has kinks there
        u = np.minimum(low + (high - low) * part, np.nextafter(1.0, 0.0))
        v = [renewal_count_variance(cycle, float(x)) for x in cycle.draw(u)]
        mean_v += (high - low) * float(weights / 2 * density @ v)
    spread = cycle.variance / cycle.mean**2
    assert staleness_variance(4, cycle) == pytest.approx(3 * mean_v + 9 * spread, rel=1e-10)


def test_counts_of_stationary_renewals_vary_as_known() -> None:
    """Poisson: the mean. Erlang-2 with phases of rate a: ax/4 + (1 - e^(-2ax))/8. Constant: f (1 - f)."""
    for x in (0.01, 1.0, 7.3, 40.0):
        assert renewal_count_variance(Exponential(2.0), x) == pytest.approx(x / 2, rel=1e-12)
        a = 2 / 3.0
        expected = a * x / 4 - special.expm1(-2 * a * x) / 8
        assert renewal_count_variance(Gamma(2.0, 3.0), x) == pytest.approx(expected, rel=1e-11)
    assert renewal_count_variance(Constant(2.0), 5.0) == 0.25


@pytest.mark.parametrize("cycle", MIXING, ids=repr)
def test_simulated_staleness_varies_as_stated(cycle: AnyLaw) -> None:
    """Started at random phases (residual lives by many cycles run in), 80 paths of 300 updates."""
    m = 4
    late = np.array([path([cycle] * m, 700, 100 + seed)[1][400:] for seed in range(80)], dtype=float)
    assert_mean(((late - (m - 1)) ** 2).mean(axis=1), staleness_variance(m, cycle))


def test_fills_last_as_long_as_the_updates_they_hold() -> None:
    cycles = [Gamma(3.0, 2.0), Uniform(1.0, 2.0), Weibull(0.8, 1.0)]
    assert mean_fill_s(cycles, 5) == pytest.approx(5 / (1 / 2 + 1 / 1.5 + 1))
    long_run = np.array([path(cycles, 1500, seed, 5)[3] for seed in range(60)])
    assert_mean((long_run[:, -1] - long_run[:, 99]) / 200, mean_fill_s(cycles, 5))


def test_exponential_fills_are_erlang_from_the_first_on() -> None:
    cycles = [Exponential(2.0), Exponential(0.5)]
    law = exponential_fill(cycles, 3)
    assert (law.shape, law.mean) == (3, pytest.approx(3 / 2.5))
    first = np.array([path(cycles, 3, seed, 3)[3][0] for seed in range(2000)])
    assert_mean(first, law.mean)
    assert_mean((first - law.mean) ** 2, law.variance)


def test_what_has_no_closed_form_says_why() -> None:
    with pytest.raises(NoClosedForm, match="constant, exponential, gamma or uniform"):
        staleness_variance(3, Weibull(0.7))
    with pytest.raises(NoClosedForm, match="constant, exponential, gamma or uniform"):
        staleness_variance(3, Empirical((1.0, 2.0)))
    with pytest.raises(NoClosedForm, match="without a shift"):
        exponential_staleness([Exponential(1.0), Exponential(1.0, shift=0.1)], 0)
    with pytest.raises(NoClosedForm, match="finite mean"):
        throughput_per_s([Pareto(1.0)])
    with pytest.raises(NoClosedForm, match="longest"):
        renewal_count_variance(Uniform(1.0, 2.0), 2.5)
