"""Probability laws: what is drawn, its mean, variance and cdf belong together, and agree with scipy.stats."""

import numpy as np
import pytest
from scipy import special, stats

from fedsim.delays import (
    Classes,
    Constant,
    Empirical,
    Exponential,
    Gamma,
    Lognormal,
    Pareto,
    Uniform,
    Weibull,
)
from fedsim.randomness import Luck

# each law beside the same law as scipy has it, parameterised on its own
CONTINUOUS = [
    (Exponential(mean=2.0), stats.expon(scale=2.0)),
    (Exponential(mean=2.0, shift=0.5), stats.expon(loc=0.5, scale=1.5)),
    (Gamma(shape=0.4, mean=3.0), stats.gamma(0.4, scale=7.5)),
    (Gamma(shape=5.0), stats.gamma(5.0, scale=0.2)),
    (Weibull(shape=0.7, mean=2.0), stats.weibull_min(0.7, scale=2.0 / special.gamma(1 + 1 / 0.7))),
    (Weibull(shape=3.0), stats.weibull_min(3.0, scale=1.0 / special.gamma(4 / 3))),
    (Lognormal(sigma=0.5), stats.lognorm(0.5)),
    (Lognormal(sigma=1.2, median=3.0), stats.lognorm(1.2, scale=3.0)),
    (Pareto(shape=2.5, minimum=0.6), stats.pareto(2.5, scale=0.6)),
    (Uniform(low=1.0, high=4.0), stats.uniform(1.0, 3.0)),
]
laws = pytest.mark.parametrize(("law", "known"), CONTINUOUS, ids=[repr(law) for law, _ in CONTINUOUS])
U = np.concatenate([[2.0**-54, 1e-9], np.linspace(0.001, 0.999, 999), [1 - 1e-9, 1 - 2.0**-53]])


@laws
def test_means_and_variances_are_those_of_the_named_law(law, known):
    assert law.mean == pytest.approx(known.mean(), rel=1e-12)
    assert law.variance == pytest.approx(known.var(), rel=1e-9)


@laws
def test_the_cdf_is_that_of_the_named_law(law, known):
    x = np.concatenate([[0.0, 0.5, 1.0], known.ppf(np.linspace(0.01, 0.99, 50)), [1e6]])
    np.testing.assert_allclose(law.cdf(x), known.cdf(x), rtol=1e-11, atol=1e-15)


@laws
def test_survival_keeps_its_digits_where_it_is_small(law, known):
    x = known.isf([0.9, 0.5, 1e-3, 1e-12, 1e-30])
    # A bounded law ends within the last bits of its largest value.
    np.testing.assert_allclose(law.survival(x), known.sf(x), rtol=1e-9, atol=1e-16 if isinstance(law, Uniform) else 0)


@laws
def test_draws_are_quantiles(law, known):
    np.testing.assert_allclose(law.draw(U[2:-2]), known.ppf(U[2:-2]), rtol=1e-9)
    np.testing.assert_allclose(law.cdf(law.draw(U)), U, rtol=1e-9, atol=1e-15)


@laws
def test_draws_are_finite_and_not_negative_for_every_uniform(law, known):
    assert np.isfinite(law.draw(U)).all()
    assert (law.draw(U) >= 0).all()
    assert (np.diff(law.draw(U)) >= 0).all()


@laws
def test_many_draws_follow_the_cdf(law, known):
    """Kolmogorov's distance of n draws exceeds 2.28 / sqrt(n) with probability 6e-5."""
    n = 20_000
    drawn = law.draw(Luck(3, "delays").row(n))
    assert stats.kstest(drawn, law.cdf).statistic < 2.28 / np.sqrt(n)


def test_exponentials_are_stated_by_their_mean_and_not_by_their_rate():
    assert Exponential(mean=4.0).draw(np.array([1 - np.exp(-1)])) == pytest.approx([4.0])


@pytest.mark.parametrize(("shape", "mean", "variance"), [(1.0, np.inf, np.inf), (2.0, 2.0, np.inf), (3.0, 1.5, 0.75)])
def test_heavy_pareto_tails_have_infinite_moments(shape, mean, variance):
    assert Pareto(shape=shape).mean == mean
    assert Pareto(shape=shape).variance == pytest.approx(variance)


def test_a_constant_is_always_itself():
    law = Constant(0.3)
    np.testing.assert_array_equal(law.draw(U), 0.3)
    assert (law.mean, law.variance) == (0.3, 0.0)
    np.testing.assert_array_equal(law.cdf(np.array([0.0, np.nextafter(0.3, 0), 0.3, 1.0])), [0.0, 0.0, 1.0, 1.0])


def test_measured_values_are_drawn_equally_often():
    law = Empirical((3.0, 1.0, 1.0, 7.0))
    np.testing.assert_array_equal(law.draw(np.array([0.1, 0.3, 0.6, 0.8])), [3.0, 1.0, 1.0, 7.0])
    np.testing.assert_array_equal(law.draw(np.array([2.0**-54, 0.25, 0.75, 1 - 2.0**-53])), [3.0, 1.0, 7.0, 7.0])
    assert law.mean == 3.0
    assert law.variance == (0 + 4 + 4 + 16) / 4
    np.testing.assert_array_equal(law.cdf(np.array([0.9, 1.0, 2.9, 3.0, 6.9, 7.0])), [0.0, 0.5, 0.5, 0.75, 0.75, 1.0])


def test_speed_classes_are_drawn_by_their_shares():
    law = Classes(values=(1.0, 10.0, 4.0), shares=(0.5, 0.25, 0.25))
    np.testing.assert_array_equal(
        law.draw(np.array([2.0**-54, 0.499, 0.5, 0.749, 0.75, 1 - 2.0**-53])), [1, 1, 10, 10, 4, 4]
    )
    assert law.mean == 4.0
    assert law.variance == 0.5 * 9 + 0.25 * 36
    np.testing.assert_array_equal(law.cdf(np.array([0.5, 1.0, 4.0, 9.9, 10.0])), [0.0, 0.5, 0.75, 0.75, 1.0])


def test_shares_that_add_up_to_one_but_for_rounding_still_cover_every_uniform():
    law = Classes(values=tuple(range(1, 11)), shares=(0.1,) * 10)
    assert law.draw(np.array([1 - 2.0**-53])) == [10]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Exponential(mean=1.0, shift=1.0), "shift is 1 but must lie below the mean"),
        (lambda: Uniform(low=2.0, high=2.0), "low is 2 but must lie below high"),
        (lambda: Classes(values=(1.0,), shares=(0.5, 0.5)), "1 values but 2 shares"),
        (lambda: Classes(values=(1.0, 2.0), shares=(0.5, 0.4)), "shares add up to 0.9"),
    ],
)
def test_laws_that_are_none_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
