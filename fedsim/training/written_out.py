"""From a module to the operations that it consists of; exact types only, because a subclass may do something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fedsim.training.operations import (
    MAKERS,
    Conv2d,
    Flatten,
    Free,
    GroupNorm,
    Linear,
    MaxPool2d,
    MeanPool2d,
    Operation,
    Relu,
    Residual,
    Scale,
    Scaled,
    Series,
)


def written_out(module: nn.Module, *, pool_before_relu: bool = True) -> list[Operation] | None:
    """The operations of a block, in order; None if it has one that is not written out here.

    A module whose class declares `sum_of = ("main", "shortcut")`, or two other names of submodules, promises that its
    forward is relu(main(x) + shortcut(x)), and becomes a `Residual`.
    pool_before_relu: swap a ReLU and the max pool after it: the same values, for a quarter of the comparisons.
    """
    parts = _parts(module)
    if parts is None:
        return None
    if pool_before_relu:
        for i in range(len(parts) - 1):
            if isinstance(parts[i], nn.ReLU) and isinstance(parts[i + 1], nn.MaxPool2d):
                parts[i], parts[i + 1] = parts[i + 1], parts[i]
    operations: list[Operation] = []
    # A ReLU may overwrite what this block has made and nobody keeps, never the block's own input.
    is_fresh = False
    for part in parts:
        operation = _operation(part, on_fresh=is_fresh, pool_before_relu=pool_before_relu)
        if operation is None:
            return None
        operations.append(operation)
        # A free module's output may be kept for its backward pass, or be a view.
        is_fresh = not isinstance(operation, Free) and (is_fresh or isinstance(operation, (*MAKERS, Residual)))
    # A module that stands there twice has its parameters once.
    is_whole = sum(o.n_parameters for o in operations) == sum(1 for _ in module.parameters())
    return operations if is_whole else None


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


def _operation(part: nn.Module, *, on_fresh: bool, pool_before_relu: bool) -> Operation | None:
    kind = type(part)
    if "sum_of" in vars(kind):
        return _residual(part, *vars(kind)["sum_of"], pool_before_relu=pool_before_relu)
    if kind in _WRITTEN and (operation := _WRITTEN[kind](part, on_fresh)):
        return operation
    return Free(part) if _is_free(part) else None


# Exact types only: a subclass may do something else. None for settings that are not written out.
_WRITTEN: dict[type, Callable[[Any, bool], Operation | None]] = {
    nn.Linear: lambda part, _: Linear(part),
    nn.Conv2d: lambda part, _: Conv2d(part) if _pads_zeros(part) else None,
    nn.GroupNorm: lambda part, _: GroupNorm(part),
    nn.MaxPool2d: lambda part, _: None if part.return_indices else MaxPool2d(part),
    Scaled: lambda part, on_fresh: Scale(part.factor, in_place=on_fresh),
    nn.ReLU: lambda _, on_fresh: Relu(in_place=on_fresh),
    nn.Flatten: lambda part, _: Flatten() if (part.start_dim, part.end_dim) == (1, -1) else None,
    nn.AdaptiveAvgPool2d: lambda part, _: MeanPool2d() if part.output_size in (1, (1, 1)) else None,
}


def _pads_zeros(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _residual(module: nn.Module, main: str, shortcut: str, *, pool_before_relu: bool) -> Residual | None:
    summands = [module.get_submodule(name) for name in (main, shortcut)]
    in_order = [id(p) for summand in summands for p in summand.parameters()]
    left, right = (written_out(summand, pool_before_relu=pool_before_relu) for summand in summands)
    if left is None or right is None or in_order != [id(p) for p in module.parameters()]:
        return None
    return Residual(Series(left), Series(right))


def _is_free(module: nn.Module) -> bool:
    """No parameters, no state; and none of those that draw at random or tie rows together."""
    if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
        return False
    return not any(isinstance(part, _DropoutNd | _BatchNorm) for part in module.modules())
