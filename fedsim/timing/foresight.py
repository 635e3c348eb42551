"""What can be known of the weather before a task is sent: means and reach probabilities. Nothing here is drawn.

Persistent device factors are known, a task's own luck is not. Reach probabilities come from the laws' own cdfs, so that
they and the clock's realised depths cannot disagree.
Source of the layer-wise case: sums of equal exponentials are Erlang (Johnson, Kotz, Balakrishnan, 1994, ch. 17).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy import special

from fedsim.delays import Classes, Constant, Empirical, Exponential
from fedsim.facts import Array, IntArray, ModelShape, Task
from fedsim.protocols import Law, NoClosedForm
from fedsim.timing.demand import Demand
from fedsim.timing.fleet import Link
from fedsim.timing.weather import Weather

DeadlineOn = Literal["compute", "arrival"]


@dataclass(frozen=True)
class Foresight:
    """Implements `fedsim.protocols.Setting`."""

    weather: Weather
    _reach_tables: dict[tuple[float, str], Array] = field(default_factory=dict, repr=False, compare=False)

    @property
    def n_devices(self) -> int:
        return self.weather.fleet.n_devices

    @property
    def n_layers(self) -> int:
        return self.weather.shape.n_layers

    @property
    def shape(self) -> ModelShape:
        return self.weather.shape

    @property
    def memory_bytes(self) -> Array | None:
        stated = self.weather.fleet.memory_bytes
        return None if stated is None else self.weather.persistent(stated, "memory_bytes")

    @property
    def batch_size(self) -> IntArray:
        return self.weather.plan.full_rows(np.arange(self.n_devices))

    # ---- means --------------------------------------------------------------------------------------------------

    def expected_compute_s(self, task: Task, devices: IntArray) -> Array:
        """Mean seconds of the task's local steps (one step if it has no cap), `[device]`."""
        compute, plan, demand = self.weather.fleet.compute, self.weather.plan, Demand.of(self.weather, task, devices)
        cap = demand.cap if task.n_steps is not None else np.ones(len(devices), dtype=np.int64)
        n_steps = plan.rows_before(devices, cap) / plan.full_rows(devices)
        mean = float(np.prod([law.mean for law in (compute.task_factor, compute.step_factor) if law is not None]))
        cost = demand.cost
        if compute.layer_factor is not None:
            cost = demand.reach[:, 0] + (cost - demand.reach[:, 0]) * compute.layer_factor.mean
        return np.asarray(self.weather.unit_s[devices] * cost * n_steps * mean)

    def expected_s(self, task: Task, devices: IntArray) -> Array:
        """Mean seconds of download, compute and upload, `[device]`.

        Raises NoClosedForm where a rate is redrawn for each task and the mean of 1 / rate is infinite.
        """
        fleet, demand = self.weather.fleet, Demand.of(self.weather, task, devices)
        up_bytes = demand.up_bytes_at(slice(None), demand.depth)
        down_s = self._expected_link_s(fleet.downlink, "downlink", demand.down_bytes, devices)
        up_s = self._expected_link_s(fleet.uplink, "uplink", up_bytes, devices)
        return down_s + self.expected_compute_s(task, devices) + np.where(demand.depth > 0, up_s, 0.0)

    def _expected_link_s(self, link: Link | None, name: str, n_bytes: IntArray, devices: IntArray) -> Array:
        if link is None or not _is_redrawn(link):
            return self.weather.link_s(link, name, n_bytes, devices, np.zeros_like(devices))
        latency_s = link.latency_s.mean if isinstance(link.latency_s, Law) else np.asarray(link.latency_s)
        rate = link.rate_bits_per_s
        s_per_bit = _mean_of_inverse(rate) if isinstance(rate, Law) else 1.0 / np.asarray(rate)
        per_device = np.zeros(self.n_devices)  # a list beside a law has one number per device
        return (per_device + latency_s)[devices] + 8.0 * n_bytes * (per_device + s_per_bit)[devices]

    # ---- reach --------------------------------------------------------------------------------------------------

    def reach_probability(self, devices: IntArray, within_s: float, *, deadline_on: DeadlineOn = "compute") -> Array:
        """P(a one-step task has finished layer l `within_s` after it was sent), `[device, layer]`.

        Raises NoClosedForm where the laws leave no quadrature: transfers drawn anew for each task, or random layer
        factors other than equal memoryless layers.
        """
        # For the whole fleet at once: a policy asks again each round, with another sample and the same deadline.
        address = (within_s, deadline_on)
        if address not in self._reach_tables:
            by_depth = self._reach_by_depth(within_s, deadline_on)
            self._reach_tables[address] = by_depth[:, ::-1]  # depth 1 is the output layer
        table = self._reach_tables[address]
        is_fleet = len(devices) == len(table) and bool((devices[1:] > devices[:-1]).all())
        return table if is_fleet else table[devices]

    def _reach_by_depth(self, within_s: float, deadline_on: DeadlineOn) -> Array:
        """`[device, depth 1...]`."""
        weather, compute, plan = self.weather, self.weather.fleet.compute, self.weather.plan
        everyone, depths = np.arange(self.n_devices), np.arange(1, self.n_layers + 1)
        for link in (weather.fleet.downlink, weather.fleet.uplink if deadline_on == "arrival" else None):
            is_needed = deadline_on == "arrival" or compute.depth_law is None
            if link is not None and _is_redrawn(link) and is_needed:
                raise NoClosedForm(
                    "needs transfer times that are fixed for each device; got a link redrawn for each task"
                )
        no_task = np.zeros_like(everyone)
        n_bytes = self.shape.suffix_bytes
        ready_s = weather.download_s(everyone, no_task, n_bytes[-1])[:, None]
        if deadline_on == "arrival":
            depth_of_all = [np.full(self.n_devices, d) for d in depths]
            uploads_s = [weather.upload_s(everyone, no_task, d, n_bytes[d]) for d in depth_of_all]
            ready_s = ready_s + np.stack(uploads_s, axis=1)
        if compute.depth_law is not None:
            n_values = self.n_layers + 1 - compute.depth_law.lowest
            law = np.minimum(1.0, (self.n_layers + 1 - depths) / n_values)
            # The deadline cuts a drawn depth only by what it leaves for transfers, and only if it bounds them.
            fits = ready_s <= within_s if deadline_on == "arrival" else np.ones_like(ready_s, dtype=bool)
            return np.asarray(law * np.broadcast_to(fits, (self.n_devices, self.n_layers)))
        step_s = weather.unit_s[:, None]
        if not plan.is_even:
            step_s = step_s * (plan.rows(everyone, 0, 1) / plan.full_rows(everyone)[:, None])
        return self._reach_by_time(step_s, ready_s, within_s)

    def _reach_by_time(self, step_s: Array, ready_s: Array, within_s: float) -> Array:
        compute, cost = self.weather.fleet.compute, self.weather.reach_cost[None, 1:]
        laws: list[Law] = [law for law in (compute.task_factor, compute.step_factor) if law is not None]
        if compute.layer_factor is not None:
            return self._reach_by_layers(laws, step_s, within_s - ready_s)
        if not laws:
            return (ready_s + step_s * cost <= within_s).astype(np.float64)  # the clock's own comparison, ties included
        x = np.maximum(within_s - ready_s, 0.0) / (step_s * cost)
        if len(laws) == 1:
            return np.where(within_s > ready_s, laws[0].cdf(x), 0.0)
        first, second = sorted(laws, key=lambda law: not isinstance(law, Constant | Classes | Empirical))
        mixed = sum(w * second.cdf(x / f) for f, w in zip(*_values(first), strict=True))
        return np.where(within_s > ready_s, mixed, 0.0)

    def _reach_by_layers(self, laws: Sequence[Law], step_s: Array, left_s: Array) -> Array:
        compute, cost = self.weather.fleet.compute, self.weather.reach_cost
        law = compute.layer_factor
        is_equal = compute.layer_s is not None and len(np.unique(compute.layer_s)) == 1
        if laws or not is_equal or not isinstance(law, Exponential) or law.shift:
            raise NoClosedForm(
                "needs equal layer_s with a plain exponential layer_factor and no other random factor, once layers are random"
            )
        layer_s = (cost[1] - cost[0]) * step_s * law.mean
        passed_s = np.maximum(left_s - cost[0] * step_s, 0.0)
        return np.asarray(special.gammainc(np.arange(1, self.n_layers + 1)[None, :], passed_s / layer_s))


def _is_redrawn(link: Link) -> bool:
    """Whether anything about the link is drawn anew for each task."""
    return link.redrawn == "task" and (isinstance(link.rate_bits_per_s, Law) or isinstance(link.latency_s, Law))


def _mean_of_inverse(law: Law) -> float:
    """E[1 / X], which is not 1 / E[X]. Raises NoClosedForm where it is infinite."""
    # u / X(u) must vanish as u does, or 1 / X is not integrable there; for an exponential it stays at 1 / mean.
    with np.errstate(divide="ignore"):
        near, nearer = (float(u / law.draw(np.array([u]))[0]) for u in (1e-10, 1e-100))
    if not nearer < 0.5 * near:
        raise NoClosedForm(f"infinite mean: rates of law {type(law).__name__} come too close to 0 bit/s")
    nodes, weights = _unit_nodes()
    return float(weights @ (1.0 / law.draw(nodes)))


def _values(law: Law) -> tuple[Array, Array]:
    """Values and weights over which a mean over the law is a sum: its own if it is discrete, else quadrature nodes."""
    if isinstance(law, Constant):
        return np.array([law.value]), np.ones(1)
    if isinstance(law, Classes):
        return np.asarray(law.values), np.asarray(law.shares)
    if isinstance(law, Empirical):
        return np.asarray(law.values), np.full(len(law.values), 1 / len(law.values))
    nodes, weights = _unit_nodes()
    return law.draw(nodes), weights


def _unit_nodes(n: int = 400) -> tuple[Array, Array]:
    """Nodes and weights on (0, 1): a mean over a law is a mean over its draws at these.

    Crowded towards both ends, where a draw may grow without bound (tanh-sinh rule of Takahasi and Mori, 1974).
    """
    t, step = np.linspace(-3.0, 3.0, n, retstep=True)
    inner = np.pi / 2 * np.sinh(t)
    weights = step * np.pi / 4 * np.cosh(t) / np.cosh(inner) ** 2
    return 1.0 / (1.0 + np.exp(-2.0 * inner)), weights / weights.sum()
