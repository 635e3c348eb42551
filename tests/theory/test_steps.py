"""Times of several local steps, against closed forms, exact enumeration and Monte Carlo.

Monte Carlo bounds are 4 standard errors of the empirical cdf; seeds were written down once.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import integrate, special, stats

from fedsim.delays import (
    Classes,
    Constant,
    Empirical,
    Exponential,
    Gamma,
    Lognormal,
    Mixture,
    Pareto,
    Uniform,
    Weibull,
)
from fedsim.facts import Array
from fedsim.protocols import Law, NoClosedForm
from fedsim.theory.counts import order_survival
from fedsim.theory.steps import DeviceTimes, StepTimes, times_of
from fedsim.theory.sums import density
from fedsim.theory.times import RandomTime

X = np.array([1e-3, 0.3, 1.0, 2.0, 3.5, 6.0, 10.0, 25.0])
CONTINUOUS: list[Law] = [
    Exponential(mean=1.3, shift=0.4),
    Gamma(shape=2.5, mean=2.0),
    Weibull(shape=1.6, mean=0.8),
    Lognormal(sigma=0.7, median=0.5),
    Pareto(shape=6.0, minimum=0.7),
    Uniform(low=0.2, high=1.1),
    Mixture(laws=(Exponential(mean=1.0), Gamma(shape=3.0, mean=2.0)), shares=(0.7, 0.3)),
]
by_kind = pytest.mark.parametrize("law", CONTINUOUS, ids=lambda law: law.kind)


def assert_empirical(drawn: Array, cdf: Array, at: Array) -> None:
    found = (drawn[:, None] <= at).mean(axis=0)
    allowed = 4 * np.sqrt(np.maximum(cdf * (1 - cdf), 1 / len(drawn)) / len(drawn))
    assert (np.abs(found - cdf) <= allowed).all(), (found, cdf)


# ---- one level of luck ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_exponential_steps_add_to_erlang_times(n: int) -> None:
    times = StepTimes(step=Exponential(mean=2.0))
    np.testing.assert_allclose(times.survival(n, X * n), special.gammaincc(n, X * n / 2), rtol=1e-13)
    np.testing.assert_allclose(times.cdf(n, X * n), special.gammainc(n, X * n / 2), rtol=1e-13)


def test_a_shift_delays_every_step() -> None:
    plain, shifted = StepTimes(step=Exponential(mean=1.0)), StepTimes(step=Exponential(mean=1.25, shift=0.25))
    np.testing.assert_allclose(shifted.survival(4, X + 1.0), plain.survival(4, X), rtol=1e-12)
    assert shifted.kinks(4) == (1.0,)


def test_a_task_factor_alone_makes_all_steps_alike() -> None:
    times = StepTimes(task=Lognormal(sigma=0.5))
    np.testing.assert_array_equal(times.survival(6, 6 * X), Lognormal(sigma=0.5).survival(6 * X / 6))


def test_nothing_random_is_a_jump_and_a_step_that_ends_just_then_is_done() -> None:
    times = StepTimes()
    assert times.cdf(3, np.array([2.999, 3.0])).tolist() == [0.0, 1.0]
    assert times.survival(3, np.array([2.999, 3.0])).tolist() == [1.0, 0.0]
    # In binary 0.3 / 0.1 is less than 3: still the third step of 0.1 s is done after 0.3 s.
    assert 0.3 / 0.1 < 3.0
    assert times.cdf(3, np.array([0.3 / 0.1])).tolist() == [1.0]


def test_no_steps_take_no_time() -> None:
    assert StepTimes(step=Exponential()).survival(0, X).tolist() == [0.0] * len(X)


def test_atoms_add_up_exactly() -> None:
    """All 3^4 sequences of four steps, enumerated."""
    law = Classes(values=(0.5, 1.0, 2.0), shares=(0.5, 0.3, 0.2))
    times = StepTimes(step=law)
    sums, p = [], []
    for which in product(range(3), repeat=4):
        sums.append(sum(law.values[i] for i in which))
        p.append(np.prod([law.shares[i] for i in which]))
    for x in (1.9, 2.0, 3.5, 4.9, 8.0):
        expected = sum(share for total, share in zip(sums, p, strict=True) if total <= x)
        assert times.cdf(4, np.array([x]))[0] == pytest.approx(expected, abs=1e-14)
        assert times.survival(4, np.array([x]))[0] == pytest.approx(1 - expected, abs=1e-14)
    assert times.kinks(4) == tuple(sorted({round(total, 12) for total in sums}))
    assert times.is_discrete


def test_too_many_atoms_are_refused() -> None:
    values = tuple(np.random.default_rng(5).random(200).tolist())
    with pytest.raises(NoClosedForm, match="too many sums"):
        StepTimes(step=Empirical(values=values)).cdf(8, X)


@pytest.mark.parametrize("n", [2, 5, 20])
@pytest.mark.parametrize("shape", [1.0, 2.3])
def test_the_lattice_gives_sums_of_gammas_by_another_way(n: int, shape: float) -> None:
    """A mixture of two equal gammas is a gamma, but its sums are added on a lattice; Gamma(n shape) is exact."""
    law = Gamma(shape=shape, mean=1.0)
    times = StepTimes(step=Mixture(laws=(law, law), shares=(0.5, 0.5)))
    exact = special.gammaincc(n * shape, X * shape)
    np.testing.assert_allclose(times.survival(n, X), exact, atol=1e-11)
    np.testing.assert_allclose(times.cdf(n, X), 1 - exact, atol=1e-11)
    seen = exact > 1e-9
    np.testing.assert_allclose(times.survival(n, X)[seen], exact[seen], rtol=1e-6)


def test_the_slowest_of_ten_thousand_sees_no_rounding_of_the_lattice() -> None:
    """The tail at 1e-4 and below decides; by gammas, whose sums are exact."""
    law = Gamma(shape=1.0, mean=1.0)
    twice = Mixture(laws=(law, law), shares=(0.5, 0.5))
    exact, found = (
        RandomTime(lambda t, x=x: order_survival(10_000, 10_000, StepTimes(step=x).survival(5, t)))
        for x in (law, twice)
    )
    assert found.mean_s == pytest.approx(exact.mean_s, rel=1e-10)
    assert found.variance_s2 == pytest.approx(exact.variance_s2, rel=1e-8)


def test_two_uniform_steps_make_a_triangle() -> None:
    times = StepTimes(step=Uniform(low=0.5, high=1.5))
    x = np.array([1.0, 1.2, 2.0, 2.7, 3.0])
    expected = np.where(x < 2, (x - 1) ** 2 / 2, 1 - (3 - x) ** 2 / 2)
    np.testing.assert_allclose(times.cdf(2, x), expected, atol=1e-9)
    assert times.kinks(2) == (1.0, 2.0, 3.0)


@by_kind
def test_two_steps_agree_with_the_convolution_integral(law: Law) -> None:
    """P(X_1 + X_2 > t) = S(t) + integral of f(x) S(t - x), adaptively, cut at the law's own kink."""
    times, t = StepTimes(step=law), 2.1 * law.mean
    low = float(law.draw(np.zeros(1))[0]) if law.kind != "mixture" else 0.0
    points = [p for p in (low, t - low) if 0 < p < t]

    def inner(x: float) -> float:
        return float(density(law, np.array([x]))[0] * law.survival(np.array([t - x]))[0])

    area = integrate.quad(inner, 0.0, t, points=points, epsabs=1e-12, epsrel=1e-12, limit=400)[0]
    assert times.survival(2, np.array([t]))[0] == pytest.approx(float(law.survival(np.array([t]))[0]) + area, abs=2e-7)


@by_kind
def test_sums_agree_with_monte_carlo(law: Law) -> None:
    n, rng = 5, np.random.default_rng(11)
    drawn = law.draw(rng.random((200_000, n))).sum(axis=1)
    at = np.quantile(drawn, [0.01, 0.2, 0.5, 0.9, 0.999])
    assert_empirical(drawn, StepTimes(step=law).cdf(n, at), at)


@pytest.mark.parametrize("law", [Pareto(shape=1.5), Pareto(shape=3.0), Lognormal(sigma=2.0)], ids=str)
def test_sums_with_heavy_tails_are_refused_and_single_steps_are_not(law: Law) -> None:
    with pytest.raises(NoClosedForm, match=r"needs (lighter tails|steps of finite variance)"):
        StepTimes(step=law).survival(3, X)
    np.testing.assert_array_equal(StepTimes(step=law).survival(1, X), law.survival(X))


# ---- both levels ----------------------------------------------------------------------------------------------------


def test_a_product_of_exponentials_is_a_bessel_function() -> None:
    """P(A X > x) = 2 sqrt(x) K_1(2 sqrt(x)), eight digits at 1e-150 and all of them nearer."""
    times, x = StepTimes(Exponential(), Exponential()), np.array([1e-4, 0.1, 1.0, 10.0, 1e3, 3e4])
    root = 2 * np.sqrt(x)
    np.testing.assert_allclose(times.survival(1, x), root * special.kv(1, root), rtol=1e-8)
    np.testing.assert_allclose(times.survival(1, x)[:-1], (root * special.kv(1, root))[:-1], rtol=1e-12)
    np.testing.assert_allclose(times.cdf(1, x)[:3], 1 - (root * special.kv(1, root))[:3], rtol=1e-9)


@pytest.mark.parametrize(
    ("task", "step"),
    [
        (Lognormal(sigma=0.5), Exponential(mean=1.0, shift=0.5)),
        (Uniform(low=0.5, high=1.5), Uniform(low=0.2, high=0.6)),
        (Weibull(shape=0.7), Gamma(shape=2.0)),
        (Pareto(shape=2.5), Exponential()),
        (Classes(values=(1.0, 3.0), shares=(0.8, 0.2)), Gamma(shape=2.0)),
        (Gamma(shape=2.0), Classes(values=(1.0, 3.0), shares=(0.8, 0.2))),
        (Mixture(laws=(Exponential(), Uniform(low=1.0, high=2.0)), shares=(0.5, 0.5)), Weibull(shape=2.0)),
    ],
    ids=lambda law: law.kind,
)
def test_both_levels_agree_with_monte_carlo(task: Law, step: Law) -> None:
    n, rng = 4, np.random.default_rng(12)
    drawn = task.draw(rng.random(200_000)) * step.draw(rng.random((200_000, n))).sum(axis=1)
    at = np.quantile(drawn, [0.01, 0.2, 0.5, 0.9, 0.999])
    times = StepTimes(task, step)
    assert_empirical(drawn, times.cdf(n, at), at)
    np.testing.assert_allclose(times.cdf(n, at) + times.survival(n, at), 1.0, rtol=1e-8)


def test_moments_of_both_levels_are_those_of_a_product() -> None:
    """E[A^2] (n Var X + n^2 E[X]^2) - (n E[A] E[X])^2, by integrals of the survival function."""
    times, n = StepTimes(Gamma(shape=3.0, mean=1.5), Exponential(mean=1.0, shift=0.5)), 3
    time = RandomTime(lambda t: times.survival(n, t))
    assert times.mean(n) == pytest.approx(time.mean_s, rel=1e-10)
    assert times.variance(n) == pytest.approx(time.variance_s2, rel=1e-9)


def test_many_steps_under_a_task_factor_turn_sharply_and_are_followed() -> None:
    """400 shifted exponential steps: the sum turns from 1 to 0 within 3 %. By Simpson's rule on 400,000 points of A."""
    log_a = np.linspace(-18, 6, 400_001)
    a, n, t = np.exp(log_a), 400, 280.0
    inner = special.gammaincc(n, np.maximum(t / a - 0.4 * n, 0) / 0.6)
    expected = integrate.simpson(a * density(Gamma(shape=4.0), a) * inner, x=log_a)
    times = StepTimes(Gamma(shape=4.0), Exponential(mean=1.0, shift=0.4))
    assert times.survival(n, np.array([t]))[0] == pytest.approx(expected, rel=1e-10)


def test_an_infinite_mean_or_variance_is_infinite() -> None:
    assert StepTimes(task=Pareto(shape=1.0)).mean(2) == np.inf
    assert StepTimes(task=Pareto(shape=1.5), step=Exponential()).variance(2) == np.inf


@by_kind
def test_densities_are_derivatives_of_cdfs(law: Law) -> None:
    x = law.mean * np.array([0.63, 1.1, 1.37])
    slope = (law.cdf(x * (1 + 1e-6)) - law.cdf(x * (1 - 1e-6))) / (2e-6 * x)
    np.testing.assert_allclose(density(law, x), slope, rtol=1e-6)


def test_lognormal_density_is_scipys() -> None:
    np.testing.assert_allclose(
        density(Lognormal(sigma=0.7, median=0.5), X), stats.lognorm.pdf(X, 0.7, scale=0.5), rtol=1e-12
    )


# ---- devices --------------------------------------------------------------------------------------------------------


def test_equal_devices_share_a_group_and_keep_their_place() -> None:
    times = DeviceTimes.of(
        StepTimes(step=Exponential()), np.array([2.0, 1.0, 2.0, 2.0]), np.array([0.0, 0.0, 0.0, 1.0])
    )
    assert times.n_in_group.tolist() == [1, 2, 1]
    assert times.unit_s[times.group].tolist() == [2.0, 1.0, 2.0, 2.0]
    assert times.offset_s[times.group].tolist() == [0.0, 0.0, 0.0, 1.0]
    t = np.array([0.5, 3.0])
    expected = np.stack([special.gammaincc(2, np.maximum(t - o, 0) / u) for u, o in ((1, 0), (2, 0), (2, 1))], axis=1)
    np.testing.assert_allclose(times.survival(2, t), expected)


def test_a_number_of_seconds_and_a_law_of_the_same_mean_differ_in_law_only() -> None:
    fixed, random = times_of(3, 2.0, latency_s=0.5), times_of(3, Exponential(mean=2.0), latency_s=0.5)
    assert fixed.mean_s(4).tolist() == random.mean_s(4).tolist() == [8.5]
    assert fixed.steps.is_discrete
    assert not random.steps.is_discrete


def test_one_factor_per_device_is_asked_for() -> None:
    with pytest.raises(ValueError, match="give one per device"):
        times_of(3, Constant(1.0), device_factor=[1.0, 2.0])
