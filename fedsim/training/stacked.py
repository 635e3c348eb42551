"""Several local steps with weights of their own for each device, some devices at a time in one stack.

One call moves the whole stack: batched products for fully connected layers, grouped convolutions for images, whose
channels lie side by side. That saves calls, and fills vector units that the few channels of a small network would leave
half empty. The stack is kept small enough for the cache. Devices that have finished drop out of it; where steps differ in
size, those of one size go together, so that nothing is padded. FLOPs equal those of the plain loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedsim.facts import Array, IntArray
from fedsim.training import passes
from fedsim.training.cohort import Cohort, Steps, Workbench
from fedsim.training.operations import ALL, Flatten, Linear
from fedsim.training.passes import Block
from fedsim.training.settings import Training
from fedsim.training.state import Tensors

NAME = "stacked"
_ACTIVATIONS = 380_000  # of a stack's step, at the boundaries of blocks: fixed, because a stack's size changes bits
_PARAMETERS = 2_000_000
_MOST = 64


def stack_size(n_activations: int, n_parameters: int, n_rows: int) -> int:
    """Devices in a stack: a power of two, by what fits the cache.

    n_activations: of one row, at the input of the suffix and between its blocks. n_parameters: of the suffix.
    """
    most = min(_MOST, _ACTIVATIONS // max(1, n_rows * n_activations), _PARAMETERS // max(1, n_parameters))
    return 1 << (max(1, most).bit_length() - 1)


def _size_for(cohort: Cohort, depth: int, at: Workbench) -> int:
    """Devices of this cohort in a stack."""
    shape = at.model.shape
    n_rows = at.batches.plan.most_rows(cohort.contributions.device)
    return stack_size(int(shape.n_activations[-depth - 1 :].sum()), int(shape.n_parameters[-depth:].sum()), n_rows)


def add(changes: Sequence[Tensors], cohort: Cohort, at: Workbench) -> None:
    """Add sum_k table[k, layer] * change_k to the sum that each contribution enters.

    All contributions train the same suffix in whole steps, and its blocks can be stacked.
    """
    depth = int(cohort.contributions.task_depth[0])
    cohort = cohort.where(np.argsort(-cohort.contributions.n_steps, kind="stable"))

    def train(begin: int, end: int) -> Callable[[], None]:
        return partial(_train(cohort.where(np.arange(begin, end)), depth, at).commit, changes)

    rows_per_item = max(1, at.chunks.n_rows // _size_for(cohort, depth, at))
    at.each(len(cohort), train, rows_per_item=rows_per_item)


def _train(cohort: Cohort, depth: int, at: Workbench) -> Stack:
    """One stack of devices, trained."""
    model = at.model
    stack = Stack.of(cohort, model.first_of(depth), len(model.parameters), at)
    block = model.blocks[model.n_layers - depth]
    for step, batches in enumerate(_batches(cohort, depth, at)):
        for group, rows, labels in batches:
            own = stack.picked(group)
            parts = _gradients(own, _arranged(rows, len(group), block), labels, len(group), depth, at)
            stack.step(own, parts, group, step)
    return stack


@dataclass
class Stack:
    """Parameters first ... end-1 of the model, once for each device of a cohort, one device after another.

    pulled: where they started, if a proximal term asks. sums: what their steps have added so far to each target's sum;
    apart: the same, one device after another, where each has a target of its own.
    """

    cohort: Cohort
    training: Training
    first: int
    table: Array
    parameters: Tensors
    pulled: Tensors
    velocity: Tensors
    apart: Tensors
    sums: dict[int, Tensors]

    @classmethod
    def of(cls, cohort: Cohort, first: int, end: int, at: Workbench) -> Stack:
        """At the weights that the devices pulled."""
        start = cohort.start[first:end]
        parameters = [p.repeat(len(cohort), *[1] * (p.dim() - 1)) for p in start]
        if cohort.own is not None:
            torch._foreach_add_(parameters, [torch.cat([own[i] for own in cohort.own]) for i in range(first, end)])
        targets = np.unique(cohort.target).tolist()
        is_apart = len(targets) == len(cohort)
        return cls(
            cohort=cohort,
            training=at.training,
            first=first,
            table=-cohort.rate * cohort.table[:, list(at.model.layer_of[first:end])],
            parameters=parameters,
            pulled=[p.clone() for p in parameters] if at.training.proximal else [],
            velocity=[torch.zeros_like(p) for p in parameters] if at.training.momentum else [],
            apart=[torch.zeros_like(p) for p in parameters] if is_apart else [],
            sums={} if is_apart else {target: [torch.zeros_like(p) for p in start] for target in targets},
        )

    def picked(self, group: IntArray) -> Tensors:
        """The parameters of these devices."""
        return [_picked(p, group, len(self.cohort)) for p in self.parameters]

    def step(self, own: Tensors, parts: Tensors, group: IntArray, number: int) -> None:
        """A step of these devices along their gradients `parts`; `own` are their parameters, as picked."""
        n, settings = len(self.cohort), self.training
        if settings.weight_decay:
            torch._foreach_add_(parts, own, alpha=settings.weight_decay)
        for part, p, pulled in zip(parts, own, self.pulled, strict=True) if self.pulled else ():
            part.add_(p - _picked(pulled, group, n), alpha=settings.proximal)
        for v, part in zip(self.velocity, parts if settings.momentum else [], strict=True):
            part.add_(_picked(v, group, n), alpha=settings.momentum)
            _put(v, group, n, part)
        for i, moved in enumerate(self.apart):
            scales = torch.from_numpy(self.table[group, i]).to(moved)
            each = parts[i].view(len(group), -1, *parts[i].shape[1:])
            scaled = each * scales.view(-1, *[1] * (each.dim() - 1))
            mine = _picked(moved, group, n)
            _put(moved, group, n, mine.add_(scaled.view(parts[i].shape)))
        for target, total in self.sums.items():
            _add_weighted(total, parts, self.table[group] * (self.cohort.target[group] == target)[:, None])
        if (self.cohort.contributions.n_steps[group] > number + 1).any():
            torch._foreach_add_(own, parts, alpha=-self.cohort.rate)
            for p, mine in zip(self.parameters, own, strict=True):
                _put(p, group, n, mine)

    def commit(self, changes: Sequence[Tensors]) -> None:
        """Add the sums to the changes of their targets."""
        last = self.first + len(self.parameters)
        for k, target in enumerate(self.cohort.target.tolist() if self.apart else ()):
            own = [moved.view(len(self.cohort), -1, *moved.shape[1:])[k] for moved in self.apart]
            torch._foreach_add_(changes[target][self.first : last], own)
        for target, total in self.sums.items():
            torch._foreach_add_(changes[target][self.first : self.first + len(total)], total)


_Batch = tuple[IntArray, Tensor, Tensor]  # devices of the stack, inputs of the suffix, labels


def _batches(cohort: Cohort, depth: int, at: Workbench) -> list[list[_Batch]]:
    """For each step, the batches of each size; gathered, and taken through the frozen layers, all at once."""
    steps = Steps.of(cohort.contributions)
    steps = steps.where(np.argsort(steps.step, kind="stable"))  # then by device
    rows, n_rows = steps.rows(cohort.contributions, at.batches)
    x, labels = at.through_frozen(cohort.start, depth, rows)
    at.model.count_suffix(len(x), depth, depth)
    begins = np.cumsum(n_rows) - n_rows
    found = []
    for step in range(int(cohort.contributions.n_steps[0])):
        mine = np.flatnonzero(steps.step == step)
        sizes = n_rows[mine]
        if (sizes == sizes[0]).all():
            here = slice(begins[mine[0]], begins[mine[-1]] + sizes[0])
            found.append([(steps.owner[mine], x[here], labels[here])])
            continue
        batches = []
        for size in np.unique(sizes).tolist():
            group = mine[sizes == size]
            index = torch.from_numpy((begins[group][:, None] + np.arange(size)).ravel()).to(labels.device)
            batches.append((steps.owner[group], x[index], labels[index]))
        found.append(batches)
    return found


def _arranged(x: Tensor, n: int, block: Block) -> Tensor:
    """Rows of n devices, one device after another, as a stack's inputs (see `operations`)."""
    if n == 1:  # no stack: ordinary rows
        return x
    operations = getattr(block, "operations", ())
    if x.dim() == 2 or (operations and isinstance(operations[0], Flatten | Linear)):
        return x.flatten(1).view(n, len(x) // n, -1)
    _, c, h, w = x.shape
    return passes.side_by_side(x.permute(0, 2, 3, 1).reshape(n, len(x) // n, h, w, c))


def _gradients(own: Tensors, x: Tensor, labels: Tensor, n: int, depth: int, at: Workbench) -> Tensors:
    blocks = at.model.blocks[at.model.n_layers - depth :]
    weights, reach = at.model.by_block(own, depth), [ALL] * depth
    out, tapes = passes.forward(blocks, weights, x, reach, n)
    flat = out.flatten(0, 1) if out.dim() == 3 else out
    gradient = at.model.loss.gradient(flat, labels, flat.new_full((1, 1), n / len(flat))).view(out.shape)
    found = [part for _, part, _ in passes.backward(blocks, weights, tapes, gradient, reach)]
    return [part for parts in reversed(found) for part in parts]


def _picked(stack: Tensor, group: IntArray, n: int) -> Tensor:
    """The parameters of these devices out of a stack of n: a view if they are the first."""
    if len(group) == n:
        return stack
    each = len(stack) // n
    if group[-1] == len(group) - 1:
        return stack[: len(group) * each]
    return stack[_rows(group, each, stack)]


def _put(stack: Tensor, group: IntArray, n: int, values: Tensor) -> None:
    """Write back what `_picked` gave, changed; nothing to do where it was a view and was changed in place."""
    each = len(stack) // n
    if len(group) == n or group[-1] == len(group) - 1:
        here = stack[: len(group) * each]
        if here.data_ptr() != values.data_ptr():
            here.copy_(values)
    else:
        stack.index_copy_(0, _rows(group, each, stack), values)


def _rows(group: IntArray, each: int, like: Tensor) -> Tensor:
    return torch.from_numpy((group[:, None] * each + np.arange(each)).ravel()).to(like.device)


def _add_weighted(total: Tensors, parts: Tensors, table: np.ndarray) -> None:
    """total[i] += sum_device table[device, i] * parts[i] of the device."""
    if not table.any():
        return
    for i, (sum_, part) in enumerate(zip(total, parts, strict=True)):
        # As images lie in memory, where the sum does: a line of it is then a view.
        is_last = sum_.dim() == 4 and not sum_.is_contiguous()
        line, lines = (t.permute(0, 2, 3, 1) if is_last else t for t in (sum_, part))
        scales = torch.from_numpy(table[:, i]).to(part)
        line.view(-1).addmv_(lines.reshape(len(table), -1).t(), scales)
