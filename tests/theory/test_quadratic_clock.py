"""Curves on the clock beside renewal processes whose counts have a closed law, and rounds to a target."""

from __future__ import annotations

from fractions import Fraction
from math import comb, factorial

import numpy as np
import pytest
from scipy import special

from fedsim.delays import Classes, Constant, Exponential, Gamma, Lognormal, Uniform
from fedsim.protocols import NoClosedForm
from fedsim.theory.quadratic import Quadratic
from fedsim.theory.quadratic_clock import (
    at_fixed_rounds,
    at_poisson_updates,
    at_time,
    first_round_below,
    rounds_to_target,
    time_of_rounds,
)
from fedsim.theory.quadratic_rounds import fedavg

LOSSES = 0.2 + 3.0 * 0.8 ** np.arange(120)
TIMES_S = np.array([0.0, 0.3, 2.0, 17.3, 50.0])


def by_gamma_sums(times_s, shape, scale, shift=0.0):
    """The sum of n round times is n * shift + Gamma(n * shape)."""
    n = np.arange(1, len(LOSSES))
    ended = special.gammainc(n * shape, np.maximum(times_s[:, None] - n * shift, 0.0) / scale)
    return LOSSES[0] + ended @ np.diff(LOSSES)


@pytest.mark.parametrize("shape", [1.0, 2.0, 3.5])
def test_gamma_rounds(shape):
    found = at_time(LOSSES, Gamma(shape=shape, mean=1.3).cdf, TIMES_S)
    assert found.loss == pytest.approx(by_gamma_sums(TIMES_S, shape, 1.3 / shape), abs=1e-7)
    assert found.error <= 1e-7 * LOSSES[0]


@pytest.mark.parametrize(("mean", "shift"), [(1.3, 0.5), (1.3, 1.2), (1.0, 0.25), (1.3, 0.9), (1.0, 0.01)])
def test_rounds_with_a_least_length(mean, shift):
    """The density jumps there; the stated tolerance holds all the same."""
    found = at_time(LOSSES, Exponential(mean=mean, shift=shift).cdf, TIMES_S)
    exact = by_gamma_sums(TIMES_S, 1.0, mean - shift, shift)
    assert np.abs(found.loss - exact).max() <= 1e-7 * LOSSES[0]


def test_rounds_whose_density_jumps_between_grid_points():
    """Uniform on [0.5, 1.7]; P(S_n <= t) by the sum of Irwin and Hall, to 20 rounds in rational numbers."""
    found = at_time(LOSSES[:21], Uniform(low=0.5, high=1.7).cdf, np.array([0.0, 0.9, 2.0, 4.3, 9.0]))
    times = [Fraction(0), Fraction(9, 10), Fraction(2), Fraction(43, 10), Fraction(9)]
    exact = [LOSSES[0] + sum((LOSSES[n] - LOSSES[n - 1]) * irwin_hall(n, t) for n in range(1, 21)) for t in times]
    assert found.loss == pytest.approx(exact, abs=1e-7 * LOSSES[0])


def irwin_hall(n, t):
    """P(sum of n uniforms on [1/2, 17/10] <= t)."""
    x = (t - n * Fraction(1, 2)) / Fraction(6, 5)
    terms = [(-1) ** k * comb(n, k) * (x - k) ** n for k in range(n + 1) if k < x]
    return float(min(Fraction(1), sum(terms, Fraction(0)) / factorial(n)))


def test_lognormal_rounds_agree_with_draws():
    """Seed 5, 20,000 runs of 80 rounds; 4 standard errors."""
    law, rng = Lognormal(sigma=0.8, median=1.0), np.random.default_rng(5)
    ends_s = law.draw(rng.random((20_000, 80))).cumsum(axis=1)
    drawn = LOSSES[(ends_s[:, None, :] <= TIMES_S[1:4, None]).sum(axis=2)]
    found = at_time(LOSSES, law.cdf, TIMES_S[1:4]).loss
    assert (np.abs(drawn.mean(axis=0) - found) < 4 * drawn.std(axis=0) / np.sqrt(len(drawn))).all()


def test_memoryless_rounds_are_a_poisson_process():
    found = at_poisson_updates(LOSSES, 1 / 1.3, TIMES_S)
    assert found == pytest.approx(by_gamma_sums(TIMES_S, 1.0, 1.3), rel=1e-12)


def test_the_loss_at_the_mean_number_of_rounds_is_not_the_mean_loss():
    """Jensen: E[0.8^N] = exp(-0.2 E[N]) for Poisson N, not 0.8^E[N]: 0.0699 and 0.0513 after 17.3 s."""
    n_expected = 17.3 / 1.3
    found = at_poisson_updates(LOSSES, 1 / 1.3, np.array([17.3]))[0]
    assert found == pytest.approx(0.2 + 3.0 * np.exp(-0.2 * n_expected), rel=1e-12)
    assert found > 1.1 * (0.2 + 3.0 * 0.8**n_expected)


def test_a_fixed_deadline_that_is_just_over_counts():
    """0.3 / 0.1 is 2.9999999999999996 in floats, and the round ends all the same."""
    times_s = np.array([0.0, 0.29, 0.3, 0.1 + 0.2, 0.7, 10 * 0.1])
    assert (at_fixed_rounds(LOSSES, 0.1, times_s) == LOSSES[[0, 2, 3, 3, 7, 10]]).all()


def test_too_few_rounds_are_refused():
    with pytest.raises(ValueError, match="compute as many"):
        at_fixed_rounds(LOSSES, 0.1, np.array([12.0]))
    with pytest.raises(ValueError, match="compute more rounds"):
        at_time(LOSSES[:20], Gamma(shape=2.0).cdf, TIMES_S)
    with pytest.raises(ValueError, match="compute more rounds"):
        at_poisson_updates(LOSSES[:20], 1.0, TIMES_S)


@pytest.mark.parametrize(
    "law", [Constant(value=np.pi / 3), Constant(value=1.0), Classes(values=(1.0, 2.5), shares=(0.4, 0.6))]
)
def test_round_times_with_atoms_are_refused(law):
    with pytest.raises(NoClosedForm, match="atom"):
        at_time(LOSSES, law.cdf, np.array([2.0, 2 * np.pi, 10.0]))


# ---- to a target ----------------------------------------------------------------------------------------------------


def test_rounds_to_a_target_is_the_first_round_of_the_curve_below_it():
    q = Quadratic.of(5, np.eye(1), start=np.ones(1), rate=0.1, noise=0.5)
    curve = fedavg(q, 60, local_steps=2)
    for target in (0.4, 0.1, 0.01, 0.003):
        found = rounds_to_target(
            start=curve.loss[0], limit=curve.round.steady().loss, contraction=0.9**4, target=target
        )
        assert found == first_round_below(curve.loss, target)
    assert rounds_to_target(start=1.0, limit=0.0, contraction=0.5, target=0.25) == 2
    assert rounds_to_target(start=1.0, limit=0.0, contraction=0.5, target=1.0) == 0


def test_a_target_that_is_never_reached_is_refused():
    with pytest.raises(NoClosedForm, match=r"settles at 0\.2, above 0\.1"):
        rounds_to_target(start=1.0, limit=0.2, contraction=0.5, target=0.1)
    with pytest.raises(NoClosedForm, match="stays above"):
        first_round_below(LOSSES, 0.1)


def test_independent_rounds_add_up():
    total = time_of_rounds(7, round_mean_s=2.0, round_variance_s2=0.5)
    assert (total.mean_s, total.variance_s2) == (14.0, 3.5)
