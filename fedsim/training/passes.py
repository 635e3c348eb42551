"""Forward and backward passes through the blocks of a chain, for exactly the rows and layers that train.

Rows come sorted by depth, deepest first: layer l is trained by the first `reach[l]` rows, which can only grow towards
the output. The other rows pass through it without leaving anything behind; the gradient is handed on only for
the rows that reach further. So the work is that of the exact suffix of each row, in one pass over all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedsim.training.operations import (
    Conv2d,
    Flatten,
    GroupNorm,
    Linear,
    MaxPool2d,
    Operation,
    Relu,
    Series,
    Tensors,
)
from fedsim.training.written_out import written_out

Weights = Sequence[Sequence[Tensor]]
"""Parameters of each block, `[block][parameter]`."""

_FOLD = 8


class Block(Protocol):
    """A layer of the model, ready to be passed through.

    own: its parameters. n: rows that train it; n_on: rows that go on to the next. n_stacked: see `operations`.
    """

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_on: int, n_stacked: int) -> tuple[Tensor, Any]: ...
    def backward(
        self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int
    ) -> tuple[Tensors, Tensor | None]: ...


class WrittenOut:
    """A block whose operations all have their backward pass written out."""

    def __init__(self, operations: list[Operation]) -> None:
        self.operations = operations
        self._series = Series(operations)

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_on: int, n_stacked: int) -> tuple[Tensor, Any]:
        return self._series.forward(x, own, n, n_on, n_stacked)

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        return self._series.backward(tape, own, gradient, n_on)


class Folded:
    """A convolution of images with one channel, of a few rows at a time side by side as if they were channels.

    oneDNN's kernels are made for many channels; measured, eight rows folded into channels go through convolution and
    pool in 60 % of the time. The first layer only: no gradient is handed on.
    """

    def __init__(self, plain: WrittenOut) -> None:
        self.plain = plain

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_on: int, n_stacked: int) -> tuple[Tensor, Any]:
        if n_stacked > 1 or n_on or len(x) % _FOLD or min(n, len(x)) % _FOLD:
            y, tape = self.plain.forward(x, own, n, n_on, n_stacked)
            return y, (tape, False)
        repeated = [p.repeat(_FOLD, *[1] * (p.dim() - 1)) for p in own]
        y, tape = self.plain.forward(_fold(x), repeated, min(n, len(x)) // _FOLD, 0, _FOLD)
        return _unfold(y), (tape, True)

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        kept, is_folded = tape
        if not is_folded:
            return self.plain.backward(kept, own, gradient, n_on)
        repeated = [p.repeat(_FOLD, *[1] * (p.dim() - 1)) for p in own]
        found, _ = self.plain.backward(kept, repeated, _fold(gradient), 0)
        return [f.view(_FOLD, *p.shape).sum(0) for f, p in zip(found, own, strict=True)], None


def _fold(x: Tensor) -> Tensor:
    """`[row, channel, ...]` to `[row / 8, 8 x channel, ...]`, channels last."""
    n, c, h, w = x.shape
    return side_by_side(x.permute(0, 2, 3, 1).reshape(n // _FOLD, _FOLD, h, w, c).transpose(0, 1))


def side_by_side(images: Tensor) -> Tensor:
    """`[device, row, height, width, channel]` to `[row, device x channel, height, width]`, channels last."""
    n, n_rows, h, w, c = images.shape
    # Not left to reshape: with one channel it would find a view, whose strides are not those of channels last.
    there = images.permute(1, 2, 3, 0, 4).contiguous()
    return there.view(n_rows, h, w, n * c).permute(0, 3, 1, 2)


def _unfold(y: Tensor) -> Tensor:
    n, c, h, w = y.shape
    apart = y.permute(0, 2, 3, 1).reshape(n, h, w, _FOLD, c // _FOLD).permute(0, 3, 1, 2, 4)
    return apart.reshape(n * _FOLD, h, w, c // _FOLD).permute(0, 3, 1, 2)


class ThroughAutograd:
    """Any other block: torch records a graph, apart for the rows that go on and those that do not.

    Works on the module's own parameters, which must hold the weights, and on no stack.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parameters = list(module.parameters())

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_on: int, n_stacked: int) -> tuple[Tensor, Any]:
        tape, outs = [], []
        for rows, goes_on in ((x[:n_on], True), (x[n_on:n], False)):
            if len(rows):
                with torch.enable_grad():
                    start = rows.detach().requires_grad_(goes_on)
                    out = self.module(start.clone())  # its first operation may be in place
                tape.append((start, out))
                outs.append(out.detach())
        if n < len(x):
            outs.append(self.module(x[n:]))
        return torch.cat(outs) if len(outs) > 1 else outs[0], tape

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        total: Tensors = []
        on, begin = None, 0
        for start, out in tape:
            wanted = [*self.parameters, start] if start.requires_grad else self.parameters
            found = list(torch.autograd.grad(out, wanted, gradient[begin : begin + len(start)]))
            on = found.pop() if start.requires_grad else on
            total = [a.add_(b) for a, b in zip(total, found, strict=True)] if total else found
            begin += len(start)
        return total, on


def blocks_of(
    modules: Sequence[nn.Module], *, written: bool = True, pool_before_relu: bool = True, fold: bool = True
) -> list[Block]:
    """Each module as a block; through autograd where it cannot be written out, or `written` is switched off.

    fold: whether a first layer of images with one channel may be folded.
    """
    found: list[Block] = []
    for module in modules:
        operations = written_out(module, pool_before_relu=pool_before_relu) if written else None
        if operations is None:
            found.append(ThroughAutograd(module))
            continue
        block = WrittenOut(operations)
        found.append(Folded(block) if fold and not found and _can_fold(operations) else block)
    return found


def _can_fold(operations: list[Operation]) -> bool:
    head = operations[0]
    return (
        isinstance(head, Conv2d)
        and head.module.in_channels == 1
        and all(isinstance(o, Conv2d | GroupNorm | MaxPool2d | Relu) for o in operations)
    )


def can_stack(block: Block) -> bool:
    """Whether devices with weights of their own can pass through it together."""
    plain = block.plain if isinstance(block, Folded) else block
    return isinstance(plain, WrittenOut) and all(o.can_stack for o in plain.operations)


def linear_of(block: Block) -> tuple[nn.Linear, bool] | None:
    """The Linear layer that a block consists of and whether a ReLU follows; None if it does anything else.

    A flattening before it is allowed: whoever uses this flattens the input.
    """
    if not isinstance(block, WrittenOut):
        return None
    operations = [o for o in block.operations if not isinstance(o, Flatten)]
    if not isinstance(operations[0], Linear) or len(operations) > 2:
        return None
    if len(operations) == 2 and not isinstance(operations[1], Relu):
        return None
    return operations[0].module, len(operations) == 2


@torch.no_grad()
def forward(
    blocks: Sequence[Block], weights: Weights, x: Tensor, reach: Sequence[int], n_stacked: int = 1
) -> tuple[Tensor, list[Any]]:
    """The output and a tape for `backward`. reach: rows that train each of these blocks, `[block]`."""
    tapes = []
    for i, block in enumerate(blocks):
        x, tape = block.forward(x, weights[i], reach[i], reach[i - 1] if i else 0, n_stacked)
        tapes.append(tape)
    return x, tapes


def outputs(blocks: Sequence[Block], weights: Weights, x: Tensor) -> Tensor:
    """The output alone; nothing is kept."""
    return forward(blocks, weights, x, [0] * len(blocks))[0]


@torch.no_grad()
def backward(
    blocks: Sequence[Block], weights: Weights, tapes: list[Any], gradient: Tensor, reach: Sequence[int]
) -> Iterator[tuple[int, Tensors, Tensor | None]]:
    """(block, gradients of its parameters, gradient of its input) from the last block to the first that trains.

    The gradient of the input, `[row that goes on, ...]`, may be scaled in place by whoever looks on.
    """
    at: Tensor | None = gradient
    for i in reversed(range(len(blocks))):
        if at is None or not reach[i]:
            return
        own, at = blocks[i].backward(tapes[i], weights[i], at, reach[i - 1] if i else 0)
        yield i, own, at
