"""SALF: which layers are reached by a deadline, and what an average over those who reached a layer is worth.

Source of the rule: Lang, Cohen, Shlezinger, arXiv 2403.18375, Algorithm 1. Depth 1 is the output layer. For U devices,
q = P(a device reaches the layer), N ~ Bin(U, q) contributors, p = (1-q)^U = P(none), g_u their updates, g their mean:
    mean of the contributors, the old layer if there are none:  (1-p) g
    the same divided by 1-p:                                    g, variance  |g|^2 p/(1-p)
                                                    + s^2 [U E(1/N; N>=1) - (1-p)] / ((U-1) (1-p)^2),  s^2 = mean |g_u - g|^2
    sum over contributors / U:  q g           sum of g_u / (U q_u) over contributors:  g
All but the last need exchangeable devices. Unequal ones enter the second with weights a_u / (1-p), not 1/U:
    a_u = q_u integral_0^1 prod_{v != u} (1 - q_v + q_v s) ds,   sum a_u = 1-p
When a round ends is in `deadline.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from scipy import special

from fedsim.facts import Array, IntArray
from fedsim.protocols import Law, NoClosedForm
from fedsim.theory.arrivals import nth_finisher
from fedsim.theory.counts import (
    inverse_moment,
    none_of,
    poisson_binomial_pmf,
    sampled_pmf,
    sampled_sum,
)
from fedsim.theory.deadline import LayersInTime
from fedsim.theory.drop_stragglers import downloads
from fedsim.theory.fleet import Expectation, Fleet, of_time
from fedsim.theory.rounds import Answers, events, inverse_count, listed, one, participations, per_device, per_layer
from fedsim.theory.steps import times_of
from fedsim.theory.times import RandomTime

# ---- reach, `[depth 1 ... n_layers]` --------------------------------------------------------------------------------


def uniform_reach(n_layers: int, lowest: Literal[0, 1] = 0) -> Array:
    """P(depth >= b) of a depth drawn uniformly from lowest ... n_layers.

    The two conventions differ most at the input layer: 1/(n_layers + 1) against 1/n_layers.
    """
    b = np.arange(1, n_layers + 1)
    return (n_layers + 1 - b) / (n_layers + 1 - lowest)


def exponential_reach(
    n_layers: int, *, layer_s: float, deadline_s: float, forward_s: float = 0.0, n_forward_layers: int = 0
) -> Array:
    """Layers with independent exponential times of mean layer_s, after forward_s and n_forward_layers more such layers."""
    b = np.arange(1, n_layers + 1) + n_forward_layers
    return np.asarray(special.gammainc(b, max(deadline_s - forward_s, 0.0) / layer_s))


def published_poisson_reach(n_layers: int, *, layer_s: float, deadline_s: float) -> Array:
    """Depth min(Poisson(deadline / layer_s) + 1, n_layers), as published code has it: the output layer is always there."""
    later = special.gammainc(np.arange(1, n_layers), deadline_s / layer_s)
    return np.concatenate([[1.0], later])


def scaled_reach(cost_s: Array, slowness: Law | float, deadline_s: float) -> Array:
    """Depth b takes cost_s[b] x slowness, a law of the task or a known number; cost_s: `[depth 1...]`."""
    if isinstance(slowness, Law):
        return np.asarray(slowness.cdf(deadline_s / np.asarray(cost_s)))
    return (np.asarray(cost_s) * slowness <= deadline_s).astype(np.float64)


# ---- what follows from reach ----------------------------------------------------------------------------------------


def empty_probability(reach: Array, n_devices: int) -> Array:
    """P(nobody reaches it) = (1 - q)^U; reach: q of equal devices."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(n_devices * np.log1p(-np.asarray(reach))))


def correction_factor(reach: Array, n_devices: int) -> Array:
    """1 / (1 - p), accurate where the layer is hardly ever reached."""
    with np.errstate(divide="ignore"):
        return np.asarray(-1.0 / np.expm1(n_devices * np.log1p(-np.asarray(reach))))


def contributors(reach: Array, n_devices: int) -> tuple[Array, Array]:
    """Mean and variance of the number of contributors."""
    q = np.asarray(reach)
    return n_devices * q, n_devices * q * (1.0 - q)


def touched_share(reach: Array, n_devices: int, n_parameters: Array | None = None) -> float:
    """Mean share of layers (of parameters, if their numbers are given) that anybody reaches in a round."""
    return float(np.average(1.0 - empty_probability(reach, n_devices), weights=n_parameters))


def debiased_variance(reach: float, n_devices: int, *, mean_squared_norm: float, spread: float) -> float:
    """Variance of the contributors' mean over 1 - p about the mean of all, exchangeable devices.

    mean_squared_norm: |g|^2 of the mean update. spread: mean |g_u - g|^2.
    """
    p = float(empty_probability(np.array(reach), n_devices))
    pmf = poisson_binomial_pmf(np.array([reach]), np.array([n_devices]))
    unequal = (n_devices * inverse_moment(pmf) - (1 - p)) / ((n_devices - 1) * (1 - p) ** 2) if n_devices > 1 else 0.0
    return mean_squared_norm * p / (1 - p) + spread * unequal


def debiased_weights(reach: Array) -> Array:
    """Mean weight of each device in the contributors' mean over 1 - p, `[device]`; reach: q of each, `[device]`.

    They add up to 1 but favour those who often reach the layer: (0.2, 0.8) gives (1/7, 6/7). "Unbiased" is a statement
    about equal devices only.
    """
    q = np.asarray(reach, dtype=np.float64)
    nodes, weights = np.polynomial.legendre.leggauss(len(q) // 2 + 1)  # exact: the integrand has degree len(q) - 1
    factors = 1.0 - q + q * ((nodes + 1) / 2)[:, None]
    before = np.cumprod(np.concatenate([np.ones((len(nodes), 1)), factors[:, :-1]], axis=1), axis=1)
    after = np.cumprod(np.concatenate([np.ones((len(nodes), 1)), factors[:, :0:-1]], axis=1), axis=1)[:, ::-1]
    own = q * ((weights / 2) @ (before * after))
    return np.asarray(own / own.sum())


def round_time(n_devices: int, step_s: Law | float, *, deadline_s: float, task_factor: Law | None = None) -> RandomTime:
    """Seconds until the deadline or until every device is through its whole step; transfers take no time."""
    return nth_finisher(times_of(n_devices, step_s, task_factor), n_devices, 1).at_most(deadline_s)


# ---- beside a simulation --------------------------------------------------------------------------------------------


class SalfParameters(Protocol):
    """The policy's parameters, as a scenario names them."""

    @property
    def deadline_s(self) -> float: ...
    @property
    def deadline_on(self) -> Literal["compute", "arrival"]: ...
    @property
    def rule(self) -> Literal["contributors", "diluted", "inverse_probability"]: ...
    @property
    def p_l(self) -> Literal["oracle", "estimated", "none"]: ...
    @property
    def n_sampled(self) -> int | None: ...
    @property
    def wait_out(self) -> bool: ...


def fleet_reach(policy: SalfParameters, fleet: Fleet) -> Array:
    """P(a device that is asked contributes to the layer), `[device, layer]`."""
    this = _in_time(policy, fleet)
    return this.reach[this.group][:, ::-1]


def _in_time(policy: SalfParameters, fleet: Fleet) -> LayersInTime:
    return LayersInTime(fleet, policy.deadline_s, policy.deadline_on == "arrival", policy.wait_out)


def expected(policy: SalfParameters, fleet: Fleet) -> list[Expectation]:
    """What a round should have on average on this fleet, or why there is no closed form."""
    return listed(answers(policy, fleet))


def answers(policy: SalfParameters, fleet: Fleet) -> Answers:
    """The same, each quantity when it is asked for."""
    this, n_asked = _in_time(policy, fleet), policy.n_sampled or fleet.n_devices

    def layers() -> Array:
        """`[device, layer]`."""
        return this.reach[this.group][:, ::-1]

    def counts(quantity: str, q: Array) -> list[Expectation]:
        return one(quantity, *sampled_sum(q, q, n_asked))

    def n_contributors() -> list[Expectation]:
        return _by_layer("n_contributors", [sampled_sum(q, q, n_asked) for q in layers().T])

    def of_depth(quantity: str, per_depth: Array, of_device: Array | IntArray | float = 1.0) -> list[Expectation]:
        """A sum of what each device's depth amounts to."""
        q = this.reach[this.group]
        means, squares = q @ np.diff(per_depth) * of_device, q @ np.diff(per_depth**2) * np.square(of_device)
        return one(quantity, *sampled_sum(means, squares, n_asked))

    def n_steps() -> list[Expectation]:
        q, share = layers()[:, 0], n_asked / fleet.n_devices
        mean, variance = sampled_sum(q, q, n_asked)
        own = per_device("n_steps", share * q, share * q * (1 - share * q))
        return one("n_steps", mean / n_asked, variance / n_asked**2) + own

    def is_empty() -> float:
        return none_of(layers()[:, -1], n_asked)

    def downloaded_bytes() -> list[Expectation]:
        if this.is_drawn and not this.on_arrival and (fleet.download_s > policy.deadline_s).any():
            raise NoClosedForm("needs downloads within the deadline where depths are drawn")
        return downloads(fleet, policy.deadline_s, n_asked)

    def correction_factors() -> list[Expectation]:
        """What a layer's weights add up to in a round with contributors: the same each time, so exact."""
        if policy.rule != "contributors":
            return []
        if policy.p_l == "estimated":
            raise NoClosedForm("needs p_l: oracle or none; an estimate depends on the rounds before")
        if policy.p_l == "none":
            return per_layer("correction_factor", np.ones(fleet.n_layers), np.zeros(fleet.n_layers))
        q = layers()
        if n_asked < len(q) and (q != q[0]).any():
            raise NoClosedForm("needs equal devices where they are sampled; the factor depends on who is asked")
        p = np.array([none_of(each, n_asked) for each in q.T])
        factors = np.divide(1.0, 1.0 - p, out=np.ones(len(p)), where=p < 1)
        return per_layer("correction_factor", factors, np.zeros(len(p)))

    return {
        "round_s": lambda: [of_time("round_s", this.end(n_asked))],
        "n_contributions": lambda: counts("n_contributions", layers()[:, -1]),
        "is_empty": lambda: one("is_empty", p := is_empty(), p * (1 - p)),
        "inverse_n_contributions": lambda: inverse_count(sampled_pmf(layers()[:, -1], n_asked)),
        "n_contributors": n_contributors,
        "is_layer_empty": lambda: events("is_layer_empty", np.array([none_of(q, n_asked) for q in layers().T])),
        "weight_sum": lambda: _by_layer("weight_sum", [_weight_sum(policy, q, n_asked) for q in layers().T]),
        "correction_factor": correction_factors,
        "n_steps": n_steps,
        "participation": lambda: participations(layers()[:, -1] * (n_asked / fleet.n_devices)),
        "used_flops": lambda: of_depth("used_flops", fleet.shape.step_flops, fleet.n_rows),
        "downloaded_bytes": downloaded_bytes,
        "uploaded_bytes": lambda: of_depth("uploaded_bytes", fleet.shape.suffix_bytes.astype(np.float64)),
    }


def _by_layer(quantity: str, moments: Sequence[tuple[float, float | None]]) -> list[Expectation]:
    means, variances = zip(*moments, strict=True)
    return per_layer(quantity, means, variances)


def _weight_sum(policy: SalfParameters, q: Array, n_asked: int) -> tuple[float, float | None]:
    """Mean and variance of a layer's column sum of weights; q: reach of each device of the fleet, `[device]`."""
    if policy.rule == "diluted":
        return sampled_sum(q / n_asked, q / n_asked**2, n_asked)
    if policy.p_l == "estimated":
        raise NoClosedForm("needs p_l: oracle or none; an estimate depends on the rounds before")
    if policy.rule == "inverse_probability":
        is_reached = q > 0
        squares = np.divide(1.0, q, out=np.zeros_like(q), where=is_reached)
        return sampled_sum(is_reached / n_asked, squares / n_asked**2, n_asked)
    p = none_of(q, n_asked)
    if policy.p_l == "none":
        return 1.0 - p, p * (1.0 - p)
    never = float(none_of((q > 0).astype(np.float64), n_asked))  # those asked cannot reach it
    if never == 1.0:
        return 0.0, 0.0
    if n_asked == len(q) or (q == q[0]).all():
        return 1.0, p / (1.0 - p)
    return 1.0 - never, None
