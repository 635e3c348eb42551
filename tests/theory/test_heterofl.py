"""HeteroFL's closed forms against rounds in NumPy with costs counted by hand, and rates by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
from scipy import integrate

from fedsim.delays import Exponential, Gamma
from fedsim.facts import Array
from fedsim.protocols import NoClosedForm
from fedsim.theory import heterofl
from tests.theory.narrow import WIDTHS, Played, fleet, kept, multiply_adds, n_bytes, played
from tests.theory.stories import assert_agree

SHARE = {r: multiply_adds(kept(WIDTHS, r)) / multiply_adds(WIDTHS) for r in (1.0, 0.5, 0.25, 0.125)}


@dataclass(frozen=True)
class Policy:
    rates: tuple[float, ...] | None = None
    budget_s: float | None = None
    levels: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125, 0.0625)
    assignment: Literal["fixed", "dynamic"] = "fixed"
    local_steps: int = 5
    n_sampled: int | None = None


# ---- rates ----------------------------------------------------------------------------------------------------------


def test_a_rate_is_the_largest_level_within_the_budget() -> None:
    """Speeds at which the budget is exactly level 1/2, 1/4, 1/8, and just too small for 1/8."""
    budget_s, n = 3.0, 4
    unit_s = [budget_s / n / SHARE[r] for r in (0.5, 0.25, 0.125)]
    on = fleet([*unit_s, unit_s[-1] * (1 + 1e-6)])
    assert heterofl.rates(Policy(budget_s=budget_s, local_steps=n), on).tolist() == [0.5, 0.25, 0.125, 0.0625]


def test_a_budget_counts_means_of_laws() -> None:
    on = fleet([1.0, 2.0], task_factor=Gamma(shape=2.0, mean=1.5), step_factor=Exponential(mean=2.0))
    assert heterofl.rates(Policy(budget_s=5 * 3.0 * SHARE[0.5]), on).tolist()[0] == 0.5
    assert heterofl.rates(Policy(budget_s=5 * 6.0 * SHARE[0.5] * 0.999), on).tolist()[1] == 0.25


def test_a_rate_within_memory_counts_parameters_and_a_batch_of_activations() -> None:
    """At 1/2 the widths are 12-4-5-3: 95 parameters and 12 activations a row, so 4 (95 + 16 x 12) bytes with 16 rows."""
    assert sum((n + 1) * m for n, m in [(12, 4), (4, 5), (5, 3)]) == 95
    least = 4 * (95 + 16 * 12)
    on = fleet([1.0] * 3, memory_bytes=np.array([1e6, least, least - 1.0]), batch_size=np.array([16, 16, 16]))
    assert heterofl.rates(Policy(), on).tolist() == [1.0, 0.5, 0.25]


def test_a_device_that_no_level_fits_has_no_closed_form() -> None:
    with pytest.raises(NoClosedForm, match="device 1"):
        heterofl.rates(Policy(budget_s=1.0), fleet([1.0, 1000.0]))
    (found, *_) = heterofl.expected(Policy(budget_s=1.0), fleet([1.0, 1000.0]))
    assert (found.quantity, found.mean) == ("round_s", None)


# ---- rounds ---------------------------------------------------------------------------------------------------------


def rounds(on: object, rates: Array, policy: Policy, n_rounds: int, seed: int) -> Played:
    """The rates of those asked, as the policy's words have it."""
    rng = np.random.default_rng(seed)
    size = (n_rounds, len(rates))
    order = rng.permuted(np.tile(np.arange(len(rates)), (n_rounds, 1)), axis=1)
    is_asked = order < (policy.n_sampled or len(rates))
    own = np.broadcast_to(rates, size)
    if policy.assignment == "dynamic":
        own = rng.permuted(own, axis=1)
    return played(on, np.where(is_asked, own, 0.0), policy.local_steps, rng)  # type: ignore[arg-type]


LINKS = {"latency_s": [0.1, 0.3, 0.1, 0.2, 0.1, 0.4], "s_per_byte": [1e-3, 5e-4, 2e-3, 1e-4, 1e-3, 1e-3]}
RATES = (1.0, 0.5, 0.25, 0.125, 0.5, 0.25)


@pytest.mark.parametrize("n_sampled", [None, 3])
def test_rounds_of_mixed_rates_agree_with_numpy(n_sampled: int | None) -> None:
    on = fleet([1.0, 2.0, 0.5, 3.0, 1.0, 4.0], **LINKS, n_rows=[16, 8, 16, 4, 16, 16], step_factor=Gamma(shape=3.0))  # type: ignore[arg-type]
    policy = Policy(RATES, local_steps=3, n_sampled=n_sampled)
    assert_agree(heterofl.expected(policy, on), rounds(on, np.array(RATES), policy, 60_000, seed=4))  # type: ignore[arg-type]


@pytest.mark.parametrize("n_sampled", [None, 4])
def test_rounds_of_equal_devices_whose_rates_change_hands_agree_with_numpy(n_sampled: int | None) -> None:
    on = fleet([2.0] * 6, latency_s=0.1, s_per_byte=1e-3, n_rows=[16, 8, 16, 4, 16, 16], task_factor=Exponential())
    policy = Policy(RATES, local_steps=2, n_sampled=n_sampled, assignment="dynamic")
    assert_agree(heterofl.expected(policy, on), rounds(on, np.array(RATES), policy, 60_000, seed=5))  # type: ignore[arg-type]


def test_where_devices_differ_only_the_time_of_such_a_round_has_no_closed_form() -> None:
    on = fleet([1.0, 2.0, 0.5, 3.0, 1.0, 4.0], **LINKS, n_rows=[16, 8, 16, 4, 16, 16])  # type: ignore[arg-type]
    policy = Policy(RATES, n_sampled=4, assignment="dynamic")
    found = heterofl.expected(policy, on)
    assert_agree(found, rounds(on, np.array(RATES), policy, 60_000, seed=6), without=["round_s"])  # type: ignore[arg-type]
    (reason,) = [one.reason for one in found if one.mean is None]
    assert reason == "needs equal devices where rates change hands in each round"


def test_the_slowest_of_mixed_rates_is_the_integral() -> None:
    """1 - prod_k (1 - exp(-(t - a_k) / (u_k c_k))) with one exponential step each, adaptively."""
    unit_s, rates = np.array([1.0, 4.0, 16.0]), (1.0, 0.5, 0.25)
    share = np.array([SHARE[r] for r in rates])
    sizes = np.array([n_bytes(kept(WIDTHS, r)) for r in rates])
    on = fleet(unit_s.tolist(), latency_s=0.2, s_per_byte=1e-3, step_factor=Exponential())
    offset_s = 1.5 * (0.2 + 1e-3 * sizes)

    def survival(t: float) -> float:
        return float(1 - np.prod(-np.expm1(-np.maximum(t - offset_s, 0.0) / (unit_s * share))))

    expected = integrate.quad(survival, 0, 200, points=sorted(offset_s), epsabs=1e-12, limit=400)[0]
    (found,) = [one for one in heterofl.expected(Policy(rates, local_steps=1), on) if one.quantity == "round_s"]
    assert found.mean == pytest.approx(expected, rel=1e-9)


def test_a_fleet_without_luck_takes_the_largest_sum_to_the_last_digit() -> None:
    unit_s, rates = [1.0, 4.0, 16.0], (1.0, 0.5, 0.125)
    on = fleet(unit_s, latency_s=0.2, s_per_byte=1e-3)
    sums = [
        1.5 * (0.2 + 1e-3 * n_bytes(kept(WIDTHS, r))) + 5 * u * SHARE[r] for u, r in zip(unit_s, rates, strict=True)
    ]
    (found,) = [one for one in heterofl.expected(Policy(rates), on) if one.quantity == "round_s"]
    assert found.mean == pytest.approx(max(sums), rel=1e-14)
