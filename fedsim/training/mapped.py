"""Several local steps with a copy of the weights for each device, through torch.func: any block, and CUDA.

For models whose blocks are not written out, where calls cost more than arithmetic: on CUDA. Devices that have finished
drop out; steps of different size are trained apart, so that nothing is padded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from fedsim.training.cohort import Cohort, Steps, Workbench
from fedsim.training.state import Tensors

NAME = "mapped"


def add(changes: Sequence[Tensors], cohort: Cohort, at: Workbench) -> None:
    """Add sum_k table[k, layer] * change_k to the sum that each contribution enters.

    All contributions train the same suffix in whole steps and start from the same weights.
    """
    depth = int(cohort.contributions.task_depth[0])
    cohort = cohort.where(np.argsort(-cohort.contributions.n_steps, kind="stable"))
    steps = Steps.of(cohort.contributions)
    _, n_rows = steps.rows(cohort.contributions, at.batches)
    most_rows = int(np.bincount(steps.owner, n_rows).max(initial=1))

    def train(begin: int, end: int) -> Callable[[], None]:
        mine = cohort.where(np.arange(begin, end))
        sums = _train(mine, depth, at)
        return partial(_commit, changes, mine, sums, at)

    at.each(len(cohort), train, rows_per_item=most_rows)


def _train(cohort: Cohort, depth: int, at: Workbench) -> dict[int, Tensor]:
    """What each device changed, by parameter, `[contribution, ...]`."""
    model, settings, n = at.model, at.training, len(cohort)
    own = range(model.first_of(depth), len(model.parameters))
    model.load(cohort.start)
    gradients_of = _gradients(at, depth)
    weights = {p: torch.stack([cohort.start[p].contiguous()] * n) for p in own}
    moved = {p: torch.zeros_like(weights[p]) for p in own}
    velocity = {p: torch.zeros_like(weights[p]) for p in own} if settings.momentum else {}
    for step in range(int(cohort.contributions.n_steps[0])):
        active = int(np.count_nonzero(cohort.contributions.n_steps > step))
        steps = Steps(np.arange(active), np.full(active, step), np.full(active, depth))
        rows, n_rows = steps.rows(cohort.contributions, at.batches)
        ends = np.cumsum(n_rows)
        for size in np.unique(n_rows).tolist():
            group = np.flatnonzero(n_rows == size)
            of_group = np.concatenate([rows[ends[k] - size : ends[k]] for k in group])
            x, labels = at.through_frozen(cohort.start, depth, of_group)
            index = torch.from_numpy(group).to(labels.device)
            found = gradients_of(
                {p: w[index] for p, w in weights.items()},
                x.contiguous().view(len(group), size, *x.shape[1:]),
                labels.view(len(group), size),
            )
            model.count_suffix(size * len(group), depth, depth)
            _step(weights, moved, velocity, found, index, cohort.rate, at)
    return moved


def _step(
    weights: dict[int, Tensor],
    moved: dict[int, Tensor],
    velocity: dict[int, Tensor],
    found: dict[int, Tensor],
    index: Tensor,
    rate: float,
    at: Workbench,
) -> None:
    settings = at.training
    for p, gradient in found.items():
        step = gradient
        if settings.weight_decay:
            step = step.add(weights[p][index], alpha=settings.weight_decay)
        if settings.momentum:
            step = velocity[p][index].mul_(settings.momentum).add_(step)
            velocity[p].index_copy_(0, index, step)
        weights[p].index_add_(0, index, step, alpha=-rate)
        moved[p].index_add_(0, index, step, alpha=-rate)


def _gradients(at: Workbench, depth: int) -> Callable[..., dict[int, Tensor]]:
    """Gradients of each device's mean loss: ({parameter: stacked}, inputs `[device, row, ...]`, labels) -> the same."""
    first_layer = at.model.n_layers - depth
    names = {}  # of each parameter within its block, in the order of the flat list
    for layer in range(first_layer, at.model.n_layers):
        block = at.model.chain.blocks[layer]
        names[layer] = list(zip(at.model.parameters_of(layer), dict(block.named_parameters()), strict=True))

    def loss(weights: dict[int, Tensor], x: Tensor, labels: Tensor) -> Tensor:
        for layer, own in names.items():
            x = functional_call(at.model.chain.blocks[layer], {name: weights[p] for p, name in own}, (x,))
        return at.model.loss.mean(x, labels)

    stacked = vmap(grad(loss))

    def gradients(*stacks: Any) -> dict[int, Tensor]:
        with warnings.catch_warnings():  # an operation that torch maps one device after another is still exact
            warnings.filterwarnings("ignore", "There is a performance drop")
            found: dict[int, Tensor] = stacked(*stacks)
            return found

    return gradients


def _commit(changes: Sequence[Tensors], cohort: Cohort, moved: dict[int, Tensor], at: Workbench) -> None:
    for target in np.unique(cohort.target).tolist():
        mine = cohort.target == target
        for p, stack in moved.items():
            weights = torch.from_numpy(cohort.table[:, at.model.layer_of[p]] * mine).to(stack)
            changes[target][p].add_(torch.tensordot(weights, stack, dims=1))
