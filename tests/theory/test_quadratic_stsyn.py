"""STSyn on quadratics, over rounds and on the clock, beside runs in NumPy and beside sums that end by hand.

Random runs: the bound is 4 standard errors, from the runs' own spread. Seeds were written down once.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedsim.delays import Exponential, Gamma
from fedsim.protocols import NoClosedForm
from fedsim.theory.quadratic import Quadratic
from fedsim.theory.quadratic_clock import at_poisson_updates, at_time
from fedsim.theory.quadratic_stsyn import StsynRound, stsyn, stsyn_at

SE_BOUND = 4.0
N_RUNS = 20_000


def scalar(n_devices, *, rate=0.1, noise=0.5):
    """w^2 / 2 on every device, from 1."""
    return Quadratic.of(n_devices, np.eye(1), start=np.ones(1), rate=rate, noise=noise)


def problem(n_devices=5, *, seed=12):
    """One full Hessian, one full noise covariance, optima apart."""
    rng = np.random.default_rng(seed)
    hessian, noise = (factor @ factor.T / 3 + 0.2 * np.eye(3) for factor in rng.normal(size=(2, 3, 3)))
    optimum = 1.0 + rng.normal(size=(n_devices, 3))
    return Quadratic.of(n_devices, hessian, optimum=optimum, noise=noise, start=np.full(3, 4.0), rate=0.15)


def run(q, *, k, local_steps, n_rounds, step_mean_s=1.0, seed):
    """The algorithm itself: losses `[run, round]`, last weights, ends of rounds in seconds `[run, round]`."""
    rng, m, most = np.random.default_rng(seed), q.n_devices, 40
    root = np.linalg.cholesky(q.noise + 1e-300 * np.eye(len(q.start)))
    w, now_s = np.tile(q.start, (N_RUNS, 1)), np.zeros(N_RUNS)
    losses, ends_s = [q.loss(w)], [now_s]
    for _ in range(n_rounds):
        step_ends_s = rng.exponential(step_mean_s, size=(N_RUNS, m, most)).cumsum(axis=2)
        end_s = np.sort(step_ends_s[:, :, local_steps - 1], axis=1)[:, k - 1]
        n_steps = (step_ends_s <= end_s[:, None, None]).sum(axis=2)
        assert n_steps.max() < most
        local = np.repeat(w[:, None], m, axis=1)
        for step in range(n_steps.max()):
            noise = np.einsum("kij,rkj->rki", root, rng.normal(size=local.shape))
            after = local - q.rate * (np.einsum("kij,rkj->rki", q.hessian, local - q.optimum) + noise)
            local = np.where((step < n_steps)[:, :, None], after, local)
        uploads = (n_steps >= 1)[:, :, None]
        w, now_s = (local * uploads).sum(axis=1) / uploads.sum(axis=1), now_s + end_s
        losses.append(q.loss(w))
        ends_s.append(now_s)
    return np.stack(losses, axis=1), w, np.stack(ends_s, axis=1)


def assert_mean(values, expected):
    """Within 4 standard errors, along the first axis."""
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    assert (np.abs(values.mean(axis=0) - expected) < SE_BOUND * error).all(), (values.mean(axis=0), expected, error)


def test_the_published_example():
    """M = 5, K = 3, U = 2, rate * eigenvalue = 0.1, noise variance 0.5, rounded to 8 places."""
    found = StsynRound(scalar(5), k=3, local_steps=2)
    each = found.directions
    assert [each.phi[0], each.phi_squared[0], each.added[0]] == pytest.approx(
        [0.80478886, 0.64869579, 0.00224139], abs=5e-9
    )
    assert found.mean_round_steps == pytest.approx(19135409 / 10800000, rel=1e-13)


@pytest.mark.parametrize("eigenvalue", [0.0, 0.5, 10.0, 17.0])
def test_two_devices_the_faster_of_two_steps_by_hand(eigenvalue):
    """K = 1, U = 2: the first to two steps; before that the other has done one (probability 1/2) or none (1/2)."""
    q = Quadratic.of(2, np.array([[eigenvalue]]), start=np.ones(1), rate=0.1, noise=0.5)
    a = 1 - 0.1 * eigenvalue
    found = StsynRound(q, k=1, local_steps=2).directions
    shares = np.array([a**2, (a**2 + a) / 2])
    assert found.phi[0] == pytest.approx(shares.mean(), rel=1e-12, abs=1e-15)
    assert found.phi_squared[0] == pytest.approx((shares**2).mean(), rel=1e-12, abs=1e-15)
    noise = 0.1**2 * 0.5 * np.array([1 + a**2, (1 + a**2 + 1) / 4])
    assert found.added[0] == pytest.approx(noise.mean(), rel=1e-12)


@pytest.mark.parametrize("eigenvalue", [0.5, 10.0, 17.0])
def test_two_devices_the_slower_of_one_step_by_hand(eigenvalue):
    """K = 2, U = 1: the slower has one step, the faster n with probability 2^-n."""
    q = Quadratic.of(2, np.array([[eigenvalue]]), start=np.ones(1), rate=0.1, noise=0.5)
    n, a = np.arange(1, 200), 1 - 0.1 * eigenvalue
    shares = (a + a**n) / 2
    found = StsynRound(q, k=2, local_steps=1).directions
    assert found.phi[0] == pytest.approx((0.5**n * shares).sum(), rel=1e-12, abs=1e-15)
    assert found.phi_squared[0] == pytest.approx((0.5**n * shares**2).sum(), rel=1e-12, abs=1e-15)
    made = np.array([(a ** (2 * np.arange(steps))).sum() for steps in n])
    assert found.added[0] == pytest.approx(0.1**2 * 0.5 * (0.5**n * (1 + made) / 4).sum(), rel=1e-12)


def test_optima_apart_by_hand():
    """K = 1, U = 2 of two devices with optima -1 and 1: e+ - phi e is +-(1 - a^2) or +-(a - a^2) / 2, half and half."""
    q = Quadratic.of(2, np.eye(1), optimum=np.array([[-1.0], [1.0]]), start=np.ones(1), rate=0.3)
    added = (((1 - 0.7**2) ** 2) + ((0.7 - 0.7**2) / 2) ** 2) / 2
    assert StsynRound(q, k=1, local_steps=2).directions.added[0] == pytest.approx(added, rel=1e-12)


@pytest.mark.parametrize(("k", "local_steps"), [(1, 1), (3, 2), (5, 3), (4, 1)])
def test_rounds_agree_with_runs(k, local_steps):
    q = problem()
    losses, last, _ = run(q, k=k, local_steps=local_steps, n_rounds=4, seed=30 + k)
    curve = stsyn(q, 4, k, local_steps, Exponential(mean=1.0))
    assert curve.loss[0] == pytest.approx(losses[0, 0], rel=1e-12)
    assert_mean(losses[:, 1:], curve.loss[1:])
    assert_mean(last, curve.mean[-1])


def test_rounds_do_not_depend_on_the_unit_of_time():
    curves = [stsyn(problem(), 6, 3, 2, Exponential(mean=mean)) for mean in (0.01, 50.0)]
    assert (curves[0].loss == curves[1].loss).all()


def test_the_power_of_the_mean_number_of_steps_is_not_the_mean_power():
    """E[N] = E[T] / step mean for a device, uploading or not; for a fixed a, 0.9^1.77 is off by 3 %."""
    found = StsynRound(scalar(5), k=3, local_steps=2)
    wrong = 0.9**found.mean_round_steps
    assert abs(wrong / found.directions.phi[0] - 1) > 0.03
    q = scalar(5, noise=0.0)
    _, last, _ = run(q, k=3, local_steps=2, n_rounds=1, seed=40)
    assert_mean(last, found.directions.phi)
    assert abs(last.mean() - wrong) > 10 * last.std() / np.sqrt(N_RUNS)


def test_a_long_curve_arrives_where_it_settles():
    curve = stsyn(problem(), 2000, 3, 2, Exponential(mean=1.0))
    assert curve.loss[-1] == pytest.approx(curve.round.steady().loss, rel=1e-12)


def test_large_fleets_keep_their_digits():
    """With K = M - 1 and U = 1, a huge fleet: shares of a probability 1, all within [0, 1]."""
    found = StsynRound(scalar(2000), k=1999, local_steps=3)
    assert found._nodes[1].sum() == pytest.approx(1.0, abs=1e-11)
    assert 0 < found.directions.phi_squared[0] < found.directions.phi[0] < 0.9**3


# ---- on the clock ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "local_steps", "n_rounds"), [(1, 1, 32), (3, 2, 10), (5, 1, 12)])
def test_losses_at_instants_agree_with_runs(k, local_steps, n_rounds):
    q, times_s = problem(), np.array([0.5, 1.0, 2.0, 3.0])
    losses, _, ends_s = run(q, k=k, local_steps=local_steps, n_rounds=n_rounds, step_mean_s=2.0, seed=50 + k)
    assert ends_s[:, -1].min() > times_s.max()
    n_done = (ends_s[:, None, 1:] <= times_s[:, None]).sum(axis=2)
    found = stsyn_at(q, times_s, k, local_steps, Exponential(mean=2.0))
    assert_mean(np.take_along_axis(losses, n_done, axis=1), found.loss)


def test_one_device_is_a_poisson_process_of_steps():
    """M = 1: floor(N / U) rounds are over when N steps are, N Poisson."""
    q, times_s = scalar(1, noise=0.3), np.array([0.0, 0.7, 4.0, 31.0])
    curve = stsyn(q, 60, 1, 3, Exponential(mean=1.5))
    n = np.arange(180)
    expected = stats.poisson.pmf(n, times_s[:, None] / 1.5) @ curve.loss[n // 3]
    found = stsyn_at(q, times_s, 1, 3, Exponential(mean=1.5))
    assert found.loss == pytest.approx(expected, abs=1e-9)
    assert found.error <= 1e-8 * curve.loss[0]


def test_the_first_step_of_anyone_is_a_poisson_process():
    """K = U = 1: one upload of one step, rounds at rate M."""
    q, times_s = problem(), np.array([0.1, 1.0, 7.0])
    curve = stsyn(q, 120, 1, 1, Exponential(mean=1.0))
    found = stsyn_at(q, times_s, 1, 1, Exponential(mean=1.0))
    assert found.loss == pytest.approx(at_poisson_updates(curve.loss, 5.0, times_s), rel=1e-7)


def test_the_curve_over_rounds_read_by_independent_round_times_is_not_the_curve_on_the_clock():
    """Short rounds are short on steps too. M = K = 5, U = 1, a strong pull: off by more than 1 % at t = 4."""
    q = Quadratic.of(5, np.array([[6.0]]), start=np.ones(1), rate=0.1)
    times_s = np.array([4.0])
    exact = stsyn_at(q, times_s, 5, 1, Exponential(mean=1.0))
    this = StsynRound(q, 5, 1)
    wrong = at_time(this.curve(60).loss, lambda t: 1.0 - this.survival(t), times_s)
    assert abs(wrong.loss[0] / exact.loss[0] - 1) > 0.01


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [Gamma(shape=2.0), Exponential(mean=1.0, shift=0.1)])
def test_steps_with_a_memory_are_refused(law):
    with pytest.raises(NoClosedForm, match="needs exponential step times without a shift"):
        stsyn(problem(), 3, 2, 2, law)


def test_different_hessians_are_refused():
    q = Quadratic.of(2, np.array([1.0, 2.0])[:, None, None], start=np.ones(1), rate=0.1)
    with pytest.raises(NoClosedForm, match="same Hessian"):
        stsyn(q, 3, 1, 1, Exponential(mean=1.0))


def test_more_devices_than_there_are_are_refused():
    with pytest.raises(ValueError, match=r"choose 1\.\.5"):
        stsyn(problem(), 3, 6, 1, Exponential(mean=1.0))
