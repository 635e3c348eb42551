"""EmbracingFL: each device trains as many output-side layers as its memory holds; what it cannot hold it passes through.

Source: Lee, Zhang, Prakash, Niu, Avestimehr, "Embracing Federated Learning: Enabling Weak Client Participation via Partial
Model Training", IEEE Transactions on Mobile Computing 2024, arXiv 2406.15125, Algorithm 1. Called InclusiveFL in talks.

    once: z_i := as many consecutive output-side layers as device i can train in its memory, y_i := the layers before
    each round, S := the active devices:
        every device i in S, `local_steps` times:
            multi-step forward pass: bring in the blocks of y_i one after another, push the mini-batch through each,
                                     keep nothing but its last output
            bring in z_i: forward, backward, SGD step on z_i; y_i stays as it was sent
        for each layer l: x_l := mean of x_i,l over the devices i in S with l in z_i; x_l stays if there are none
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Gt, Le

from fedsim import weights
from fedsim.facts import IntArray, Task
from fedsim.protocols import Rounds, Server, Setting, arrivals

_ROUNDING = 1e-9  # relative: a share that is met but for rounding is met


@dataclass(frozen=True)
class EmbracingFL:
    """Partial training by memory. The tiers come from exactly one of `depths`, `capacity_shares` and the fleet's `memory_bytes`.

    depths: how many output-most layers each device trains, one number per device.
    capacity_shares: each device's memory as a share of what training the whole model on a batch needs, one per device.
    local_steps: steps of a task. n_sampled: devices asked in a round; all if left out.
    weighting: of each layer's average over those who train it, uniform or by samples.
    """

    depths: tuple[Annotated[int, Ge(1)], ...] | None = None
    capacity_shares: tuple[Annotated[float, Gt(0), Le(1)], ...] | None = None
    local_steps: Annotated[int, Ge(1)] = 5
    n_sampled: Annotated[int, Ge(1)] | None = None
    weighting: weights.Weighting = "uniform"

    source: ClassVar[str] = "Lee, Zhang, Prakash, Niu, Avestimehr, IEEE TMC 2024, arXiv 2406.15125, Algorithm 1"

    def problems(self, setting: Setting) -> list[str]:
        return list(self._problems(setting))

    def _problems(self, setting: Setting) -> Iterator[str]:
        n, n_layers = setting.n_devices, setting.n_layers
        if self.n_sampled is not None and self.n_sampled > n:
            yield f"n_sampled is {self.n_sampled} but the fleet has {n} devices; choose 1..{n}"
        stated = {
            "depths": self.depths,
            "capacity_shares": self.capacity_shares,
            "memory_bytes": setting.memory_bytes,
        }
        names = [name for name, each in stated.items() if each is not None]
        if len(names) != 1:
            said = " and ".join(names) + " are all stated" if names else f"{', '.join(stated)} are all left out"
            yield f"{said}; state one: depths or capacity_shares here, or memory_bytes under 'fleet'"
            return
        (name,) = names
        for own in (self.depths, self.capacity_shares):
            if own is not None and len(own) != n:
                yield f"{name} has {len(own)} numbers but the fleet has {n} devices; give one number per device"
                return
        tiers = self.tiers(setting)
        if tiers.max() > n_layers:
            yield f"{name} holds {tiers.max()} but the model has {n_layers} layers; choose 1..{n_layers}"
        elif tiers.min() == 0:
            yield f"{name} of device {tiers.argmin()} is too little to train even the output layer; give it more"
        elif tiers.max() < n_layers:
            yield f"{name} lets no device train more than {tiers.max()} of {n_layers} layers; let one train them all"

    def tiers(self, setting: Setting) -> IntArray:
        """Output-most layers that each device trains, `[device]`."""
        if self.depths is not None:
            return np.asarray(self.depths, dtype=np.int64)
        batch_sizes, which = np.unique(setting.batch_size, return_inverse=True)
        needed_bytes = np.stack([setting.shape.memory_bytes(size) for size in batch_sizes.tolist()])[which]
        affordable_bytes = setting.memory_bytes
        if self.capacity_shares is not None:
            affordable_bytes = np.asarray(self.capacity_shares) * needed_bytes[:, -1]
        assert affordable_bytes is not None  # see problems
        is_met = needed_bytes[:, 1:] <= affordable_bytes[:, None] * (1 + _ROUNDING)
        return np.asarray(is_met.sum(axis=1), dtype=np.int64)

    def rounds(self, server: Server) -> Rounds:
        tiers = self.tiers(server)
        while True:
            devices = server.sample(self.n_sampled)
            task = Task(n_steps=self.local_steps, depth=tiers[devices], is_block_by_block=True)
            jobs = server.send(devices, task)
            yield from server.wait(jobs, arrivals(len(jobs)))
            arrived = server.take(jobs)
            server.aggregate(arrived, weights.layer_mean(arrived, self.weighting))
