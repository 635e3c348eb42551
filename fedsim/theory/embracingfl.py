"""EmbracingFL: every device trains the output-most layers that its memory holds; the slowest of those asked ends the round.

Source of the rule: Lee, Zhang, Prakash, Niu, Avestimehr, arXiv 2406.15125, Algorithm 1. With a_l the numbers that layer l
must keep for a batch, p_l its parameters, c_d the share of a full step that training d layers costs, o_l the seconds to
bring layer l into memory, m_l of M devices that train layer l, and n asked in a round:
    memory of d layers = 4 bytes x sum of p_l + a_l over them;   tier d_u = most layers within the device's memory
    local step of device u: (c_{d_u} unit_u + sum of o_l over the layers before the d_u output-most) x random factors
    contributors of layer l: hypergeometric (M, m_l, n), mean n m_l / M;  P(none) = C(M - m_l, n) / C(M, n)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from scipy import stats

from fedsim.facts import Array, IntArray, ModelShape
from fedsim.protocols import Law, NoClosedForm
from fedsim.theory.arrivals import KthArrival
from fedsim.theory.counts import sampled_sum
from fedsim.theory.fleet import Expectation, Fleet, of_time, rows_of
from fedsim.theory.rounds import Answers, events, listed, one, participations, per_device, per_layer
from fedsim.theory.steps import DeviceTimes, StepTimes, task_times
from fedsim.theory.times import RandomTime

_ROUNDING = 1e-9  # relative: a share that is met but for rounding is met
_NUMBER_BYTES = 4


def memory_bytes(shape: ModelShape, batch_size: int) -> Array:
    """Of training the d output-most layers on a batch, `[depth]`."""
    numbers = [
        shape.n_parameters[shape.n_layers - d :].sum()
        + batch_size * shape.n_kept_activations[shape.n_layers - d :].sum()
        for d in range(shape.n_layers + 1)
    ]
    return _NUMBER_BYTES * np.array(numbers, dtype=np.float64)


def tiers_within(shape: ModelShape, batch_size: Sequence[int], affordable_bytes: Sequence[float]) -> IntArray:
    """Output-most layers that each device can train; batch_size, affordable_bytes: one per device."""
    found = [
        int(np.searchsorted(memory_bytes(shape, rows)[1:], own * (1 + _ROUNDING), side="right"))
        for rows, own in zip(batch_size, affordable_bytes, strict=True)
    ]
    return np.array(found, dtype=np.int64)


def round_time(
    work_s: Sequence[float],
    io_s: Sequence[float],
    local_steps: int,
    *,
    n_sampled: int | None = None,
    step_factor: Law | None = None,
    task_factor: Law | None = None,
    latency_s: float | Sequence[float] = 0.0,
) -> RandomTime:
    """Seconds until the slowest of n_sampled (all, if None) is through.

    work_s, io_s: of a step at factor 1, computation and bringing in blocks, one per device.
    """
    step_s = np.asarray(work_s) + np.asarray(io_s)
    times = DeviceTimes.of(StepTimes(task_factor, step_factor), step_s, np.asarray(latency_s, dtype=np.float64))
    n = n_sampled or len(step_s)
    return KthArrival(times, np.zeros(len(times.unit_s)), local_steps, n, n).end


def n_training(tiers: IntArray, n_layers: int) -> IntArray:
    """Devices that train each layer, `[layer]`."""
    return np.array([(tiers >= n_layers - layer).sum() for layer in range(n_layers)], dtype=np.int64)


# ---- beside a simulation --------------------------------------------------------------------------------------------


class EmbracingFLParameters(Protocol):
    """The policy's parameters, as a scenario names them."""

    @property
    def depths(self) -> tuple[int, ...] | None: ...
    @property
    def capacity_shares(self) -> tuple[float, ...] | None: ...
    @property
    def local_steps(self) -> int: ...
    @property
    def n_sampled(self) -> int | None: ...


def tiers(policy: EmbracingFLParameters, fleet: Fleet) -> IntArray:
    """Output-most layers that each device trains, `[device]`."""
    if policy.depths is not None:
        return np.asarray(policy.depths, dtype=np.int64)
    if fleet.batch_size is None:
        raise NoClosedForm("needs the rows of a batch to know what fits into memory")
    rows = np.asarray(fleet.batch_size, dtype=np.int64).tolist()
    if policy.capacity_shares is not None:
        whole = {size: memory_bytes(fleet.shape, size)[-1] for size in set(rows)}
        affordable = [share * whole[size] for share, size in zip(policy.capacity_shares, rows, strict=True)]
        return tiers_within(fleet.shape, rows, affordable)
    if fleet.memory_bytes is None:
        raise NoClosedForm("needs depths, capacity_shares or the fleet's memory_bytes")
    return tiers_within(fleet.shape, rows, fleet.memory_bytes.tolist())


def expected(policy: EmbracingFLParameters, fleet: Fleet) -> list[Expectation]:
    """What a round should have on average on this fleet, or why there is no closed form."""
    return listed(answers(policy, fleet))


def answers(policy: EmbracingFLParameters, fleet: Fleet) -> Answers:
    """The same, each quantity when it is asked for."""
    shape, n_layers, m = fleet.shape, fleet.n_layers, fleet.n_devices
    n = policy.n_sampled or m
    asked = np.full(m, n / m)

    def contributors() -> tuple[Array, Array, Array]:
        """Mean, variance and probability of none, `[layer]`."""
        train = n_training(tiers(policy, fleet), n_layers)
        share = train / m
        variance = n * share * (1.0 - share) * (m - n) / max(m - 1, 1)
        return n * share, variance, np.asarray(stats.hypergeom.pmf(0, m, train, n), dtype=np.float64)

    def round_s() -> list[Expectation]:
        computed, upload_s = task_times(_with_io(fleet, tiers(policy, fleet)), tiers(policy, fleet))
        return [of_time("round_s", KthArrival(computed, upload_s, policy.local_steps, n, n).end)]

    def sums(quantity: str, per_depth: Array, of_device: Array | IntArray | float = 1.0) -> list[Expectation]:
        own = per_depth[tiers(policy, fleet)] * of_device
        return one(quantity, *sampled_sum(own, own**2, n))

    def n_steps() -> list[Expectation]:
        steps = policy.local_steps
        return one("n_steps", steps, 0.0) + per_device("n_steps", steps * asked, steps**2 * asked * (1 - asked))

    def weight_sum() -> list[Expectation]:
        is_empty = contributors()[2]
        return per_layer("weight_sum", 1.0 - is_empty, is_empty * (1.0 - is_empty))

    model_bytes = float(shape.suffix_bytes[-1])
    return {
        "round_s": round_s,
        "n_contributions": lambda: one("n_contributions", n, 0.0),
        "is_empty": lambda: one("is_empty", 0.0, 0.0),
        "inverse_n_contributions": lambda: one("inverse_n_contributions", 1.0 / n, 0.0),
        "n_contributors": lambda: per_layer("n_contributors", *contributors()[:2]),
        "is_layer_empty": lambda: events("is_layer_empty", contributors()[2]),
        "weight_sum": weight_sum,
        "n_steps": n_steps,
        "participation": lambda: participations(asked),
        "used_flops": lambda: sums("used_flops", shape.step_flops, rows_of(fleet, policy.local_steps)),
        "downloaded_bytes": lambda: one("downloaded_bytes", n * model_bytes, 0.0),
        "uploaded_bytes": lambda: sums("uploaded_bytes", shape.suffix_bytes.astype(np.float64)),
    }


def _with_io(fleet: Fleet, depth: IntArray) -> Fleet:
    """With steps longer by what bringing in the other layers takes, so that the depth's share of one comes out right."""
    if fleet.block_io_s is None:
        return fleet
    io_s = fleet.block_io_s[np.arange(fleet.n_devices), depth]
    if fleet.batch_size is not None:  # the clock counts it by rows, like all that a step takes
        io_s = io_s * (fleet.n_rows / fleet.batch_size)
    return replace(fleet, unit_s=fleet.unit_s + io_s / fleet.reach_share[depth])
