"""STSyn's closed forms beside published tables, exact rationals, enumeration, Monte Carlo and the simulator.

Monte Carlo: 10,000 rounds drawn with NumPy, seeds written down, bound 4 standard errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import special, stats

from fedsim.delays import Classes, Constant, Exponential, Gamma, Lognormal, Mixture, Pareto, Uniform
from fedsim.expectations import expected as expected_of
from fedsim.facts import Array
from fedsim.protocols import Law, NoClosedForm
from fedsim.run import World, simulate
from fedsim.theory import stsyn
from tests.agreement.test_closed_forms import nodes_until, scenario

UNIT = Exponential(mean=1.0)
SE_BOUND = 4.0

# M, K, U; mean round time in mean steps; mean number of uploaders
PUBLISHED = [
    (4, 3, 3, 3.308, 3.879),
    (20, 1, 10, 5.049, 19.794),
    (20, 5, 10, 7.568, 19.987),
    (20, 10, 10, 9.503, 19.998),
    (20, 20, 10, 16.776, 20.0),
    (20, 5, 1, 0.2795, 5.0),
    (20, 5, 5, 3.276, 19.191),
    (20, 5, 20, 16.579, 20.000),
    (20, 15, 2, 2.580, 18.576),
]


# ---- numbers that are known -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "k", "u", "time", "uploaders"), PUBLISHED)
def test_exponential_steps_give_the_table(m: int, k: int, u: int, time: float, uploaders: float) -> None:
    """Half a unit of the last digit."""
    assert stsyn.round_time(m, k, u, UNIT).mean_s == pytest.approx(time, abs=0.51e-4 if time < 1 else 0.51e-3)
    found = stsyn.uploaders(m, k, u, UNIT)
    assert found.mean == pytest.approx(uploaders, abs=0.51e-3)
    assert stsyn.n_transfers(m, k, u, UNIT) == pytest.approx(m + found.mean, rel=1e-11)


def test_five_devices_give_exact_rationals() -> None:
    """M, K, U = 5, 3, 2: the occupancy chain gives 19135409 / 10800000."""
    time, count = stsyn.round_time(5, 3, 2, UNIT), stsyn.uploaders(5, 3, 2, UNIT)
    assert time.mean_s == pytest.approx(19135409 / 10800000, rel=1e-13)
    assert time.variance_s2 == pytest.approx(0.49699043, abs=0.6e-8)
    assert count.mean == pytest.approx(4.23258889, abs=0.6e-8)
    assert count.variance == pytest.approx(0.49115796, abs=0.6e-8)
    np.testing.assert_allclose(count.pmf, [0, 0, 0, 0.156333, 0.454744, 0.388922], atol=0.6e-6)


def test_the_round_time_over_the_mean_step_is_not_the_mean_number_of_steps() -> None:
    """Shift 1/4, exponential part 1: E[N] = 1.67459666, E[T] / E[X] = 1.81743770. The step under way at T is lost."""
    step_s = Exponential(mean=1.25, shift=0.25)
    found = stsyn.steps_per_device(5, 3, 2, step_s)
    np.testing.assert_allclose(found, 1.67459666, atol=0.6e-8)
    shortcut = stsyn.round_time(5, 3, 2, step_s).mean_s / step_s.mean
    assert shortcut == pytest.approx(1.81743770, abs=0.6e-8)
    assert shortcut - found[0] > 0.14


@pytest.mark.parametrize(("m", "k", "u"), [(5, 3, 2), (20, 20, 10), (20, 1, 10), (20, 5, 1), (10_000, 9_990, 3)])
def test_the_sum_over_steps_is_the_stopped_poisson_process(m: int, k: int, u: int) -> None:
    """E[N] = E[T] / E[X] for plain exponential steps, found without knowing it."""
    race = stsyn.race(m, k, u, Exponential(mean=0.5))
    assert race.n_steps()[0] == pytest.approx(race.end.mean_s / 0.5, rel=1e-11)


def test_unequal_rates_give_each_device_its_rate_times_the_round_time() -> None:
    factors = [0.5, 1.0, 2.0, 2.0, 4.0]
    race = stsyn.race(5, 3, 3, UNIT, device_factor=factors)
    expected = race.end.mean_s / np.array(factors)
    np.testing.assert_allclose([race.n_steps(g)[0] for g in race.times.group], expected, rtol=1e-11)
    np.testing.assert_allclose(stsyn.steps_per_device(5, 3, 3, UNIT, device_factor=factors), expected, rtol=1e-11)


@pytest.mark.parametrize(("m", "k", "u"), [(20, 5, 5), (10_000, 5_000, 4), (10_000, 9_990, 2)])
def test_a_silent_device_is_later_than_the_kth_of_the_others(m: int, k: int, u: int) -> None:
    """M (1 - Laplace transform of T_(K:M-1) at 1): another derivation, other quadrature."""
    t, weights = nodes_until(40.0)
    laplace = weights @ (np.exp(-t) * special.betainc(k, m - k, special.gammainc(u, t)))
    assert stsyn.uploaders(m, k, u, UNIT).mean == pytest.approx(m * (1 - laplace), rel=1e-9)


@pytest.mark.parametrize(("m", "k", "u"), [(5, 3, 2), (20, 5, 10), (7, 7, 3), (6, 1, 4)])
def test_the_law_of_one_devices_steps_mixes_three_cases(m: int, k: int, u: int) -> None:
    """Given T = t: U steps with probability 1/M, a Poisson number given >= U (K-1)/M, given < U (M-K)/M."""
    found = stsyn.step_counts(m, k, u, UNIT)
    nodes, weights = nodes_until(80.0)
    t, n = nodes[:, None], np.arange(len(found))
    done, late = special.gammainc(u, t), special.gammaincc(u, t)
    rate = k * special.comb(m, k) * done ** (k - 1) * late ** (m - k) * stats.gamma.pdf(t, u)
    fast, slow = (stats.poisson.pmf(n, t) * is_so for is_so in (n >= u, n < u))
    expected = weights @ (rate * ((n == u) + (k - 1) * fast / done + (m - k) * slow / late)) / m
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found.sum() == pytest.approx(1.0, abs=1e-12)


def test_one_local_step_means_exactly_k_uploads() -> None:
    count = stsyn.uploaders(20, 5, 1, Lognormal(sigma=1.0))
    assert count.mean == pytest.approx(5.0, rel=1e-12)
    assert count.variance == pytest.approx(0.0, abs=1e-11)


def test_random_factors_of_two_devices_have_steps_in_a_sum_of_zeta_values() -> None:
    """U = 1, both waited for: P(N >= n) = P(n A_1 <= A_2) = I_{1/(n+1)}(3, 3) for gamma factors of shape 3.

    x^3 (10 - 15 x + 6 x^2) summed over x = 1/3, 1/4, ...: the tail falls like n^-3 and is not cut.
    """
    mean, variance = stsyn.race(2, 2, 1, 1.0, task_factor=Gamma(shape=3.0)).n_steps()
    z = {s: special.zeta(s, 3) for s in (2, 3, 4, 5)}
    assert mean == pytest.approx(1 + 10 * z[3] - 15 * z[4] + 6 * z[5], rel=1e-10)
    # sum of (2 n - 1) P(N >= n), 2 n - 1 being 2 (n + 1) - 3
    square = 1 + 2 * (10 * z[2] - 15 * z[3] + 6 * z[4]) - 3 * (10 * z[3] - 15 * z[4] + 6 * z[5])
    assert variance == pytest.approx(square - mean**2, rel=1e-9)


def test_ratios_of_two_devices_factors_are_known_for_pareto_and_uniform_laws() -> None:
    """P(n A_1 <= A_2) is n^-shape / 2, and (high - n low)^2 / (2 n (high - low)^2): laws with kinks, to full accuracy."""
    pareto = stsyn.race(2, 2, 1, 1.0, task_factor=Pareto(shape=2.5))
    assert pareto.n_steps()[0] == pytest.approx(1 + (special.zeta(2.5) - 1) / 2, rel=1e-10)
    assert stsyn.race(2, 1, 2, 1.0, task_factor=Pareto(shape=2.5)).late_chance(1) == pytest.approx(2**-3.5, rel=1e-10)
    n = np.arange(2, 10)
    uniform = stsyn.race(2, 2, 1, 1.0, task_factor=Uniform(low=0.1, high=1.0))
    assert uniform.n_steps()[0] == pytest.approx(1 + ((1 - 0.1 * n) ** 2 / (2 * n * 0.81)).sum(), rel=1e-11)


def test_a_factors_kinks_may_lie_close_together() -> None:
    """Half gamma, half uniform on 1 ... 1.1: P(n A_1 <= A_2) from its four parts; both ends lie in one panel."""
    low, high = 1.0, 1.1
    law = Mixture((Gamma(shape=3.0), Uniform(low=low, high=high)), (0.5, 0.5))
    pmf = stsyn.race(2, 2, 1, 1.0, task_factor=law, most_steps=12).step_counts()
    nodes, weights = np.polynomial.legendre.leggauss(40)
    x, n = low + (high - low) * (1 + nodes) / 2, np.arange(2, 13)[:, None]
    mixed = (special.gammainc(3, 3 * x / n) + special.gammaincc(3, 3 * x * n)) @ weights / 2
    chance = (special.betainc(3, 3, 1 / (n[:, 0] + 1)) + mixed) / 4
    np.testing.assert_allclose(pmf[::-1].cumsum()[::-1][2:], chance, rtol=1e-10)


def test_steps_under_a_factor_that_comes_too_close_to_zero_have_an_infinite_mean() -> None:
    for law in (UNIT, Uniform(low=0.0, high=1.0), Gamma(shape=0.5)):
        with pytest.raises(NoClosedForm, match="infinite mean"):
            stsyn.steps_per_device(5, 3, 2, 1.0, task_factor=law)
        with pytest.raises(NoClosedForm, match="infinite mean"):
            stsyn.steps_per_device(5, 3, 2, UNIT, task_factor=law)
        assert np.isfinite(stsyn.steps_per_device(5, 3, 2, 1.0, task_factor=law, most_steps=9)).all()
        assert (stsyn.steps_per_device(5, 1, 2, 1.0, task_factor=law) <= 2).all()  # T is the first to reach U
    assert stsyn.race(5, 3, 2, 1.0, task_factor=Gamma(shape=1.5)).n_steps()[1] is None  # finite mean, no variance
    assert stsyn.race(5, 3, 2, 1.0, task_factor=Gamma(shape=2.5)).n_steps()[1] is not None


def test_the_published_comparisons_slowness_makes_stragglers_matter_fourteen_times() -> None:
    """One exponential of a rate uniform in 1e4 ... 2e4 per round, steps capped at 15: 1.880e-4 s against 2.582e-3 s.

    Steps 5.46, uploaders 17.9, devices at the cap 2.8; simulated figures, to 1 % or half a printed digit. The rate's mean
    over the uniform law is taken by 24 Gauss-Legendre nodes.
    """
    nodes, weights = np.polynomial.legendre.leggauss(24)
    slowness = Mixture(
        tuple(Exponential(mean=1 / (1.5e4 + 0.5e4 * x)) for x in nodes.tolist()), tuple((weights / 2).tolist())
    )
    fast, slow = (stsyn.race(20, k, 10, 1.0, task_factor=slowness, most_steps=15) for k in (5, 20))
    assert fast.end.mean_s == pytest.approx(1.880e-4, rel=0.01)
    assert slow.end.mean_s == pytest.approx(2.582e-3, rel=0.01)
    assert fast.n_steps()[0] == pytest.approx(5.46, abs=0.006)
    assert 20 - fast.silent_mean() == pytest.approx(17.9, abs=0.06)
    assert 20 * fast.step_counts()[15] == pytest.approx(2.8, abs=0.06)


def test_uploads_in_parallel_last_as_long_as_the_longest() -> None:
    """K = M = 4: T and the largest of 4 exponentials, H_4. Not the largest of compute + upload."""
    upload_s = Exponential(mean=0.3)
    found = stsyn.with_uploads_s(4, 4, 1, UNIT, upload_s=upload_s)
    harmonic = 25 / 12
    assert found == pytest.approx(harmonic * 1.3, rel=1e-11)
    assert stsyn.with_uploads_s(5, 3, 2, UNIT, upload_s=Constant(0.3)) == pytest.approx(
        stsyn.round_time(5, 3, 2, UNIT, latency_s=0.3).mean_s, rel=1e-11
    )
    pmf = stsyn.uploaders(5, 3, 2, UNIT).pmf
    h = [sum(1 / i for i in range(1, n + 1)) for n in range(6)]
    assert stsyn.with_uploads_s(5, 3, 2, UNIT, upload_s=upload_s) == pytest.approx(
        19135409 / 10800000 + 0.3 * float(pmf @ h), rel=1e-11
    )


def test_rounds_with_another_k_each_add_up() -> None:
    times = [stsyn.round_time(10, k, 1, UNIT) for k in (2, 5, 10)]
    mean, variance = stsyn.in_turn(times)
    assert mean == pytest.approx(sum(1 / j for k in (2, 5, 10) for j in range(10 - k + 1, 11)), rel=1e-12)
    assert variance == pytest.approx(sum(1 / j**2 for k in (2, 5, 10) for j in range(10 - k + 1, 11)), rel=1e-10)


# ---- enumeration ----------------------------------------------------------------------------------------------------


def enumerated(
    m: int, k: int, u: int, values: Sequence[int], shares: Sequence[Fraction], factors: Sequence[int], *, per_task: bool
) -> dict[str, Any]:
    """Every outcome with its probability, in whole numbers and fractions."""
    most = max(values) * u * max(factors) // (min(values) * min(factors))
    drawn = 1 if per_task else most
    time = Fraction(0)
    steps, uploads, largest = [Fraction(0)] * m, [Fraction(0)] * (m + 1), Fraction(0)
    for picks in product(range(len(values)), repeat=m * drawn):
        p = Fraction(1)
        for pick in picks:
            p *= shares[pick]
        ends = []
        for d in range(m):
            own = [values[pick] * factors[d] for pick in picks[d * drawn : (d + 1) * drawn]]
            own = own * most if per_task else own
            ends.append([sum(own[: n + 1]) for n in range(most)])
        t = sorted(each[u - 1] for each in ends)[k - 1]
        done = [sum(end <= t for end in each) for each in ends]
        time += p * t
        steps = [s + p * n for s, n in zip(steps, done, strict=True)]
        uploads[sum(n > 0 for n in done)] += p
        largest += p * max(done)
    return {"time": time, "steps": steps, "uploads": uploads, "largest": largest}


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(("per_task", "factors"), [(True, [1, 1, 1]), (True, [1, 2, 3]), (False, [1, 1, 1])])
def test_discrete_laws_agree_with_all_outcomes(k: int, per_task: bool, factors: list[int]) -> None:
    """Ties included: steps and rounds that end at one instant."""
    values, shares = ([1, 2, 5] if per_task else [1, 2]), [Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)]
    if not per_task:
        shares = [Fraction(1, 4), Fraction(3, 4)]
    exact = enumerated(3, k, 2, values, shares, factors, per_task=per_task)
    law = Classes(tuple(map(float, values)), tuple(map(float, shares)))
    race = stsyn.race(
        3,
        k,
        2,
        0.1 if per_task else law,
        task_factor=law if per_task else None,
        device_factor=[float(f) for f in factors],
    )
    unit_s = 0.1 if per_task else 1.0
    assert race.end.mean_s == pytest.approx(unit_s * float(exact["time"]), rel=1e-12)
    np.testing.assert_allclose(
        [race.n_steps(g)[0] for g in race.times.group], [float(s) for s in exact["steps"]], rtol=1e-12
    )
    np.testing.assert_allclose(race.silent_pmf[::-1], [float(p) for p in exact["uploads"][k:]], atol=1e-13)
    if race.times.is_equal:
        assert race.most_finished() == pytest.approx(float(exact["largest"]), rel=1e-12)


# ---- Monte Carlo ----------------------------------------------------------------------------------------------------

UNEQUAL = (1.0, 1.0, 2.0, 2.0, 3.0, 0.5)
# K, U of 6 devices; step, task, factors, cap; more steps than any device does in a round (where steps are random)
DRAWN: list[tuple[int, int, Law | None, Law | None, tuple[float, ...] | None, int | None, int]] = [
    (3, 3, Lognormal(sigma=0.5), None, None, None, 40),
    (6, 3, Uniform(low=0.2, high=1.0), None, None, None, 20),
    (2, 3, Uniform(low=0.0, high=1.0), None, None, None, 40),
    (4, 2, Classes((1.0, 2.0, 5.0), (0.5, 0.3, 0.2)), None, None, None, 12),
    (4, 3, None, Gamma(shape=4.0), None, None, 0),
    (6, 3, None, Lognormal(sigma=0.7), None, None, 0),
    (4, 3, None, Pareto(shape=2.5), None, None, 0),
    (4, 3, None, Uniform(low=0.1, high=1.0), None, None, 0),
    (4, 4, None, UNIT, None, 6, 0),
    (4, 3, None, None, None, None, 0),
    (4, 3, Gamma(shape=2.0), None, UNEQUAL, None, 50),
    (6, 2, Exponential(mean=1.0, shift=0.5), None, UNEQUAL, None, 50),
    (1, 2, Lognormal(sigma=0.5), None, UNEQUAL, None, 3),
    (4, 2, Classes((1.0, 2.0), (0.5, 0.5)), None, UNEQUAL, None, 25),
    (4, 2, None, Gamma(shape=4.0), UNEQUAL, None, 0),
    (3, 2, UNIT, Gamma(shape=6.0), None, None, 60),
    (3, 2, UNIT, Classes((1.0, 3.0), (0.5, 0.5)), UNEQUAL, None, 60),
    (3, 2, Classes((1.0, 2.0), (0.5, 0.5)), Uniform(low=0.5, high=1.0), None, None, 9),
    (6, 2, UNIT, UNIT, None, 4, 5),
]
N_DRAWN = 10_000


def drawn_rounds(case: tuple[Any, ...], seed: int) -> tuple[Array, Array]:
    """T `[round]` and finished steps `[round, device]`."""
    k, u, step, task, factors, cap, most = case
    luck = np.random.default_rng(seed)
    a = np.ones((N_DRAWN, 6)) if task is None else task.draw(luck.random((N_DRAWN, 6)))
    a = a * (np.ones(6) if factors is None else np.array(factors))
    if step is None:
        t = np.sort(u * a, axis=1)[:, k - 1]
        done = np.floor(t[:, None] / a * (1 + 1e-12))
    else:
        ends = np.cumsum(step.draw(luck.random((N_DRAWN, 6, most))), axis=2) * a[:, :, None]
        t = np.sort(ends[:, :, u - 1], axis=1)[:, k - 1]
        done = (ends <= t[:, None, None] * (1 + 1e-12)).sum(axis=2).astype(float)
        assert cap is not None or done.max() < most
    return t, done if cap is None else np.minimum(done, cap)


def assert_mean(values: Array, expected: float) -> None:
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - expected) <= SE_BOUND * error + 1e-9 * abs(expected), (values.mean(), expected, error)


@pytest.mark.parametrize("case", DRAWN, ids=[str(i) for i in range(len(DRAWN))])
def test_any_law_agrees_with_drawn_rounds(case: tuple[Any, ...]) -> None:
    k, u, step, task, factors, cap, _ = case
    t, done = drawn_rounds(case, seed=100 + DRAWN.index(case))
    race = stsyn.race(6, k, u, 1.0 if step is None else step, task_factor=task, device_factor=factors, most_steps=cap)
    assert_mean(t, race.end.mean_s)
    for g in range(len(race.times.unit_s)):
        mine = done[:, race.times.group == g]
        mean, variance = race.n_steps(g)
        assert_mean(mine.mean(axis=1), mean)
        if variance is not None and (task is None or cap is not None):  # else the fourth moment may be infinite
            assert_mean(((mine - mean) ** 2).mean(axis=1), variance)
        if N_DRAWN * race.late_chance(1, g) > 20:
            assert_mean((mine == 0).mean(axis=1), race.late_chance(1, g))
    pmf, silent = race.silent_pmf, (done == 0).sum(axis=1)
    assert pmf.sum() == pytest.approx(1.0, abs=1e-11)
    assert pmf @ np.arange(len(pmf)) == pytest.approx(race.silent_mean(), abs=1e-10)
    for n, p in enumerate(pmf):
        if N_DRAWN * min(p, 1 - p) > 20:
            assert_mean((silent == n).astype(float), p)
    if race.times.is_equal and (step is None or task is None or cap is not None):
        assert_mean(done.max(axis=1), race.most_finished())


# ---- beside the simulator -------------------------------------------------------------------------------------------

LINKS = {
    "uplink": {"rate_bits_per_s": 1e30, "latency_s": 0.3},
    "downlink": {"rate_bits_per_s": 1e30, "latency_s": 0.2},
}
GAMMA = {"kind": "gamma", "shape": 4.0}
# compute, links, policy
SIMULATED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "random steps, links": ({"step_factor": {"kind": "exponential"}}, LINKS, {"k": 4, "local_steps": 3}),
    "random tasks": ({"task_factor": GAMMA}, {}, {"k": 6, "local_steps": 3}),
    "unequal devices": (
        {"step_factor": GAMMA, "device_factor": [0.5, 1.0, 1.0, 2.0, 2.0, 6.0, 6.0, 6.0]},
        LINKS,
        {"k": 3, "local_steps": 2},
    ),
    "both, capped": (
        {"step_factor": GAMMA, "task_factor": {"kind": "exponential"}},
        {},
        {"k": 5, "local_steps": 2, "cap_factor": 1.5},
    ),
    "published comparison": (
        {"task_factor": {"kind": "exponential"}},
        LINKS,
        {"k": 1, "local_steps": 3, "cap_factor": 1.5, "drop_most_updated": True},
    ),
    "all but the one with most steps": (
        {"step_factor": {"kind": "exponential"}},
        {},
        {"k": 3, "local_steps": 2, "drop_most_updated": True},
    ),
    "slow downloads": (
        {"step_factor": {"kind": "exponential"}},
        {"downlink": {"rate_bits_per_s": 1e30, "latency_s": [0.0, 0.0, 0.1, 0.1, 0.1, 3.0, 3.0, 3.0]}},
        {"k": 3, "local_steps": 2},
    ),
    "ties": (
        {"task_factor": {"kind": "classes", "values": [1, 2, 3], "shares": [0.5, 0.3, 0.2]}},
        {},
        {"k": 4, "local_steps": 6},
    ),
}


@pytest.mark.parametrize("name", SIMULATED)
def test_expectations_agree_with_the_simulator(name: str) -> None:
    """Every quantity of every round, from another derivation; what has no closed form says so by name."""
    compute, links, parameters = SIMULATED[name]
    seed = 40 + list(SIMULATED).index(name)
    policy = {"kind": "stsyn", **parameters}
    loaded = scenario(8, {"step_s": 0.5, **compute}, policy, 600, seed, links=links, record_tasks=True)
    contender, seeds = loaded.contenders[0], loaded.scenario.seed_sets[0]
    tables = simulate(loaded, contender, seeds).tables
    rounds, tasks = tables["rounds"], tables["tasks"]
    found = expected_of(contender, World.of(loaded, seeds).planned_for(contender).weather)
    means = {(one.quantity, one.device): one for one in found if one.layer in (None, 0)}
    n = rounds["n_contributions"].astype(float)
    seen: dict[tuple[str, int | None], Array] = {
        ("round_s", None): rounds["end_s"] - rounds["start_s"],
        ("n_contributions", None): n,
        ("n_contributors", None): n,
        ("inverse_n_contributions", None): 1 / n,
        ("is_empty", None): (n == 0).astype(float),
        ("used_flops", None): rounds["used_flops"].astype(float),
        ("downloaded_bytes", None): rounds["downloaded_bytes"].astype(float),
        ("uploaded_bytes", None): rounds["uploaded_bytes"].astype(float),
        ("weight_sum", None): tables["layers"]["weight_sum"].astype(float),
        ("is_layer_empty", None): (tables["layers"]["n_contributors"] == 0).astype(float),
    }
    steps = np.zeros((len(rounds["end_s"]), 8))
    steps[tasks["round"], tasks["device"]] = tasks["n_steps"]
    seen |= {("n_steps", None): steps.mean(axis=1)}
    seen |= {("n_steps", d): steps[:, d] for d in range(8)} | {("participation", d): steps[:, d] > 0 for d in range(8)}
    if policy.get("drop_most_updated"):
        assert means.pop(("participation", None)).reason
        seen = {key: values for key, values in seen.items() if key[0] != "participation"}
    assert set(means) == set(seen)
    for key, values in seen.items():
        one = means[key]
        assert one.mean is not None, (key, one.reason)
        error = np.sqrt((values.var(ddof=1) if one.variance is None else one.variance) / len(values))
        assert abs(values.mean() - one.mean) <= SE_BOUND * error + 1e-11 * abs(one.mean), (key, values.mean(), one)


def test_unequal_uploads_leave_the_round_time_open_unless_everybody_is_waited_for() -> None:
    """The slowest link decides if all upload; else it depends on who has a step. All other quantities stay."""
    compute = {"step_s": 1.0, "step_factor": {"kind": "exponential"}}
    links = {"uplink": {"rate_bits_per_s": 1e30, "latency_s": [0.1, 0.2, 0.3, 0.7]}}
    found = {}
    for k in (3, 4):
        loaded = scenario(4, compute, {"kind": "stsyn", "k": k, "local_steps": 2}, 1, 1, links=links)
        world = World.of(loaded, loaded.scenario.seed_sets[0]).planned_for(loaded.contenders[0])
        found[k] = {one.quantity: one for one in expected_of(loaded.contenders[0], world.weather)}
    assert found[4]["round_s"].mean == pytest.approx(stsyn.round_time(4, 4, 2, UNIT).mean_s + 0.7, rel=1e-12)
    assert "equal upload times" in str(found[3].pop("round_s").reason)
    assert all(one.mean is not None for one in found[3].values())


def test_many_different_devices_have_steps_in_closed_form_only_if_those_are_exponential() -> None:
    factors = np.linspace(1.0, 3.0, 150).tolist()
    mean_s = stsyn.round_time(150, 75, 2, UNIT, device_factor=factors).mean_s
    found = stsyn.steps_per_device(150, 75, 2, UNIT, device_factor=factors)
    np.testing.assert_allclose(found, mean_s / np.array(factors), rtol=1e-12)
    with pytest.raises(NoClosedForm, match="kinds of devices"):
        stsyn.steps_per_device(150, 75, 2, Gamma(shape=2.0), device_factor=factors)
