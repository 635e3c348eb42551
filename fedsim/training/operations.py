"""Backward passes written out, for the operations that most models are made of.

Autograd costs about 10 us per operation and differentiates all rows or none. Written out, each operation trains the
rows that train its layer, and hands a gradient on for those rows only that go on towards the input. And it can work on
a stack: the same operation with weights of its own for each of several devices. Then parameters lie one device
after another in their first axis, images have the devices' channels side by side, `[row, device x channel, ...]`, and
flat rows are `[device, row, feature]`.

Source of each rule: torch's own derivatives (`derivatives.yaml`), called through the same native kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

Tensors = list[Tensor]
ALL = 2**62
"""Every row, however many there are."""

_aten = torch.ops.aten
_convolution_backward = _aten.convolution_backward.default
_max_pool, _max_pool_backward = _aten.max_pool2d_with_indices.default, _aten.max_pool2d_with_indices_backward.default
_group_norm, _group_norm_backward = _aten.native_group_norm.default, _aten.native_group_norm_backward.default
_threshold_backward = _aten.threshold_backward.default


def first(x: Tensor, n: int) -> Tensor:
    """The first n rows; a slice costs more than a look."""
    return x if n >= len(x) else x[:n]


class Operation(Protocol):
    """One operation of a block.

    own: its parameters. n: rows of `x` that train something at or before it; the tape keeps what their backward pass
    needs. n_stacked: devices in a stack, whose rows all train; 1 if there is no stack.
    """

    n_parameters: int

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_stacked: int) -> tuple[Tensor, Any]: ...
    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        """Gradients of its parameters, and of the first `n_on` rows of its input (None if 0)."""


class Linear:
    def __init__(self, module: nn.Linear) -> None:
        self.module = module
        self.n_parameters = 1 if module.bias is None else 2

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_stacked: int) -> tuple[Tensor, Any]:
        if n_stacked == 1:
            return functional.linear(x, *own), first(x, n)
        transposed = own[0].view(n_stacked, -1, x.shape[2]).transpose(1, 2)
        if self.n_parameters == 1:
            return torch.bmm(x, transposed), x
        return torch.baddbmm(own[1].view(n_stacked, 1, -1), x, transposed), x

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        if gradient.dim() == 2:
            found = [gradient.t() @ tape, gradient.sum(0)]
            return found[: self.n_parameters], first(gradient, n_on) @ own[0] if n_on else None
        found = [torch.bmm(gradient.transpose(1, 2), tape).flatten(0, 1), gradient.sum(1).flatten()]
        on = torch.bmm(gradient, own[0].view(len(gradient), gradient.shape[2], -1)) if n_on else None
        return found[: self.n_parameters], on


class Conv2d:
    def __init__(self, module: nn.Conv2d) -> None:
        self.module = module
        self.n_parameters = 1 if module.bias is None else 2

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_stacked: int) -> tuple[Tensor, Any]:
        m, bias = self.module, own[1] if self.n_parameters == 2 else None
        groups = m.groups * n_stacked
        y = functional.conv2d(x, own[0], bias, m.stride, m.padding, m.dilation, groups)  # type: ignore[arg-type]
        return y, (first(x, n), groups)

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        x, groups = tape
        at_once = n_on >= len(gradient)
        on, weight, bias = self._backward(gradient, x, own[0], groups, (at_once, True, self.n_parameters == 2))
        if n_on and not at_once:
            on = self._backward(gradient[:n_on], x[:n_on], own[0], groups, (True, False, False))[0]
        return [weight, bias][: self.n_parameters], on if n_on else None

    def _backward(
        self, gradient: Tensor, x: Tensor, weight: Tensor, groups: int, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        m = self.module
        biases = [len(weight)] if wanted[2] else None
        out: tuple[Tensor, Tensor, Tensor] = _convolution_backward(
            gradient, x, weight, biases, m.stride, m.padding, m.dilation, False, [0, 0], groups, wanted
        )
        return out


class GroupNorm:
    def __init__(self, module: nn.GroupNorm) -> None:
        self.module = module
        self.n_parameters = 2 if module.affine else 0

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_stacked: int) -> tuple[Tensor, Any]:
        weight, bias = own if own else (None, None)
        n_groups = self.module.num_groups * n_stacked
        y, mean, rstd = _group_norm(x, weight, bias, *x.shape[:2], x[0, 0].numel(), n_groups, self.module.eps)
        return y, (first(x, n), first(mean, n), first(rstd, n), n_groups)

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        x, mean, rstd, n_groups = tape
        wanted = [n_on > 0, bool(own), bool(own)]
        weight = own[0] if own else None
        on, *found = _group_norm_backward(
            gradient, x, mean, rstd, weight, *x.shape[:2], x[0, 0].numel(), n_groups, wanted
        )
        return found[: self.n_parameters], first(on, n_on) if n_on else None


class Relu:
    n_parameters = 0

    def __init__(self, *, in_place: bool) -> None:
        self.in_place = in_place

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_stacked: int) -> tuple[Tensor, Any]:
        y = x.relu_() if self.in_place else x.relu()
        return y, first(y, n)

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        return [], _threshold_backward(first(gradient, n_on), first(tape, n_on), 0) if n_on else None


class MaxPool2d:
    n_parameters = 0

    def __init__(self, module: nn.MaxPool2d) -> None:
        m = module
        sizes = (m.kernel_size, m.kernel_size if m.stride is None else m.stride, m.padding, m.dilation)
        self.how: list[Any] = [[s, s] if isinstance(s, int) else list(s) for s in sizes] + [m.ceil_mode]

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_stacked: int) -> tuple[Tensor, Any]:
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

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_stacked: int) -> tuple[Tensor, Any]:
        return x.mean((2, 3), keepdim=True), x.shape

    def backward(self, tape: Any, own: Sequence[Tensor], gradient: Tensor, n_on: int) -> tuple[Tensors, Tensor | None]:
        if not n_on:
            return [], None
        height, width = tape[2:]
        on = (first(gradient, n_on) / (height * width)).expand(-1, -1, height, width)
        return [], on.contiguous(memory_format=torch.channels_last)


class Flatten:
    n_parameters = 0

    def forward(self, x: Tensor, own: Sequence[Tensor], n: int, n_stacked: int) -> tuple[Tensor, Any]:
        if n_stacked == 1:
            return x.flatten(1), (x.shape[1:], _is_channels_last(x), 1)
        if x.dim() == 3:
            return x, (x.shape[1:], False, n_stacked)
        n_rows, channels, height, width = x.shape
        apart = x.view(n_rows, n_stacked, channels // n_stacked, height, width)
        return apart.transpose(0, 1).reshape(n_stacked, n_rows, -1), (x.shape[1:], _is_channels_last(x), n_stacked)

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
            apart = gradient.view(n_stacked, n_rows, channels // n_stacked, *pixels)
            on = apart.permute(1, 3, 4, 0, 2).reshape(n_rows, *pixels, channels).permute(0, 3, 1, 2)
        return [], on.contiguous(memory_format=torch.channels_last) if is_channels_last else on


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


# ---- from a module to its operations --------------------------------------------------------------------------------


def written_out(module: nn.Module, *, pool_before_relu: bool = True) -> list[Operation] | None:
    """The operations of a block, in order; None if it has one that is not written out here.

    pool_before_relu: swap a ReLU and the max pool after it: the same values, for a quarter of the comparisons.
    """
    parts = _parts(module)
    if parts is None:
        return None
    if pool_before_relu:
        for i in range(len(parts) - 1):
            if isinstance(parts[i], nn.ReLU) and isinstance(parts[i + 1], nn.MaxPool2d):
                parts[i], parts[i + 1] = parts[i + 1], parts[i]
    # A ReLU may overwrite what this block has made, never the block's own input, which may be needed again.
    is_fresh = [any(not isinstance(p, nn.Flatten | nn.ReLU) for p in parts[:i]) for i in range(len(parts))]
    operations = [_operation(part, on_fresh=fresh) for part, fresh in zip(parts, is_fresh, strict=True)]
    return [o for o in operations if o is not None] if None not in operations else None


def _parts(module: nn.Module) -> list[nn.Module] | None:
    """The leaves of nested nn.Sequential; None for anything that could do more than pass a tensor through them."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return None
    if type(module) is not nn.Sequential:
        return [] if type(module) is nn.Identity else [module]
    parts: list[nn.Module] = []
    for child in module:
        found = _parts(child)
        if found is None:
            return None
        parts += found
    return parts


def _operation(part: nn.Module, *, on_fresh: bool) -> Operation | None:
    """Exact types only: a subclass may do something else."""
    kind = type(part)
    plain: dict[type, Any] = {nn.Linear: Linear, nn.GroupNorm: GroupNorm}
    if kind in plain:
        return plain[kind](part)  # type: ignore[no-any-return]
    if kind is nn.Conv2d and part.padding_mode == "zeros" and not isinstance(part.padding, str):
        return Conv2d(part)  # type: ignore[arg-type]
    if kind is nn.MaxPool2d and not part.return_indices:
        return MaxPool2d(part)  # type: ignore[arg-type]
    free = {
        nn.ReLU: lambda: Relu(in_place=on_fresh),
        nn.Flatten: lambda: Flatten() if (part.start_dim, part.end_dim) == (1, -1) else None,
        nn.AdaptiveAvgPool2d: lambda: MeanPool2d() if _is_one_pixel(part.output_size) else None,
    }
    return free[kind]() if kind in free else None


def _is_one_pixel(size: Any) -> bool:
    return size in (1, (1, 1))
