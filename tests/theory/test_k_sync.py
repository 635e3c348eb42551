"""K-sync and K-batch-sync round times, and whole rounds of K-sync, against exact values and plain NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from scipy import special

from fedsim.delays import Classes, Constant, Exponential, Gamma, Lognormal, Pareto, Uniform, Weibull
from fedsim.protocols import Law, NoClosedForm
from fedsim.theory import k_sync
from fedsim.theory.fleet import Expectation
from tests.theory.stories import assert_agree, fleet, whole_tasks


@dataclass(frozen=True)
class Policy:
    k: int


# ---- round times ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("m", "k"), [(1, 1), (10, 4), (20, 5), (20, 20), (10_000, 1), (10_000, 5_000), (10_000, 10_000)]
)
def test_harmonic_sums_equal_the_quadrature(m: int, k: int) -> None:
    mean_s, variance_s2 = k_sync.harmonic(m, k, mean_s=2.0)
    found = k_sync.round_time(m, k, Exponential(mean=2.0))
    assert found.mean_s == pytest.approx(mean_s, rel=1e-10)
    assert found.variance_s2 == pytest.approx(variance_s2, rel=1e-8)


def test_harmonic_sums_are_rational() -> None:
    exact = sum(Fraction(1, j) for j in range(16, 21))
    assert k_sync.harmonic(20, 5)[0] == pytest.approx(float(exact), rel=1e-15)
    assert round(float(exact), 4) == 0.2795


def test_a_shift_is_added_and_leaves_the_variance() -> None:
    plain, shifted = (k_sync.round_time(10, 7, Exponential(mean=1.0 + d, shift=d)) for d in (0.0, 3.0))
    assert shifted.mean_s == pytest.approx(3.0 + plain.mean_s, rel=1e-12)
    assert shifted.variance_s2 == pytest.approx(plain.variance_s2, rel=1e-9)


@pytest.mark.parametrize(("k", "shape"), [(1, 0.3), (7, 1.5), (9, 1.5), (10, 2.5)])
def test_pareto_means_are_ratios_of_gamma_functions(k: int, shape: float) -> None:
    found = k_sync.round_time(10, k, Pareto(shape=shape, minimum=0.5))
    assert found.mean_s == pytest.approx(k_sync.pareto_mean_s(10, k, shape, 0.5), rel=1e-9)


def test_infinite_moments_of_pareto_times_are_named() -> None:
    """The slowest of any number has as heavy a tail as one: with shape 1.5 its variance is infinite."""
    with pytest.raises(NoClosedForm, match="finite mean"):
        _ = k_sync.round_time(10, 10, Pareto(shape=0.9)).mean_s
    with pytest.raises(NoClosedForm, match="finite mean"):
        k_sync.pareto_mean_s(10, 10, 0.9)
    slowest = k_sync.round_time(10, 10, Pareto(shape=1.5))
    assert slowest.mean_s > 0
    with pytest.raises(NoClosedForm, match="finite variance"):
        _ = slowest.variance_s2
    assert not k_sync.pareto_has_variance(10, 10, 1.5)
    assert k_sync.pareto_has_variance(10, 9, 1.5)
    assert k_sync.round_time(10, 9, Pareto(shape=1.5)).variance_s2 > 0


@pytest.mark.parametrize("shape", [0.6, 1.0, 3.0])
def test_the_fastest_of_weibull_times_is_weibull(shape: float) -> None:
    found = k_sync.round_time(50, 1, Weibull(shape=shape, mean=2.0))
    assert found.mean_s == pytest.approx(k_sync.weibull_fastest_s(50, shape, 2.0), rel=1e-10)


def test_uploads_belong_to_the_race() -> None:
    """Exp(1) + a constant: the order statistic is shifted; unequal latencies change who is first."""
    assert k_sync.round_time(5, 2, Exponential(), latency_s=0.5).mean_s == pytest.approx(
        0.5 + k_sync.harmonic(5, 2)[0], rel=1e-12
    )
    # The faster of 1 s + Exp and of Exp: below 1 s only the second; so 1 - e^-1 + e^-1 / 2.
    found = k_sync.round_time(2, 1, Exponential(), latency_s=[1.0, 0.0])
    assert found.mean_s == pytest.approx(1 - np.exp(-1) / 2, rel=1e-12)


@pytest.mark.parametrize(
    "law", [Gamma(shape=2.0), Lognormal(sigma=1.0), Uniform(low=0.5, high=1.5)], ids=lambda law: law.kind
)
@pytest.mark.parametrize("k", [1, 4, 6])
def test_unequal_devices_agree_with_monte_carlo(law: Law, k: int) -> None:
    factors, rng = np.array([0.5, 0.7, 1.0, 1.5, 2.0, 4.0]), np.random.default_rng(k)
    drawn = np.sort(law.draw(rng.random((100_000, 6))) * factors, axis=1)[:, k - 1]
    found = k_sync.round_time(6, k, law, device_factor=factors.tolist())
    assert abs(drawn.mean() - found.mean_s) < 4 * found.sd_s / np.sqrt(100_000)
    at = np.quantile(drawn, [0.05, 0.5, 0.95])
    error = np.sqrt([0.05 * 0.95, 0.25, 0.05 * 0.95]) / np.sqrt(100_000)
    assert (np.abs(found.cdf(at) - [0.05, 0.5, 0.95]) < 4 * error).all()


def test_a_task_factor_and_a_step_factor_of_one_step_are_the_same() -> None:
    by_step = k_sync.round_time(8, 3, Gamma(shape=2.0))
    by_task = k_sync.round_time(8, 3, 1.0, task_factor=Gamma(shape=2.0))
    assert by_step.mean_s == pytest.approx(by_task.mean_s, rel=1e-13)


def test_k_beyond_the_fleet_is_refused() -> None:
    with pytest.raises(ValueError, match=r"choose 1\.\.4"):
        k_sync.round_time(4, 5, Exponential())


# ---- K-batch-sync ---------------------------------------------------------------------------------------------------


def test_exponential_batches_are_an_erlang_time() -> None:
    found = k_sync.batch_round_time(4, 6, Exponential(mean=2.0))
    t = np.array([0.5, 3.0, 9.0])
    np.testing.assert_allclose(found.survival(t), special.gammaincc(6, 4 * t / 2), rtol=1e-9)
    assert found.mean_s == pytest.approx(6 * 2 / 4, rel=1e-10)


def test_batches_with_a_least_time_start_slowly() -> None:
    """0.5 + Exp(1), 4 devices, 6 batches: not 6 x 1.5 / 4."""
    found = k_sync.batch_round_time(4, 6, Exponential(mean=1.5, shift=0.5))
    assert found.mean_s == pytest.approx(2.56227, abs=5e-6)
    assert abs(found.mean_s - 6 * 1.5 / 4) > 0.3


def test_batches_of_unequal_devices_agree_with_monte_carlo() -> None:
    factors, rng = np.array([0.5, 1.0, 3.0]), np.random.default_rng(2)
    ends = np.cumsum(Gamma(shape=2.0).draw(rng.random((50_000, 3, 40))) * factors[:, None], axis=2)
    drawn = np.sort(ends.reshape(50_000, -1), axis=1)[:, 6]
    found = k_sync.batch_round_time(3, 7, Gamma(shape=2.0), device_factor=factors.tolist())
    assert abs(drawn.mean() - found.mean_s) < 4 * found.sd_s / np.sqrt(50_000)


# ---- whole rounds ---------------------------------------------------------------------------------------------------


def mean_of(found: list[Expectation], quantity: str) -> float | None:
    return next(one.mean for one in found if one.quantity == quantity and one.device is None)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_rounds_of_unequal_devices_and_links(k: int) -> None:
    on = fleet(
        [0.5, 0.8, 1.0, 2.0, 3.0],
        download_s=[0.1, 0.9, 0.2, 0.3, 0.1],
        latency_s=[0.3, 0.1, 0.2, 0.5, 0.4],
        n_rows=[16, 16, 8, 16, 32],
        step_factor=Exponential(mean=1.0, shift=0.3),
    )
    assert_agree(k_sync.expected(Policy(k), on), whole_tasks(on, 1, 5, k, 60_000, seed=k))


def test_rounds_of_equal_devices_with_uploads() -> None:
    """Cancelled uploads count by what had been sent; so do steps that were computed but not yet uploaded."""
    on = fleet([1.0] * 6, download_s=0.2, latency_s=0.6, task_factor=Gamma(shape=2.0))
    assert_agree(k_sync.expected(Policy(2), on), whole_tasks(on, 1, 6, 2, 60_000, seed=1))


def test_who_ties_with_the_k_th_counts_too() -> None:
    on = fleet([1.0, 1.0, 1.0, 2.0], task_factor=Classes(values=(1.0, 2.0), shares=(0.5, 0.5)))
    without = ("inverse_n_contributions",)
    assert_agree(k_sync.expected(Policy(2), on), whole_tasks(on, 1, 4, 2, 60_000, seed=2), without=without)


def test_equal_constant_devices_all_contribute() -> None:
    on = fleet([1.0, 1.0, 1.0, 2.0], download_s=0.1)
    found = k_sync.expected(Policy(2), on)
    assert mean_of(found, "n_contributions") == 3.0
    assert_agree(found, whole_tasks(on, 1, 4, 2, 10, seed=3))


def test_contributors_among_the_others_add_up_to_k() -> None:
    on = fleet(np.linspace(0.5, 4.0, 30).tolist(), task_factor=Lognormal(sigma=0.5), step_factor=Constant(2.0))
    found = [one.mean for one in k_sync.expected(Policy(11), on) if one.quantity == "participation"]
    assert len(found) == 30
    assert sum(p for p in found if p is not None) == pytest.approx(11.0, rel=1e-9)


def test_what_has_no_closed_form_says_why() -> None:
    on = fleet([1.0, 2.0], step_factor=Exponential(), has_fixed_links=False)
    found = k_sync.expected(Policy(1), on)
    assert "fixed for each device" in (next(one.reason for one in found if one.quantity == "round_s") or "")
    assert mean_of(found, "is_empty") == 0.0
