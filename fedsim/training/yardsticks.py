"""What the trainer's speed is measured against: the loops that people write.

Naive: a deep copy of the model and an SGD object for each device, all layers trained in full, layers that a straggler
did not finish thrown away afterwards; the form of most published scripts. Tight: one model, gradients of the suffix
only, updates in place: the best that a careful person writes by hand. Both are given ready batches as tensors.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, Tensor]
Tensors = list[Tensor]


@dataclass(frozen=True)
class Images:
    """A small network for images as people write it: convolution, ReLU, pool, twice; then fully connected layers.

    hidden: width of the one between; None leaves it out. padding: of the convolutions, pixels.
    """

    kernel: int
    channels: tuple[int, int]
    hidden: int | None
    padding: int = 0

    def build(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Sequential:
        """Blocks in the order of the forward pass."""
        n_in, side, _ = input_shape
        blocks = []
        for n_out in self.channels:
            blocks.append(
                nn.Sequential(nn.Conv2d(n_in, n_out, self.kernel, padding=self.padding), nn.ReLU(), nn.MaxPool2d(2))
            )
            n_in, side = n_out, (side + 2 * self.padding - self.kernel + 1) // 2
        n_features = n_in * side * side
        if self.hidden is None:
            return nn.Sequential(*blocks, nn.Sequential(nn.Flatten(), nn.Linear(n_features, n_outputs)))
        hidden = nn.Sequential(nn.Flatten(), nn.Linear(n_features, self.hidden), nn.ReLU())
        return nn.Sequential(*blocks, hidden, nn.Sequential(nn.Linear(self.hidden, n_outputs)))


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
            functional.cross_entropy(own(x), labels).backward()  # type: ignore[no-untyped-call]
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


def copy_of(module: nn.Module, device: str) -> nn.Sequential:
    """A model of the loops' own."""
    own = copy.deepcopy(module).to(device)
    if not isinstance(own, nn.Sequential):
        raise TypeError(f"the loops train an nn.Sequential of blocks; got {type(module).__name__}")
    return own


def tensors(inputs: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], device: str) -> Batch:
    """Data as the loops are given them."""
    return torch.from_numpy(inputs).to(device), torch.from_numpy(labels).to(device)


def limit_flops_per_s(device: str) -> float:
    """What this machine does on a large matrix product, the best of a few."""
    n = 1024 if device == "cpu" else 8192
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    times_s = []
    for _ in range(10):
        begin = time.perf_counter()
        torch.mm(a, b)
        wait_for(device)
        times_s.append(time.perf_counter() - begin)
    return 2.0 * n**3 / min(times_s)


def wait_for(device: str) -> None:
    """Until the device has done what it was asked."""
    if device != "cpu":
        torch.cuda.synchronize()


def has_cuda() -> bool:
    return torch.cuda.is_available()
