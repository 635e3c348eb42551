"""Who is there, who stays, and how long interrupted work takes: beside quadrature and simulated devices.

Bounds of simulated means are 4 standard errors over independent devices; seeds were written down once.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import exp, expm1, inf

import numpy as np
import pytest
from scipy import integrate

from fedsim.delays import (
    AnyLaw,
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
from fedsim.protocols import NoClosedForm
from fedsim.theory.churn import (
    again_available_share,
    available_share,
    n_available,
    redrawn_s,
    residual_survival,
    restarted,
    resumed,
    staying_share,
    wait_until_on_s,
)

ON, OFF = Exponential(4.0), Exponential(1.5)
ALPHA, BETA = 1 / 4.0, 1 / 1.5

LAWS: list[AnyLaw] = [
    Constant(2.0),
    Exponential(2.0),
    Exponential(2.0, shift=0.7),
    Gamma(0.6, 2.0),
    Gamma(3.0, 2.0),
    Weibull(0.7, 2.0),
    Lognormal(0.8, 1.5),
    Pareto(2.5, 1.2),
    Uniform(0.5, 3.5),
    Empirical((0.5, 1.0, 4.5)),
    Classes((1.0, 6.0), (0.8, 0.2)),
    Mixture((Exponential(1.0), Uniform(2.0, 4.0)), (0.25, 0.75)),
]
each_law = pytest.mark.parametrize("law", LAWS, ids=repr)


def assert_mean(values: Array, expected: float) -> None:
    standard_error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - expected) < 4 * standard_error, (values.mean(), expected, standard_error)


def integral(f: Callable[[float], float], low: float, high: float, kinks: tuple[float, ...]) -> float:
    edges = sorted({low, high, *(k for k in kinks if low < k < high)})
    parts = [integrate.quad(f, a, b, epsabs=1e-13, epsrel=1e-12, limit=200)[0] for a, b in pairwise(edges)]
    return float(sum(parts))


# ---- who is there -----------------------------------------------------------------------------------------------------


def test_a_device_is_on_for_its_share_of_a_cycle_whatever_the_laws() -> None:
    assert available_share(ON, OFF) == pytest.approx(BETA / (ALPHA + BETA), rel=1e-15)
    assert available_share(Constant(3.0), Pareto(2.0, 0.5)) == 0.75


def test_the_number_on_is_binomial() -> None:
    np.testing.assert_allclose(n_available(2, Constant(3.0), Uniform(0.0, 2.0)), [1 / 16, 6 / 16, 9 / 16], rtol=1e-13)


def test_a_device_that_was_on_forgets_it_exponentially() -> None:
    """Second method: P' = beta (1 - P) - alpha P from P(0) = 1; and the limits."""
    times = np.linspace(0.0, 8.0, 9)
    solved = integrate.solve_ivp(
        lambda _, p: BETA - (ALPHA + BETA) * p, (0, 8), [1.0], t_eval=times, rtol=1e-10, atol=1e-12
    )
    np.testing.assert_allclose([again_available_share(ON, OFF, t) for t in times], solved.y[0], rtol=1e-8)
    assert again_available_share(ON, OFF, 0.0) == 1.0
    assert again_available_share(ON, OFF, 1e3) == pytest.approx(available_share(ON, OFF), rel=1e-15)


def test_exponential_devices_stay_with_pi_e_to_the_minus_alpha_s() -> None:
    for s in (0.0, 0.3, 5.0, 60.0):
        assert staying_share(ON, OFF, s) == pytest.approx(available_share(ON, OFF) * exp(-ALPHA * s), rel=1e-14)


@each_law
def test_a_residual_life_is_the_integrated_survival_over_the_mean(law: AnyLaw) -> None:
    """1 - int_0^s P(X > u) du / E[X]; for laws other than the exponential it is not P(X > s)."""
    kinks = (
        tuple(np.unique(law.draw(np.linspace(0, 0.9999, 1001))))
        if not _is_smooth(law)
        else (0.5, 0.7, 1.2, 2.0, 3.5, 4.0)
    )
    for s in (0.0, 0.4, 1.1, 3.0, 5.0):
        inside = integral(lambda u: float(law.survival(np.array(u))), 0.0, s, kinks)
        assert residual_survival(law, s) == pytest.approx(1 - inside / law.mean, rel=1e-9, abs=1e-10)


def _is_smooth(law: AnyLaw) -> bool:
    return not isinstance(law, Constant | Empirical | Classes)


def test_residual_survival_keeps_its_digits_where_it_is_small() -> None:
    assert residual_survival(Exponential(1.0, shift=0.5), 60.5) == pytest.approx(0.5 * exp(-120.0), rel=1e-12)
    assert residual_survival(Weibull(1.0, 1.0), 300.0) == pytest.approx(exp(-300.0), rel=1e-10)
    assert residual_survival(Pareto(2.0, 1.0), 1e9) == pytest.approx(0.5e-9, rel=1e-12)


def paths(on: AnyLaw, off: AnyLaw, at_s: float, for_s: float, n: int, seed: int) -> tuple[Array, Array]:
    """On at `at_s` and on until `for_s` later, and seconds until on; devices come on at 0."""
    rng = np.random.default_rng(seed)
    stays, wait_s = np.zeros(n), np.zeros(n)
    begin = np.zeros(n)
    while (begin <= at_s).any():
        end = begin + on.draw(rng.random(n))
        again = end + off.draw(rng.random(n))
        stays[(begin <= at_s) & (end > at_s + for_s)] = 1.0
        is_off = (end <= at_s) & (again > at_s)
        wait_s[is_off] = (again - at_s)[is_off]
        begin = again
    return stays, wait_s


def test_simulated_devices_stay_and_return_as_stated() -> None:
    """Far from the start the time is as good as random; on- and off-times are not exponential."""
    on, off = Gamma(0.5, 4.0), Uniform(0.5, 3.5)
    stays, wait_s = paths(on, off, at_s=120.0, for_s=3.0, n=40_000, seed=3)
    assert_mean(stays, staying_share(on, off, 3.0))
    assert_mean(wait_s, wait_until_on_s(on, off))
    assert abs(staying_share(on, off, 3.0) - available_share(on, off) * float(on.survival(np.array(3.0)))) > 0.1


def test_the_wait_for_an_exponential_device_is_one_off_time_if_it_is_off() -> None:
    assert wait_until_on_s(ON, OFF) == pytest.approx((1 - available_share(ON, OFF)) / BETA, rel=1e-14)
    assert wait_until_on_s(ON, Constant(0.0)) == 0.0


# ---- work that is interrupted -----------------------------------------------------------------------------------------


def finished_s(how: str, work: AnyLaw, off: AnyLaw, n: int, seed: int) -> Array:
    """Seconds until done, from a time at which the device is on."""
    rng = np.random.default_rng(seed)

    def draw(law: AnyLaw) -> Array:
        return law.draw(rng.random(n))

    need, passed, is_open = draw(work), np.zeros(n), np.ones(n, dtype=bool)
    while is_open.any():
        on_s, off_s = draw(ON), draw(off)
        is_through = is_open & (on_s >= need)
        passed[is_through] += need[is_through]
        is_open &= ~is_through
        passed[is_open] += (on_s + off_s)[is_open]
        if how == "resumed":
            need = need - on_s
        elif how == "redrawn":
            need = draw(work)
    return passed


def test_constant_work_takes_what_the_formulas_say() -> None:
    s, mean = 3.0, 1 / ALPHA + 1 / BETA
    found = resumed(Constant(s), ON, OFF)
    assert found.mean_s == pytest.approx(s * (1 + ALPHA / BETA), rel=1e-14)
    assert found.variance_s2 == pytest.approx(2 * ALPHA * s / BETA**2, rel=1e-14)
    assert restarted(Constant(s), ON, OFF).mean_s == pytest.approx(expm1(ALPHA * s) * mean, rel=1e-14)
    assert redrawn_s(Constant(s), ON, OFF) == pytest.approx(expm1(ALPHA * s) * mean, rel=1e-14)


def test_restarting_without_breaks_is_waiting_for_a_long_enough_gap() -> None:
    """Off-times of next to nothing: Var = (e^(2as) - 1 - 2as e^(as)) / a^2, the wait for a gap of s in a Poisson process."""
    s = 3.0
    found = restarted(Constant(s), ON, Exponential(1e-12))
    expected = (exp(2 * ALPHA * s) - 1 - 2 * ALPHA * s * exp(ALPHA * s)) / ALPHA**2
    assert found.variance_s2 == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("work", "off"),
    [
        (Constant(3.0), OFF),
        (Exponential(0.6), Uniform(0.5, 3.0)),  # of mean below 1: a bound for a variance needs E e^(4 alpha S)
        (Exponential(1.5, shift=1.0), Gamma(2.0, 1.5)),
        (Gamma(2.0, 1.2), Constant(2.0)),
        (Uniform(0.5, 4.0), OFF),
        (Classes((1.0, 5.0), (0.7, 0.3)), Mixture((Exponential(1.0), Constant(4.0)), (0.5, 0.5))),
        (Mixture((Gamma(3.0, 1.0), Empirical((2.0, 4.0))), (0.4, 0.6)), OFF),
    ],
    ids=repr,
)
def test_simulated_work_takes_as_long_as_stated(work: AnyLaw, off: AnyLaw) -> None:
    n = 40_000
    for how, found in (("resumed", resumed(work, ON, off)), ("restarted", restarted(work, ON, off))):
        seen = finished_s(how, work, off, n, seed=4)
        assert_mean(seen, found.mean_s)
        assert_mean((seen - found.mean_s) ** 2, found.variance_s2)
    assert_mean(finished_s("redrawn", work, off, n, seed=5), redrawn_s(work, ON, off))


def test_work_begun_anew_never_ends_on_average_if_its_tail_outlives_the_device() -> None:
    """Exp work of mean w, on-times of mean 4: the mean is infinite from w = 4 on, the variance from w = 2 on."""
    assert restarted(Exponential(1.99), ON, OFF).variance_s2 < inf
    assert restarted(Exponential(2.0), ON, OFF).variance_s2 == inf
    assert restarted(Exponential(3.99), ON, OFF).mean_s < inf
    for endless in (Exponential(4.0), Lognormal(0.1, 0.1), Pareto(30.0, 0.1), Weibull(0.9, 0.1)):
        with pytest.raises(NoClosedForm, match="infinite"):
            restarted(endless, ON, OFF)


def test_drawing_new_work_never_takes_longer_on_average_than_insisting() -> None:
    """1 / E e^(-aS) <= E e^(aS), by Jensen; equal for constant work. Exp work of mean 4 has only the one."""
    for work in (Exponential(2.0), Uniform(0.0, 5.0), Classes((1.0, 9.0), (0.5, 0.5))):
        assert redrawn_s(work, ON, OFF) < restarted(work, ON, OFF).mean_s
    assert redrawn_s(Exponential(4.0), ON, OFF) == pytest.approx((2 - 1) * (1 / ALPHA + 1 / BETA), rel=1e-14)


def test_rare_breaks_keep_their_digits() -> None:
    """Off-times of nothing, alpha = 1e-9. Given S, to first order: mean S + alpha S^2 / 2, variance alpha S^3 / 3."""
    a, rare, off = 1e-9, Exponential(1e9), Constant(0.0)
    found = restarted(Constant(3.0), rare, off)
    assert found.mean_s == pytest.approx(3.0 + a * 4.5, rel=1e-14)
    assert found.variance_s2 == pytest.approx(a * 9.0, rel=1e-8)
    # Var S + alpha Cov(S, S^2) + alpha E[S^3] / 3; of 1 and 2 with 0.7 and 0.3: 0.21, 0.63 and 3.1 / 3.
    assert restarted(Uniform(1.0, 2.0), rare, off).variance_s2 == pytest.approx(1 / 12 + a * 1.5, rel=1e-14)
    one_or_two = restarted(Classes((1.0, 2.0), (0.7, 0.3)), rare, off)
    assert one_or_two.mean_s == pytest.approx(1.3 + a / 2 * 1.9, rel=1e-14)
    assert one_or_two.variance_s2 == pytest.approx(0.21 + a * (0.63 + 3.1 / 3), rel=1e-14)
    assert restarted(Gamma(0.3, 1.0), rare, off).mean_s == pytest.approx(1.0 + a / 2 * (1 + 1 / 0.3), rel=1e-14)
    assert redrawn_s(Exponential(2.0, shift=0.5), rare, off) == pytest.approx(
        2.0 - a / 2 * (1.5**2 - 2.0**2), rel=1e-14
    )


def test_what_has_no_closed_form_says_why() -> None:
    with pytest.raises(NoClosedForm, match="exponential on-times"):
        resumed(Constant(1.0), Gamma(2.0), OFF)
    with pytest.raises(NoClosedForm, match="exponential off-times"):
        again_available_share(ON, Constant(1.0), 1.0)
    with pytest.raises(NoClosedForm, match="elementary"):
        redrawn_s(Lognormal(1.0), ON, OFF)
    with pytest.raises(NoClosedForm, match="elementary"):
        restarted(Weibull(2.0), ON, OFF)
    with pytest.raises(NoClosedForm, match="finite mean"):
        available_share(Pareto(1.0), OFF)
    with pytest.raises(NoClosedForm, match="finite mean"):
        residual_survival(Pareto(0.9), 1.0)
    with pytest.raises(NoClosedForm, match="infinite"):
        wait_until_on_s(ON, Pareto(1.5))
    assert resumed(Constant(1.0), ON, Pareto(1.5)).variance_s2 == inf
