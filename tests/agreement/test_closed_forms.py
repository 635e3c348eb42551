"""Simulated means beside closed forms that are derived here, from order statistics and binomial counts, with scipy.

The bound is 4 standard errors of the mean over independent rounds: a two-sided probability of 6e-5 per comparison, and
about a hundred comparisons are made. Standard errors come from the closed form's own variance where it has one. Seeds
were written down once. What has no variance is compared exactly.

Sources: order statistics of i.i.d. variables, P(T_(K:M) > t) = P(Bin(M, F(t)) < K) = I_{1-F}(M-K+1, K); Wald's identity
for the number of updates at a stopping time; arXiv 2210.03521 (STSyn), 2403.18375 (SALF), 2311.10002 (FedPMT).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from scipy import special, stats

import fedsim
from fedsim.facts import Array
from fedsim.protocols import Rounds, Server, Setting
from fedsim.run import RunResult, simulate
from fedsim.scenario.read import LoadedScenario
from tests.agreement.by_hand import step_shares

SE_BOUND = 4.0
BATCH = 16

# Softmax regression on 4 features, 2 classes: 8 multiply-adds forward and 8 for the weights, a multiply-add being two.
REGRESSION = {"kind": "mlp", "widths": []}
REGRESSION_STEP_FLOPS = BATCH * 2 * (8 + 8)


def scenario(
    n_devices: int, compute: dict[str, Any], policy: dict[str, Any], n_rounds: int, seed: int, **more: Any
) -> LoadedScenario:
    """Timing only; batches with replacement, so that every step has its full 16 rows."""
    fleet = {"n_devices": n_devices, "compute": compute, **more.pop("links", {})}
    return fedsim.from_dict(
        {
            "name": "closed-forms",
            "fleet": fleet,
            "model": REGRESSION,
            "data": {"kind": "gaussian_blobs", "n_samples": 500, "n_features": 4, "n_classes": 2},
            "training": {"batch_size": BATCH, "batches": "with_replacement"},
            "policies": [policy],
            "seeds": [seed],
            "stop": {"n_rounds": n_rounds},
            "train": False,
            "record_tasks": False,
            **more,
        }
    )


def run(*args: Any, **more: Any) -> RunResult:
    loaded = scenario(*args, **more)
    return simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])


def lengths_s(result: RunResult) -> Array:
    rounds = result.tables["rounds"]
    found: Array = rounds["end_s"] - rounds["start_s"]
    return found


def assert_mean(values: Array, expected: float, variance: float | None = None) -> None:
    """Within 4 standard errors; from `variance` if it is known, else from the values."""
    standard_error = np.sqrt((values.var(ddof=1) if variance is None else variance) / len(values))
    assert abs(values.mean() - expected) < SE_BOUND * standard_error, (values.mean(), expected, standard_error)


def nodes_until(until: float) -> tuple[Array, Array]:
    """Points and weights of an integral from 0: Gauss-Legendre with 20 nodes on each of 200 panels."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    edges = np.linspace(0.0, until, 201)
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (1 + nodes)).ravel(), (half * weights).ravel()


def moments(survival: Callable[[Array], Array], until: float) -> tuple[float, float]:
    """Mean and variance from P(T > t)."""
    t, w = nodes_until(until)
    mean = float(w @ survival(t))
    return mean, float(2 * w @ (t * survival(t))) - mean**2


def order_survival(k: int, m: int, survival: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """P(T_(k:m) > t) of m i.i.d. times."""
    return lambda t: special.betainc(m - k + 1, k, survival(t))


# ---- STSyn ----------------------------------------------------------------------------------------------------------

# M, K, U; mean round time in mean updates (= mean updates per device); mean number of uploaders; rounds
STSYN = [
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
STSYN_ROUNDS = 600
MEAN_STEP_S = 0.5
stsyn_rows = pytest.mark.parametrize(("m", "k", "u"), [row[:3] for row in STSYN])


def stsyn_time(m: int, k: int, u: int) -> tuple[float, float]:
    """Mean and variance of the K-th smallest of M Erlang(U) times at unit rate."""
    return moments(order_survival(k, m, lambda t: special.gammaincc(u, t)), until=u + 80.0)


def stsyn_uploaders(m: int, k: int, u: int) -> tuple[float, float]:
    """Mean and variance of the devices with at least one update when the K-th reaches U.

    Given T = t the M - K others are i.i.d. and short of U: each is empty-handed with r(t) = P(S_1 > t) / P(S_U > t).
    """
    if k == m:
        return float(m), 0.0
    t, w = nodes_until(u + 80.0)
    # Density of the order statistic through logs: M! / ((K-1)! (M-K)!) F^(K-1) (1-F)^(M-K) f.
    log_density = (
        special.gammaln(m + 1)
        - special.gammaln(k)
        - special.gammaln(m - k + 1)
        + special.xlogy(k - 1, special.gammainc(u, t))
        + special.xlogy(m - k, special.gammaincc(u, t))
        + stats.gamma.logpdf(t, u)
    )
    w = w * np.exp(log_density)
    r = np.exp(-t) / special.gammaincc(u, t)
    mean_r, mean_r2 = float(w @ r), float(w @ r**2)
    return m - (m - k) * mean_r, (m - k) * (mean_r - mean_r2) + (m - k) ** 2 * (mean_r2 - mean_r**2)


@cache
def stsyn_run(m: int, k: int, u: int) -> RunResult:
    compute = {"step_s": MEAN_STEP_S, "step_factor": {"kind": "exponential"}}
    policy = {"kind": "stsyn", "k": k, "local_steps": u}
    return run(m, compute, policy, STSYN_ROUNDS, 1000 + 31 * m + 7 * k + u)


@pytest.mark.parametrize(("m", "k", "u", "updates", "uploaders"), STSYN)
def test_stsyn_formulas_give_the_rounded_table(m: int, k: int, u: int, updates: float, uploaders: float) -> None:
    """Half a unit of the last digit printed, and the other derivation: M (1 - Laplace transform of T_(K:M-1) at 1)."""
    digits = 0.5e-4 if updates < 1 else 0.5e-3
    assert stsyn_time(m, k, u)[0] == pytest.approx(updates, abs=1.01 * digits)
    assert stsyn_uploaders(m, k, u)[0] == pytest.approx(uploaders, abs=1.01 * 0.5e-3)
    if k < m:
        others = order_survival(k, m - 1, lambda t: special.gammaincc(u, t))
        laplace = moments(lambda t: np.exp(-t) * (1 - others(t)), until=u + 80.0)[0]
        assert m * (1 - laplace) == pytest.approx(stsyn_uploaders(m, k, u)[0], rel=1e-9)


def test_stsyn_formulas_give_exact_rationals() -> None:
    """M, K, U = 5, 3, 2: the occupancy chain gives 19135409 / 10800000."""
    assert stsyn_time(5, 3, 2)[0] == pytest.approx(19135409 / 10800000, rel=1e-12)
    assert stsyn_time(5, 3, 2)[1] == pytest.approx(0.49699043, abs=1e-8)
    assert stsyn_uploaders(5, 3, 2) == pytest.approx((4.23258889, 0.49115796), abs=1e-8)


@stsyn_rows
def test_stsyn_round_times_agree_with_order_statistics(m: int, k: int, u: int) -> None:
    mean, variance = stsyn_time(m, k, u)
    assert_mean(lengths_s(stsyn_run(m, k, u)) / MEAN_STEP_S, mean, variance)


@pytest.mark.parametrize(("m", "k", "u"), [row[:3] for row in STSYN if row[0] > row[1]])
def test_stsyn_runs_are_long_enough_to_tell_the_next_k_and_u(m: int, k: int, u: int) -> None:
    """Neither K+1, K-1 nor U+1 would pass: they lie beyond twice the bound."""
    mean, variance = stsyn_time(m, k, u)
    resolution = 2 * SE_BOUND * np.sqrt(variance / STSYN_ROUNDS)
    others = [(k + 1, u), (k, u + 1)] + ([(k - 1, u)] if k > 1 else [])
    assert min(abs(stsyn_time(m, *other)[0] - mean) for other in others) > resolution


@stsyn_rows
def test_stsyn_updates_per_device_are_the_round_time_in_mean_updates(m: int, k: int, u: int) -> None:
    """Optional stopping: updates of all devices minus M T has mean zero, and variance M E[T], in units of an update."""
    result = stsyn_run(m, k, u)
    n_updates = result.tables["rounds"]["used_flops"] / REGRESSION_STEP_FLOPS
    mean, _ = stsyn_time(m, k, u)
    assert_mean(n_updates / m, mean)
    assert_mean(n_updates - m * lengths_s(result) / MEAN_STEP_S, 0.0, variance=m * mean)


@stsyn_rows
def test_stsyn_uploaders_agree_with_the_mixture(m: int, k: int, u: int) -> None:
    uploaders = stsyn_run(m, k, u).tables["rounds"]["n_contributions"].astype(float)
    mean, variance = stsyn_uploaders(m, k, u)
    assert uploaders.min() >= k
    if k == m or u == 1:  # one update is what the K fastest have, and nobody else
        assert mean == pytest.approx(k)
        assert set(uploaders) == {float(k)}
        return
    n_silent = STSYN_ROUNDS * (m - mean)
    if n_silent < 20:  # too few for a normal: the exact Poisson tail of rare, nearly independent silences
        observed = (m - uploaders).sum()
        assert min(stats.poisson.cdf(observed, n_silent), stats.poisson.sf(observed - 1, n_silent)) > 3e-5
        return
    assert_mean(uploaders, mean, variance)


def test_stsyn_with_unequal_speeds_gives_each_device_updates_in_proportion() -> None:
    """E[N_m] = rate_m E[T] for worker-specific rates; T is common, so N_m - rate_m T has mean 0, variance rate_m E[T]."""
    factors = [0.5, 1.0, 2.0, 4.0]
    compute = {"step_s": 1.0, "device_factor": factors, "step_factor": {"kind": "exponential"}}
    result = run(4, compute, {"kind": "stsyn", "k": 2, "local_steps": 3}, 1200, 77, record_tasks=True)
    tasks, round_s = result.tables["tasks"], lengths_s(result)
    for device, factor in enumerate(factors):
        mine = tasks["device"] == device
        n_updates = np.zeros(len(round_s))
        n_updates[tasks["round"][mine]] = tasks["n_steps"][mine]
        assert_mean(n_updates - round_s / factor, 0.0)


# ---- K-sync and FedAvg ----------------------------------------------------------------------------------------------


def harmonic(n: int) -> float:
    return sum(1.0 / i for i in range(n, 0, -1))


@pytest.mark.parametrize(("m", "k"), [(10, 1), (10, 4), (10, 10), (30, 25)])
def test_k_sync_round_times_are_harmonic_sums(m: int, k: int) -> None:
    """mean (H_M - H_{M-K}), variance the sum of 1/j^2 over j = M-K+1 ... M; exactly K uploads enter."""
    compute = {"step_s": 2.0, "step_factor": {"kind": "exponential"}}
    result = run(m, compute, {"kind": "k_sync", "k": k}, 1000, 5 * m + k)
    variance = sum(1.0 / j**2 for j in range(m - k + 1, m + 1))
    assert_mean(lengths_s(result) / 2.0, harmonic(m) - harmonic(m - k), variance)
    assert set(result.tables["rounds"]["n_contributions"]) == {k}


def test_k_sync_waits_for_arrivals_and_not_for_computations() -> None:
    """The K-th smallest of Exp(1) + Exp(mean 1/2): P(> t) = (2 e^-t - e^-2t), plus 0.25 s of download."""
    uplink = {
        "rate_bits_per_s": 1e30,
        "latency_s": {"kind": "exponential", "mean": 0.5},
        "redrawn": "task",
    }
    links = {"uplink": uplink, "downlink": {"rate_bits_per_s": 1e30, "latency_s": 0.25}}
    compute = {"step_s": 1.0, "task_factor": {"kind": "exponential"}}
    result = run(12, compute, {"kind": "k_sync", "k": 8}, 1000, 21, links=links)
    mean, variance = moments(order_survival(8, 12, lambda t: 2 * np.exp(-t) - np.exp(-2 * t)), until=60.0)
    assert_mean(lengths_s(result), 0.25 + mean, variance)


@pytest.mark.parametrize("level", ["task_factor", "step_factor"])
def test_fedavg_waits_for_the_slowest(level: str) -> None:
    """Slowness per task: U H_M. Slowness per step: the largest of M Erlang(U); far less for the same marginal law."""
    m, u = 15, 4
    compute = {"step_s": 1.0, level: {"kind": "exponential"}}
    result = run(m, compute, {"kind": "fedavg", "local_steps": u}, 1200, 9)
    if level == "task_factor":
        mean, variance = u * harmonic(m), u**2 * sum(1.0 / j**2 for j in range(1, m + 1))
    else:
        mean, variance = moments(order_survival(m, m, lambda t: special.gammaincc(u, t)), until=u + 80.0)
    assert_mean(lengths_s(result), mean, variance)
    assert set(result.tables["rounds"]["n_contributions"]) == {m}


def test_over_selection_keeps_the_first_of_more() -> None:
    """The 8th arrival of 10 asked of 25: H_10 - H_2."""
    compute = {"step_s": 1.0, "task_factor": {"kind": "exponential"}}
    policy = {"kind": "fedavg", "n_sampled": 8, "over_selected": 2, "local_steps": 1}
    result = run(25, compute, policy, 1200, 12)
    assert_mean(lengths_s(result), harmonic(10) - harmonic(2), sum(1.0 / j**2 for j in range(3, 11)))
    assert set(result.tables["rounds"]["n_contributions"]) == {8}
    assert set(result.tables["rounds"]["n_sent"]) == {10}


# ---- drop_stragglers ------------------------------------------------------------------------------------------------

LATENCY_S = 0.25
SLOW_LINKS = {
    "uplink": {"rate_bits_per_s": 1e30, "latency_s": LATENCY_S},
    "downlink": {"rate_bits_per_s": 1e30, "latency_s": LATENCY_S},
}


@pytest.mark.parametrize("wait_out", [False, True])
def test_drop_stragglers_contributors_are_binomial(wait_out: bool) -> None:
    """N ~ Bin(M, F(T)), F the Erlang(U) law of the compute time that both transfers leave."""
    m, u, deadline_s = 12, 3, 2.0
    q = float(special.gammainc(u, deadline_s - 2 * LATENCY_S))
    compute = {"step_s": 1.0, "step_factor": {"kind": "exponential"}}
    policy = {"kind": "drop_stragglers", "local_steps": u, "deadline_s": deadline_s, "wait_out": wait_out}
    result = run(m, compute, policy, 1000, 4, links=SLOW_LINKS)
    rounds = result.tables["rounds"]
    n = rounds["n_contributions"].astype(float)
    assert_mean(n, m * q, m * q * (1 - q))
    assert_mean((n - m * q) ** 2, m * q * (1 - q))
    assert_mean((n == 0).astype(float), (1 - q) ** m, (1 - q) ** m * (1 - (1 - q) ** m))
    np.testing.assert_array_equal(rounds["version"], np.cumsum(n > 0))  # nobody in time: the model stays


def test_drop_stragglers_rounds_last_until_the_deadline_or_the_last_arrival() -> None:
    """min(T, the slowest): integral of 1 - F^M up to T; the whole T if waited out."""
    m, deadline_s = 3, 2.5
    compute = {"step_s": 1.0, "task_factor": {"kind": "exponential"}}
    policy = {"kind": "drop_stragglers", "local_steps": 1, "deadline_s": deadline_s}
    early = lengths_s(run(m, compute, policy, 1000, 5, links=SLOW_LINKS))
    inside_s = deadline_s - 2 * LATENCY_S
    mean, variance = moments(lambda t: 1 - (1 - np.exp(-t)) ** m, until=inside_s)
    assert_mean(early, 2 * LATENCY_S + mean, variance)
    waited = run(m, compute, policy | {"wait_out": True}, 50, 5, links=SLOW_LINKS)
    np.testing.assert_allclose(waited.tables["rounds"]["end_s"], deadline_s * np.arange(1, 51), rtol=1e-14)


def test_unequal_devices_are_in_time_each_with_its_own_probability() -> None:
    """E[N] = sum of F(T / s_u); the variance of independent unequal trials is the sum of q_u (1 - q_u)."""
    factors = np.array([0.25, 0.5, 1.0, 2.0, 8.0])
    compute = {"step_s": 1.0, "device_factor": factors.tolist(), "task_factor": {"kind": "weibull", "shape": 0.6}}
    policy = {"kind": "drop_stragglers", "local_steps": 2, "deadline_s": 1.5}
    n = run(5, compute, policy, 1000, 6).tables["rounds"]["n_contributions"].astype(float)
    # Weibull with mean 1: scale 1 / Gamma(1 + 1 / shape).
    q = stats.weibull_min.cdf(1.5 / (2 * factors), 0.6, scale=1 / special.gamma(1 + 1 / 0.6))
    assert_mean(n, q.sum(), (q * (1 - q)).sum())


# ---- SALF -----------------------------------------------------------------------------------------------------------

SALF_WIDTHS = [4, 6, 5, 3, 2]  # features, three hidden layers, classes: L = 4
L = 4
U = 6
SALF_ROUNDS = 1000
LAYERS = np.arange(1, L + 1)  # 1 at the input
SALF_MODEL = {"kind": "mlp", "widths": SALF_WIDTHS[1:-1]}
C = np.array(step_shares(tuple(SALF_WIDTHS)))[::-1]  # share of a step until layer l is done, from the input


def _backward_slower(factor: float) -> Array:
    """The same shares if a backward FLOP takes `factor` times as long as a forward one."""
    f = np.array([a * b for a, b in pairwise(SALF_WIDTHS)], dtype=float)
    backward = np.cumsum(f[::-1]) + np.concatenate([[0.0], np.cumsum(f[::-1])[:-1]])
    cost = f.sum() + factor * backward
    found: Array = (cost / cost[-1])[::-1]
    return found


T = 1.3
LAYER_S, FORWARD_S = 0.2, 0.15

# name -> (compute, q per layer from the input): what one device has reached within T = 1.3 s
DEPTH_MODELS: dict[str, tuple[dict[str, Any], Any]] = {
    "uniform from 0": ({"step_s": 1.0, "depth_law": {"kind": "uniform", "lowest": 0}}, LAYERS / (L + 1)),
    "uniform from 1": ({"step_s": 1.0, "depth_law": {"kind": "uniform", "lowest": 1}}, LAYERS / L),
    "exponential layers": (
        {"layer_s": LAYER_S, "forward_s": FORWARD_S, "layer_factor": {"kind": "exponential"}},
        special.gammainc(L - LAYERS + 1, (T - FORWARD_S) / LAYER_S),
    ),
    "exponential slowness": (
        {"step_s": 1.6, "task_factor": {"kind": "exponential"}},
        -np.expm1(-T / (1.6 * C)),
    ),
    "lognormal slowness": (
        {"step_s": 1.6, "task_factor": {"kind": "lognormal", "sigma": 0.7}},
        stats.norm.cdf(np.log(T / (1.6 * C)) / 0.7),
    ),
    "gamma slowness of the step": (
        {"step_s": 1.6, "step_factor": {"kind": "gamma", "shape": 2.0}},
        special.gammainc(2.0, 2.0 * T / (1.6 * C)),
    ),
    "pareto slowness, slow backward pass": (
        {"step_s": 1.2, "backward_factor": 5.0, "task_factor": {"kind": "pareto", "shape": 1.5, "minimum": 0.5}},
        1 - np.minimum(1.0, 0.5 * 1.2 * _backward_slower(5.0) / T) ** 1.5,
    ),
}
depth_models = pytest.mark.parametrize("name", DEPTH_MODELS)


def salf_scenario(name: str, n_rounds: int = SALF_ROUNDS, **policy: Any) -> LoadedScenario:
    compute, _ = DEPTH_MODELS[name]
    parameters = {"kind": "salf", "deadline_s": T, **policy}
    return scenario(U, compute, parameters, n_rounds, 17 + list(DEPTH_MODELS).index(name), model=SALF_MODEL)


@dataclass(frozen=True)
class Asks:
    """A policy that asks the fleet for its reach probabilities and does nothing else. answers: `[device, layer]` each."""

    deadline_on: Literal["compute", "arrival"] = "compute"
    answers: list[Array] = field(default_factory=list, init=False, compare=False, repr=False)

    source: ClassVar[str] = "this test"

    def problems(self, setting: Setting) -> list[str]:
        return []

    def rounds(self, server: Server) -> Rounds:
        everyone = np.arange(server.n_devices)
        self.answers.append(server.reach_probability(everyone, T, deadline_on=self.deadline_on))
        yield from ()


def reach_probability(loaded: LoadedScenario, asks: Asks) -> Array:
    """What a policy is told, `[device, layer]`."""
    loaded = loaded.with_policies([asks])
    simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])
    return asks.answers[0]


@cache
def salf_run(name: str, n_rounds: int = SALF_ROUNDS, rule: str = "contributors") -> RunResult:
    loaded = salf_scenario(name, n_rounds, rule=rule)
    return simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])


def by_layer(result: RunResult, column: str) -> Array:
    """`[round, layer]`."""
    found: Array = result.tables["layers"][column].reshape(-1, L).astype(float)
    return found


def test_uniform_depths_give_the_published_probabilities() -> None:
    """Six devices, four layers: nobody reaches layer l with (1 - l/5)^6, or (1 - l/4)^6 if the output is always there."""
    p_from_0 = (1 - DEPTH_MODELS["uniform from 0"][1]) ** U
    np.testing.assert_allclose(p_from_0, [0.262144, 0.046656, 0.004096, 6.4e-5], rtol=1e-12)
    p_from_1 = (1 - DEPTH_MODELS["uniform from 1"][1]) ** U
    np.testing.assert_allclose(p_from_1, [729 / 4096, 1 / 64, 1 / 4096, 0.0], rtol=1e-12)


@depth_models
def test_reach_probabilities_equal_the_closed_forms(name: str) -> None:
    found = reach_probability(salf_scenario(name), Asks())
    np.testing.assert_allclose(found, np.tile(DEPTH_MODELS[name][1], (U, 1)), rtol=1e-12)


@depth_models
def test_salf_layers_have_binomially_many_contributors(name: str) -> None:
    _, q = DEPTH_MODELS[name]
    n = by_layer(salf_run(name), "n_contributors")
    assert (np.diff(n, axis=1) >= 0).all()  # suffixes: whoever has a layer has all those after it
    for layer in range(L):
        if q[layer] == 1.0:
            assert (n[:, layer] == U).all()
            continue
        assert_mean(n[:, layer], U * q[layer], U * q[layer] * (1 - q[layer]))
        p = (1 - q[layer]) ** U
        n_empty = int((n[:, layer] == 0).sum())
        # Exact: the number of empty rounds is Bin(rounds, p); 3e-5 a side is what 4 standard errors leave.
        assert stats.binom.cdf(n_empty, SALF_ROUNDS, p) > 3e-5
        assert stats.binom.sf(n_empty - 1, SALF_ROUNDS, p) > 3e-5


@depth_models
def test_salf_weights_add_up_to_one_over_the_chance_that_anybody_reaches_the_layer(name: str) -> None:
    """1 / (1 - p_l) in a round with contributors, 0 in one without: so 1 on average."""
    q = DEPTH_MODELS[name][1]
    n, weight_sum = by_layer(salf_run(name), "n_contributors"), by_layer(salf_run(name), "weight_sum")
    p = (1 - q) ** U
    np.testing.assert_allclose(weight_sum, np.where(n > 0, 1 / (1 - p), 0.0), rtol=1e-12)


@depth_models
@pytest.mark.parametrize("rule", ["diluted", "inverse_probability"])
def test_salf_sums_over_all_asked_weigh_q_or_one_on_average(name: str, rule: str) -> None:
    """Diluted: N / U. Inverse probability: N / (U q). Exact in every round, so a hundred are enough."""
    q = DEPTH_MODELS[name][1]
    result = salf_run(name, 100, rule)
    n = by_layer(result, "n_contributors")
    np.testing.assert_allclose(by_layer(result, "weight_sum"), n / U / (1.0 if rule == "diluted" else q), rtol=1e-12)
    np.testing.assert_array_equal(n, by_layer(salf_run(name), "n_contributors")[:100])  # one weather for all rules


def test_unequal_devices_leave_a_layer_empty_with_the_product_of_their_chances() -> None:
    """p_l = prod_u (1 - q_u,l), q_u,l = 1 - exp(-T / (s_u C_l)); sampling 2 of 3 makes it the sampled pair's."""
    factors = np.array([0.5, 2.0, 8.0])
    compute = {"step_s": 1.6, "device_factor": factors.tolist(), "task_factor": {"kind": "exponential"}}
    policy = {"kind": "salf", "deadline_s": T, "n_sampled": 2}
    loaded = scenario(3, compute, policy, 400, 8, model=SALF_MODEL)
    result = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])
    q = -np.expm1(-T / (1.6 * factors[:, None] * C))
    factors_by_pair = [1 / (1 - (1 - q[a]) * (1 - q[b])) for a, b in ((0, 1), (0, 2), (1, 2))]
    weight_sum = by_layer(result, "weight_sum")
    for layer in range(L):
        seen = weight_sum[weight_sum[:, layer] > 0, layer]
        distance = np.abs(seen[:, None] / np.array([pair[layer] for pair in factors_by_pair]) - 1)
        assert distance.min(axis=1).max() < 1e-12
        assert set(distance.argmin(axis=1)) == {0, 1, 2}


def test_a_download_is_taken_off_salfs_deadline_and_on_arrival_each_depths_own_upload_too() -> None:
    """q_d = F((T - down - up_d) / C_d), up_d from the suffix's own bytes."""
    f = [(a + 1) * b for a, b in pairwise(SALF_WIDTHS)]
    suffix_bits = 32.0 * np.cumsum(f[::-1])[::-1]  # from the input: layer 0 needs all
    rate = 8000.0
    links = {
        "uplink": {"rate_bits_per_s": rate, "latency_s": 0.05},
        "downlink": {"rate_bits_per_s": 2 * rate, "latency_s": 0.02},
    }
    down_s = 0.02 + suffix_bits[0] / (2 * rate)
    compute = {"step_s": 1.6, "task_factor": {"kind": "exponential"}}
    cases = ((Asks("compute"), 0.0), (Asks("arrival"), 0.05 + suffix_bits / rate))
    for asks, up_s in cases:
        policy = {"kind": "salf", "deadline_s": T, "deadline_on": asks.deadline_on}
        loaded = scenario(U, compute, policy, 1000, 30, model=SALF_MODEL, links=links)
        q = -np.expm1(-np.maximum(T - down_s - up_s, 0.0) / (1.6 * C))
        np.testing.assert_allclose(reach_probability(loaded, asks), np.tile(q, (U, 1)), rtol=1e-12)
        n = by_layer(simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0]), "n_contributors")
        for layer in range(L):
            assert_mean(n[:, layer], U * q[layer], U * q[layer] * (1 - q[layer]))


# ---- FedPMT ---------------------------------------------------------------------------------------------------------


def _pmt_flops() -> Array:
    """FLOPs of one 16-row step over the last 1 ... L layers."""
    f = [2.0 * BATCH * a * b for a, b in pairwise(SALF_WIDTHS)]
    found: Array = np.array(step_shares(tuple(SALF_WIDTHS))) * (3 * sum(f) - f[0])
    return found


def test_fedpmt_widths_are_what_the_budget_pays_and_the_slowest_ends_the_round() -> None:
    """Speeds at which the budget is exactly the cost of depth 4, 3, 2, 1, one just short of depth 1, and a fast one."""
    cost, budget_s, steps = _pmt_flops(), 2.0, 5
    speeds = [steps * c / budget_s for c in cost[::-1]] + [steps * cost[0] / budget_s * (1 - 1e-6), 1e9]
    compute = {"flops_per_s": speeds}
    policy = {"kind": "fedpmt", "budget_s": budget_s, "local_steps": steps}
    result = run(6, compute, policy, 3, 1, model=SALF_MODEL, record_tasks=True)
    tasks = result.tables["tasks"]
    first = tasks["round"] == 0
    assert dict(zip(tasks["device"][first], tasks["depth"][first], strict=True)) == {0: 4, 1: 3, 2: 2, 3: 1, 5: 4}
    np.testing.assert_allclose(lengths_s(result), budget_s, rtol=1e-12)
    np.testing.assert_allclose(result.tables["rounds"]["used_flops"], steps * (cost.sum() + cost[3]), rtol=1e-12)
    np.testing.assert_array_equal(by_layer(result, "n_contributors"), np.tile([2, 3, 4, 5], (3, 1)))


def test_fedpmt_round_times_under_random_rates_are_the_largest_of_scaled_times() -> None:
    """T_k = g_k (a + Exp(1 / b)): E[max] is the integral of 1 - prod_k (1 - exp(-(t / g_k - a)^+ / b))."""
    speeds, depths, a, b, steps = np.array([1e4, 2e4, 3e4, 5e4]), [4, 2, 3, 1], 0.5, 1.0, 2
    compute = {"flops_per_s": speeds.tolist(), "task_factor": {"kind": "exponential", "mean": a + b, "shift": a}}
    policy = {"kind": "fedpmt", "depths": depths, "local_steps": steps}
    result = run(4, compute, policy, 1200, 3, model=SALF_MODEL)
    g = steps * _pmt_flops()[np.array(depths) - 1] / speeds

    def survival(t: Array) -> Array:
        found: Array = 1 - np.prod(-np.expm1(-np.maximum(t[:, None] / g - a, 0.0) / b), axis=1)
        return found

    mean, variance = moments(survival, until=60 * g.max())
    assert_mean(lengths_s(result), mean, variance)
