"""FLANP: a stage asks the n fastest devices, and the slowest of these ends its rounds.

Source of the rule: Reisizadeh, Tziotis, Hassani, Mokhtari, Pedarsani, arXiv 2012.14453, Algorithm 1 (recalled). Devices are
ordered by their mean time for a task (download, steps, upload), equal ones by number. A stage of n devices:
    E[T_n] = integral over t > 0 of (1 - prod over the n fastest of P(A_u <= t)),   not the n-th order statistic of all:
whoever is asked is fixed, and a stall of a fast device is waited for. Rounds are alike within a stage only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from fedsim.facts import BoolArray, IntArray
from fedsim.protocols import Law, NoClosedForm
from fedsim.theory.fleet import Expectation, Fleet
from fedsim.theory.rounds import Answers, listed
from fedsim.theory.slowest import answers_of, of_fleet, slowest
from fedsim.theory.steps import times_of
from fedsim.theory.times import RandomTime


def fastest(mean_s: Sequence[float], n: int) -> BoolArray:
    """Whether each device is one of the n with the least mean time, `[device]`; of equal ones the first."""
    rank = np.empty(len(mean_s), dtype=np.int64)
    rank[np.lexsort((np.arange(len(mean_s)), np.asarray(mean_s)))] = np.arange(len(mean_s))
    return np.asarray(rank < n)


def round_time(
    n_asked: int,
    local_steps: int,
    step_s: Law | float,
    *,
    device_factor: Sequence[float],
    task_factor: Law | None = None,
) -> RandomTime:
    """Seconds of a round of the stage that asks the n_asked fastest, without transfers.

    step_s: of a local step, a law drawn anew for each or a number. device_factor: persistent, one per device.
    """
    mine = fastest(device_factor, n_asked)
    own = np.asarray(device_factor)[mine].tolist()
    return slowest([(local_steps, times_of(n_asked, step_s, task_factor, own))])


def sizes(n_first: int, n_devices: int, growth_factor: float = 2.0) -> list[int]:
    """Devices of each stage, until all are asked."""
    found = [n_first]
    while found[-1] < n_devices:
        found.append(min(int(np.ceil(found[-1] * growth_factor)), n_devices))
    return found


def schedule_s(stages: Sequence[int], means_s: Sequence[float]) -> float:
    """Mean seconds of a schedule: so many rounds of each stage, one after another; means_s: of a round, one per stage."""
    return float(np.dot(stages, means_s))


# ---- beside a simulation --------------------------------------------------------------------------------------------


class FlanpParameters(Protocol):
    """The policy's parameters, as a scenario names them."""

    @property
    def n_first(self) -> int: ...
    @property
    def local_steps(self) -> int: ...
    @property
    def stages(self) -> tuple[int, ...] | None: ...


def stage_round(policy: FlanpParameters, fleet: Fleet, n_asked: int) -> RandomTime:
    """Seconds of a round of the stage that asks the n_asked fastest of this fleet."""
    return of_fleet(fleet, _n_steps(policy, fleet, n_asked))


def _n_steps(policy: FlanpParameters, fleet: Fleet, n_asked: int) -> IntArray:
    if not fleet.has_fixed_links:
        raise NoClosedForm("needs transfer times that are fixed for each device, to know which are the fastest")
    if not fleet.has_even_steps:
        raise NoClosedForm("needs local steps of equal numbers of rows, to know which devices are the fastest")
    laws = (fleet.task_factor, fleet.step_factor)
    mean = policy.local_steps * float(np.prod([law.mean for law in laws if law is not None]))
    if fleet.layer_factor is not None:  # of the backward pass
        forward = fleet.reach_share[0]
        mean *= forward + (1.0 - forward) * fleet.layer_factor.mean
    mean_s = fleet.download_s + fleet.unit_s * mean + fleet.upload_s[:, -1]
    return np.where(fastest(mean_s.tolist(), n_asked), policy.local_steps, 0)


def n_steps(policy: FlanpParameters, fleet: Fleet) -> IntArray:
    """Local steps of each device in every round, 0 if it is never asked, `[device]`.

    Raises NoClosedForm for more than one stage.
    """
    if not has_one_stage(policy, fleet):
        how = "which stage it is depends on training" if policy.stages is None else "its stages differ"
        raise NoClosedForm(f"needs rounds that are alike, but {how}; a single stage has them (stages: [])")
    return _n_steps(policy, fleet, policy.n_first)


def has_one_stage(policy: FlanpParameters, fleet: Fleet) -> bool:
    """Whether the number of devices never grows."""
    return policy.n_first == fleet.n_devices or policy.stages == ()


def expected(policy: FlanpParameters, fleet: Fleet) -> list[Expectation]:
    """What a round should have on average on this fleet, or why there is no closed form."""
    return listed(answers(policy, fleet))


def answers(policy: FlanpParameters, fleet: Fleet) -> Answers:
    """The same, each quantity when it is asked for."""

    def unknown() -> list[Expectation]:
        n_steps(policy, fleet)
        return []

    found = answers_of(fleet, lambda: n_steps(policy, fleet), lambda: 1.0)
    # A course that training decides cannot be told by a clock that runs without it: not even what always holds.
    is_told = policy.stages is not None or has_one_stage(policy, fleet)
    return found if is_told else dict.fromkeys(found, unknown)
