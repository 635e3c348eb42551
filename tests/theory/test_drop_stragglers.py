"""Deadlines for uploads: binomials, effective cohorts, and whole rounds against plain NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from scipy import special, stats

from fedsim.delays import Exponential, Gamma, Weibull
from fedsim.theory import drop_stragglers
from fedsim.theory.times import RandomTime
from tests.theory.stories import assert_agree, fleet, whole_tasks


@dataclass(frozen=True)
class Policy:
    deadline_s: float
    local_steps: int = 5
    n_sampled: int | None = None
    dilute: bool = False
    wait_out: bool = False


# ---- by hand --------------------------------------------------------------------------------------------------------


def test_who_is_in_time_is_a_matter_of_the_transfers_too() -> None:
    found = drop_stragglers.in_time_share(3, 2, Exponential(), deadline_s=3.0, latency_s=[0.0, 1.0, 3.5])
    np.testing.assert_allclose(found, [special.gammainc(2, 3.0), special.gammainc(2, 2.0), 0.0], rtol=1e-13)


def test_exactly_at_the_deadline_is_in_time() -> None:
    assert drop_stragglers.in_time_share(1, 3, 0.1, deadline_s=0.3).tolist() == [1.0]
    assert drop_stragglers.in_time_share(1, 3, 0.1, deadline_s=0.2999).tolist() == [0.0]


def test_contributors_of_unequal_devices_are_enumerated() -> None:
    p = np.array([0.9, 0.5, 0.2])
    expected = np.zeros(4)
    for who in product((0, 1), repeat=3):
        expected[sum(who)] += np.prod([q if in_time else 1 - q for q, in_time in zip(p, who, strict=True)])
    np.testing.assert_allclose(drop_stragglers.contributors(p), expected, atol=1e-15)


def test_the_effective_cohort_is_smaller_than_the_mean_number_of_contributors() -> None:
    """By Jensen's inequality; and it is what the variance of an average shows."""
    pmf = stats.binom.pmf(np.arange(11), 10, 0.3)
    cohort = drop_stragglers.effective_cohort(pmf)
    assert cohort < 3.0 / (1 - 0.7**10)
    rng = np.random.default_rng(1)
    in_time = rng.random((200_000, 10)) < 0.3
    n = in_time.sum(axis=1)
    averages = (rng.standard_normal((200_000, 10)) * in_time).sum(axis=1)[n > 0] / n[n > 0]
    assert averages.var() == pytest.approx(1 / cohort, rel=4 * np.sqrt(4 / len(averages)))


def test_unequal_weights_are_worth_fewer_samples() -> None:
    assert drop_stragglers.effective_samples([2.0, 2.0, 2.0]) == pytest.approx(3.0)
    assert drop_stragglers.effective_samples([1.0, 3.0]) == pytest.approx(1.6)


def test_a_quorum_is_a_binomial_tail() -> None:
    assert drop_stragglers.quorum_share(8, 5, 0.6) == pytest.approx(stats.binom.sf(4, 8, 0.6), rel=1e-12)
    assert drop_stragglers.quorum_share(8, 0, 0.6) == 1.0


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_deadline_for_a_participation_is_a_quantile(share: float) -> None:
    found = drop_stragglers.deadline_for(share, 3, Gamma(shape=2.0))
    assert found == pytest.approx(special.gammaincinv(6, share) / 2, rel=1e-9)


def test_rounds_end_with_the_last_arrival_or_the_deadline() -> None:
    """min(T, slowest): the integral of 1 - F^M up to T."""
    found = drop_stragglers.round_time(3, 1, Exponential(), deadline_s=2.0)
    expected = 2.0 - sum(
        c * (1 - np.exp(-j * 2.0)) / j if j else c * 2.0 for j, c in ((0, 1), (1, -3), (2, 3), (3, -1))
    )
    assert found.mean_s == pytest.approx(expected, rel=1e-12)
    assert drop_stragglers.round_time(3, 1, Exponential(), deadline_s=2.0, wait_out=True).mean_s == 2.0


def test_ten_thousand_devices_hit_the_deadline() -> None:
    found: RandomTime = drop_stragglers.round_time(
        10_000, 1, Exponential(), deadline_s=5.0, device_factor=np.linspace(0.5, 2.0, 10_000).tolist()
    )
    assert found.mean_s == pytest.approx(5.0, rel=1e-9)


# ---- whole rounds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_sampled", [None, 3])
@pytest.mark.parametrize("dilute", [False, True])
def test_rounds_of_unequal_devices_and_links(n_sampled: int | None, dilute: bool) -> None:
    on = fleet(
        [0.4, 0.6, 1.0, 2.0, 3.0],
        download_s=[0.1, 0.4, 0.2, 2.9, 0.1],
        latency_s=[0.3, 0.1, 0.2, 0.5, 0.4],
        n_rows=[16, 16, 8, 16, 32],
        step_factor=Exponential(mean=1.0, shift=0.2),
    )
    found = drop_stragglers.expected(Policy(2.5, 2, n_sampled, dilute), on)
    n = n_sampled or 5
    played = whole_tasks(on, 2, n, n, 60_000, seed=n + dilute, deadline_s=2.5)
    if dilute:
        object.__setattr__(played, "weights", np.repeat((played.depth > 0)[:, :, None], 3, axis=2) / n)
    assert_agree(found, played)


@pytest.mark.parametrize("wait_out", [False, True])
def test_rounds_of_equal_devices(wait_out: bool) -> None:
    on = fleet([1.0] * 4, task_factor=Weibull(shape=0.7))
    found = drop_stragglers.expected(Policy(4.0, 2, wait_out=wait_out), on)
    assert_agree(found, whole_tasks(on, 2, 4, 4, 60_000, seed=3, deadline_s=4.0, wait_out=wait_out))


def test_in_time_is_what_each_device_achieves() -> None:
    on = fleet([0.5, 2.0], latency_s=0.5, task_factor=Exponential())
    found = drop_stragglers.in_time(Policy(2.5, 1), on)
    np.testing.assert_allclose(found, -np.expm1([-4.0, -1.0]), rtol=1e-13)
