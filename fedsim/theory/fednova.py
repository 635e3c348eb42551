"""FedNova: every device does its own number of steps, the slowest ends the round.

Source of the rule: Wang, Liu, Liang, Joshi, Poor, NeurIPS 2020, arXiv 2007.07481, eq. (10) and section 4. With tau_k steps
on device k, p_k its share of the weights and a_k what its steps add up to, in gradients:
    weights of a layer together: tau_eff sum_k p_k / a_k, at least 1 where tau_eff is the mean of the a_k
    local momentum m: the gradient of step s lives on in steps s, s+1, ...: a_k = sum_{j=1..tau_k} (1 + m + ... + m^(j-1))
    budget: R = budget x rows per second; whole epochs first, then the full batches that the rest pays for
    quadratics: each round is affine (quadratic.py), with (I - rate H_k)^tau_k on device k; its fixed point solves
        sum_k (p_k / a_k) (I - (I - rate H_k)^tau_k) (w - o_k) = 0, which tends to the minimiser of sum_k p_k F_k as
        rate -> 0; without the division by a_k it tends to that of sum_k p_k tau_k F_k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from fedsim.facts import Array, IntArray
from fedsim.protocols import Law
from fedsim.theory.fleet import Expectation, Fleet, evened
from fedsim.theory.rounds import Answers, listed
from fedsim.theory.slowest import answers_of, slowest
from fedsim.theory.steps import times_of
from fedsim.theory.times import RandomTime

_ROUNDING = 1e-9  # relative: a budget that is a sum of steps is met


def round_time(
    local_steps: Sequence[int],
    step_s: Law | float,
    *,
    task_factor: Law | None = None,
    device_factor: Sequence[float] | None = None,
    latency_s: float | Sequence[float] = 0.0,
) -> RandomTime:
    """Seconds until every device has done its own number of steps and arrived; local_steps: one per device.

    step_s: of a local step, a law drawn anew for each or a number. device_factor: persistent, one per device.
    latency_s: download and upload.
    """
    n_steps = np.asarray(local_steps)
    factor = np.ones(len(n_steps)) if device_factor is None else np.asarray(device_factor, dtype=np.float64)
    latency = np.broadcast_to(np.asarray(latency_s, dtype=np.float64), n_steps.shape)
    parts = []
    for n in np.unique(n_steps).tolist():
        mine = n_steps == n
        own = times_of(int(mine.sum()), step_s, task_factor, factor[mine].tolist(), latency[mine].tolist())
        parts.append((n, own))
    return slowest(parts)


def gradients(n_steps: IntArray, momentum: float = 0.0) -> Array:
    """What a device's local steps add up to, in gradients (||a_k||_1), `[device]`."""
    alive = momentum ** np.arange(int(np.max(n_steps)))  # of a gradient, so many steps later
    by_step = np.cumsum(alive)  # all the gradients that the j-th step moves by
    return np.asarray(np.cumsum(by_step)[np.asarray(n_steps) - 1])


def weights(shares: Array, n_steps: IntArray, *, momentum: float = 0.0, effective_steps: float | None = None) -> Array:
    """Of the devices' changes, `[device]`; they sum to 1 only if all devices' steps add up to the same.

    shares: p, summing to 1, `[device]`. effective_steps: tau_eff; the mean of what the devices' steps add up to if None.
    """
    own = gradients(n_steps, momentum)
    return np.asarray((shares @ own if effective_steps is None else effective_steps) * shares / own)


# ---- beside a simulation --------------------------------------------------------------------------------------------


class FedNovaParameters(Protocol):
    """The policy's parameters, as a scenario names them."""

    @property
    def local_steps(self) -> int | tuple[int, ...] | None: ...
    @property
    def budget_s(self) -> float | None: ...
    @property
    def weighting(self) -> Literal["uniform", "n_samples"]: ...
    @property
    def effective_steps(self) -> Literal["mean"] | float: ...
    @property
    def momentum(self) -> float: ...


def n_steps(policy: FedNovaParameters, fleet: Fleet) -> IntArray:
    """Local steps of each device, `[device]`."""
    if policy.budget_s is None:
        return np.broadcast_to(np.asarray(policy.local_steps, dtype=np.int64), (fleet.n_devices,))
    laws = (fleet.task_factor, fleet.step_factor)
    mean = float(np.prod([law.mean for law in laws if law is not None]))
    forward = fleet.reach_share[0]
    layers = 1.0 if fleet.layer_factor is None else fleet.layer_factor.mean  # of the backward pass
    full_s = fleet.unit_s * mean * (forward + (1.0 - forward) * layers)
    n_rows = fleet.n_rows * (policy.budget_s * (1 + _ROUNDING) / full_s)
    if fleet.has_even_steps:
        return np.asarray(np.maximum(1, np.floor(n_rows / fleet.n_rows)), dtype=np.int64)
    epochs, rest = np.divmod(n_rows, fleet.n_samples)  # the rest never pays for an epoch's last batch
    n_steps = epochs * np.ceil(fleet.n_samples / fleet.n_rows) + np.floor(rest / fleet.n_rows)
    return np.asarray(np.maximum(1, n_steps), dtype=np.int64)


def table(policy: FedNovaParameters, fleet: Fleet) -> Array:
    """Weights of the devices' changes, in every layer, `[device]`."""
    relative = fleet.n_samples if policy.weighting == "n_samples" else np.ones(fleet.n_devices)
    effective = None if policy.effective_steps == "mean" else float(policy.effective_steps)
    own = n_steps(policy, fleet)
    return weights(relative / relative.sum(), own, momentum=policy.momentum, effective_steps=effective)


def expected(policy: FedNovaParameters, fleet: Fleet) -> list[Expectation]:
    """What a round should have on average on this fleet, or why there is no closed form."""
    return listed(answers(policy, fleet))


def answers(policy: FedNovaParameters, fleet: Fleet) -> Answers:
    """The same, each quantity when it is asked for."""
    own = n_steps(policy, fleet)
    together = float(table(policy, fleet).sum())
    if not fleet.has_even_steps and (fleet.step_factor is None or (own == 1).all()):
        fleet = evened(fleet, own)
    return answers_of(fleet, lambda: own, lambda: together)
