"""Unequal numbers of steps: round times, weights, budgets, and where training settles on quadratics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
from scipy import integrate, special

from fedsim.delays import Classes, Exponential, Gamma
from fedsim.facts import Array, IntArray
from fedsim.theory import fednova, quadratic_rounds
from fedsim.theory.fleet import Fleet
from fedsim.theory.quadratic import Quadratic
from tests.theory.stories import N_LAYERS, Played, assert_agree, fleet, shares, step_ends_s


@dataclass(frozen=True)
class Policy:
    local_steps: int | tuple[int, ...] | None = None
    budget_s: float | None = None
    weighting: Literal["uniform", "n_samples"] = "uniform"
    effective_steps: Literal["mean"] | float = "mean"
    momentum: float = 0.0


def played(on: Fleet, n_steps: list[int], weights: Array, n_rounds: int, seed: int) -> Played:
    """Everyone does its own steps and is waited for. weights: of each device."""
    ends_s = step_ends_s(on, n_rounds, max(n_steps), np.random.default_rng(seed))
    last_s = np.stack([ends_s[:, u, n - 1] for u, n in enumerate(n_steps)], axis=1)
    arrived_s = last_s + on.upload_s[:, -1]
    depth = np.full(arrived_s.shape, N_LAYERS)
    everything = np.ones(arrived_s.shape)
    table = np.broadcast_to(weights[:, None], (*arrived_s.shape, N_LAYERS))
    return Played(
        on, on.n_devices, arrived_s.max(axis=1), depth, table, np.broadcast_to(n_steps, arrived_s.shape), 1,
        everything, depth, shares(arrived_s.max(axis=1), np.zeros_like(arrived_s), on.download_s * everything),
    )  # fmt: skip


# ---- time -----------------------------------------------------------------------------------------------------------


def test_the_slowest_of_unequal_numbers_of_exponential_steps_is_the_integral() -> None:
    """1 - prod_k P(Erlang(tau_k) <= t / g_k), adaptively."""
    n_steps, g = [1, 4, 2, 4], np.array([3.0, 0.5, 1.0, 0.7])

    def survival(t: float) -> float:
        return float(1 - np.prod(special.gammainc(n_steps, t / g)))

    expected = integrate.quad(survival, 0, 200, epsabs=1e-12, limit=400)[0]
    found = fednova.round_time(n_steps, Exponential(mean=1.0), device_factor=g.tolist())
    assert found.mean_s == pytest.approx(expected, rel=1e-9)


def test_without_luck_a_round_lasts_as_long_as_its_slowest_device() -> None:
    found = fednova.round_time([5, 2, 3], 0.5, device_factor=[1.0, 4.0, 2.0], latency_s=[0.0, 0.1, 0.3])
    assert found.mean_s == pytest.approx(4.1)
    assert found.variance_s2 == 0.0


def test_discrete_times_of_unequal_numbers_of_steps_are_enumerated() -> None:
    """Task factors 1 or 3, each on its own: two devices, four cases."""
    task = Classes(values=(1.0, 3.0), shares=(0.75, 0.25))
    found = fednova.round_time([2, 3], 1.0, task_factor=task)
    cases = {(2 * a, 3 * b): p * q for a, p in ((1, 0.75), (3, 0.25)) for b, q in ((1, 0.75), (3, 0.25))}
    assert found.mean_s == pytest.approx(sum(p * max(case) for case, p in cases.items()), rel=1e-12)


# ---- weights --------------------------------------------------------------------------------------------------------


def test_what_steps_with_momentum_add_up_to_is_what_sgd_moves_by() -> None:
    """v = m v + 1, x += v from v = 0, step by step."""
    for momentum in (0.0, 0.5, 0.9):
        v, x, moved = 0.0, 0.0, []
        for _ in range(7):
            v = momentum * v + 1.0
            x += v
            moved.append(x)
        np.testing.assert_allclose(fednova.gradients(np.arange(1, 8), momentum), moved, rtol=1e-13)
        closed = [(n - momentum * (1 - momentum**n) / (1 - momentum)) / (1 - momentum) for n in range(1, 8)]
        np.testing.assert_allclose(moved, closed, rtol=1e-13)


def test_the_rule_of_a_published_comparison_is_the_uniform_one() -> None:
    """Its script: x += (sum tau / M) (1/M) sum (x_m - x) / tau_m."""
    tau = np.array([8, 12, 9, 10, 11])
    script = tau.sum() / 5 * (1 / 5) / tau
    np.testing.assert_allclose(fednova.table(Policy(tuple(tau)), fleet([1.0] * 5)), script, rtol=1e-14)


def test_equal_steps_make_the_weights_plain_shares() -> None:
    on = fleet([1.0, 2.0, 3.0])
    for momentum in (0.0, 0.9):
        found = fednova.table(Policy(4, weighting="n_samples", momentum=momentum), on)
        np.testing.assert_allclose(found, on.n_samples / on.n_samples.sum(), rtol=1e-13)


# ---- budgets --------------------------------------------------------------------------------------------------------


def test_a_budget_pays_for_whole_steps_and_at_least_one() -> None:
    """0.1 x 3 is 0.30000000000000004: a budget that is met but for rounding is met."""
    on = fleet([0.1, 0.3, 0.1000001, 0.31, 5.0], step_factor=Exponential(mean=1.0))
    assert fednova.n_steps(Policy(budget_s=0.3), on).tolist() == [3, 1, 2, 1, 1]


def test_a_budget_counts_the_rows_of_smaller_last_batches() -> None:
    """25 samples in batches of 10: steps of 1, 1, 0.5, 1, 1, 0.5 ... s. By hand, budget by budget."""
    samples, batch = np.array([25]), 10

    def rows_before(n: int | IntArray) -> Array:
        steps = [10, 10, 5] * 10
        return np.array([sum(steps[:k]) for k in np.broadcast_to(n, 1)], dtype=float)

    on = replace(fleet([1.0], n_rows=batch), n_samples=samples, has_even_steps=False, rows_before=rows_before)
    budgets = {0.2: 1, 1.0: 1, 1.9: 1, 2.0: 2, 2.4: 2, 2.5: 3, 3.4: 3, 3.5: 4, 4.9: 5, 5.0: 6}
    found = {budget: int(fednova.n_steps(Policy(budget_s=budget), on)[0]) for budget in budgets}
    assert found == budgets
    by_quantity = {one.quantity: one.mean for one in fednova.expected(Policy(budget_s=5.0), on) if one.device is None}
    assert by_quantity["round_s"] == pytest.approx(5.0)
    assert by_quantity["n_steps"] == 6


# ---- whole rounds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [{"step_factor": Gamma(shape=2.0)}, {"task_factor": Exponential(mean=1.0, shift=0.4)}])
def test_rounds_agree_with_numpy(law: dict[str, Any]) -> None:
    on = fleet(
        [1.0, 2.0, 0.5, 3.0, 1.0],
        download_s=[0.1, 0.2, 0.1, 0.3, 0.0],
        latency_s=0.05,
        seconds_per_byte=[0.001, 0.002, 0.003, 0.001, 0.002],
        **law,
    )
    n_steps = [3, 2, 7, 1, 3]
    policy = Policy(tuple(n_steps), weighting="n_samples", momentum=0.5)
    p = on.n_samples / on.n_samples.sum()
    a = np.array([sum((1 - 0.5**j) / 0.5 for j in range(1, n + 1)) for n in n_steps])
    happened = played(on, n_steps, p * (p @ a) / a, 60_000, seed=4)
    found = fednova.expected(policy, on)
    flops = float((on.shape.step_flops[-1] * on.n_rows * n_steps).sum())
    assert [one.mean for one in found if one.quantity == "used_flops"] == [flops]  # Played has one number of steps
    assert_agree([one for one in found if one.quantity != "used_flops"], happened)


# ---- training -------------------------------------------------------------------------------------------------------

STEPS = np.array([1, 2, 4, 8])


def problem(rate: float) -> Quadratic:
    rng = np.random.default_rng(5)
    factors = rng.normal(size=(4, 3, 3))
    hessian = factors @ factors.transpose(0, 2, 1) + np.eye(3)
    optimum = rng.normal(size=(4, 3))
    return replace(Quadratic.of(4, np.eye(3), start=np.zeros(3), rate=rate), hessian=hessian, optimum=optimum)


def test_rounds_on_a_quadratic_are_those_of_plain_loops() -> None:
    on = problem(rate=0.05)
    table = fednova.weights(np.full(4, 0.25), STEPS)
    curve = quadratic_rounds.fednova(on, 6, STEPS, table)
    x = on.start
    for n in range(6):
        changes = []
        for k, tau in enumerate(STEPS):
            w = x
            for _ in range(tau):
                w = w - 0.05 * on.hessian[k] @ (w - on.optimum[k])
            changes.append(table[k] * (w - x))
        x = x + np.sum(changes, axis=0)
        # Of the mean loss over devices, written out.
        loss = np.mean([0.5 * (x - on.optimum[k]) @ on.hessian[k] @ (x - on.optimum[k]) for k in range(4)])
        assert curve.loss[n + 1] == pytest.approx(loss, rel=1e-12)


def test_the_fixed_point_tends_to_the_minimiser_where_that_of_undivided_changes_does_not() -> None:
    """Of the first the distance halves with the rate; the second tends to the minimiser of sum_k tau_k F_k.

    Taylor: (I - rate H)^tau = I - rate tau H + O(rate^2), so that distances are linear in the rate up to O(rate^2).
    """

    def away(rate: float, weights: Array) -> Array:
        on = problem(rate)
        return quadratic_rounds.fixed_point(on, STEPS, weights) - on.minimiser

    divided = [np.linalg.norm(away(rate, 1 / STEPS)) for rate in (4e-4, 2e-4, 1e-4)]
    np.testing.assert_allclose(np.divide(divided[:-1], divided[1:]), 2.0, rtol=0.02)
    on = problem(1e-4)
    pulled = np.linalg.solve(
        np.einsum("k,kij->ij", STEPS, on.hessian), np.einsum("k,kij,kj->i", STEPS, on.hessian, on.optimum)
    )
    wrong = np.linalg.norm(pulled - on.minimiser)
    assert wrong > 100 * divided[-1]
    assert np.linalg.norm(away(1e-4, np.ones(4))) == pytest.approx(wrong, rel=0.02)
