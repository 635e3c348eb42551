"""Where learning state lives: the parameters as one flat list, by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.facts import ModelShape
from fedsim.training.layers import Chain

Tensors = list[Tensor]


@dataclass(eq=False)
class WorkingModel:
    """The one module that computes. Its parameters are scratch space: whoever uses them loads them first.

    layer_of: which layer each parameter belongs to, `[parameter]`, in the order from input to output.
    computed_flops: of all gradients computed so far, from the rows and layers that really went through.
    """

    chain: Chain
    parameters: Tensors
    layer_of: tuple[int, ...]
    shape: ModelShape
    computed_flops: float = 0.0

    @classmethod
    def of(cls, chain: Chain, shape: ModelShape) -> WorkingModel:
        parameters: Tensors = []
        layer_of: list[int] = []
        for layer in range(chain.n_layers):
            parameters += chain.parameters_of(layer)
            layer_of += [layer] * len(chain.parameters_of(layer))
        return cls(chain, parameters, tuple(layer_of), shape)

    @property
    def n_layers(self) -> int:
        return self.chain.n_layers

    def first_of(self, depth: int) -> int:
        """Index of the first parameter of the `depth` output-most layers."""
        first_layer = self.n_layers - depth
        return next((i for i, layer in enumerate(self.layer_of) if layer >= first_layer), len(self.layer_of))

    def load(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, list(values))

    def suffix_gradients(self, x: Tensor, loss_of: Callable[[Tensor], Tensor], depth: int) -> Tensors:
        """Gradients of `loss_of(output)` for the parameters of the `depth` output-most layers, `[parameter of suffix]`.

        The layers before them run without a graph, so no work is done that an early stop would not have done.
        """
        first_layer = self.n_layers - depth
        self.computed_flops += len(x) * float(self.shape.step_flops[depth])
        with torch.no_grad():
            for block in self.chain.blocks[:first_layer]:
                x = block(x)
        for block in self.chain.blocks[first_layer:]:
            x = block(x)
        return list(torch.autograd.grad(loss_of(x), self.parameters[self.first_of(depth) :]))
