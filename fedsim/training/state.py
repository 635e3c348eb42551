"""Where learning state lives: the parameters as one flat list, by layer; running statistics of BatchNorm among them.

Running statistics are learned without a gradient: they move in the forward passes of the layers that normalise by the
batch, also in the step that a device did not finish. They travel, wait and are averaged like the parameters of their
layer, but no learning rate, weight decay, momentum or server optimiser acts on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fedsim.facts import Contributions, IntArray, ModelShape
from fedsim.training.layers import Chain
from fedsim.training.loss import Loss
from fedsim.training.passes import Block, ThroughAutograd, blocks_of
from fedsim.training.resident import Resident
from fedsim.training.settings import BatchNormMode, Tuning

Tensors = list[Tensor]
_STATISTICS_ROWS = 500  # that pass at once when running statistics are taken from data: fixed, because it changes them


@dataclass(eq=False)
class WorkingModel:
    """The one module that computes. Its parameters are scratch space: whoever uses them loads them first.

    parameters: of each layer from the input, its parameters and then the running statistics that travel.
    layer_of: which layer each of them belongs to, `[parameter]`. has_gradient: whether it has one, `[parameter]`.
    blocks: the chain's blocks ready for passes of some rows through some layers.
    batch_norm: see `settings.Training`.
    computed_flops: of all gradients computed so far, from the rows and layers that really went through.
    """

    chain: Chain
    parameters: Tensors
    layer_of: tuple[int, ...]
    has_gradient: tuple[bool, ...]
    shape: ModelShape
    blocks: list[Block] = field(repr=False)
    batch_norm: BatchNormMode = "eval_prefix"
    computed_flops: float = 0.0

    @classmethod
    def of(
        cls,
        chain: Chain,
        shape: ModelShape,
        tuning: Tuning = Tuning(),  # noqa: B008  # frozen
        batch_norm: BatchNormMode = "eval_prefix",
    ) -> WorkingModel:
        parameters: Tensors = []
        layer_of: list[int] = []
        has_gradient: list[bool] = []
        for layer in range(chain.n_layers):
            learned = chain.parameters_of(layer)
            statistics = [] if batch_norm == "static" else chain.statistics_of(layer)
            parameters += [*learned, *statistics]
            layer_of += [layer] * (len(learned) + len(statistics))
            has_gradient += [True] * len(learned) + [False] * len(statistics)
        blocks = blocks_of(
            chain.blocks,
            written=tuning.written_out,
            pool_before_relu=tuning.pool_before_relu,
            fold=tuning.channels_last,
        )
        return cls(chain, parameters, tuple(layer_of), tuple(has_gradient), shape, blocks, batch_norm)

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

    def with_gradient(self, depth: int) -> list[int]:
        """Indices of those of the `depth` output-most layers that have a gradient."""
        return [i for i in range(self.first_of(depth), len(self.parameters)) if self.has_gradient[i]]

    @cached_property
    def statistics(self) -> list[int]:
        """Indices of the running statistics that travel."""
        return [i for i, has_gradient in enumerate(self.has_gradient) if not has_gradient]

    def columns(self, contributions: Contributions) -> tuple[int, ...]:
        """The column of the weight table that each parameter is averaged by, `[parameter]`: mostly its layer's."""
        terms = contributions.terms
        # Who keeps layers to himself, or trains a part of every layer, trains them all: there is no prefix.
        if self.batch_norm != "train_prefix" or terms.pushes is not None or terms.subnetwork is not None:
            return self.layer_of
        last = self.n_layers - 1  # everybody who brings anything brings the output layer
        return tuple(at if own else last for at, own in zip(self.layer_of, self.has_gradient, strict=True))

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
        """These weights for a pass through the blocks; loaded into the modules where a block computes by them.

        BatchNorm then normalises by running statistics.
        """
        if not any(isinstance(block, ThroughAutograd) for block in self.blocks):
            return self.by_block(values)
        self.load(values)
        self._normalise_by_batch(from_layer=self.n_layers)
        return self.by_block(self.parameters)

    def count_rows(self, depths: IntArray) -> None:
        """Rows have gone through, each training so many output-most layers, `[row]`."""
        n_rows = np.bincount(depths, minlength=self.n_layers + 1)
        self.computed_flops += float(n_rows @ self.shape.step_flops)

    def count_suffix(self, n_rows: int, depth: int, trained: int) -> None:
        """Rows have gone through the `depth` output-most layers alone, training the `trained` last of them."""
        frozen = float(self.shape.forward_flops[: self.n_layers - depth].sum())
        self.computed_flops += n_rows * (float(self.shape.step_flops[trained]) - frozen)

    @cached_property
    def _norms(self) -> list[list[_BatchNorm]]:
        return [self.chain.norms_of(layer) for layer in range(self.n_layers)]

    def _normalise_by_batch(self, from_layer: int) -> None:
        """BatchNorm of these layers on normalises by the batch and moves its running statistics; before them it does not."""
        for layer, norms in enumerate(self._norms):
            for norm in norms:
                norm.train(layer >= from_layer)

    @torch.no_grad()
    def take_statistics(self, data: Resident) -> None:
        """Set the module's running statistics to their means over equal parts of the data, in one pass.

        The parts take turns row by row, so that data sorted by class do not make parts of one class.
        """
        norms = [norm for of_layer in self._norms for norm in of_layer]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        self._normalise_by_batch(from_layer=0)
        n_parts = -(-len(data) // _STATISTICS_ROWS)
        for part in range(n_parts):
            for norm in norms:
                norm.momentum = 1.0 / (part + 1)
            x, _ = data.gather(np.arange(part, len(data), n_parts))
            for block in self.chain.blocks:
                x = block(x)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self._normalise_by_batch(from_layer=self.n_layers)

    def suffix_gradients(self, x: Tensor, labels: Tensor, depth: int, task_depth: int | None = None) -> Tensors:
        """Gradients of the rows' mean loss for the `depth` output-most layers, of those that have one, `[parameter]`.

        The layers before them run without a graph, so no work is done that an early stop would not have done.
        task_depth: layers that the task trains, if it is more than those which this step has come to: their forward pass
        is that of training.
        """
        first_layer = self.n_layers - depth
        is_prefix_frozen = self.batch_norm == "eval_prefix"
        self._normalise_by_batch(from_layer=self.n_layers - (task_depth or depth) if is_prefix_frozen else 0)
        self.computed_flops += len(x) * float(self.shape.step_flops[depth])
        with torch.no_grad():
            for block in self.chain.blocks[:first_layer]:
                x = block(x)
        with torch.enable_grad():
            for block in self.chain.blocks[first_layer:]:
                x = block(x)
            wanted = [self.parameters[i] for i in self.with_gradient(depth)]
            return list(torch.autograd.grad(self.loss.mean(x, labels), wanted))
