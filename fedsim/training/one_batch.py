"""All gradients at the weights that were pulled: one batch, and no device's model ever exists.

For one local step, or steps that are accumulated, the aggregate of a layer is one weighted sum of per-sample gradients.
Rows are sorted by depth and pass through the model together; rows drop out as the backward pass moves towards the
input. A contribution's weight enters in its rows of the output gradient, a layer's in the sum; where the table is
no such product (SALF with inverse probabilities), rows are scaled anew at each boundary between layers.
FLOPs equal those of the exact suffix work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from fedsim.facts import Array, BoolArray, Contributions, IntArray
from fedsim.training import passes
from fedsim.training.cohort import Cohort, Steps, Workbench
from fedsim.training.state import Tensors, WorkingModel

NAME = "one_batch"
_SAME = 1e-12  # relative; far below the 1e-10 to which kernels must agree


def can_train(contributions: Contributions, table: Array) -> BoolArray:
    """Gradients at the start weights only, under weights that can enter as rows pass, `[contribution]`."""
    is_single = contributions.n_steps + (contributions.partial_depth > 0) == 1
    possible = np.asarray(is_single | (contributions.update == "accumulate"))
    held = contributions.holds_layer
    if _product(table[possible], held[possible]) is not None:
        return possible
    return np.asarray(possible & ~(held & (table == 0.0)).any(axis=1))


def add(changes: Sequence[Tensors], cohort: Cohort, at: Workbench) -> None:
    """Add sum_k table[k, layer] * change_k to the sum that each contribution enters."""
    for target in np.unique(cohort.target).tolist():
        _add(changes[target], cohort.where(cohort.target == target), at)


def _add(change: Tensors, cohort: Cohort, at: Workbench) -> None:
    model, n_layers = at.model, at.model.n_layers
    steps = Steps.of(cohort.contributions)
    steps = steps.where(np.argsort(-steps.depth, kind="stable"))
    rows, n_rows = steps.rows(cohort.contributions, at.batches)
    weights = model.ready(cohort.start)
    scales = _Scales.of(cohort.table[steps.owner], steps.depth)
    step_of = np.repeat(np.arange(len(n_rows)), n_rows)
    depth_of = steps.depth[step_of]

    def train(begin: int, end: int) -> Callable[[], None]:
        mine = step_of[begin:end]
        reach = [int(np.count_nonzero(depth_of[begin:end] >= n_layers - layer)) for layer in range(n_layers)]
        x, labels = at.gather(rows[begin:end])
        out, tapes = passes.forward(model.blocks, weights, x, reach)
        at_output = torch.from_numpy(scales.at_output[mine] / n_rows[mine])[:, None].to(out)
        gradient = model.loss.gradient(out, labels, at_output)
        found = []
        for layer, own, on in passes.backward(model.blocks, weights, tapes, gradient, reach):
            found.append((layer, own))
            if on is not None and scales.boundaries is not None:
                factor = torch.from_numpy(scales.boundaries[mine[: len(on)], layer]).to(on)
                on.mul_(factor.view(-1, *[1] * (on.dim() - 1)))
        model.count_rows(depth_of[begin:end])
        return partial(_commit, change, found, -cohort.rate * scales.of_layer, model)

    at.each(len(rows), train)
    if at.training.weight_decay:
        held = np.arange(n_layers) >= n_layers - steps.depth[:, None]
        entered = (cohort.table[steps.owner] * held).sum(axis=0)
        for i, layer in enumerate(model.layer_of):
            change[i].add_(cohort.start[i], alpha=-cohort.rate * at.training.weight_decay * float(entered[layer]))


def _commit(change: Tensors, found: list[tuple[int, Tensors]], of_layer: Array, model: WorkingModel) -> None:
    for layer, own in found:
        for i, part in zip(model.parameters_of(layer), own, strict=True):
            change[i].add_(part, alpha=float(of_layer[layer]))


@dataclass(frozen=True)
class _Scales:
    """Where the weights enter: `[step]` at the output, `[layer]` in the sums, `[step, layer]` below each layer."""

    at_output: Array
    of_layer: Array
    boundaries: Array | None

    @classmethod
    def of(cls, table: Array, depth: IntArray) -> _Scales:
        """Of weights `[step, layer]` that `can_train` allows."""
        n_layers = table.shape[1]
        held = np.arange(n_layers) >= n_layers - depth[:, None]
        if (factors := _product(table, held)) is not None:
            return cls(*factors, None)
        above = np.roll(table, 1, axis=1)
        boundaries = np.divide(above, table, out=np.ones_like(table), where=held)
        return cls(table[:, -1], np.ones(n_layers), boundaries)


def _product(table: Array, held: BoolArray) -> tuple[Array, Array] | None:
    """a, b with table = a[:, None] * b[None, :] where a layer is held; None if there are no such factors."""
    everywhere = held & (table != 0.0)
    column = np.flatnonzero(everywhere.all(axis=0))
    if not len(table) or not len(column):
        return None
    a = table[:, column[-1]]
    ratio = np.where(held, table / a[:, None], np.nan)
    b = np.nan_to_num(ratio[np.argmax(held.sum(axis=1))])
    return (a, b) if (np.abs(ratio - b) <= _SAME * np.abs(b))[held].all() else None
