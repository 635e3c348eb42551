"""The fleet's luck: how long each device takes for each piece of work, by address.

Every duration is a function of (device, task ordinal, step), so all policies meet the same weather. Columns are
`[job]` unless an axis is named. What may be known of it beforehand is in `foresight.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fedsim.facts import Array, BadInput, BatchPlan, IntArray, ModelShape
from fedsim.protocols import Law
from fedsim.randomness import Luck
from fedsim.timing.fleet import Fleet, Link

Stated = float | tuple[float, ...] | Law
"""A number for all devices, one per device, or a law."""


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
    _drawn: dict[str, Array] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises BadInput for a list per layer of another length than the model's."""
        for name in ("layer_s", "block_io_s"):
            values = getattr(self.fleet.compute, name)
            if isinstance(values, tuple) and len(values) != self.shape.n_layers:
                message = f"{name} lists {len(values)} numbers but the model has {self.shape.n_layers} layers; give one per layer"
                raise BadInput(message, at=("fleet", "compute", name))

    # ---- persistent ---------------------------------------------------------------------------------------------

    def persistent(self, stated: Stated, purpose: str) -> Array:
        """One value per device, kept for the whole run, `[device]`. purpose: of the draw, where it is a law."""
        n = self.fleet.n_devices
        if not isinstance(stated, Law):
            return np.broadcast_to(np.asarray(stated, dtype=np.float64), (n,))
        if purpose not in self._drawn:
            self._drawn[purpose] = stated.draw(Luck(self.fleet_seed, purpose).row(n))
        return self._drawn[purpose]

    @cached_property
    def reach_cost(self) -> Array:
        """Seconds until depth d of a step is reached, as a share of a full step, `[depth]`; 1 at n_layers.

        Entry 0 is the forward pass, which comes first.
        """
        return self.reach_cost_of(self.shape)

    def reach_cost_of(self, part: ModelShape) -> Array:
        """The same of a narrower model, as a share of a full step over the whole one, `[depth]`.

        Stated seconds of a layer shrink like its FLOPs.
        """
        compute, whole = self.fleet.compute, self.shape
        if compute.layer_s is not None:
            layers = np.broadcast_to(np.asarray(compute.layer_s, dtype=np.float64), (whole.n_layers,))
            full_flops = _backward_flops(whole)
            left = np.divide(_backward_flops(part), full_flops, out=np.ones_like(full_flops), where=full_flops > 0)
            own = layers * left
            forward_s = compute.forward_s
            if forward_s and part is not whole:
                forward_s = forward_s * (part.forward_flops.sum() / whole.forward_flops.sum())
            cost = forward_s + np.concatenate([[0.0], np.cumsum(own[::-1])])
            full = compute.forward_s + layers.sum()
            return np.asarray(cost / (cost[-1] if part is whole else full))
        cost, full_cost = (self._counted_flops(shape) for shape in (part, whole))
        return np.asarray(cost / full_cost[-1])

    def _counted_flops(self, shape: ModelShape) -> Array:
        """Until each depth of a step on one row, `[depth]`; a FLOP of the backward pass counts `backward_factor` times."""
        forward = shape.forward_flops.sum()
        return np.asarray(forward + self.fleet.compute.backward_factor * np.maximum(shape.step_flops - forward, 0.0))

    @cached_property
    def block_io_s(self) -> Array:
        """Seconds in each step to bring in the layers that do not train, `[depth]`."""
        per_layer = np.broadcast_to(np.asarray(self.fleet.compute.block_io_s, dtype=np.float64), (self.shape.n_layers,))
        return np.concatenate([[0.0], np.cumsum(per_layer)])[::-1]

    @cached_property
    def unit_s(self) -> Array:
        """Seconds of a full step over all layers at factor 1, `[device]`: base x device factor."""
        compute, n = self.fleet.compute, self.fleet.n_devices
        if compute.step_s is not None:
            base = self.persistent(compute.step_s, "step_s")
        elif compute.layer_s is not None:
            layers = np.broadcast_to(np.asarray(compute.layer_s, dtype=np.float64), (self.shape.n_layers,))
            base = np.full(n, compute.forward_s + layers.sum())
        else:
            assert compute.flops_per_s is not None  # Compute has exactly one base
            base = (
                self._counted_flops(self.shape)[-1]
                * self.plan.full_rows(np.arange(n))
                / self.persistent(compute.flops_per_s, "flops_per_s")
            )
        if compute.device_factor is None:
            return base
        return base * self.persistent(compute.device_factor, "device_factor")

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

    def layer_costs(self, devices: IntArray, ordinals: IntArray, step: int, reach: Array) -> Array:
        """Seconds until each depth of this step is reached, in units of the task's full step, `[job, depth 1...]`.

        reach: the same without luck, `[job or 1, depth 0...]`.
        """
        law = self.fleet.compute.layer_factor
        if law is None:
            return np.broadcast_to(reach[:, 1:], (len(devices), self.shape.n_layers))
        draws = [
            self._factor(law, "layer_factor", devices, ordinals, step, lane) for lane in range(self.shape.n_layers)
        ]
        return np.asarray(reach[:, :1] + np.cumsum(np.diff(reach) * np.stack(draws, axis=1), axis=1))

    def drawn_depth(self, devices: IntArray, ordinals: IntArray) -> IntArray:
        """Layers finished when stopped, under the fleet's depth law."""
        law = self.fleet.compute.depth_law
        assert law is not None
        u = Luck(self.clock_seed, "depth").at(devices, ordinals)
        return law.lowest + np.floor(u * (self.shape.n_layers + 1 - law.lowest)).astype(np.int64)

    def link_s(
        self, link: Link | None, name: str, n_bytes: IntArray | int, devices: IntArray, ordinals: IntArray
    ) -> Array:
        """Seconds that `n_bytes` take on the link called `name` ("uplink", "downlink")."""
        if link is None:
            return np.zeros(len(devices))

        def value(stated: Stated, what: str) -> Array:
            if isinstance(stated, int | float):
                return np.broadcast_to(float(stated), (len(devices),))
            if link.redrawn == "task" and isinstance(stated, Law):
                return self._factor(stated, f"{name}.{what}", devices, ordinals)
            return self.persistent(stated, f"{name}.{what}")[devices]

        return value(link.latency_s, "latency_s") + 8.0 * np.asarray(n_bytes) / value(link.rate_bits_per_s, "rate")

    def download_s(self, devices: IntArray, ordinals: IntArray, n_bytes: IntArray | int) -> Array:
        """Seconds to pull so many bytes."""
        return self.link_s(self.fleet.downlink, "downlink", n_bytes, devices, ordinals)

    def upload_s(self, devices: IntArray, ordinals: IntArray, depth: IntArray, n_bytes: IntArray) -> Array:
        """Seconds to push so many bytes, of `depth` output-most layers; no layers take no time."""
        pushed = self.link_s(self.fleet.uplink, "uplink", n_bytes, devices, ordinals)
        return np.where(depth > 0, pushed, 0.0)


def _backward_flops(shape: ModelShape) -> Array:
    """Of each layer, `[layer]`; the input layer hands no gradient on."""
    handed_on = np.concatenate([[0.0], shape.input_gradient_flops[1:]])
    return np.asarray(shape.weight_gradient_flops + handed_on)
