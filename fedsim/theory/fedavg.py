"""FedAvg / local SGD: the slowest of those asked ends the round, or the n-th of n + over-selected ones.

Sources of the rules: McMahan et al., AISTATS 2017, arXiv 1602.05629, Algorithm 1; over-selection: Bonawitz et al., MLSys
2019, arXiv 1902.01046, section 2.2. With T_(K:n) the K-th smallest of n times of `local_steps` steps each:
    everybody asked: T_(M:M);   n sampled and m more asked: T_(n:n+m), averaged over who is asked.
Times that are fixed for each device, t_(1) <= ... <= t_(M), a uniform n-subset: P(T = t_(j)) = C(j-1,K-1) C(M-j,n-K) / C(M,n).
That is not the mean of T_(K:n) of i.i.d. times at the same fleet's mean speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from fedsim.protocols import Law
from fedsim.theory import arrivals
from fedsim.theory.fleet import Expectation, Fleet
from fedsim.theory.rounds import Answers, listed
from fedsim.theory.steps import times_of
from fedsim.theory.times import RandomTime


def round_time(
    n_devices: int,
    local_steps: int,
    step_s: Law | float,
    *,
    n_sampled: int | None = None,
    over_selected: int = 0,
    task_factor: Law | None = None,
    device_factor: Sequence[float] | None = None,
    latency_s: float | Sequence[float] = 0.0,
) -> RandomTime:
    """Seconds until n_sampled (all, if None) of the n_sampled + over_selected that were asked have arrived.

    step_s: of a local step, a law drawn anew for each or a number. device_factor: persistent, one per device.
    latency_s: download and upload.
    """
    times = times_of(n_devices, step_s, task_factor, device_factor, latency_s)
    k = n_sampled or n_devices
    if k + over_selected > n_devices:
        raise ValueError(f"{k} + {over_selected} devices are asked but there are {n_devices}; ask at most {n_devices}")
    return arrivals.KthArrival(times, np.zeros(len(times.unit_s)), local_steps, k, k + over_selected).end


def n_to_ask(n_wanted: int, over_selection_share: float) -> int:
    """Devices to ask so that n_wanted may be the first of (1 + share) as many."""
    return int(np.ceil((1.0 + over_selection_share) * n_wanted - 1e-9))


# ---- beside a simulation --------------------------------------------------------------------------------------------


class FedAvgParameters(Protocol):
    """The policy's parameters, as a scenario names them."""

    @property
    def local_steps(self) -> int: ...
    @property
    def n_sampled(self) -> int | None: ...
    @property
    def over_selected(self) -> int: ...


NEEDS_EVEN_STEPS = frozenset({"n_steps"})
"""Quantities that depend on where single steps end, not only on where a fixed number of them does."""


def expected(policy: FedAvgParameters, fleet: Fleet) -> list[Expectation]:
    """What a round should have on average on this fleet, or why there is no closed form."""
    return listed(answers(policy, fleet))


def answers(policy: FedAvgParameters, fleet: Fleet) -> Answers:
    """The same, each quantity when it is asked for."""
    k = policy.n_sampled or fleet.n_devices
    return arrivals.answers_of(fleet, n_steps=policy.local_steps, k=k, n_asked=k + policy.over_selected)
