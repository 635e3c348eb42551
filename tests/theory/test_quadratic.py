"""Expected losses on quadratics beside the algorithms themselves, run in NumPy, and beside hand calculation.

Random runs: the bound is 4 standard errors, from the runs' own spread, at every round. Seeds were written down once.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from fedsim.protocols import NoClosedForm
from fedsim.theory.quadratic import Quadratic, local_map
from fedsim.theory.quadratic_rounds import (
    contributors_mean,
    drop_stragglers,
    fedavg,
    fedpmt,
    fixed_point,
    k_sync,
    salf,
)

SE_BOUND = 4.0
N_RUNS = 20_000
N_ROUNDS = 4
LAYER_OF = np.array([0, 0, 1, 2])
REACH = np.array([0.3, 0.6, 0.9])
UNEQUAL_REACH = np.array([[0.1, 0.5, 0.6], [0.3, 0.4, 0.95], [0.0, 0.7, 0.8], [0.6, 0.9, 1.0]])


def positive_definite(rng, n, p):
    factors = rng.normal(size=(n, p, p))
    return factors @ factors.transpose(0, 2, 1) / p + 0.2 * np.eye(p)


def problem(*, common_hessian=False, noise=0.5, n_devices=4, seed=11):
    """4 parameters in 3 layers, full Hessians and noise, the optima apart."""
    rng = np.random.default_rng(seed)
    hessian = positive_definite(rng, n_devices, 4)
    return Quadratic(
        hessian=np.repeat(hessian[:1], n_devices, axis=0) if common_hessian else hessian,
        optimum=1.0 + rng.normal(size=(n_devices, 4)),
        noise=noise * positive_definite(rng, n_devices, 4),
        layer_of=LAYER_OF,
        start=rng.normal(size=4) + 3.0,
        rate=0.2,
    )


# ---- the algorithms -------------------------------------------------------------------------------------------------


def run(q, draw_weights, *, local_steps=1, trained=None, seed, n_runs=N_RUNS):
    """Losses `[run, round]` and last weights; draw_weights(rng) is a weight table `[run, device, layer]`."""
    rng = np.random.default_rng(seed)
    moves = np.ones((q.n_devices, len(q.start))) if trained is None else trained
    root = np.linalg.cholesky(q.noise + 1e-300 * np.eye(len(q.start)))
    w = np.tile(q.start, (n_runs, 1))
    losses = [q.loss(w)]
    for _ in range(N_ROUNDS):
        local = np.repeat(w[:, None, :], q.n_devices, axis=1)
        for _ in range(local_steps):
            noise = np.einsum("kij,rkj->rki", root, rng.normal(size=local.shape))
            gradient = np.einsum("kij,rkj->rki", q.hessian, local - q.optimum) + noise
            local = local - q.rate * moves * gradient
        table = draw_weights(rng)[:, :, q.layer_of]
        w = w + (table * (local - w[:, None, :])).sum(axis=1)
        losses.append(q.loss(w))
    return np.stack(losses, axis=1), w


def always(table):
    return lambda rng: np.repeat(np.asarray(table, dtype=float)[None], N_RUNS, axis=0)


def subsets(n_devices, n, n_layers):
    """Equal weights of a uniform n-subset."""

    def draw(rng):
        chosen = rng.random((N_RUNS, n_devices)).argsort(axis=1) < n
        return np.repeat(chosen[:, :, None] / n, n_layers, axis=2)

    return draw


def contributors(reach, rule):
    """SALF's tables: one uniform per device decides how deep it gets."""
    m = len(reach)

    def draw(rng):
        held = rng.random((N_RUNS, m))[:, :, None] < reach
        if rule == "diluted":
            return held / m
        if rule == "inverse_probability":
            return held / (m * np.where(reach > 0, reach, 1.0))
        mean = held / np.maximum(held.sum(axis=1, keepdims=True), 1)
        return mean if rule == "contributors" else mean / (1 - np.prod(1 - reach, axis=0))

    return draw


def assert_agrees(curve, found):
    losses, last = found
    error = losses[:, 1:].std(axis=0, ddof=1) / np.sqrt(len(losses))
    assert curve.loss[0] == pytest.approx(losses[0, 0], rel=1e-12)
    assert (np.abs(losses.mean(axis=0)[1:] - curve.loss[1:]) < SE_BOUND * error).all(), (
        losses.mean(axis=0),
        curve.loss,
        error,
    )
    error = last.std(axis=0, ddof=1) / np.sqrt(len(last))
    assert (np.abs(last.mean(axis=0) - curve.mean[-1]) < SE_BOUND * error).all()


def test_fedavg_with_everyone_agrees_with_runs():
    q, shares = problem(), np.array([1.0, 2.0, 3.0, 4.0])
    table = np.repeat(shares[:, None] / 10, 3, axis=1)
    assert_agrees(fedavg(q, N_ROUNDS, local_steps=3, weights=shares), run(q, always(table), local_steps=3, seed=1))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fedavg_with_a_cohort_agrees_with_runs(n):
    q = problem()
    assert_agrees(fedavg(q, N_ROUNDS, local_steps=2, n_sampled=n), run(q, subsets(4, n, 3), local_steps=2, seed=20 + n))


def test_k_sync_agrees_with_runs_of_exchangeable_arrivals():
    q = problem()

    def first_arrivals(rng):
        times_s = rng.weibull(0.7, size=(N_RUNS, 4))
        is_first = times_s <= np.sort(times_s, axis=1)[:, 2:3]
        return np.repeat(is_first[:, :, None] / 3, 3, axis=2)

    assert_agrees(k_sync(q, N_ROUNDS, k=3), run(q, first_arrivals, seed=3))


@pytest.mark.parametrize("dilute", [False, True])
@pytest.mark.parametrize("in_time", [0.4, np.array([0.1, 0.5, 0.9, 1.0]), np.array([0.1, 0.2, 0.0, 0.3])])
def test_dropping_stragglers_agrees_with_runs(in_time, dilute):
    q = problem()
    reach = np.repeat(np.broadcast_to(in_time, (4,))[:, None], 3, axis=1)
    found = run(q, contributors(reach, "diluted" if dilute else "contributors"), local_steps=3, seed=4)
    assert_agrees(drop_stragglers(q, N_ROUNDS, 3, in_time, dilute=dilute), found)


@pytest.mark.parametrize("rule", ["contributors", "debiased", "diluted", "inverse_probability"])
@pytest.mark.parametrize("reach", [REACH, UNEQUAL_REACH], ids=["equal", "unequal"])
@pytest.mark.parametrize("common_hessian", [True, False])
def test_salf_agrees_with_runs(rule, reach, common_hessian):
    q = problem(common_hessian=common_hessian)
    table = np.broadcast_to(reach, (4, 3))
    assert_agrees(salf(q, N_ROUNDS, reach, rule), run(q, contributors(table, rule), seed=5))


def test_sampled_salf_agrees_with_runs():
    q, m, n = problem(n_devices=6), 6, 3

    def draw(rng):
        chosen = rng.random((N_RUNS, m)).argsort(axis=1) < n
        held = (rng.random((N_RUNS, m))[:, :, None] < REACH) & chosen[:, :, None]
        return held / np.maximum(held.sum(axis=1, keepdims=True), 1) / (1 - (1 - REACH) ** n)

    assert_agrees(salf(q, N_ROUNDS, REACH, "debiased", n_sampled=n), run(q, draw, seed=6))


@pytest.mark.parametrize("dilute", [False, True])
def test_fedpmt_agrees_with_runs(dilute):
    """The input layer is trained by nobody, one device takes no part."""
    q, depth, shares = problem(), np.array([0, 1, 2, 2]), np.array([5.0, 1.0, 2.0, 3.0])
    held = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 1, 1]])
    table = held * shares[:, None] / (6.0 if dilute else np.array([1.0, 5.0, 6.0]))
    found = run(q, always(table), local_steps=3, trained=held[:, LAYER_OF], seed=7)
    curve = fedpmt(q, N_ROUNDS, depth, 3, shares, dilute=dilute)
    losses, last = found
    error = losses[:, 1:].std(axis=0, ddof=1) / np.sqrt(N_RUNS)
    assert (np.abs(losses.mean(axis=0)[1:] - curve.loss[1:]) < SE_BOUND * error).all()
    assert curve.mean[-1, :2] == pytest.approx(q.start[:2], rel=1e-12)
    error = last[:, 2:].std(axis=0, ddof=1) / np.sqrt(N_RUNS)
    assert (np.abs(last.mean(axis=0) - curve.mean[-1])[2:] < SE_BOUND * error).all()


# ---- without luck ---------------------------------------------------------------------------------------------------


def test_without_noise_fedavg_is_the_recursion_itself():
    q = problem(noise=0.0)
    curve = fedavg(q, 25, local_steps=4)
    w = q.start
    for n in range(26):
        assert curve.loss[n] == pytest.approx(float(q.loss(w)), rel=1e-12)
        assert curve.mean[n] == pytest.approx(w, rel=1e-12, abs=1e-12)
        local = np.repeat(w[None], 4, axis=0)
        for _ in range(4):
            local = local - q.rate * np.einsum("kij,kj->ki", q.hessian, local - q.optimum)
        w = local.mean(axis=0)


def test_without_noise_fedpmt_is_the_recursion_itself():
    q, depth = problem(noise=0.0), np.array([1, 2, 3, 1])
    moves = LAYER_OF + depth[:, None] >= 3
    curve = fedpmt(q, 25, depth, local_steps=3)
    w = q.start
    for n in range(26):
        assert curve.loss[n] == pytest.approx(float(q.loss(w)), rel=1e-12)
        local = np.repeat(w[None], 4, axis=0)
        for _ in range(3):
            local = local - q.rate * moves * np.einsum("kij,kj->ki", q.hessian, local - q.optimum)
        w = w + (moves * (local - w)).sum(axis=0) / moves.sum(axis=0)


def test_a_shared_optimum_is_reached_to_the_last_digits():
    """Of a loss of about 1e6 nothing is left but rounding of the weights: moments are taken about the minimiser."""
    rng = np.random.default_rng(8)
    optimum = 1e3 + rng.normal(size=3)
    q = Quadratic.of(3, positive_definite(rng, 3, 3), start=np.zeros(3), rate=0.3, optimum=optimum)
    assert 0 <= fedavg(q, 2000).loss[-1] < 1e-15
    assert q.minimiser == pytest.approx(optimum, rel=1e-10)


@pytest.mark.parametrize("rule", ["contributors", "debiased", "diluted", "inverse_probability"])
def test_everyone_in_time_is_fedavg(rule):
    q = problem()
    assert salf(q, 9, np.ones(3), rule).loss == pytest.approx(fedavg(q, 9).loss, rel=1e-12)
    assert drop_stragglers(q, 9, 2, 1.0).loss == pytest.approx(fedavg(q, 9, 2).loss, rel=1e-12)
    assert fedpmt(q, 9, np.full(4, 3), 2).loss == pytest.approx(fedavg(q, 9, 2).loss, rel=1e-12)
    assert k_sync(q, 9, k=4).loss == pytest.approx(fedavg(q, 9).loss, rel=1e-12)


def test_expected_loss_is_the_mean_loss_of_a_two_point_law():
    q, w = problem(), np.random.default_rng(9).normal(size=(2, 4))
    second = (w[:, :, None] * w[:, None, :]).mean(axis=0)
    assert q.expected_loss(w.mean(axis=0), second) == pytest.approx(q.loss(w).mean(), rel=1e-12)


def test_the_minimiser_has_no_gradient():
    q = problem()
    gradient = np.einsum("kij,kj->i", q.hessian, q.minimiser - q.optimum)
    assert gradient == pytest.approx(np.zeros(4), abs=1e-12)


# ---- moments of SALF's weights --------------------------------------------------------------------------------------


def test_moments_over_contributors_are_those_of_all_depth_patterns():
    """Every pattern of depths 0 ... 3 on 4 unequal devices, each with its probability."""
    q = UNEQUAL_REACH
    depth_probability = -np.diff(np.concatenate([np.ones((4, 1)), q[:, ::-1], np.zeros((4, 1))], axis=1), axis=1)
    mean, second = np.zeros((4, 3)), np.zeros((4, 4, 3, 3))
    for depths in product(range(4), repeat=4):
        probability = np.prod([depth_probability[k, d] for k, d in enumerate(depths)])
        held = np.arange(3) >= 3 - np.array(depths)[:, None]
        table = held / np.maximum(held.sum(axis=0), 1)
        mean += probability * table
        second += probability * np.einsum("ki,jl->kjil", table, table)
    found = contributors_mean(q)
    assert found.mean == pytest.approx(mean, abs=1e-14)
    assert found.second == pytest.approx(second, abs=1e-14)


def table_of_the_rule(rule, u, reach):
    """D `[layer]`, C, Wn, Wd `[layer, layer]` of E[ee']+ for equal devices with one Hessian, by binomial sums."""
    p = (1 - reach) ** u
    n = np.arange(1, u + 1)
    c, wn, wd = (np.empty((len(reach), len(reach))) for _ in range(3))
    for i, j in product(range(len(reach)), repeat=2):
        deep, shallow = min(i, j), max(i, j)  # layer 0 is the input: reached least
        pmf = stats.binom.pmf(n, u, reach[shallow])
        has_deep = 1 - (1 - reach[deep] / reach[shallow]) ** n
        if rule in ("contributors", "debiased"):
            c[i, j] = 1 - p[deep]
            wn[i, j] = (pmf * has_deep / n).sum()
            wd[i, j] = (pmf * has_deep * (u - n) / (n * (u - 1))).sum()
        else:
            c[i, j] = (reach[deep] + (u - 1) * reach[deep] * reach[shallow]) / u
            wn[i, j] = reach[deep] / u
            wd[i, j] = reach[deep] * (1 - reach[shallow]) / u
    d = {"contributors": 1 - p, "diluted": reach}.get(rule, np.ones(len(reach)))
    over = {"debiased": 1 - p, "inverse_probability": reach}.get(rule, np.ones(len(reach)))
    return d, *(table / np.outer(over, over) for table in (c, wn, wd))


@pytest.mark.parametrize("rule", ["contributors", "debiased", "diluted", "inverse_probability"])
def test_salf_agrees_with_the_layer_table_of_equal_devices(rule):
    q, u = problem(common_hessian=True, n_devices=5), 5
    d, c, wn, wd = (x[np.ix_(*[LAYER_OF] * x.ndim)] for x in table_of_the_rule(rule, u, REACH))
    h, noise = q.hessian[0], q.noise.mean(axis=0)
    apart = q.optimum - q.minimiser
    spread = apart.T @ apart / u
    e = q.start - q.minimiser
    second = np.outer(e, e)
    curve = salf(q, 12, REACH, rule)
    for n in range(13):
        assert q.loss(q.minimiser) + 0.5 * np.trace(h @ second) == pytest.approx(curve.loss[n], rel=1e-12)
        assert curve.mean[n] - q.minimiser == pytest.approx(e, abs=1e-12)
        first_order = q.rate * (d[:, None] * h) @ second
        second = (
            second
            - first_order
            - first_order.T
            + q.rate**2 * (c * (h @ second @ h) + wn * noise + wd * (h @ spread @ h))
        )
        e = e - q.rate * d * (h @ e)


def test_salf_factor_does_not_repair_unequal_devices():
    """Reach (.2, .8): the weights of the debiased mean are 1/7 and 6/7; inverse probabilities give 1/2 each."""
    found = contributors_mean(np.array([[0.2], [0.8]])).mean[:, 0]
    assert found / (1 - 0.8 * 0.2) == pytest.approx([1 / 7, 6 / 7], rel=1e-14)
    optimum = np.array([[0.0], [1.0]])
    q = Quadratic.of(2, np.eye(1), optimum=optimum, start=np.zeros(1), rate=0.1)
    reach = np.array([[0.2], [0.8]])
    assert salf(q, 0, reach, "debiased").round.steady().mean == pytest.approx([6 / 7], rel=1e-12)
    assert salf(q, 0, reach, "inverse_probability").round.steady().mean == pytest.approx([1 / 2], rel=1e-12)


# ---- where curves settle --------------------------------------------------------------------------------------------


def test_local_sgd_does_not_settle_at_the_minimiser():
    """F_1 = w^2 / 2, F_2 = 2 (w - 1)^2: two steps with rate 0.1 pull by 1 - 0.9^2 and 1 - 0.6^2."""
    hessian, optimum = np.array([1.0, 4.0])[:, None, None], np.array([[0.0], [1.0]])
    q = Quadratic.of(2, hessian, optimum=optimum, start=np.zeros(1), rate=0.1)
    assert q.minimiser == pytest.approx([0.8])
    assert fixed_point(q, local_steps=2) == pytest.approx([0.64 / (0.19 + 0.64)], rel=1e-12)
    assert fixed_point(q, local_steps=1) == pytest.approx([0.8], rel=1e-12)
    same = Quadratic.of(2, np.eye(1), optimum=optimum, start=np.zeros(1), rate=0.1)
    assert fixed_point(same, local_steps=7) == pytest.approx(same.minimiser, rel=1e-12)


def test_a_long_curve_arrives_where_it_settles():
    q, shares = problem(), np.array([1.0, 2.0, 3.0, 4.0])
    curve = fedavg(q, 3000, local_steps=3, weights=shares)
    steady = curve.round.steady()
    assert curve.loss[-1] == pytest.approx(steady.loss, rel=1e-10)
    assert curve.mean[-1] == pytest.approx(steady.mean, rel=1e-10)
    assert fixed_point(q, 3, shares) == pytest.approx(steady.mean, rel=1e-10)


def test_a_long_curve_of_drawn_cohorts_arrives_where_it_settles():
    curve = salf(problem(), 3000, UNEQUAL_REACH, "debiased")
    assert curve.loss[-1] == pytest.approx(curve.round.steady().loss, rel=1e-10)


@pytest.mark.parametrize("local_steps", [1, 2, 9])
def test_averaged_noise_settles_at_the_same_level_for_any_number_of_local_steps(local_steps):
    """Variance rate s^2 / (M h (2 - rate h)) with one Hessian and everybody."""
    q = Quadratic.of(5, np.array([[0.7]]), start=np.ones(1), rate=0.2, noise=0.3)
    variance = 0.2 * 0.3 / (5 * 0.7 * (2 - 0.2 * 0.7))
    steady = fedavg(q, 0, local_steps).round.steady()
    assert steady.loss == pytest.approx(0.5 * 0.7 * variance, rel=1e-12)


def test_local_noise_is_that_of_the_sum_over_steps():
    q = problem()
    a = np.eye(4) - q.rate * q.hessian[1]
    powers = [np.linalg.matrix_power(a, j) for j in range(3)]
    expected = sum(q.rate**2 * p @ q.noise[1] @ p.T for p in powers)
    assert local_map(q, 3).noise[1] == pytest.approx(expected, rel=1e-12)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_too_high_a_rate_settles_nowhere():
    q = Quadratic.of(2, np.eye(2), start=np.ones(2), rate=2.5)
    with pytest.raises(NoClosedForm, match="settle"):
        fedavg(q, 0).round.steady()
    with pytest.raises(NoClosedForm, match="overflow"):
        fedavg(q, 5000)


def test_weights_of_a_sampled_cohort_are_refused():
    with pytest.raises(NoClosedForm, match="equal weights"):
        fedavg(problem(), 3, n_sampled=2, weights=np.arange(1.0, 5.0))


def test_samples_of_unequal_devices_are_refused():
    with pytest.raises(NoClosedForm, match="exchangeable"):
        salf(problem(), 3, UNEQUAL_REACH, n_sampled=2)
    with pytest.raises(NoClosedForm, match="exchangeable"):
        drop_stragglers(problem(), 3, 1, np.array([0.1, 0.2, 0.3, 0.4]), n_sampled=2)


def test_what_is_no_reach_is_refused():
    with pytest.raises(ValueError, match="grows"):
        salf(problem(), 3, REACH[::-1])
    with pytest.raises(ValueError, match=r"choose 1\.\.4"):
        k_sync(problem(), 3, k=5)
    with pytest.raises(ValueError, match="shape"):
        Quadratic(np.eye(2)[None], np.zeros((1, 2)), np.eye(2)[None], np.zeros(3, dtype=int), np.zeros(2), 0.1)
