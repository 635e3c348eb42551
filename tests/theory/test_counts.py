"""Order statistics and counts of successes, against exact rationals, brute force and scipy."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from scipy import integrate, special, stats

from fedsim.delays import Classes, Exponential, Pareto
from fedsim.facts import Array
from fedsim.theory import counts
from fedsim.theory.steps import DeviceTimes, StepTimes


def exact_pmf(missing: Array) -> list[Fraction]:
    """P(j have finished), in rational arithmetic, one device after another."""
    pmf = [Fraction(1)]
    for q in (Fraction(float(q)) for q in missing):
        longer = [Fraction(0)] * (len(pmf) + 1)
        for j, p in enumerate(pmf):
            longer[j] += p * q
            longer[j + 1] += p * (1 - q)
        pmf = longer
    return pmf


@pytest.mark.parametrize("m", [2, 3, 7, 20, 60])
@pytest.mark.parametrize("steepness", [0.1, 1.0, 5.0, 40.0])
def test_fewer_than_k_of_unequal_devices_is_accurate_however_small(m: int, steepness: float) -> None:
    """Down to 1e-290, where inclusion-exclusion has no digit left."""
    q = np.exp(-np.random.default_rng(m).exponential(size=m) * steepness)
    for missing in (q, 1 - q):
        pmf = exact_pmf(missing)
        for k in {1, 2, m // 2, m - 1, m} - {0}:
            expected = sum(pmf[:k])
            found = counts.fewer_than(k, missing[None, :], np.ones(m, dtype=np.int64))[0]
            if expected > 1e-290:
                assert found == pytest.approx(float(expected), rel=1e-11)


def test_groups_of_equal_devices_count_like_their_members() -> None:
    missing, n = np.array([[0.3, 0.02], [1e-9, 0.9]]), np.array([6, 5])
    for k in range(13):
        apart = counts.fewer_than(k, np.repeat(missing, n, axis=1), np.ones(11, dtype=np.int64))
        np.testing.assert_allclose(counts.fewer_than(k, missing, n), apart, rtol=1e-12)


def test_without_one_device_is_the_fleet_without_it() -> None:
    missing, n = np.array([[0.3, 0.02, 0.7], [1e-9, 0.9, 0.5]]), np.array([3, 1, 2])
    for k in range(8):
        found = counts.fewer_than_without_one(k, missing, n)
        for g in range(3):
            left = n - (np.arange(3) == g)
            keep = left > 0
            np.testing.assert_allclose(found[:, g], counts.fewer_than(k, missing[:, keep], left[keep]), rtol=1e-12)


def test_devices_that_are_certain_do_not_disturb() -> None:
    missing = np.array([[0.0, 0.0, 1.0, 0.5, 0.3, 1e-30], [1.0] * 6, [0.0] * 6, [1.0] * 5 + [0.5]])
    for k in range(1, 7):
        expected = [float(sum(exact_pmf(row)[:k])) for row in missing]
        np.testing.assert_allclose(
            counts.fewer_than(k, missing, np.ones(6, dtype=np.int64)), expected, rtol=1e-12, atol=1e-300
        )


def test_ten_thousand_unequal_devices_agree_with_the_whole_law() -> None:
    """The full distribution by convolutions; its absolute error is 1e-13 or so."""
    q = np.linspace(0.05, 0.95, 10_000)
    pmf = counts.poisson_binomial_pmf(1 - q)
    assert pmf.sum() == pytest.approx(1.0, rel=1e-12)
    for k in (4800, 4990, 5000, 5100):
        found = counts.fewer_than(k, q[None, :], np.ones(10_000, dtype=np.int64))[0]
        assert found == pytest.approx(pmf[:k].sum(), rel=1e-9)


def test_equal_devices_are_a_beta_function() -> None:
    survival = np.array([1e-200, 0.1, 0.5, 1.0])
    for m, k in ((5, 3), (10_000, 9_990)):
        np.testing.assert_allclose(
            counts.order_survival(k, m, survival), special.betainc(m - k + 1, k, survival), rtol=1e-13
        )
    assert counts.order_survival(0, 5, survival).tolist() == [0.0] * 4
    assert counts.order_survival(6, 5, survival).tolist() == [1.0] * 4


def test_inverse_moments_are_sums() -> None:
    n, q = 7, 0.3
    pmf = counts.poisson_binomial_pmf(np.full(n, q))
    np.testing.assert_allclose(pmf, stats.binom.pmf(np.arange(n + 1), n, q), rtol=1e-12)
    expected = sum(stats.binom.pmf(j, n, q) / j for j in range(1, n + 1))
    assert counts.inverse_moment(pmf) == pytest.approx(expected, rel=1e-13)


# ---- samples of the fleet -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 1), (3, 2), (4, 4), (6, 3)])
def test_sampled_devices_are_the_average_over_all_subsets(n: int, k: int) -> None:
    missing = np.array([[0.9, 0.2, 0.5, 1e-12, 0.7, 0.1], [1e-20, 1e-30, 1e-10, 1e-5, 1e-8, 1e-3]])
    subsets = list(combinations(range(6), n))
    expected = np.mean([[float(sum(exact_pmf(row[list(s)])[:k])) for row in missing] for s in subsets], axis=0)
    np.testing.assert_allclose(counts.sampled_fewer_than(k, n, missing), expected, rtol=1e-12)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_successes_of_a_sample_have_the_mixtures_law(n: int) -> None:
    p = np.array([0.9, 0.2, 0.5, 0.0, 0.7, 0.1])
    subsets = [exact_pmf(1 - p[list(s)]) for s in combinations(range(6), n)]
    expected = np.array([[float(x) for x in pmf] for pmf in subsets]).mean(axis=0)
    np.testing.assert_allclose(counts.sampled_pmf(p, n), expected, atol=1e-15)
    assert counts.none_of(p, n) == pytest.approx(expected[0], rel=1e-12)
    j = np.arange(n + 1)
    mean = float(expected @ j)
    assert counts.sampled_sum(p, p, n) == pytest.approx((mean, float(expected @ j**2) - mean**2), rel=1e-12)


# ---- waiting --------------------------------------------------------------------------------------------------------


def by_hand(unit_s: Array, k: int) -> float:
    """E[T] of unequal exponential devices: integral of the rational-arithmetic count, adaptively."""

    def survival(t: float) -> float:
        return float(sum(exact_pmf(np.exp(-t / unit_s))[:k]))

    return integrate.quad(survival, 0, np.inf, epsrel=1e-11, limit=200)[0]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_waiting_for_a_few_unequal_devices(k: int) -> None:
    times = DeviceTimes.of(StepTimes(step=Exponential()), np.array([0.5, 1.0, 2.0, 5.0]))
    found = counts.waiting(k, times.n_in_group, lambda t: times.survival(1, t))
    assert found.mean_s == pytest.approx(by_hand(np.array([0.5, 1.0, 2.0, 5.0]), k), rel=1e-9)


@pytest.mark.parametrize("k", [1, 20, 55, 60])
def test_a_table_of_the_survival_function_loses_nothing(k: int) -> None:
    """60 different devices are tabulated; 60 pairs asked each time at the same speeds make 24 groups, which are not."""
    unit_s = np.repeat(np.linspace(0.5, 4.0, 20), 3)
    nudged = unit_s * (1 + 1e-13 * np.arange(60))
    times = [DeviceTimes.of(StepTimes(step=Exponential()), u) for u in (unit_s, nudged)]
    assert [len(t.unit_s) for t in times] == [20, 60]
    direct, table = (counts.waiting(k, t.n_in_group, lambda x, t=t: t.survival(1, x)) for t in times)
    assert table.mean_s == pytest.approx(direct.mean_s, rel=1e-9)
    assert table.variance_s2 == pytest.approx(direct.variance_s2, rel=1e-8)


def test_the_slowest_of_unequal_exponentials_is_an_inclusion_exclusion_for_three() -> None:
    a, b, c = 1.0, 0.5, 0.25  # rates
    expected = 1 / a + 1 / b + 1 / c - 1 / (a + b) - 1 / (a + c) - 1 / (b + c) + 1 / (a + b + c)
    times = DeviceTimes.of(StepTimes(step=Exponential()), np.array([1.0, 2.0, 4.0]))
    assert counts.waiting(3, times.n_in_group, lambda t: times.survival(1, t)).mean_s == pytest.approx(
        expected, rel=1e-12
    )


def test_many_kinks_are_faint() -> None:
    """2,000 devices with a least time each: the table is coarser than their kinks; Monte Carlo within 4 errors."""
    unit_s = np.linspace(0.5, 4.0, 2_000)
    law = Pareto(shape=3.0)
    times = DeviceTimes.of(StepTimes(step=law), unit_s)
    found = counts.waiting(1_000, times.n_in_group, lambda t: times.survival(1, t), times.kinks_s(1))
    rng = np.random.default_rng(3)
    drawn = np.array([np.partition(law.draw(rng.random(2_000)) * unit_s, 999)[999] for _ in range(2_000)])
    assert abs(drawn.mean() - found.mean_s) < 4 * found.sd_s / np.sqrt(2_000)
    assert drawn.var() == pytest.approx(found.variance_s2, rel=4 * np.sqrt(2 / 2_000))


def test_discrete_times_jump_and_their_means_are_sums() -> None:
    """Two devices of 1 or 3 s (7 to 3): the slower one takes 1 s with 0.49."""
    times = DeviceTimes.of(StepTimes(step=Classes(values=(1.0, 3.0), shares=(0.7, 0.3))), np.array([1.0, 2.0]))
    found = counts.waiting(2, times.n_in_group, lambda t: times.survival(1, t), times.kinks_s(1), is_discrete=True)
    # the second takes 2 or 6 s; the first 1 or 3 s
    expected = 2 * 0.7 * 0.7 + 3 * 0.3 * 0.7 + 6 * 0.3
    assert found.mean_s == pytest.approx(expected, rel=1e-12)
    assert found.variance_s2 == pytest.approx(4 * 0.49 + 9 * 0.21 + 36 * 0.3 - expected**2, rel=1e-11)
