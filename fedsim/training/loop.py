"""Several local steps on any chain: one device after another in one set of weights.

Everything around the arithmetic is shared: the frozen layers before the suffix run once, for all steps of many devices
at a time; backward passes are written out where they can be; a step's change goes straight into the sum (new minus old
weights would cancel to four digits in float32).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedsim.training import passes
from fedsim.training.cohort import Cohort, Steps, Workbench, add_scaled
from fedsim.training.state import Tensors

NAME = "loop"


def add(changes: Sequence[Tensors], cohort: Cohort, at: Workbench) -> None:
    """Add sum_k table[k, layer] * change_k to the sum that each contribution enters."""
    for depth in np.unique(cohort.contributions.task_depth).tolist():
        _add_suffix(changes, cohort.where(cohort.contributions.task_depth == depth), depth, at)


def _add_suffix(changes: Sequence[Tensors], cohort: Cohort, depth: int, at: Workbench) -> None:
    steps = Steps.of(cohort.contributions)
    all_rows, n_rows = steps.rows(cohort.contributions, at.batches)
    ends = np.append(0, np.cumsum(n_rows))
    bounds = np.searchsorted(steps.owner, np.arange(len(cohort) + 1))  # where each contribution's steps begin

    def train(begin: int, end: int) -> Callable[[], None]:
        mine = slice(bounds[begin], bounds[end])
        x, labels = at.through_frozen(cohort.start, depth, all_rows[ends[bounds[begin]] : ends[bounds[end]]])
        sizes = n_rows[mine].tolist()
        batches = list(zip(steps.depth[mine].tolist(), torch.split(x, sizes), torch.split(labels, sizes), strict=True))
        first = bounds[begin]
        of_device = [batches[bounds[k] - first : bounds[k + 1] - first] for k in range(begin, end)]
        return partial(_train_each, changes, cohort, begin, of_device, depth, at)

    most_rows = int(np.diff(ends[bounds]).max(initial=1))
    at.each(len(cohort), train, rows_per_item=most_rows)


_Batch = tuple[int, Tensor, Tensor]  # layers that train, input of the suffix, labels


def _train_each(
    changes: Sequence[Tensors], cohort: Cohort, begin: int, of_device: list[list[_Batch]], depth: int, at: Workbench
) -> None:
    descend = cohort.contributions.update == "descend"
    for k, batches in enumerate(of_device, start=begin):
        start = cohort.start_of(k)
        at.model.load(start, depth)
        change = changes[int(cohort.target[k])]
        scales = (-cohort.rate * cohort.table[k, list(at.model.layer_of)]).tolist()
        _train_one(change, scales, batches, depth, cohort.rate if descend else 0.0, start, at)


def _train_one(
    change: Tensors, scales: list[float], batches: list[_Batch], depth: int, rate: float, start: Tensors, at: Workbench
) -> None:
    """The steps of one device from `start`; a rate of 0 leaves the weights where they are and sums the gradients."""
    model, settings = at.model, at.training
    blocks = model.blocks[model.n_layers - depth :]
    weights, velocity = model.by_block(model.parameters[model.first_of(depth) :], depth), dict[int, Tensor]()
    for number, (trained, x, labels) in enumerate(batches):
        n, first = len(x), model.first_of(trained)
        reach = [n if i >= depth - trained else 0 for i in range(depth)]
        out, tapes = passes.forward(blocks, weights, x, reach)
        gradient = model.loss.gradient(out, labels, x.new_full((1, 1), 1.0 / n))
        # All gradients of a step come before its update: an input gradient needs the old weights.
        parts = [
            part
            for _, own, _ in reversed(list(passes.backward(blocks, weights, tapes, gradient, reach)))
            for part in own
        ]
        model.count_suffix(n, depth, trained)
        here = model.parameters[first:]
        if settings.weight_decay:
            torch._foreach_add_(parts, here, alpha=settings.weight_decay)
        if settings.proximal and number:
            torch._foreach_add_(parts, torch._foreach_sub(here, start[first:]), alpha=settings.proximal)
        if settings.momentum and rate:
            for i, part in enumerate(parts, start=first):
                velocity[i] = velocity[i].mul_(settings.momentum).add_(part) if i in velocity else part
            parts = [velocity[i] for i in range(first, len(model.parameters))]
        add_scaled(change, parts, first, scales)
        if rate and number < len(batches) - 1:
            torch._foreach_add_(here, parts, alpha=-rate)
