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
_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Scores, and their products with the values."""
    n_outputs = query.numel() // query.shape[-1] * value.shape[-1]
    return int(2 * key.shape[-2] * (query.numel() + n_outputs))


def _attention_backward(gradient: Any, query: Any, key: Any, *_: Any, **__: Any) -> int:
    """The scores once more; gradients of queries, keys, values and scores."""
    return int(2 * key.shape[-2] * (3 * query.numel() + 2 * gradient.numel()))


# torch's registry has the fused attention of CUDA only.
_FORMULAS = {**flop_registry, _ATTENTION: _attention, _ATTENTION_BACKWARD: _attention_backward}


class FlopCount(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """FLOPs of the torch operations inside `with FlopCount() as count: ...`, in `count.flops`.

    n_outputs: numbers that convolutions, matrix products and attention have put out; of forward passes only.

    torch's own FlopCounterMode adds module hooks, which fail when backward passes run over segments of a model.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: int = 0
        self.n_outputs: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in _FORMULAS:
            with self:  # a composite operation (linear under no_grad) is counted by its parts
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if func._overloadpacket is _CONVOLUTION_BACKWARD:
            self.flops += _convolution_backward(*args)
        elif formula := _FORMULAS.get(func._overloadpacket):
            self.flops += formula(*args, **kwargs, out_val=out)
            first = out[0] if isinstance(out, tuple) else out  # attention hands over what its gradient needs besides
            self.n_outputs += first.numel()
        return out


def _convolution_backward(gradient: Any, _: Any, weight: Any, *settings: Any) -> int:
    """torch's own formula leaves out that a group sees its own channels only."""
    wants_input, wants_weight, _ = settings[-1]
    each: int = 2 * gradient.numel() * weight[0].numel()
    return each * (bool(wants_input) + bool(wants_weight))
