"""HeteroFL: weak devices train narrower models; each element is averaged over the devices that hold it.

Source: Diao, Ding, Tarokh, "HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous
Clients", ICLR 2021, arXiv 2010.01264, Algorithm 1, and its published code.

    each round:
        S := n_sampled devices (all if n_sampled is not stated); r_k := rate of device k, one of 1, 1/2, 1/4, 1/8, 1/16
        device k in S: x_k := the first ceil(r_k C) of the C units of every hidden layer of x; all inputs, all classes
            `local_steps` SGD steps on x_k; in training, activations are divided by r_k (scaler) and the logits of classes
            that k does not have count as 0 (masked loss)
        for each element e: x[e] := mean of x_k[e] over the devices that hold e   # of a class's row: that have the class
        an element that nobody holds keeps its value
    assignment dynamic: each round, the rates are dealt out to the devices anew
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, MinLen

from fedsim import weights
from fedsim.delays import Positive
from fedsim.facts import Array, BoolArray, IntArray, Jobs, Subnetwork, Task
from fedsim.protocols import Rounds, Server, Setting, arrivals

Rate = Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True)
class HeteroFL:
    """A width for every device. Exactly one of `rates`, `budget_s` and `within_memory`.

    rates: share of each hidden layer's units that a device trains, one per device.
    budget_s: expected compute seconds of a round; a device gets the largest of the `levels` that meets it.
    within_memory: a device gets the largest of the `levels` at which parameters and a batch's activations fit its memory.
    levels: what may be chosen under those two. local_steps: steps of a task.
    assignment: "fixed" for the run, or "dynamic": in each round the stated rates change hands among all devices.
    n_sampled: devices asked in a round; all if left out. weighting: of an element's average, by samples or uniform.
    dilute: divide each element by all who were asked, not only by those who hold it.
    scaler: in training, divide the activations of narrower layers by their share of the units.
    masked_loss: count the logits of classes that a device lacks as 0, and leave their rows of the output layer to others.
    """

    rates: tuple[Rate, ...] | None = None
    budget_s: Positive | None = None
    within_memory: bool = False
    levels: Annotated[tuple[Rate, ...], MinLen(1)] = (1.0, 0.5, 0.25, 0.125, 0.0625)
    assignment: Literal["fixed", "dynamic"] = "fixed"
    local_steps: Annotated[int, Ge(1)] = 5
    n_sampled: Annotated[int, Ge(1)] | None = None
    weighting: weights.Weighting = "uniform"
    dilute: bool = False
    scaler: bool = True
    masked_loss: bool = True

    source: ClassVar[str] = "Diao, Ding, Tarokh, ICLR 2021, arXiv 2010.01264, Algorithm 1, and its published code"

    def problems(self, setting: Setting) -> list[str]:
        """Raises BadInput for a model that cannot be narrowed to these rates."""
        if found := list(self._misstated(setting)):
            return found
        for rate in set(self.rates or self.levels):
            setting.shape.sliced(rate)
        if (rates := self.rates_of(setting)).all():
            return []
        limit = "within_memory is true" if self.within_memory else f"budget_s is {self.budget_s}"
        device, least = f"device {rates.argmin()} ({(rates == 0).sum()} in all)", f"levels, {min(self.levels):g}"
        return [f"{limit} but {device} is too weak for the least of the {least}; add a smaller one"]

    def _misstated(self, setting: Setting) -> Iterator[str]:
        n = setting.n_devices
        if (self.rates is not None) + (self.budget_s is not None) + self.within_memory != 1:
            yield "state exactly one of rates, budget_s and within_memory"
        elif self.rates is not None and len(self.rates) != n:
            yield f"rates has {len(self.rates)} numbers but the fleet has {n} devices; give one per device"
        elif self.rates is not None and self.levels != HeteroFL.levels:
            yield "levels are to choose from under budget_s and within_memory, but rates are stated; leave one out"
        elif self.assignment == "dynamic" and self.rates is None:
            yield "assignment is dynamic but each device is held to a limit of its own; state rates instead of the limit"
        elif self.within_memory and setting.memory_bytes is None:
            yield "within_memory is true but the fleet does not say its memory; state fleet.memory_bytes"
        if self.n_sampled is not None and self.n_sampled > n:
            yield f"n_sampled is {self.n_sampled} but the fleet has {n} devices; choose 1..{n}"

    def rates_of(self, setting: Setting) -> Array:
        """Share of the units that each device trains, `[device]`; 0 where not even the least level fits."""
        if self.rates is not None:
            return np.asarray(self.rates, dtype=np.float64)
        return np.asarray(np.max([level * self._fits(setting, level) for level in self.levels], axis=0, initial=0.0))

    def _fits(self, setting: Setting, level: float) -> BoolArray:
        """Whether the device can train a model of this rate, `[device]`."""
        if self.budget_s is not None:
            needed_s = setting.expected_compute_s(self._task(level), np.arange(setting.n_devices))
            # The budget itself is within it, also where a sum of layers is off by rounding.
            return needed_s <= self.budget_s * (1 + 1e-9)
        assert setting.memory_bytes is not None
        part = setting.shape.sliced(level)
        per_row = part.memory_bytes(1)[-1] - part.memory_bytes(0)[-1]
        return np.asarray(part.memory_bytes(0)[-1] + per_row * setting.batch_size <= setting.memory_bytes)

    def _task(self, rate: float | Array) -> Task:
        part = Subnetwork("leading", is_scaled=self.scaler, is_masked=self.masked_loss)
        return Task(n_steps=self.local_steps, subnetwork=part, rate=rate)

    def _dealt(self, server: Server, rates: Array) -> Iterator[tuple[IntArray, Array | float]]:
        """Devices to ask and their rates, in turn: those of a turn are busy by the next one."""
        asked = server.sample(self.n_sampled)
        if self.assignment == "fixed":
            yield asked, rates[asked]
            return
        for rate, n in zip(*np.unique(rates[asked], return_counts=True), strict=True):
            yield server.sample(int(n)), float(rate)

    def rounds(self, server: Server) -> Rounds:
        rates = self.rates_of(server)
        while True:
            sent = [server.send(devices, self._task(rate)) for devices, rate in self._dealt(server, rates)]
            jobs = Jobs.concatenate(sent)
            yield from server.wait(jobs, arrivals(len(jobs)))
            arrived = server.take(jobs)
            server.aggregate(arrived, weights.mean(arrived, self.weighting), is_per_element=not self.dilute)
