"""Backward passes written out, for the operations that most models are made of.

Autograd costs about 10 us per operation and differentiates all rows or none. Written out, each operation trains the
rows that train its layer, and hands a gradient on for those rows only that go on towards the input. And it can work on
a stack: the same operation with weights of its own for each of several devices. Then parameters lie one device
after another in their first axis, images have the devices' channels side by side, `[row, device x channel, ...]`, and
flat rows are `[device, row, feature]`.

Operations nest: a `Series` is a chain of them, a `Residual` the sum of two chains. What has no parameters and is not
written out goes through autograd on its own (`Free`), so that it costs its block no more than itself.

Source of each rule: torch's own derivatives (`derivatives.yaml`), called through the same native kernels; group norm
has a second form (`group_norm.py`), for the layouts on which torch's kernel is slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsim.training.group_norm import group_norm, group_norm_backward, is_slow
from fedsim.training.layout import first, is_channels_last, laid_like

Tensors = list[Tensor]
ALL = 2**62
"""Every row, however many there are."""

_aten = torch.ops.aten
_convolution_backward = _aten.convolution_backward.default
_max_pool, _max_pool_backward = _aten.max_pool2d_with_indices.default, _aten.max_pool2d_with_indices_backward.default
_group_norm, _group_norm_backward = _aten.native_group_norm.default, _aten.native_group_norm_backward.default
_threshold_backward = _aten.threshold_backward.default


class Operation(Protocol):
    """One operation of a block.

    n_parameters: how many parameter tensors are its own. can_stack: whether it works on a stack of devices.
    """

    @property
    def n_parameters(self) -> int: ...
    @property
    def can_stack(self) -> bool: ...

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_on: int, n_stacked: int) -> tuple[Tensor, Any]:
        """The output of all rows, and a tape for the backward pass of the first n. Never changes a block's own input.

        own: its parameters. n: rows of `x` that train something at or before it; n_on: those among them whose gradient
        goes on to its input. n_stacked: devices in a stack, whose rows all train; 1 if there is no stack.
        """

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        """Gradients of its parameters, and of the first `n_on` rows of its input (None if 0).

        gradient: of its output, for the first n rows.
        """


class Linear:
    """nn.Linear over the last axis; in a stack, over flat rows."""

    can_stack = True

    def __init__(self, module: nn.Linear) -> None:
        self.module = module
        self.n_parameters = 1 if module.bias is None else 2

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_on: int, n_stacked: int) -> tuple[Tensor, Any]:
        if n_stacked == 1:
            return functional.linear(x, *own), (first(x, n), False)
        transposed = own[0].view(n_stacked, -1, x.shape[2]).transpose(1, 2)
        if self.n_parameters == 1:
            return torch.bmm(x, transposed), (x, True)
        return torch.baddbmm(own[1].view(n_stacked, 1, -1), x, transposed), (x, True)

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        x, is_stack = tape
        if not is_stack:
            flat = gradient.flatten(0, -2)  # rows may hold several vectors each, as those of a sequence
            found = [flat.t() @ x.flatten(0, -2), flat.sum(0)]
            return found[: self.n_parameters], first(gradient, n_on) @ own[0] if n_on else None
        found = [torch.bmm(gradient.transpose(1, 2), x).flatten(0, 1), gradient.sum(1).flatten()]
        on = torch.bmm(gradient, own[0].view(len(gradient), gradient.shape[2], -1)) if n_on else None
        return found[: self.n_parameters], on


class Conv2d:
    """nn.Conv2d padded with zeros; the devices of a stack are groups of channels."""

    can_stack = True

    def __init__(self, module: nn.Conv2d) -> None:
        self.module = module
        self.n_parameters = 1 if module.bias is None else 2

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_on: int, n_stacked: int) -> tuple[Tensor, Any]:
        m, bias = self.module, own[1] if self.n_parameters == 2 else None
        groups = m.groups * n_stacked
        y = functional.conv2d(x, own[0], bias, m.stride, m.padding, m.dilation, groups)
        return y, (first(x, n), groups)

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        # Asked for at once, the three gradients take oneDNN up to a quarter longer than one by one.
        x, groups = tape
        found = [self._backward(gradient, x, own[0], groups, weight=True)]
        if self.n_parameters == 2:
            found.append(gradient.sum((0, 2, 3)))
        if not n_on:
            return found, None
        return found, self._backward(first(gradient, n_on), first(x, n_on), own[0], groups, weight=False)

    def _backward(self, gradient: Tensor, x: Tensor, own: Tensor, groups: int, *, weight: bool) -> Tensor:
        """Of the weight, or else of the input."""
        m = self.module
        wanted = (not weight, weight, False)
        on, of_weight, _ = _convolution_backward(
            gradient, x, own, None, m.stride, m.padding, m.dilation, False, [0, 0], groups, wanted
        )
        return of_weight if weight else on  # type: ignore[no-any-return]


class GroupNorm:
    """nn.GroupNorm; the devices of a stack have groups of their own."""

    can_stack = True

    def __init__(self, module: nn.GroupNorm) -> None:
        self.module = module
        self.n_parameters = 2 if module.affine else 0

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_on: int, n_stacked: int) -> tuple[Tensor, Any]:
        n_flat = n_stacked if n_stacked > 1 and x.dim() == 3 else 1
        x = _beside(x, n_flat)
        weight, bias = own if own else (None, None)
        n_groups, eps = self.module.num_groups * n_stacked, self.module.eps
        # From 1024 pixels on torch takes another way forward, which is fast.
        if is_slow(x, n_groups) and x[0, 0].numel() < 1024:
            y, mean, rstd = group_norm(x, weight, bias, n_groups, eps)
        else:
            y, mean, rstd = _group_norm(x, weight, bias, *x.shape[:2], x[0, 0].numel(), n_groups, eps)
        return _apart(y, n_flat), (first(x, n), first(mean, n), first(rstd, n), n_flat)

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        x, mean, rstd, n_flat = tape
        gradient, weight, n_groups = laid_like(_beside(gradient, n_flat), x), own[0] if own else None, mean.shape[1]
        if is_slow(x, n_groups):
            on, *found = group_norm_backward(gradient, x, mean, rstd, weight, n_on)
        else:
            # torch 2.13 crashes on channels last where the gradient of the input is not wanted: ask for it always.
            wanted = [True, bool(own), bool(own)]
            on, *found = _group_norm_backward(
                gradient, x, mean, rstd, weight, *x.shape[:2], x[0, 0].numel(), n_groups, wanted
            )
        return found[: self.n_parameters], None if on is None or not n_on else _apart(first(on, n_on), n_flat)


def _beside(x: Tensor, n: int) -> Tensor:
    """Flat rows of a stack, `[device, row, feature]`, to `[row, device x feature]`: to group norm features are channels."""
    return x if n == 1 else x.transpose(0, 1).flatten(1)


def _apart(x: Tensor, n: int) -> Tensor:
    return x if n == 1 else x.view(len(x), n, -1).transpose(0, 1)


class Relu:
    """max(x, 0), in place if it may be."""

    n_parameters = 0
    can_stack = True

    def __init__(self, *, in_place: bool) -> None:
        self.in_place = in_place

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_on: int, n_stacked: int) -> tuple[Tensor, Any]:
        y = x.relu_() if self.in_place else x.relu()
        return y, first(y, n)

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        return [], _threshold_backward(first(gradient, n_on), first(tape, n_on), 0) if n_on else None


class Scaled(nn.Module):
    """A module that multiplies by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Scale:
    """`Scaled`, in place if it may be."""

    n_parameters = 0
    can_stack = True

    def __init__(self, factor: float, *, in_place: bool) -> None:
        self.factor, self.in_place = factor, in_place

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_on: int, n_stacked: int) -> tuple[Tensor, Any]:
        return x.mul_(self.factor) if self.in_place else x * self.factor, None

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        return [], first(gradient, n_on) * self.factor if n_on else None


class MaxPool2d:
    """nn.MaxPool2d."""

    n_parameters = 0
    can_stack = True

    def __init__(self, module: nn.MaxPool2d) -> None:
        m = module
        sizes = (m.kernel_size, m.kernel_size if m.stride is None else m.stride, m.padding, m.dilation)
        self.how: list[Any] = [[s, s] if isinstance(s, int) else list(s) for s in sizes] + [m.ceil_mode]

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_on: int, n_stacked: int) -> tuple[Tensor, Any]:
        y, where = _max_pool(x, *self.how)
        return y, (first(x, n), first(where, n))

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        if not n_on:
            return [], None
        x, where = (first(kept, n_on) for kept in tape)
        return [], _max_pool_backward(first(gradient, n_on), x, *self.how, where)


class MeanPool2d:
    """Adaptive average pooling to one pixel."""

    n_parameters = 0
    can_stack = True

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_on: int, n_stacked: int) -> tuple[Tensor, Any]:
        return x.mean((2, 3), keepdim=True), (x.shape[2:], is_channels_last(x))

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        if not n_on:
            return [], None
        (height, width), is_channels_last = tape
        on = (first(gradient, n_on) / (height * width)).expand(-1, -1, height, width)
        return [], on.contiguous(memory_format=torch.channels_last) if is_channels_last else on.contiguous()


class Flatten:
    """All axes but the rows to one, in the order of nn.Flatten; a stack comes out as `[device, row, feature]`."""

    n_parameters = 0
    can_stack = True

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_on: int, n_stacked: int) -> tuple[Tensor, Any]:
        if n_stacked == 1:
            return x.flatten(1), (x.shape[1:], is_channels_last(x), 1)
        if x.dim() == 3:
            return x, (x.shape[1:], False, n_stacked)
        n_rows, channels, height, width = x.shape
        apart = x.view(n_rows, n_stacked, channels // n_stacked, height, width)
        return apart.transpose(0, 1).reshape(n_stacked, n_rows, -1), (x.shape[1:], is_channels_last(x), n_stacked)

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        shape, is_channels_last, n_stacked = tape
        if not n_on:
            return [], None
        if n_stacked == 1:
            gradient = first(gradient, n_on)
            on = gradient.reshape(len(gradient), *shape)
        elif len(shape) == 2:
            return [], gradient
        else:
            n_rows, (channels, *pixels) = gradient.shape[1], shape
            apart = gradient.reshape(n_stacked, n_rows, channels // n_stacked, *pixels)
            on = apart.permute(1, 3, 4, 0, 2).reshape(n_rows, *pixels, channels).permute(0, 3, 1, 2)
        return [], on.contiguous(memory_format=torch.channels_last) if is_channels_last else on


class Free:
    """A module without parameters whose backward pass autograd finds: an activation, a pool, a rearrangement.

    The graph holds the rows whose gradient goes on and no others; rows must not mix.
    """

    n_parameters = 0
    can_stack = False

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_on: int, n_stacked: int) -> tuple[Tensor, Any]:
        n_on = min(n_on, len(x))
        # Clones, because a module may work in place and what it is given may be needed again.
        if n_on == 0:
            return self.module(x.clone()), None
        with torch.enable_grad():
            start = first(x, n_on).detach().requires_grad_()
            out = self.module(start.clone())
        y = out.detach()
        if n_on < len(x):
            y = torch.cat([y, self.module(x[n_on:].clone())])
        return y, (start, out)

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        if not n_on:
            return [], None
        start, out = tape
        (on,) = torch.autograd.grad(out, start, first(gradient, len(start)))
        return [], laid_like(first(on, n_on), start)  # an expanded gradient could not be scaled in place


class Series:
    """Operations one after another. Those before the first parameter keep, and differentiate, the rows that go on."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = list(operations)
        ends = [sum(o.n_parameters for o in operations[: i + 1]) for i in range(len(operations))]
        self.n_parameters = ends[-1] if ends else 0
        self.can_stack = all(o.can_stack for o in operations)
        self._slices = [slice(e - o.n_parameters, e) for o, e in zip(operations, ends, strict=True)]

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_on: int, n_stacked: int) -> tuple[Tensor, Any]:
        tapes = []
        for operation, mine in zip(self.operations, self._slices, strict=True):
            n_here, n_before = (n if mine.stop else n_on), (n if mine.start else n_on)
            x, tape = operation.forward(x, own[mine], n_here, n_before, n_stacked)
            tapes.append(tape)
        return x, tapes

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        found: Tensors = []
        at = gradient
        for operation, mine, kept in zip(
            reversed(self.operations), reversed(self._slices), reversed(tape), strict=True
        ):
            if not mine.stop:  # nothing trains from here on: what remains is to hand on
                if not n_on:
                    return found, None
                at = first(at, n_on)
            parts, on = operation.backward(kept, own[mine], at, ALL if mine.start else n_on)
            found = parts + found
            if on is None:
                return found, None
            at = on
        return found, first(at, n_on) if n_on else None


class Residual:
    """relu(main(x) + shortcut(x)), both of one shape; the parameters of main come first."""

    def __init__(self, main: Series, shortcut: Series) -> None:
        self.main, self.shortcut = main, shortcut
        self.n_parameters = main.n_parameters + shortcut.n_parameters
        self.can_stack = main.can_stack and shortcut.can_stack
        # These make a tensor that their own backward pass does not look at: the sum may take its place.
        self._in_place = bool(main.operations) and isinstance(main.operations[-1], MAKERS)

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_on: int, n_stacked: int) -> tuple[Tensor, Any]:
        """Raises ValueError if the summands differ in shape."""
        n_main = self.main.n_parameters
        y, tape = self.main.forward(x, own[:n_main], n, n_on, n_stacked)
        other, other_tape = self.shortcut.forward(x, own[n_main:], n, n_on, n_stacked)
        if y.shape != other.shape:
            raise ValueError(f"main gives {tuple(y.shape)} but shortcut {tuple(other.shape)}; make them equal")
        y = (y.add_(other) if self._in_place else y + other).relu_()
        return y, (tape, other_tape, first(y, n))

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        of_main, of_other, y = tape
        gradient = _threshold_backward(gradient, y, 0)
        n_main = self.main.n_parameters
        found, on = self.main.backward(of_main, own[:n_main], gradient, n_on)
        more, other_on = self.shortcut.backward(of_other, own[n_main:], gradient, n_on)
        # Not in place: either may be the gradient that came in.
        return found + more, None if on is None or other_on is None else on + other_on


MAKERS = (Linear, Conv2d, GroupNorm, MaxPool2d, MeanPool2d)
