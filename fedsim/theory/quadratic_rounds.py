"""Expected losses on quadratics where a round's weights are drawn apart from the training: from a cohort or a deadline.

Sources of the rules: McMahan et al., arXiv 1602.05629 (FedAvg); Dutta et al., arXiv 1803.01113 (K-sync); Lang, Cohen,
Shlezinger, arXiv 2403.18375 (SALF and dropping stragglers); Wu, Wang, Narayana, arXiv 2311.10002 (FedPMT); Wang et al., arXiv 2007.07481 (FedNova).
The expectations over contributors are exact for unequal devices too. With N_i the contributors of layer i and independent
devices, 1/N = integral of s^(N-1) over s in [0, 1]; so E[1{k in i} 1{j in l} / (N_i N_l)] is a double integral of a
polynomial, of degree at most M - 1 in each variable, that Gauss-Legendre quadrature with M/2 nodes finds without error.

Needs sets of contributors that are independent from round to round and of the gradients: no delays that last over rounds,
except as known reach probabilities. Arrivals of the K fastest are a uniform K-subset only if the devices' times are
exchangeable.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedsim.facts import Array, IntArray
from fedsim.protocols import NoClosedForm
from fedsim.theory.quadratic import AffineRound, Curve, Quadratic, WeightMoments, local_map

SalfRule = Literal["contributors", "debiased", "diluted", "inverse_probability"]


def fedavg(
    problem: Quadratic,
    n_rounds: int,
    local_steps: int = 1,
    n_sampled: int | None = None,
    weights: Array | None = None,
) -> Curve:
    """Average over all devices with relative `weights` (equal ones if left out), or over a uniform n_sampled-subset."""
    m = problem.n_devices
    _refuse_count(n_sampled, m)
    if n_sampled not in (None, m) and weights is not None:
        raise NoClosedForm("needs equal weights where devices are sampled; got weights together with n_sampled")
    relative = np.ones(n_sampled or m) if weights is None else np.asarray(weights, dtype=np.float64)
    table = np.repeat((relative / relative.sum())[:, None], problem.n_layers, axis=1)
    return _curve(problem, n_rounds, local_steps, sampled(fixed(table), m))


def k_sync(problem: Quadratic, n_rounds: int, k: int) -> Curve:
    """One gradient from each of the k fastest, times exchangeable and without ties: a uniform k-subset, one step."""
    return fedavg(problem, n_rounds, local_steps=1, n_sampled=k)


def drop_stragglers(
    problem: Quadratic,
    n_rounds: int,
    local_steps: int,
    in_time: Array | float,
    *,
    dilute: bool = False,
    n_sampled: int | None = None,
) -> Curve:
    """Average over the devices that are in time, each with its own probability `in_time`, `[device]` or one for all.

    dilute: divide by all who were asked. A round in which nobody is in time keeps the weights.
    """
    asked = _asked(np.asarray(in_time, dtype=np.float64)[..., None], problem, n_sampled)
    moments = diluted(asked) if dilute else contributors_mean(asked)
    return _curve(problem, n_rounds, local_steps, sampled(moments, problem.n_devices))


def salf(
    problem: Quadratic,
    n_rounds: int,
    reach: Array,
    rule: SalfRule = "debiased",
    *,
    n_sampled: int | None = None,
) -> Curve:
    """One step; each layer from the devices whose backward pass reached it.

    reach: P(a device reaches the layer), `[layer]` for exchangeable devices or `[device, layer]`.
    rule: "contributors": their plain mean; "debiased": that over P(there is one); "diluted": their sum over the number
        asked; "inverse_probability": each over the number asked times its own reach.
    """
    asked = _asked(np.asarray(reach, dtype=np.float64), problem, n_sampled)
    if rule == "contributors":
        moments = contributors_mean(asked)
    elif rule == "debiased":
        moments = contributors_mean(asked).scaled(_inverse(1.0 - np.prod(1.0 - asked, axis=0)))
    elif rule == "diluted":
        moments = diluted(asked)
    else:
        moments = diluted(asked).scaled(_inverse(asked))
    return _curve(problem, n_rounds, 1, sampled(moments, problem.n_devices))


def fedpmt(
    problem: Quadratic,
    n_rounds: int,
    depth: IntArray,
    local_steps: int,
    weights: Array | None = None,
    *,
    dilute: bool = False,
) -> Curve:
    """Device k trains its depth[k] output-most layers, always the same; each layer is averaged over who trains it.

    weights: relative, `[device]`; equal if left out. dilute: divide by all who train at least one layer.
    A layer that nobody trains keeps its value.
    """
    held = np.arange(problem.n_layers) >= problem.n_layers - np.asarray(depth)[:, None]
    relative = held * (np.ones(problem.n_devices) if weights is None else np.asarray(weights))[:, None]
    total = np.broadcast_to(relative.max(axis=1).sum() if dilute else relative.sum(axis=0), (problem.n_layers,))
    centred = problem.centred
    local = local_map(centred, local_steps, trained=held[:, problem.layer_of])
    return AffineRound(problem, local, fixed(relative * _inverse(total))).curve(n_rounds)


def fednova(problem: Quadratic, n_rounds: int, local_steps: IntArray, table: Array) -> Curve:
    """Device k does local_steps[k] steps and enters with the weight table[k], `[device]` both, whatever it sums to."""
    by_layer = np.repeat(np.asarray(table)[:, None], problem.n_layers, axis=1)
    return AffineRound(problem, local_map(problem.centred, local_steps), fixed(by_layer)).curve(n_rounds)


def fixed_point(problem: Quadratic, local_steps: int | IntArray, weights: Array | None = None) -> Array:
    """Where mean weights settle, `[parameter]`: sum_k v_k (I - A_k) (w - o_k) = 0, v the relative weights.

    local_steps: of every device (FedAvg), or `[device]`.
    """
    centred = problem.centred
    pull = np.eye(len(problem.start)) - local_map(centred, local_steps).matrix
    relative = np.ones(problem.n_devices) if weights is None else np.asarray(weights)
    towards = np.einsum("k,kij,kj->i", relative, pull, centred.optimum)
    return np.linalg.solve(np.einsum("k,kij->ij", relative, pull), towards) + problem.minimiser


# ---- moments of weight tables ---------------------------------------------------------------------------------------


def fixed(table: Array) -> WeightMoments:
    """Of a table that is the same in every round, `[device, layer]`."""
    return WeightMoments(table, np.einsum("ki,jl->kjil", table, table))


def sampled(moments: WeightMoments, n_devices: int) -> WeightMoments:
    """Of a table that a uniform subset of `n_devices` fills, from its moments for the n asked devices.

    Raises NoClosedForm if these are fewer and not exchangeable.
    """
    n = len(moments.mean)
    if n == n_devices:
        return moments
    own, pair = moments.second[0, 0], moments.second[0, -1] if n > 1 else np.zeros_like(moments.second[0, 0])
    alike = np.where(np.eye(n, dtype=bool)[:, :, None, None], own, pair)
    if not (np.allclose(moments.mean, moments.mean[0]) and np.allclose(moments.second, alike)):
        raise NoClosedForm("needs exchangeable devices where they are sampled; got unequal ones")
    is_own = np.eye(n_devices, dtype=bool)[:, :, None, None]
    second = np.where(is_own, own * n / n_devices, pair * n * (n - 1) / (n_devices * max(n_devices - 1, 1)))
    return WeightMoments(np.repeat(moments.mean[:1] * n / n_devices, n_devices, axis=0), second)


def diluted(reach: Array) -> WeightMoments:
    """Of W_k,i = 1{k reaches i} / (number asked); reach `[device, layer]`."""
    n = len(reach)
    both = np.minimum(reach[:, :, None], reach[:, None, :])  # nested: whoever reaches the deeper layer has the other
    second = np.einsum("ki,jl->kjil", reach, reach)
    second[np.arange(n), np.arange(n)] = both
    return WeightMoments(reach / n, second / n**2)


def contributors_mean(reach: Array) -> WeightMoments:
    """Of W_k,i = 1{k reaches i} / N_i, 0 where N_i = 0; independent devices, reach `[device, layer]`."""
    m, n_layers = reach.shape
    nodes, node_weights = np.polynomial.legendre.leggauss(m // 2 + 1)
    s, area = (nodes + 1) / 2, node_weights / 2
    mean, second = np.empty((m, n_layers)), np.empty((m, m, n_layers, n_layers))
    for i in range(n_layers):
        of_others = _product_of_others(1.0 - reach[:, i, None] * (1.0 - s))
        mean[:, i] = reach[:, i] * (of_others @ area)
        for j in range(i, n_layers):  # i is nearer to the input: who reaches it has reached j
            second[:, :, i, j] = _nested_pair(reach[:, i], reach[:, j], s, area)
            second[:, :, j, i] = second[:, :, i, j].T
    return WeightMoments(mean, second)


def _nested_pair(deep: Array, shallow: Array, s: Array, area: Array) -> Array:
    """E[1{k in deep} 1{j in shallow} / (N_deep N_shallow)], `[k, j]`; s^N_deep t^N_shallow generates the counts."""
    grid_s, grid_t = (axis.ravel() for axis in np.meshgrid(s, s, indexing="ij"))
    only_shallow, with_deep = (shallow - deep)[:, None] * grid_t, deep[:, None] * grid_s * grid_t
    generating = 1.0 - shallow[:, None] + only_shallow + with_deep
    everyone = np.exp(np.log(generating).sum(axis=0)) * np.outer(area, area).ravel() / (grid_s * grid_t)
    in_deep, in_shallow = with_deep / generating, (only_shallow + with_deep) / generating
    found = (in_deep * everyone) @ in_shallow.T
    found[np.diag_indices(len(deep))] = in_deep @ everyone
    return np.asarray(found)


def _product_of_others(factors: Array) -> Array:
    """Product over all rows but the own one, of positive factors, `[device, node]`."""
    logs = np.log(factors)
    return np.asarray(np.exp(logs.sum(axis=0) - logs))


def _inverse(values: Array) -> Array:
    """1 / value, and 1 where nothing can contribute."""
    return 1.0 / np.where(values > 0, values, 1.0)


# ---- what is asked --------------------------------------------------------------------------------------------------


def _curve(problem: Quadratic, n_rounds: int, local_steps: int, weights: WeightMoments) -> Curve:
    return AffineRound(problem, local_map(problem.centred, local_steps), weights).curve(n_rounds)


def _asked(reach: Array, problem: Quadratic, n_sampled: int | None) -> Array:
    """Reach of the devices asked, `[device asked, layer]`, from `[layer]` or `[device, layer]`."""
    m = problem.n_devices
    _refuse_count(n_sampled, m)
    table = np.broadcast_to(reach, (m, problem.n_layers))
    if not ((table >= 0) & (table <= 1)).all() or (np.diff(table, axis=1) < 0).any():
        raise ValueError("a reach is a probability that grows from the input layer to the output layer; got another")
    if n_sampled is not None and n_sampled < m and (table != table[0]).any():
        raise NoClosedForm("needs exchangeable devices where they are sampled; got unequal ones")
    return np.array(table[: n_sampled or m])


def _refuse_count(n_sampled: int | None, n_devices: int) -> None:
    if n_sampled is not None and not 1 <= n_sampled <= n_devices:
        raise ValueError(f"n_sampled is {n_sampled} but there are {n_devices} devices; choose 1..{n_devices}")
