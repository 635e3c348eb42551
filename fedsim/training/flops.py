"""Counting the floating point operations that torch really carries out.

Formulas are torch's own (`torch.utils.flop_counter`): matrix products, convolutions and attention, a multiply-add
counted as two. Element by element work (activations, pooling, normalisation) is not counted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward


class FlopCount(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """FLOPs of the torch operations inside `with FlopCount() as count: ...`, in `count.flops`.

    torch's own FlopCounterMode adds module hooks, which fail when backward passes run over segments of a model.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            with self:  # a composite operation (linear under no_grad) is counted by its parts
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if func._overloadpacket is _CONVOLUTION_BACKWARD:
            self.flops += _convolution_backward(*args)
        elif formula := flop_registry.get(func._overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


def _convolution_backward(gradient: Any, _: Any, weight: Any, *settings: Any) -> int:
    """torch's own formula leaves out that a group sees its own channels only."""
    wants_input, wants_weight, _ = settings[-1]
    each: int = 2 * gradient.numel() * weight[0].numel()
    return each * (bool(wants_input) + bool(wants_weight))
