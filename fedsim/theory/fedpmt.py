"""FedPMT: each device trains the output-most layers that its budget pays for; everyone who takes part is waited for.

Source of the rule: Wu, Wang, Narayana, arXiv 2311.10002, Algorithm 1 and eq. (6). With C_b the cost of training the b
output-most layers (all forward passes, b weight gradients, b-1 input gradients) on a device of rate f_k:
    width w_k = largest b with C_b <= f_k x budget (equality counts, up to rounding; 0: takes no part)
    T_k = (C_{w_k} / f_k) S_k,   E[T] = integral of 1 - prod_k F_S(t f_k / C_{w_k}),   for S = a + Exp(1/kappa):
                                 E[T] = integral of 1 - prod_k (1 - exp(-kappa (t / g_k - a)^+)),  g_k = C_{w_k} / f_k
    share of full training's compute that is saved: 1 - sum_k C_{w_k} / (M C_L)
Widths follow from persistent speeds, so that who trains a layer is the same in every round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol

import numpy as np

from fedsim.facts import Array, IntArray
from fedsim.protocols import Law, NoClosedForm
from fedsim.theory.arrivals import KthArrival, nth_finisher
from fedsim.theory.fleet import Expectation, Fleet, of_time, rows_of
from fedsim.theory.rounds import Answers, events, listed, one, participations, per_device, per_layer
from fedsim.theory.steps import DeviceTimes, StepTimes, task_times
from fedsim.theory.times import RandomTime

_ROUNDING = 1e-9  # relative: a budget that is a sum of layers is met


def widths_within(cost_s: Array, budget_s: float) -> IntArray:
    """Output-most layers that each device trains within the budget, `[device]`; cost_s: `[device, depth 1...]`."""
    return np.asarray((np.asarray(cost_s) <= budget_s * (1 + _ROUNDING)).sum(axis=1))


def round_time(
    work_s: Sequence[float],
    local_steps: int = 1,
    *,
    step_factor: Law | None = None,
    task_factor: Law | None = None,
    latency_s: float | Sequence[float] = 0.0,
) -> RandomTime:
    """Seconds until the slowest is through; work_s: of a step of its width at factor 1 (C / f), one per device."""
    times = DeviceTimes.of(StepTimes(task_factor, step_factor), np.asarray(work_s), np.asarray(latency_s))
    return nth_finisher(times, len(work_s), local_steps)


def saved_share(cost: Sequence[float], widths: Sequence[int]) -> float:
    """Share of full training's compute that is saved; cost: of training depth 0, 1, ... L, with cost[0] = 0."""
    own = np.asarray(cost, dtype=np.float64)
    return float(1.0 - own[np.asarray(widths)].mean() / own[-1])


# ---- beside a simulation --------------------------------------------------------------------------------------------


class FedPMTParameters(Protocol):
    """The policy's parameters, as a scenario names them."""

    @property
    def budget_s(self) -> float | None: ...
    @property
    def depths(self) -> tuple[int, ...] | None: ...
    @property
    def local_steps(self) -> int: ...
    @property
    def weighting(self) -> Literal["uniform", "n_samples"]: ...
    @property
    def dilute(self) -> bool: ...


def widths(policy: FedPMTParameters, fleet: Fleet) -> IntArray:
    """Output-most layers that each device trains, `[device]`."""
    if policy.depths is not None or policy.budget_s is None:
        return np.asarray(policy.depths, dtype=np.int64)
    if not fleet.has_even_steps:
        raise NoClosedForm("needs local steps of equal numbers of rows; some device's last batch is smaller")
    laws = (fleet.task_factor, fleet.step_factor)
    mean = policy.local_steps * float(np.prod([law.mean for law in laws if law is not None]))
    share = fleet.reach_share
    if fleet.layer_factor is not None:  # of the backward pass
        share = share[0] + (share - share[0]) * fleet.layer_factor.mean
    return widths_within(fleet.unit_s[:, None] * share[1:] * mean, policy.budget_s)


def expected(policy: FedPMTParameters, fleet: Fleet) -> list[Expectation]:
    """What a round should have on average on this fleet, or why there is no closed form."""
    return listed(answers(policy, fleet))


def answers(policy: FedPMTParameters, fleet: Fleet) -> Answers:
    """The same, each quantity when it is asked for."""
    shape, n_layers = fleet.shape, fleet.n_layers

    def depth() -> IntArray:
        found = widths(policy, fleet)
        if not found.any():
            raise NoClosedForm("needs a budget within which at least one device trains a layer")
        return found

    def holds_layer() -> Array:
        """`[device, layer]`."""
        return (np.arange(n_layers) >= n_layers - depth()[:, None]).astype(np.float64)

    def n_contributors() -> Array:
        return np.asarray(holds_layer().sum(axis=0))

    def takes_part() -> Array:
        return (depth() > 0).astype(np.float64)

    def weight_sum() -> Array:
        if not policy.dilute:
            return (n_contributors() > 0).astype(np.float64)
        weight = takes_part() * (fleet.n_samples if policy.weighting == "n_samples" else 1.0)
        return np.asarray((weight / weight.sum()) @ holds_layer())

    def fixed(quantity: str, values: Array) -> list[Expectation]:
        return per_layer(quantity, values, np.zeros(n_layers))

    def sums(quantity: str, per_depth: Array, of_device: Array | IntArray | float = 1.0) -> list[Expectation]:
        return one(quantity, float((per_depth[depth()] * of_device).sum()), 0.0)

    def n_steps() -> list[Expectation]:
        own = policy.local_steps * takes_part()
        return one("n_steps", policy.local_steps, 0.0) + per_device("n_steps", own, np.zeros(len(own)))

    def round_s() -> list[Expectation]:
        if not fleet.has_fixed_links:
            raise NoClosedForm("needs transfer times that are fixed for each device; got a link redrawn for each task")
        is_in = depth() > 0
        mine = replace(
            fleet, unit_s=fleet.unit_s[is_in], download_s=fleet.download_s[is_in], upload_s=fleet.upload_s[is_in]
        )
        computed, upload_s = task_times(mine, depth()[is_in])
        n = len(mine.unit_s)
        return [of_time("round_s", KthArrival(computed, upload_s, policy.local_steps, n, n).end)]

    bytes_of_all = np.where(np.arange(n_layers + 1) > 0, float(shape.suffix_bytes[-1]), 0.0)
    return {
        "round_s": round_s,
        "n_contributions": lambda: one("n_contributions", takes_part().sum(), 0.0),
        "is_empty": lambda: one("is_empty", 0.0, 0.0),
        "inverse_n_contributions": lambda: one("inverse_n_contributions", 1.0 / takes_part().sum(), 0.0),
        "n_contributors": lambda: fixed("n_contributors", n_contributors()),
        "is_layer_empty": lambda: events("is_layer_empty", (n_contributors() == 0).astype(np.float64)),
        "weight_sum": lambda: fixed("weight_sum", weight_sum()),
        "n_steps": n_steps,
        "participation": lambda: participations(takes_part()),
        "used_flops": lambda: sums("used_flops", shape.step_flops, rows_of(fleet, policy.local_steps)),
        "downloaded_bytes": lambda: sums("downloaded_bytes", bytes_of_all),
        "uploaded_bytes": lambda: sums("uploaded_bytes", shape.suffix_bytes.astype(np.float64)),
    }
