"""Dropping stragglers: how many arrive by a deadline, and what their average is worth.

Source of the rule: Lang, Cohen, Shlezinger, arXiv 2403.18375, section IV. With F_u(D) = P(device u has arrived by D):
    N = number in time is Poisson-binomial, Bin(M, F) for equal devices;   P(nobody) = prod (1 - F_u)
    the average's variance is sigma^2 E[1/N | N >= 1]: the effective cohort is 1 / E[1/N | N >= 1] <= E[N | N >= 1]
    the round lasts min(D, slowest arrival), or D if it is waited out
E[N], a popular measure of a deadline, overstates what the average is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy import special

from fedsim.facts import Array
from fedsim.protocols import Law
from fedsim.theory.arrivals import KthArrival, kth_arrival, nth_finisher, upload_share
from fedsim.theory.counts import inverse_moment, none_of, poisson_binomial_pmf, sampled_pmf, sampled_sum
from fedsim.theory.fleet import Expectation, Fleet, of_time
from fedsim.theory.rounds import Answers, events, inverse_count, listed, one, participations, per_device, per_layer
from fedsim.theory.steps import times_of
from fedsim.theory.times import RandomTime, certain


def round_time(
    n_devices: int,
    local_steps: int,
    step_s: Law | float,
    *,
    deadline_s: float,
    wait_out: bool = False,
    task_factor: Law | None = None,
    device_factor: Sequence[float] | None = None,
    latency_s: float | Sequence[float] = 0.0,
) -> RandomTime:
    """Seconds until the deadline or the last arrival, whichever is first; until the deadline if it is waited out."""
    if wait_out:
        return certain(deadline_s)
    times = times_of(n_devices, step_s, task_factor, device_factor, latency_s)
    return nth_finisher(times, n_devices, local_steps).at_most(deadline_s)


def in_time_share(
    n_devices: int,
    local_steps: int,
    step_s: Law | float,
    *,
    deadline_s: float,
    task_factor: Law | None = None,
    device_factor: Sequence[float] | None = None,
    latency_s: float | Sequence[float] = 0.0,
) -> Array:
    """P(a device has arrived by the deadline), `[device]`."""
    times = times_of(n_devices, step_s, task_factor, device_factor, latency_s)
    return np.asarray(times.cdf(local_steps, np.array([deadline_s]))[0, times.group])


def contributors(in_time: Array) -> Array:
    """P(n devices are in time), n = 0, 1, ...; in_time: of each, `[device]`."""
    return poisson_binomial_pmf(in_time)


def effective_cohort(pmf: Array) -> float:
    """1 / E[1/N | N >= 1]: an average over so many has the same variance. pmf: of N, `[n]`."""
    return float(pmf[1:].sum()) / inverse_moment(pmf)


def effective_samples(weights: Sequence[float]) -> float:
    """(sum w)^2 / sum w^2: equal weights over so many would give the same variance."""
    w = np.asarray(weights, dtype=np.float64)
    return float(w.sum() ** 2 / (w**2).sum())


def quorum_share(n_devices: int, k: int, in_time: float) -> float:
    """P(at least k of n_devices equal ones are in time), each with probability in_time."""
    return float(special.betainc(k, n_devices - k + 1, in_time)) if k else 1.0


def deadline_for(
    participation_share: float, local_steps: int, step_s: Law | float, *, task_factor: Law | None = None
) -> float:
    """The least deadline by which a device is done with this probability, seconds."""
    return nth_finisher(times_of(1, step_s, task_factor), 1, local_steps).quantile_s(participation_share)


# ---- beside a simulation --------------------------------------------------------------------------------------------


class DropStragglersParameters(Protocol):
    """The policy's parameters, as a scenario names them."""

    @property
    def deadline_s(self) -> float: ...
    @property
    def local_steps(self) -> int: ...
    @property
    def n_sampled(self) -> int | None: ...
    @property
    def dilute(self) -> bool: ...
    @property
    def wait_out(self) -> bool: ...


def in_time(policy: DropStragglersParameters, fleet: Fleet) -> Array:
    """P(a device that is asked has arrived by the deadline), `[device]`."""
    return _in_time(_asked(policy, fleet), policy.deadline_s)


NEEDS_EVEN_STEPS = frozenset({"n_steps"})
"""Quantities that depend on where single steps end, not only on where a fixed number of them does."""


def expected(policy: DropStragglersParameters, fleet: Fleet) -> list[Expectation]:
    """What a round should have on average on this fleet, or why there is no closed form."""
    return listed(answers(policy, fleet))


def answers(policy: DropStragglersParameters, fleet: Fleet) -> Answers:
    """The same, each quantity when it is asked for."""
    deadline_s, n_asked, zeros = policy.deadline_s, policy.n_sampled or fleet.n_devices, np.zeros(fleet.n_layers)
    model_bytes = float(fleet.shape.suffix_bytes[-1])

    def round_s() -> list[Expectation]:
        end = certain(deadline_s) if policy.wait_out else _asked(policy, fleet).end.at_most(deadline_s)
        return [of_time("round_s", end)]

    def pmf() -> Array:
        return sampled_pmf(in_time(policy, fleet), n_asked)

    def n_contributors() -> list[Expectation]:
        mean, variance = _of_events(in_time(policy, fleet), 1.0, n_asked)
        return per_layer("n_contributors", zeros + mean, zeros + variance)

    def weight_sum() -> list[Expectation]:
        if policy.dilute:
            mean, variance = _of_events(in_time(policy, fleet), 1.0 / n_asked, n_asked)
        else:
            mean, variance = 1.0 - is_empty(), is_empty() * (1.0 - is_empty())
        return per_layer("weight_sum", zeros + mean, zeros + variance)

    def used_flops() -> list[Expectation]:
        per_task = np.asarray(policy.local_steps * fleet.n_rows * float(fleet.shape.step_flops[-1]), dtype=np.float64)
        return one("used_flops", *_of_events(in_time(policy, fleet), per_task, n_asked))

    def n_contributions() -> list[Expectation]:
        return one("n_contributions", *_of_events(in_time(policy, fleet), 1.0, n_asked))

    def is_empty() -> float:
        return none_of(in_time(policy, fleet), n_asked)

    return {
        "round_s": round_s,
        "n_contributions": n_contributions,
        "is_empty": lambda: one("is_empty", p := is_empty(), p * (1.0 - p)),
        "inverse_n_contributions": lambda: inverse_count(pmf()),
        "n_contributors": n_contributors,
        "is_layer_empty": lambda: events("is_layer_empty", zeros + is_empty()),
        "weight_sum": weight_sum,
        "n_steps": lambda: _n_steps(_asked(policy, fleet), deadline_s),
        "participation": lambda: participations(in_time(policy, fleet) * (n_asked / fleet.n_devices)),
        "used_flops": used_flops,
        "downloaded_bytes": lambda: downloads(fleet, deadline_s, n_asked),
        "uploaded_bytes": lambda: _uploaded_bytes(_asked(policy, fleet), deadline_s, model_bytes),
    }


def downloads(fleet: Fleet, deadline_s: float, n_asked: int) -> list[Expectation]:
    """The whole model to each, or what of it had come by the deadline.

    A round that ends before its deadline has everybody's upload, so everybody has the model.
    """
    if not fleet.has_fixed_links:
        return one("downloaded_bytes", n_asked * float(fleet.shape.suffix_bytes[-1]))
    here = deadline_s / np.maximum(fleet.download_s, deadline_s)  # 1 for a download that takes no time
    share = here * float(fleet.shape.suffix_bytes[-1])
    return one("downloaded_bytes", *sampled_sum(share, share**2, n_asked))


def _asked(policy: DropStragglersParameters, fleet: Fleet) -> KthArrival:
    n_asked = policy.n_sampled or fleet.n_devices
    return kth_arrival(fleet, policy.local_steps, n_asked, n_asked)


def _in_time(asked: KthArrival, deadline_s: float) -> Array:
    return np.asarray(asked.arrived.cdf(asked.n_steps, np.array([deadline_s]))[0, asked.computed.group])


def _of_events(p: Array, amount: Array | float, n_asked: int) -> tuple[float, float]:
    """Mean and variance of the amounts of those who are in time."""
    return sampled_sum(p * amount, p * np.square(amount), n_asked)


def _n_steps(asked: KthArrival, deadline_s: float) -> list[Expectation]:
    """By the deadline: who ends a round before it has finished every step."""
    n = np.arange(1, asked.n_steps + 1)
    done = np.stack([asked.computed.cdf(int(j), np.array([deadline_s]))[0] for j in n])[:, asked.computed.group]
    means, squares = done.sum(axis=0), (2 * n - 1) @ done
    mean, variance = sampled_sum(means, squares, asked.n_asked)
    share = asked.n_asked / asked.n_devices
    own = per_device("n_steps", share * means, share * squares - (share * means) ** 2)
    return one("n_steps", mean / asked.n_asked, variance / asked.n_asked**2) + own


def _uploaded_bytes(asked: KthArrival, deadline_s: float, model_bytes: float) -> list[Expectation]:
    """The whole model from those in time, and what the others had sent by the deadline."""
    if not asked.upload_s.any():
        return one("uploaded_bytes", *_of_events(_in_time(asked, deadline_s), model_bytes, asked.n_asked))
    share = upload_share(asked.computed, asked.upload_s, asked.n_steps, np.array([deadline_s]))[0, asked.computed.group]
    return one("uploaded_bytes", asked.n_asked * model_bytes * float(share.mean()))
