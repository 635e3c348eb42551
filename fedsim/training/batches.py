"""Which samples each local step of each task sees: addressed, so that the order of execution does not matter."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedsim.facts import BatchPlan, IntArray
from fedsim.randomness import Luck, drawn, permuted


@dataclass
class Batches:
    """Rows of the training set, by (device, task ordinal, step).

    samples: the rows that each device holds, `[device][sample]`. Epochs permute them anew for each task, device and
    epoch; with replacement each step draws its own.
    """

    plan: BatchPlan
    samples: list[IntArray]
    luck: Luck

    @cached_property
    def _flat(self) -> tuple[IntArray, IntArray]:
        """All devices' rows one after another, and where each device's begin."""
        ends = np.cumsum(self.plan.n_samples)
        return np.concatenate(self.samples), ends - self.plan.n_samples

    def rows(self, device: int, ordinal: int, step: int) -> IntArray:
        """The step's samples, as rows of the training set."""
        return self.of_steps(np.array([device]), np.array([ordinal]), np.array([step]))[0]

    def of_steps(self, device: IntArray, ordinal: IntArray, step: IntArray) -> tuple[IntArray, IntArray]:
        """The samples of many steps, one step after another, and how many each has, `[step]`; all three `[step]`."""
        n = self.plan.n_samples[device]
        size = n if self.plan.batch_size is None else np.full(len(device), self.plan.batch_size)
        if self.plan.batch_size is None:
            n_rows, epoch, first = n, step, np.zeros_like(n)
        elif self.plan.with_replacement:
            n_rows, epoch, first = size, step, np.zeros_like(n)
        else:
            epoch, position = np.divmod(step, -(-n // size))
            first = position * size
            n_rows = np.minimum(size, n - first)
        owner = np.repeat(np.arange(len(device)), n_rows)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(n_rows) - n_rows - first, n_rows)
        flat, begins = self._flat
        if self.plan.batch_size is not None:
            choose = drawn if self.plan.with_replacement else permuted
            within = choose(within, n[owner], self._keys(device, ordinal, epoch)[owner])
        return flat[begins[device][owner] + within], n_rows

    def _keys(self, device: IntArray, ordinal: IntArray, epoch: IntArray) -> np.ndarray:
        keys = np.empty(len(device), dtype=np.uint64)
        for e in np.unique(epoch).tolist():
            mine = epoch == e
            keys[mine] = self.luck.keys(device[mine], ordinal[mine], step=e)
        return keys


def plan_of(samples: list[IntArray], batch_size: int | str, batches: str) -> BatchPlan:
    """Rows of each step for devices that hold these samples."""
    n_samples = np.array([len(mine) for mine in samples], dtype=np.int64)
    return BatchPlan(n_samples, None if isinstance(batch_size, str) else batch_size, batches == "with_replacement")
