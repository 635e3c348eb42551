"""The fleet's luck: how long each device takes for each piece of work, by address.

Every duration is a function of (device, task ordinal, step), so all policies meet the same weather. Columns are
`[job]` unless an axis is named. Also answers what a policy may know beforehand: means and reach probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from scipy import special

from fedsim.delays import Exponential
from fedsim.facts import Array, BatchPlan, IntArray, ModelShape, Task
from fedsim.protocols import Law, NoClosedForm
from fedsim.randomness import Luck
from fedsim.timing.fleet import Compute, Fleet, Link


def fixed_or_drawn(quantity: object, n_devices: int, luck: Luck) -> Array:
    """One persistent value per device from a number, a list or a law, `[device]`."""
    if isinstance(quantity, int | float):
        return np.full(n_devices, float(quantity))
    if isinstance(quantity, tuple | list):
        return np.asarray(quantity, dtype=np.float64)
    law: Law = quantity  # type: ignore[assignment]  # the scenario admits numbers, lists and laws only
    return law.draw(luck.row(n_devices))


@dataclass(frozen=True)
class Weather:
    """Durations of one fleet under one pair of seeds.

    plan: rows of each step, known once the data are dealt out (World.of plans full steps until then).
    """

    fleet: Fleet
    shape: ModelShape
    plan: BatchPlan
    fleet_seed: int
    clock_seed: int
    _reach_tables: dict[tuple[float, str], Array] = field(default_factory=dict, repr=False, compare=False)

    @property
    def n_devices(self) -> int:
        return self.fleet.n_devices

    @property
    def n_layers(self) -> int:
        return self.shape.n_layers

    # ---- persistent ---------------------------------------------------------------------------------------------

    def _persistent(self, quantity: object, purpose: str) -> Array:
        return fixed_or_drawn(quantity, self.fleet.n_devices, Luck(self.fleet_seed, purpose))

    @cached_property
    def reach_cost(self) -> Array:
        """Seconds until depth d of a step is reached, as a share of a full step, `[depth]`; 1 at n_layers.

        Entry 0 is the forward pass, which comes first.
        """
        compute = self.fleet.compute
        if compute.layer_s is not None:
            layers = np.broadcast_to(np.asarray(compute.layer_s, dtype=np.float64), (self.shape.n_layers,))
            cost = compute.forward_s + np.concatenate([[0.0], np.cumsum(layers[::-1])])
        else:
            forward = self.shape.forward_flops.sum()
            cost = forward + compute.backward_factor * np.maximum(self.shape.step_flops - forward, 0.0)
        return np.asarray(cost / cost[-1])

    @cached_property
    def unit_s(self) -> Array:
        """Seconds of a full step over all layers at factor 1, `[device]`: base x device factor."""
        compute, n = self.fleet.compute, self.fleet.n_devices
        if compute.step_s is not None:
            base = self._persistent(compute.step_s, "step_s")
        elif compute.layer_s is not None:
            layers = np.broadcast_to(np.asarray(compute.layer_s, dtype=np.float64), (self.shape.n_layers,))
            base = np.full(n, compute.forward_s + layers.sum())
        else:
            forward = self.shape.forward_flops.sum()
            flops = forward + compute.backward_factor * (self.shape.step_flops[-1] - forward)
            base = flops * self.plan.full_rows(np.arange(n)) / self._persistent(compute.flops_per_s, "flops_per_s")
        if compute.device_factor is None:
            return base
        return base * self._persistent(compute.device_factor, "device_factor")

    # ---- drawn anew ---------------------------------------------------------------------------------------------

    def _factor(
        self, law: Law, purpose: str, devices: IntArray, ordinals: IntArray, step: int = 0, lane: int = 0
    ) -> Array:
        return law.draw(Luck(self.clock_seed, purpose).at(devices, ordinals, step=step, lane=lane))

    def task_unit_s(self, devices: IntArray, ordinals: IntArray) -> Array:
        """Seconds of a full step of this task: `unit_s` x task factor."""
        law = self.fleet.compute.task_factor
        unit = self.unit_s[devices]
        return unit if law is None else unit * self._factor(law, "task_factor", devices, ordinals)

    def step_factors(self, devices: IntArray, ordinals: IntArray, first: int, n: int) -> Array | None:
        """Step factor x share of rows, `[job, step]`; None if every one is 1."""
        law = self.fleet.compute.step_factor
        factors = None
        if law is not None:
            columns = [self._factor(law, "step_factor", devices, ordinals, step=s) for s in range(first, first + n)]
            factors = np.stack(columns, axis=1)
        if self.plan.is_even:
            return factors
        share = self.plan.rows(devices, first, n) / self.plan.full_rows(devices)[:, None]
        return share if factors is None else factors * share

    def layer_costs(self, devices: IntArray, ordinals: IntArray, step: int) -> Array:
        """Seconds until each depth of this step is reached, in units of the task's full step, `[job, depth 1...]`."""
        law = self.fleet.compute.layer_factor
        if law is None:
            return np.broadcast_to(self.reach_cost[1:], (len(devices), self.shape.n_layers))
        own = np.diff(self.reach_cost)
        draws = [
            self._factor(law, "layer_factor", devices, ordinals, step, lane) for lane in range(self.shape.n_layers)
        ]
        return np.asarray(self.reach_cost[0] + np.cumsum(own * np.stack(draws, axis=1), axis=1))

    def drawn_depth(self, devices: IntArray, ordinals: IntArray) -> IntArray:
        """Layers finished when stopped, under the fleet's depth law."""
        law = self.fleet.compute.depth_law
        assert law is not None
        u = Luck(self.clock_seed, "depth").at(devices, ordinals)
        return law.lowest + np.floor(u * (self.shape.n_layers + 1 - law.lowest)).astype(np.int64)

    def _link_s(
        self, link: Link | None, name: str, n_bytes: IntArray | int, devices: IntArray, ordinals: IntArray
    ) -> Array:
        if link is None:
            return np.zeros(len(devices))

        def value(quantity: object, what: str) -> Array:
            if isinstance(quantity, int | float):
                return np.full(len(devices), float(quantity))
            if link.redrawn == "task" and not isinstance(quantity, tuple):
                return self._factor(quantity, f"{name}.{what}", devices, ordinals)  # type: ignore[arg-type]
            return self._persistent(quantity, f"{name}.{what}")[devices]

        return value(link.latency_s, "latency_s") + 8.0 * np.asarray(n_bytes) / value(link.rate_bits_per_s, "rate")

    def download_s(self, devices: IntArray, ordinals: IntArray) -> Array:
        """Seconds to pull the whole model (a full forward pass needs every layer)."""
        return self._link_s(self.fleet.downlink, "downlink", int(self.shape.suffix_bytes[-1]), devices, ordinals)

    def upload_s(self, devices: IntArray, ordinals: IntArray, depth: IntArray) -> Array:
        """Seconds to send the `depth` output-most layers; nothing to send takes no time."""
        sent = self._link_s(self.fleet.uplink, "uplink", self.shape.suffix_bytes[depth], devices, ordinals)
        return np.where(depth > 0, sent, 0.0)

    # ---- known beforehand ---------------------------------------------------------------------------------------

    def expected_compute_s(self, task: Task, devices: IntArray) -> Array:
        """Mean seconds of the task's local steps (one step if it has no cap)."""
        compute = self.fleet.compute
        n_steps = np.full(len(devices), task.n_steps or 1)
        steps = self.plan.rows_before(devices, n_steps) / self.plan.full_rows(devices)
        mean = float(np.prod([law.mean for law in (compute.task_factor, compute.step_factor) if law is not None]))
        depth = self.shape.n_layers if task.depth is None else task.depth
        cost = self.reach_cost[depth]
        if compute.layer_factor is not None:
            cost = self.reach_cost[0] + (cost - self.reach_cost[0]) * compute.layer_factor.mean
        return self.unit_s[devices] * cost * steps * mean

    def expected_s(self, task: Task, devices: IntArray) -> Array:
        """Mean seconds of download, compute and upload."""
        depth = np.broadcast_to(np.asarray(self.shape.n_layers if task.depth is None else task.depth), (len(devices),))
        down = self._expected_link_s(self.fleet.downlink, "downlink", self.shape.suffix_bytes[-1:], devices)
        up = self._expected_link_s(self.fleet.uplink, "uplink", self.shape.suffix_bytes[depth], devices)
        return down + self.expected_compute_s(task, devices) + np.where(depth > 0, up, 0.0)

    def _expected_link_s(self, link: Link | None, name: str, n_bytes: IntArray, devices: IntArray) -> Array:
        if link is None or link.redrawn == "device" or _is_fixed(link):
            return self._link_s(link, name, n_bytes, devices, np.zeros_like(devices))
        latency = link.latency_s if isinstance(link.latency_s, int | float) else link.latency_s.mean  # type: ignore[union-attr]
        nodes, weights = _unit_nodes()
        rate: Law = link.rate_bits_per_s  # type: ignore[assignment]
        seconds_per_bit = (
            1.0 / float(link.rate_bits_per_s)
            if isinstance(link.rate_bits_per_s, int | float)
            else float(weights @ (1.0 / rate.draw(nodes)))  # E[1/rate], not 1/E[rate]
        )
        return np.broadcast_to(latency + 8.0 * n_bytes * seconds_per_bit, (len(devices),))

    def reach_probability(
        self, devices: IntArray, within_s: float, *, deadline_on: Literal["compute", "arrival"] = "compute"
    ) -> Array:
        """P(a one-step task has finished layer l `within_s` after it was sent), `[device, layer]`.

        Raises NoClosedForm where the laws leave no quadrature: transfers drawn anew for each task, or random layer
        factors other than equal memoryless layers.
        """
        table = self._fleet_reach(within_s, deadline_on)
        return table if len(devices) == len(table) else table[devices]

    def _fleet_reach(self, within_s: float, deadline_on: Literal["compute", "arrival"]) -> Array:
        """For every device; a policy asks again each round, with another sample and the same deadline."""
        address = (within_s, deadline_on)
        if address not in self._reach_tables:
            self._reach_tables[address] = self._reach_probability(np.arange(self.n_devices), within_s, deadline_on)
        return self._reach_tables[address]

    def _reach_probability(
        self, devices: IntArray, within_s: float, deadline_on: Literal["compute", "arrival"]
    ) -> Array:
        compute, n_layers = self.fleet.compute, self.shape.n_layers
        if compute.depth_law is not None:
            n_values = n_layers + 1 - compute.depth_law.lowest
            by_depth = np.minimum(1.0, (n_layers + 1 - np.arange(1, n_layers + 1)) / n_values)
            return np.broadcast_to(by_depth[::-1], (len(devices), n_layers))
        for link in (self.fleet.downlink, self.fleet.uplink if deadline_on == "arrival" else None):
            if link is not None and link.redrawn == "task" and not _is_fixed(link):
                raise NoClosedForm(
                    "needs transfer times that are fixed for each device; got a link redrawn for each task"
                )
        ready = self.download_s(devices, np.zeros_like(devices))[:, None]
        depths = np.arange(1, n_layers + 1)
        if deadline_on == "arrival":
            ordinals = np.zeros_like(devices)
            uploads = [self.upload_s(devices, ordinals, np.full(len(devices), d)) for d in depths]
            ready = ready + np.stack(uploads, axis=1)
        unit = self.unit_s[devices][:, None]
        if not self.plan.is_even:
            unit = unit * (self.plan.rows(devices, 0, 1) / self.plan.full_rows(devices)[:, None])
        return self._reach(compute, unit, within_s - ready, ready, within_s)[:, ::-1]

    def _reach(self, compute: Compute, unit: Array, budget: Array, ready: Array, within_s: float) -> Array:
        """P(depth d is reached), `[device, depth 1...]`."""
        cost = self.reach_cost[1:][None, :]
        laws = [law for law in (compute.task_factor, compute.step_factor) if law is not None]
        if compute.layer_factor is not None:
            return self._reach_by_layers(compute, laws, unit, budget)
        if not laws:
            return (ready + unit * cost <= within_s).astype(np.float64)  # the clock's own comparison, ties included
        x = np.maximum(budget, 0.0) / (unit * cost)
        if len(laws) == 1:
            return np.where(budget > 0, laws[0].cdf(x), 0.0)
        nodes, weights = _unit_nodes()
        mixed = sum(w * laws[1].cdf(x / f) for w, f in zip(weights, laws[0].draw(nodes), strict=True))
        return np.where(budget > 0, mixed, 0.0)

    def _reach_by_layers(self, compute: Compute, laws: Sequence[Law], unit: Array, budget: Array) -> Array:
        law, layer_s = compute.layer_factor, np.unique(np.asarray(compute.layer_s or 0.0))
        equal = compute.layer_s is not None and len(layer_s) == 1
        if laws or not equal or not isinstance(law, Exponential) or law.shift:
            raise NoClosedForm(
                "random layer times need equal layer_s with a plain exponential layer_factor and no other random factor"
            )
        own = np.diff(self.reach_cost)[0] * unit * law.mean
        left = np.maximum(budget - self.reach_cost[0] * unit, 0.0)
        return np.asarray(special.gammainc(np.arange(1, self.shape.n_layers + 1)[None, :], left / own))


def _is_fixed(link: Link) -> bool:
    """Whether nothing about the link is drawn."""
    return not hasattr(link.rate_bits_per_s, "draw") and not hasattr(link.latency_s, "draw")


def _unit_nodes(n: int = 400) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights on (0, 1): a mean over a law is a mean over its draws at these."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return (nodes + 1) / 2, weights / 2
