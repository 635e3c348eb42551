"""What a kernel is given: contributions that pulled the same weights, their weight table, and a place to work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedsim.facts import Array, BoolArray, Contributions, IntArray
from fedsim.training import passes
from fedsim.training.batches import Batches
from fedsim.training.machine import Chunks, Work
from fedsim.training.resident import Resident
from fedsim.training.settings import Training
from fedsim.training.state import Tensors, WorkingModel


@dataclass(frozen=True)
class Cohort:
    """Contributions of one start version.

    start: the weights that they pulled, `[parameter]`. rate: their learning rate.
    table: weights `[contribution, layer]`. target: which of the sums each enters, `[contribution]`.
    own: how far each device's own start is from that, `[contribution][parameter]`; None if all start alike.
    """

    start: Tensors
    rate: float
    contributions: Contributions
    table: Array
    target: IntArray
    own: Sequence[Tensors] | None = None

    def __len__(self) -> int:
        return len(self.contributions)

    def where(self, rows: BoolArray | IntArray) -> Cohort:
        return replace(
            self,
            contributions=self.contributions.where(rows),
            table=self.table[rows],
            target=self.target[rows],
            own=None if self.own is None else [self.own[k] for k in np.arange(len(self))[rows].tolist()],
        )

    def start_of(self, k: int) -> Tensors:
        """Where contribution `k` starts, `[parameter]`."""
        if self.own is None:
            return self.start
        return [s + o for s, o in zip(self.start, self.own[k], strict=True)]


@dataclass
class Workbench:
    """What every kernel works with: one model as scratch space, the resident data, the addressed batches."""

    model: WorkingModel
    data: Resident
    batches: Batches
    training: Training
    chunks: Chunks

    def gather(self, rows: IntArray) -> tuple[Tensor, Tensor]:
        """Inputs and labels of these rows of the training set."""
        return self.data.gather(rows)

    def each(self, n: int, work: Work, *, rows_per_item: int = 1, is_flat: bool = False) -> None:
        """`Chunks.each`; what a failed attempt has counted is not work done."""

        def counted(begin: int, end: int) -> Callable[[], None]:
            before = self.model.computed_flops
            try:
                return work(begin, end)
            except (RuntimeError, MemoryError):
                self.model.computed_flops = before
                raise

        self.chunks.each(n, counted, rows_per_item=rows_per_item, is_flat=is_flat)

    def through_frozen(self, start: Tensors, depth: int, rows: IntArray) -> tuple[Tensor, Tensor]:
        """Inputs of the `depth` output-most layers and labels: the layers before them never move.

        So a sample passes them once, however many of the rows it is.
        """
        n_frozen = self.model.n_layers - depth
        if not n_frozen:
            return self.gather(rows)
        distinct, which = np.unique(rows, return_inverse=True)
        blocks, weights = self.model.blocks[:n_frozen], self.model.ready(start)
        found, size = [], self.chunks.n_rows
        for begin in range(0, len(distinct), size):
            found.append(passes.outputs(blocks, weights, self.gather(distinct[begin : begin + size])[0]))
        self.model.computed_flops += len(distinct) * float(self.model.shape.forward_flops[:n_frozen].sum())
        out, index = torch.cat(found), torch.from_numpy(which).to(self.data.labels.device)
        if out.dim() == 4:  # index_select would not keep channels last
            out = out.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
        else:
            out = out.index_select(0, index)
        return out, self.data.labels.index_select(0, torch.from_numpy(rows).to(index.device))


@dataclass(frozen=True)
class Steps:
    """Local steps of a cohort's contributions, one row each.

    owner: which contribution. step: its how-manieth. depth: layers that it trains.
    """

    owner: IntArray
    step: IntArray
    depth: IntArray

    @classmethod
    def of(cls, contributions: Contributions) -> Steps:
        """Every step of every contribution, the unfinished one last."""
        whole, partial = contributions.n_steps, contributions.partial_depth
        n = whole + (partial > 0)
        owner = np.repeat(np.arange(len(n)), n)
        step = np.arange(len(owner)) - np.repeat(np.cumsum(n) - n, n)
        depth = np.where(step < whole[owner], contributions.task_depth[owner], partial[owner])
        return cls(owner, step, depth)

    def where(self, rows: BoolArray | IntArray) -> Steps:
        return Steps(self.owner[rows], self.step[rows], self.depth[rows])

    def rows(self, contributions: Contributions, batches: Batches) -> tuple[IntArray, IntArray]:
        """Their samples as rows of the training set, one step after another, and how many each has, `[step]`."""
        return batches.of_steps(contributions.device[self.owner], contributions.ordinal[self.owner], self.step)


def add_scaled(change: Tensors, parts: Sequence[Tensor], first: int, scales: Sequence[float]) -> None:
    """change[i] += scales[i] * parts[i - first] for each parameter i from `first`."""
    if len(set(scales[first:])) == 1:
        torch._foreach_add_(change[first:], list(parts), alpha=scales[first])
        return
    for total, part, scale in zip(change[first:], parts, scales[first:], strict=True):
        total.add_(part, alpha=scale)
