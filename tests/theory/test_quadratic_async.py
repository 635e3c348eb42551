"""Asynchronous training on quadratics beside the covariance of all models in flight, and beside runs in NumPy.

Random runs: the bound is 4 standard errors, from the runs' own spread. Seeds were written down once.
"""

from __future__ import annotations

import numpy as np
import pytest

from fedsim.protocols import NoClosedForm
from fedsim.theory.quadratic import Quadratic
from fedsim.theory.quadratic_async import delayed_sgd, fedasync, mean_map, second_moment_map, stability_limit
from fedsim.theory.quadratic_clock import at_poisson_updates

SE_BOUND = 4.0
N_RUNS = 20_000


def problem(n_devices=4, *, rate=0.2, seed=13):
    """One full Hessian, one optimum, full noise."""
    rng = np.random.default_rng(seed)
    hessian, noise = (factor @ factor.T / 3 + 0.2 * np.eye(3) for factor in rng.normal(size=(2, 3, 3)))
    return Quadratic.of(n_devices, hessian, optimum=rng.normal(size=3), noise=noise, start=np.full(3, 4.0), rate=rate)


def run(q, update, n_updates, seed):
    """Losses `[run, update]` and last weights; update(w, pulled, noise) is the new model, noise() one step's."""
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(q.noise[0])
    w, everyone = np.tile(q.start, (N_RUNS, 1)), np.arange(N_RUNS)
    pulled = np.repeat(w[:, None], q.n_devices, axis=1)
    losses = [q.loss(w)]

    def noise():
        return rng.normal(size=(N_RUNS, len(q.start))) @ root.T

    for _ in range(n_updates):
        device = rng.integers(q.n_devices, size=N_RUNS)
        w = update(w, pulled[everyone, device], noise)
        pulled[everyone, device] = w
        losses.append(q.loss(w))
    return np.stack(losses, axis=1), w


def assert_agrees(curve, found):
    losses, last = found
    error = losses[:, 1:].std(axis=0, ddof=1) / np.sqrt(N_RUNS)
    assert (np.abs(losses.mean(axis=0) - curve.loss)[1:] < SE_BOUND * error).all()
    error = last.std(axis=0, ddof=1) / np.sqrt(N_RUNS)
    assert (np.abs(last.mean(axis=0) - curve.mean[-1]) < SE_BOUND * error).all()


def test_delayed_gradients_agree_with_runs():
    q = problem()

    def update(w, pulled, noise):
        return w - q.rate * ((pulled - q.optimum[0]) @ q.hessian[0] + noise())

    assert_agrees(delayed_sgd(q, 10), run(q, update, 10, seed=1))


def test_mixing_agrees_with_runs():
    q = problem()

    def update(w, pulled, noise):
        local = pulled
        for _ in range(3):
            local = local - q.rate * ((local - q.optimum[0]) @ q.hessian[0] + noise())
        return w + 0.4 * (local - w)

    assert_agrees(fedasync(q, 10, local_steps=3, mixing=0.4), run(q, update, 10, seed=2))


@pytest.mark.parametrize("m", [1, 2, 5])
@pytest.mark.parametrize(("p", "r"), [(1.0, -0.3), (0.6, 0.25), (1.0, -1.7)])
def test_four_moments_say_what_the_covariance_of_all_models_says(m, p, r):
    """The full second moment of (w, c_1, ..., c_M), one linear map per device that may be next."""
    updates = []
    for device in range(m):
        new_w = np.eye(m + 1)[0] * p + np.eye(m + 1)[device + 1] * r
        matrix = np.eye(m + 1)
        matrix[0] = matrix[device + 1] = new_w
        updates.append(matrix)
    second, four = np.ones((m + 1, m + 1)), np.ones(4)
    mean, two = np.ones(m + 1), np.ones(2)
    for _ in range(20):
        second = np.mean([u @ second @ u.T for u in updates], axis=0)
        mean = np.mean(updates, axis=0) @ mean
        four, two = second_moment_map(m, p, r) @ four, mean_map(m, p, r) @ two
        own = np.diag(second)[1:].mean()
        found = [second[0, 0], second[0, 1:].mean(), second[1:, 1:].mean(), own]
        assert four == pytest.approx(found, rel=1e-11)
        assert two == pytest.approx([mean[0], mean[1:].mean()], rel=1e-11, abs=1e-12)


@pytest.mark.parametrize(
    ("n_devices", "published", "places"),
    [(2, 1.281, 3), (4, 0.843, 3), (8, 0.566, 3), (16, 0.386, 3), (64, 0.185, 3), (256, 0.0904, 4)],
)
def test_stability_limits_of_the_mean_square(n_devices, published, places):
    assert round(stability_limit(n_devices), places) == published


def test_one_device_is_plain_sgd():
    assert stability_limit(1) == pytest.approx(2.0, abs=1e-10)
    q = problem(1)
    spread = q.loss(delayed_sgd(q, 1).mean[1]) + 0.5 * q.rate**2 * np.trace(q.hessian[0] @ q.noise[0])
    assert delayed_sgd(q, 1).loss[1] == pytest.approx(spread, rel=1e-12)


@pytest.mark.parametrize("n_devices", [2, 8, 64])
def test_the_mean_converges_at_rates_where_the_mean_square_grows(n_devices):
    """The mean's limit is 4 M - 2, far above."""
    for x, is_stable in [(4 * n_devices - 2.01, True), (4 * n_devices - 1.99, False)]:
        assert (np.abs(np.linalg.eigvals(mean_map(n_devices, 1.0, -x))).max() < 1) == is_stable
    assert stability_limit(n_devices) < 0.3 * (4 * n_devices - 2)
    q = Quadratic.of(n_devices, np.eye(1), start=np.ones(1), rate=1.2 * stability_limit(n_devices))
    curve = delayed_sgd(q, 150 * n_devices)
    assert abs(curve.mean[-1, 0]) < 1e-2
    assert curve.loss[-1] > 10 * curve.loss[0]
    with pytest.raises(NoClosedForm, match="settle"):
        curve.round.steady()


def test_a_long_curve_arrives_where_it_settles():
    curve = delayed_sgd(problem(rate=0.05), 3000)
    assert curve.loss[-1] == pytest.approx(curve.round.steady().loss, rel=1e-10)
    curve = fedasync(problem(), 3000, 2, 0.3)
    assert curve.loss[-1] == pytest.approx(curve.round.steady().loss, rel=1e-10)


def test_on_the_clock_updates_are_a_poisson_process():
    """Three devices, memoryless cycles of mean 2 s: losses at 3 s, run by next arrivals."""
    q, rng, mean_s, at_s = problem(3), np.random.default_rng(3), 2.0, 3.0
    next_s = rng.exponential(mean_s, size=(N_RUNS, 3))
    w, everyone = np.tile(q.start, (N_RUNS, 1)), np.arange(N_RUNS)
    pulled = np.repeat(w[:, None], 3, axis=1)
    root = np.linalg.cholesky(q.noise[0])
    while next_s.min() <= at_s:
        device = next_s.argmin(axis=1)
        is_due = (next_s.min(axis=1) <= at_s)[:, None]
        gradient = (pulled[everyone, device] - q.optimum[0]) @ q.hessian[0] + rng.normal(size=w.shape) @ root.T
        w = np.where(is_due, w - q.rate * gradient, w)
        pulled[everyone, device] = np.where(is_due, w, pulled[everyone, device])
        next_s[everyone, device] += np.where(is_due[:, 0], rng.exponential(mean_s, size=N_RUNS), 0.0)
    losses = q.loss(w)
    expected = at_poisson_updates(delayed_sgd(q, 60).loss, 3 / mean_s, np.array([at_s]))
    assert abs(losses.mean() - expected[0]) < SE_BOUND * losses.std() / np.sqrt(N_RUNS)


def test_noise_adds_to_the_moments_of_the_models_in_flight():
    """M = 2, from 0, step noise 1: w_1 = n_1; then half the time c of the other, 0, and half the time n_1, is used."""
    q = Quadratic.of(2, np.eye(1), start=np.zeros(1), rate=0.5, noise=4.0)
    curve = delayed_sgd(q, 2)
    after_two = 1.0 + (1.0 + 0.5**2) / 2
    assert curve.loss == pytest.approx([0.0, 0.5, 0.5 * after_two], rel=1e-12)
    second, updates = np.zeros((3, 3)), []
    for device in (1, 2):
        matrix = np.eye(3)
        matrix[0] = matrix[device] = np.eye(3)[0] - 0.5 * np.eye(3)[device]
        updates.append((matrix, np.outer(matrix[:, 0] > 0, matrix[:, 0] > 0)))
    for loss in delayed_sgd(q, 30).loss:
        assert loss == pytest.approx(0.5 * second[0, 0], rel=1e-12)
        second = np.mean([u @ second @ u.T + hit for u, hit in updates], axis=0)


def test_different_optima_are_refused():
    q = Quadratic.of(2, np.eye(1), optimum=np.array([[0.0], [1.0]]), start=np.ones(1), rate=0.1)
    with pytest.raises(NoClosedForm, match="same optimum"):
        delayed_sgd(q, 3)
