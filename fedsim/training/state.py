"""Where learning state lives: the parameters as one flat list, by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedsim.facts import IntArray, ModelShape
from fedsim.training.layers import Chain
from fedsim.training.loss import Loss
from fedsim.training.passes import Block, ThroughAutograd, blocks_of
from fedsim.training.settings import Tuning

Tensors = list[Tensor]


@dataclass(eq=False)
class WorkingModel:
    """The one module that computes. Its parameters are scratch space: whoever uses them loads them first.

    blocks: the chain's blocks ready for passes of some rows through some layers.
    layer_of: which layer each parameter belongs to, `[parameter]`, in the order from input to output.
    computed_flops: of all gradients computed so far, from the rows and layers that really went through.
    """

    chain: Chain
    parameters: Tensors
    layer_of: tuple[int, ...]
    shape: ModelShape
    blocks: list[Block] = field(repr=False)
    computed_flops: float = 0.0

    @classmethod
    def of(cls, chain: Chain, shape: ModelShape, tuning: Tuning = Tuning()) -> WorkingModel:  # noqa: B008  # frozen
        parameters: Tensors = []
        layer_of: list[int] = []
        for layer in range(chain.n_layers):
            parameters += chain.parameters_of(layer)
            layer_of += [layer] * len(chain.parameters_of(layer))
        blocks = blocks_of(
            chain.blocks,
            written=tuning.written_out,
            pool_before_relu=tuning.pool_before_relu,
            fold=tuning.channels_last,
        )
        return cls(chain, parameters, tuple(layer_of), shape, blocks)

    @property
    def n_layers(self) -> int:
        return self.chain.n_layers

    @property
    def loss(self) -> Loss:
        return self.chain.loss

    def first_of(self, depth: int) -> int:
        """Index of the first parameter of the `depth` output-most layers."""
        return self._first_of[depth]

    @cached_property
    def _first_of(self) -> list[int]:
        n = self.n_layers
        return [sum(layer < n - depth for layer in self.layer_of) for depth in range(n + 1)]

    def parameters_of(self, layer: int) -> range:
        """Indices of a layer's parameters."""
        return range(self.first_of(self.n_layers - layer), self.first_of(self.n_layers - layer - 1))

    def load(self, values: Sequence[Tensor], depth: int | None = None) -> None:
        """Copy values into the parameters; only those of the `depth` output-most layers if it is stated."""
        first = 0 if depth is None else self.first_of(depth)
        with torch.no_grad():
            torch._foreach_copy_(self.parameters[first:], list(values[first:]))

    def by_block(self, values: Sequence[Tensor], depth: int | None = None) -> list[Sequence[Tensor]]:
        """These parameters of the `depth` output-most layers (all if None), `[block][parameter]`."""
        return self.between(values, 0 if depth is None else self.n_layers - depth, self.n_layers)

    def between(self, values: Sequence[Tensor], layer: int, end: int) -> list[Sequence[Tensor]]:
        """These parameters of layers layer ... end-1, `[block][parameter]`."""
        spans = [self.parameters_of(i) for i in range(layer, end)]
        return [values[span.start - spans[0].start : span.stop - spans[0].start] for span in spans]

    def ready(self, values: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """These weights for a pass through the blocks; loaded into the modules where a block computes by them."""
        if not any(isinstance(block, ThroughAutograd) for block in self.blocks):
            return self.by_block(values)
        self.load(values)
        return self.by_block(self.parameters)

    def count_rows(self, depths: IntArray) -> None:
        """Rows have gone through, each training so many output-most layers, `[row]`."""
        n_rows = np.bincount(depths, minlength=self.n_layers + 1)
        self.computed_flops += float(n_rows @ self.shape.step_flops)

    def count_suffix(self, n_rows: int, depth: int, trained: int) -> None:
        """Rows have gone through the `depth` output-most layers alone, training the `trained` last of them."""
        frozen = float(self.shape.forward_flops[: self.n_layers - depth].sum())
        self.computed_flops += n_rows * (float(self.shape.step_flops[trained]) - frozen)

    def suffix_gradients(self, x: Tensor, labels: Tensor, depth: int) -> Tensors:
        """Gradients of the rows' mean loss for the parameters of the `depth` output-most layers, `[parameter of suffix]`.

        The layers before them run without a graph, so no work is done that an early stop would not have done.
        """
        first_layer = self.n_layers - depth
        self.computed_flops += len(x) * float(self.shape.step_flops[depth])
        with torch.no_grad():
            for block in self.chain.blocks[:first_layer]:
                x = block(x)
        with torch.enable_grad():
            for block in self.chain.blocks[first_layer:]:
                x = block(x)
            return list(torch.autograd.grad(self.loss.mean(x, labels), self.parameters[self.first_of(depth) :]))
