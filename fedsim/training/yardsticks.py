"""What the trainer's speed is measured against: the loops that people write.

Naive: a deep copy of the model and an SGD object for each device, all layers trained in full, layers that a straggler
did not finish thrown away afterwards; the form of most published scripts. Tight: one model, gradients of the suffix
only, updates in place: the best that a careful person writes by hand. Both are given ready batches as tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, Tensor]
Tensors = list[Tensor]


def naive_round(
    model: nn.Sequential, tasks: Sequence[Sequence[Batch]], depths: Sequence[int], rate: float, *, freezes: bool
) -> Tensors:
    """The mean change of each layer over those who trained it, `[parameter]`; the model stays as it was.

    tasks: batches of each device, `[device][step]`. depths: layers from the output that count, `[device]`.
    freezes: layers before those are frozen from the start (a static assignment), instead of thrown away (stragglers).
    """
    parameters, layer_of, n_layers = _flat(model)
    total = [torch.zeros_like(p) for p in parameters]
    n_contributors = [0] * n_layers
    for batches, depth in zip(tasks, depths, strict=True):
        own = copy.deepcopy(model)
        for layer, block in enumerate(own):
            block.requires_grad_(not freezes or layer >= n_layers - depth)
        optimizer = torch.optim.SGD([p for p in own.parameters() if p.requires_grad], lr=rate)
        for x, labels in batches:
            optimizer.zero_grad()
            functional.cross_entropy(own(x), labels).backward()
            optimizer.step()
        with torch.no_grad():
            for i, (mine, start) in enumerate(zip(own.parameters(), parameters, strict=True)):
                if layer_of[i] >= n_layers - depth:
                    total[i] += mine - start
        for layer in range(n_layers - depth, n_layers):
            n_contributors[layer] += 1
    return [t / max(1, n_contributors[layer]) for t, layer in zip(total, layer_of, strict=True)]


def tight_round(model: nn.Sequential, tasks: Sequence[Sequence[Batch]], depths: Sequence[int], rate: float) -> Tensors:
    """The same; the model holds the last device's weights in between, and its own again at the end."""
    parameters, layer_of, n_layers = _flat(model)
    start = [p.detach().clone() for p in parameters]
    total = [torch.zeros_like(p) for p in parameters]
    n_contributors = [0] * n_layers
    for batches, depth in zip(tasks, depths, strict=True):
        if depth == 0:
            continue
        first = next(i for i, layer in enumerate(layer_of) if layer >= n_layers - depth)
        own, moved = parameters[first:], total[first:]
        for step, (x, labels) in enumerate(batches):
            gradients = torch.autograd.grad(functional.cross_entropy(model(x), labels), own)
            with torch.no_grad():
                torch._foreach_add_(moved, gradients, alpha=-rate)
                if step < len(batches) - 1:
                    torch._foreach_add_(own, gradients, alpha=-rate)
        if len(batches) > 1:
            with torch.no_grad():
                torch._foreach_copy_(own, start[first:])
        for layer in range(n_layers - depth, n_layers):
            n_contributors[layer] += 1
    return [t / max(1, n_contributors[layer]) for t, layer in zip(total, layer_of, strict=True)]


def naive_evaluation(model: nn.Module, x: Tensor, labels: Tensor, n_rows: int = 256) -> tuple[float, float]:
    """Accuracy and mean cross-entropy, batch by batch."""
    n_right, loss = 0, 0.0
    with torch.no_grad():
        for mine, its in zip(x.split(n_rows), labels.split(n_rows), strict=True):  # type: ignore[no-untyped-call]
            out = model(mine)
            n_right += int((out.argmax(1) == its).sum())
            loss += float(functional.cross_entropy(out, its, reduction="sum"))
    return n_right / len(x), loss / len(x)


def _flat(model: nn.Sequential) -> tuple[Tensors, list[int], int]:
    layer_of = [layer for layer, block in enumerate(model) for _ in block.parameters()]
    return list(model.parameters()), layer_of, len(model)
