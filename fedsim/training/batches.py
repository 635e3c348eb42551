"""Which samples each local step of each task sees: addressed, so that the order of execution does not matter."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fedsim.facts import BatchPlan, IntArray
from fedsim.randomness import Luck


@dataclass
class Batches:
    """Rows of the training set, by (device, task ordinal, step).

    samples: the rows that each device holds, `[device][sample]`. Epochs permute them anew for each task, device and
    epoch; with replacement each step draws its own.
    """

    plan: BatchPlan
    samples: list[IntArray]
    luck: Luck
    _epoch: tuple[tuple[int, int, int], IntArray] | None = field(default=None, repr=False)

    def rows(self, device: int, ordinal: int, step: int) -> IntArray:
        """The step's samples, as rows of the training set."""
        mine, size = self.samples[device], self.plan.batch_size
        if size is None:
            return mine
        if self.plan.with_replacement:
            return mine[self.luck.generator(device, ordinal, step).integers(len(mine), size=size)]
        epoch, position = divmod(step, -(-len(mine) // size))
        return self._permuted(device, ordinal, epoch)[position * size : (position + 1) * size]

    def _permuted(self, device: int, ordinal: int, epoch: int) -> IntArray:
        address = (device, ordinal, epoch)
        if self._epoch is None or self._epoch[0] != address:  # the steps of one epoch follow each other
            self._epoch = (address, self.luck.generator(*address).permutation(self.samples[device]))
        return self._epoch[1]


def plan_of(samples: list[IntArray], batch_size: int | str, batches: str) -> BatchPlan:
    """Rows of each step for devices that hold these samples."""
    n_samples = np.array([len(mine) for mine in samples], dtype=np.int64)
    return BatchPlan(n_samples, None if isinstance(batch_size, str) else batch_size, batches == "with_replacement")
