"""STSyn: round times, steps and uploads when the server stops everybody at the K-th device's U-th step.

Source of the rule: Zhu, Zhang, Wang, arXiv 2210.03521, Algorithm 1. With S_n the time of a device's first n steps and T
the K-th smallest S_U of M devices:
    P(T > t) = P(fewer than K of M have S_U <= t)
    steps of a device at T: see race.py; with plain exponential steps of mean 1/mu, E[N] = mu E[T] exactly (N(t) - mu t is
        a martingale and T a stopping time). For any other law E[T] / E[X] is wrong: the step under way at T is cut.
    uploaders: those with S_1 <= T
How long uploads take and who computes is not part of the rule: a fleet says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import numpy as np

from fedsim.delays import Exponential
from fedsim.facts import Array
from fedsim.protocols import Law, NoClosedForm
from fedsim.theory.fleet import Expectation, Fleet, of_time
from fedsim.theory.race import Race
from fedsim.theory.rounds import (
    MOST_LISTED,
    UNITS,
    Answers,
    counted,
    inverse_count,
    listed,
    one,
    participations,
    per_device,
    per_layer,
)
from fedsim.theory.steps import DeviceTimes, StepTimes, task_times, times_of
from fedsim.theory.times import RandomTime


@dataclass(frozen=True, eq=False)
class Count:
    """A random number of devices. pmf: P(n), n = 0, 1, ..."""

    pmf: Array

    @property
    def mean(self) -> float:
        return float(np.arange(len(self.pmf)) @ self.pmf)

    @property
    def variance(self) -> float:
        return float((np.arange(len(self.pmf)) - self.mean) ** 2 @ self.pmf)


# ---- on their own ---------------------------------------------------------------------------------------------------


def race(
    n_devices: int,
    k: int,
    local_steps: int,
    step_s: Law | float,
    *,
    task_factor: Law | None = None,
    device_factor: Sequence[float] | None = None,
    most_steps: int | None = None,
) -> Race:
    """One round without transfers.

    step_s: seconds of a local step, a law drawn anew for each. task_factor: drawn once for all steps of a round.
    device_factor: persistent, one per device. most_steps: after which a device stops by itself.
    """
    return Race.of(times_of(n_devices, step_s, task_factor, device_factor), k, local_steps, most_steps)


def round_time(
    n_devices: int,
    k: int,
    local_steps: int,
    step_s: Law | float,
    *,
    task_factor: Law | None = None,
    device_factor: Sequence[float] | None = None,
    latency_s: float = 0.0,
) -> RandomTime:
    """From send to aggregate. latency_s: download and upload together, the same for all devices."""
    args = (n_devices, k, local_steps, step_s)
    return race(*args, task_factor=task_factor, device_factor=device_factor).end.plus(latency_s)


def steps_per_device(
    n_devices: int,
    k: int,
    local_steps: int,
    step_s: Law | float,
    *,
    task_factor: Law | None = None,
    device_factor: Sequence[float] | None = None,
    most_steps: int | None = None,
) -> Array:
    """Mean finished steps of a round, `[device]`, those of devices that do not upload (0) included.

    Not E[T] / E[X], which holds for plain exponential steps only: what is under way at T is lost, and how much of a step
    that is depends on its law. Raises NoClosedForm if infinite.
    """
    args = (n_devices, k, local_steps, step_s)
    this = race(*args, task_factor=task_factor, device_factor=device_factor, most_steps=most_steps)
    return _mean_steps(this)[this.times.group]


def step_counts(
    n_devices: int,
    k: int,
    local_steps: int,
    step_s: Law | float,
    *,
    task_factor: Law | None = None,
    device_factor: Sequence[float] | None = None,
    most_steps: int | None = None,
    device: int = 0,
) -> Array:
    """P(this device finishes n steps in a round), n = 0, 1, ..."""
    args = (n_devices, k, local_steps, step_s)
    this = race(*args, task_factor=task_factor, device_factor=device_factor, most_steps=most_steps)
    return this.step_counts(int(this.times.group[device]))


def uploaders(
    n_devices: int,
    k: int,
    local_steps: int,
    step_s: Law | float,
    *,
    task_factor: Law | None = None,
    device_factor: Sequence[float] | None = None,
) -> Count:
    """Devices with at least one finished step."""
    this = race(n_devices, k, local_steps, step_s, task_factor=task_factor, device_factor=device_factor)
    return _uploads(this)


def n_transfers(
    n_devices: int,
    k: int,
    local_steps: int,
    step_s: Law | float,
    *,
    task_factor: Law | None = None,
    device_factor: Sequence[float] | None = None,
) -> float:
    """Mean model transfers of a round: one to every device, one from each that uploads."""
    this = race(n_devices, k, local_steps, step_s, task_factor=task_factor, device_factor=device_factor)
    return 2.0 * n_devices - this.silent_mean()


def with_uploads_s(
    n_devices: int,
    k: int,
    local_steps: int,
    step_s: Law | float,
    *,
    upload_s: Law,
    task_factor: Law | None = None,
    device_factor: Sequence[float] | None = None,
) -> float:
    """Mean seconds until the last upload is there, uploads beginning together at T, each drawn from `upload_s`.

    Not the K-th smallest of compute + upload (K-sync, which cancels the rest): that is another protocol.
    """
    this = race(n_devices, k, local_steps, step_s, task_factor=task_factor, device_factor=device_factor)
    pmf, law = _uploads(this).pmf, StepTimes(step=upload_s)

    def last(t_s: Array) -> Array:
        with np.errstate(divide="ignore"):
            log_in_time = np.log1p(-law.survival(1, t_s))
        n = np.flatnonzero(pmf)
        return np.asarray(-np.expm1(n * np.where(n > 0, log_in_time[:, None], 0.0)) @ pmf[n])

    return this.end.mean_s + RandomTime(last, law.kinks(1)).mean_s


def in_turn(times: Sequence[RandomTime]) -> tuple[float, float]:
    """Mean [s] and variance [s^2] of independent rounds one after another, as where K is changed between rounds."""
    return sum(t.mean_s for t in times), sum(t.variance_s2 for t in times)


def _uploads(this: Race) -> Count:
    silent = this.silent_pmf
    return Count(np.concatenate([np.zeros(this.k), silent[::-1]]))


def _mean_steps(this: Race) -> Array:
    """`[group]`."""
    steps, times = this.times.steps, this.times
    if steps.task is None and isinstance(steps.step, Exponential) and not steps.step.shift and this.most_steps is None:
        # Optional stopping: mu_m times the mean time that the device computes, for unequal devices too.
        waits_s = np.array([this.end.at_most(s).mean_s if s else 0.0 for s in times.offset_s])
        return np.asarray((this.end.mean_s - waits_s) / (times.unit_s * steps.step.mean))
    return np.array([this.n_steps(g)[0] for g in range(len(times.unit_s))])


# ---- beside a simulation --------------------------------------------------------------------------------------------


class STSynParameters(Protocol):
    """The policy's parameters, as a scenario names them."""

    @property
    def k(self) -> int: ...
    @property
    def local_steps(self) -> int: ...
    @property
    def cap_factor(self) -> float | None: ...
    @property
    def drop_most_updated(self) -> bool: ...


NEEDS_EVEN_STEPS = frozenset(UNITS) - {"round_s"}
"""Quantities that depend on where single steps end, not only on where a fixed number of them does."""


def expected(policy: STSynParameters, fleet: Fleet) -> list[Expectation]:
    """What a round should have on average on this fleet, or why there is no closed form."""
    return listed(answers(policy, fleet))


def answers(policy: STSynParameters, fleet: Fleet) -> Answers:
    """The same, each quantity when it is asked for."""
    drops = policy.drop_most_updated and fleet.n_devices > 1
    nothing, everything = np.zeros(fleet.n_layers), np.ones(fleet.n_layers)

    @cache
    def this() -> _Round:  # asked for by each answer, so that each says why there is none
        return _Round(_race_of(policy, fleet), fleet, drops)

    return {
        "round_s": lambda: _round_s(this()),
        "is_empty": lambda: one("is_empty", 0.0, 0.0),
        "n_contributions": lambda: _n_contributions(this()),
        "inverse_n_contributions": lambda: inverse_count(this().n_contributions_pmf),
        "n_contributors": lambda: _n_contributors(this()),
        "is_layer_empty": lambda: per_layer("is_layer_empty", nothing, nothing),
        "weight_sum": lambda: per_layer("weight_sum", everything, nothing),
        "n_steps": lambda: _n_steps(this()),
        "participation": lambda: _participation(this()),
        "used_flops": lambda: _used_flops(this()),
        "downloaded_bytes": lambda: _downloaded_bytes(this()),
        "uploaded_bytes": lambda: _uploaded_bytes(this()),
    }


def _race_of(policy: STSynParameters, fleet: Fleet) -> Race:
    most_steps = None if policy.cap_factor is None else int(policy.cap_factor * policy.local_steps + 1e-9)
    computed, _ = task_times(fleet)
    times = DeviceTimes.of(computed.steps, computed.unit_s[computed.group], computed.offset_s[computed.group])
    return Race.of(times, policy.k, policy.local_steps, most_steps)


@dataclass(frozen=True, eq=False)
class _Round:
    """drops: whether the upload with the most steps is left out, if there are two or more."""

    race: Race
    fleet: Fleet
    drops: bool

    @property
    def model_bytes(self) -> float:
        return float(self.fleet.shape.suffix_bytes[-1])

    @property
    def n_contributions_pmf(self) -> Array:
        pmf = _uploads(self.race).pmf
        return np.concatenate([[0.0, pmf[1] + pmf[2]], pmf[3:]]) if self.drops else pmf


def _round_s(this: _Round) -> list[Expectation]:
    """The race and the last upload, which is everybody's if all are waited for and none stops by itself before."""
    upload_s = this.fleet.upload_s[:, -1]
    is_known = this.race.k == this.fleet.n_devices and this.race.most_steps is None
    if not is_known and (upload_s != upload_s[0]).any():
        raise NoClosedForm("needs equal upload times, or k = n_devices: who uploads last depends on who has a step")
    return [of_time("round_s", this.race.end.plus(float(upload_s.max())))]


def _n_contributions(this: _Round) -> list[Expectation]:
    if this.race.has_joint_law:
        return counted("n_contributions", this.n_contributions_pmf)
    if this.drops and this.race.k == 1:
        raise NoClosedForm("needs the law of the number of uploads, of which one is left out if there are several")
    return one("n_contributions", this.fleet.n_devices - this.race.silent_mean() - this.drops)


def _n_contributors(this: _Round) -> list[Expectation]:
    """Every contribution holds every layer."""
    found = _n_contributions(this)[0]
    return [replace(found, quantity="n_contributors", layer=layer) for layer in range(this.fleet.n_layers)]


def _n_steps(this: _Round) -> list[Expectation]:
    times = this.race.times
    mean = _mean_steps(this.race)
    found = one("n_steps", float(mean @ times.n_in_group) / times.n_devices)
    if times.n_devices > MOST_LISTED:
        return found
    each = per_device("n_steps", mean[times.group])
    variance = [this.race.n_steps(g)[1] for g in range(len(mean))]
    return found + [replace(e, variance=variance[g]) for e, g in zip(each, times.group, strict=True)]


def _participation(this: _Round) -> list[Expectation]:
    if this.drops:
        raise NoClosedForm("needs drop_most_updated off: of equal step counts it leaves out the lowest device number's")
    if this.fleet.n_devices > MOST_LISTED:
        return []
    times = this.race.times
    return participations(np.array([1.0 - this.race.late_chance(1, g) for g in range(len(times.unit_s))])[times.group])


def _used_flops(this: _Round) -> list[Expectation]:
    """Every finished step belongs to an upload; only those of the one left out are lost."""
    step_flops = this.fleet.n_rows * float(this.fleet.shape.step_flops[-1])
    used = float(_mean_steps(this.race)[this.race.times.group] @ step_flops)
    if this.drops:
        if (step_flops != step_flops[0]).any():
            raise NoClosedForm("needs equal batches, since one of several uploads is left out")
        # A single upload is kept; the device that alone has a step is the one waited for, with just U of them.
        kept = _uploads(this.race).pmf[1] * this.race.local_steps
        used -= float(step_flops[0]) * (this.race.most_finished() - kept)
    return one("used_flops", used)


def _downloaded_bytes(this: _Round) -> list[Expectation]:
    """The whole model to each; of what is under way to those that are stopped, the share that has passed."""
    slow_s = [s for s in this.fleet.download_s if s > this.fleet.download_s.min()]
    share = sum(this.race.end.at_most(float(s)).mean_s / s for s in slow_s) + this.fleet.n_devices - len(slow_s)
    return one("downloaded_bytes", share * this.model_bytes, None if slow_s else 0.0)


def _uploaded_bytes(this: _Round) -> list[Expectation]:
    """The whole model from each that has a step, the one that is left out included."""
    n = this.fleet.n_devices - this.race.silent_mean()
    variance = _uploads(this.race).variance * this.model_bytes**2 if this.race.has_joint_law else None
    return one("uploaded_bytes", n * this.model_bytes, variance)
