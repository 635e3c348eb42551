"""Fully connected layers with ReLU between them. Inputs of any shape are flattened."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Self

from torch import nn

from fedsim.models._blocks import Count, chain_of, n_kept


@dataclass(frozen=True)
class Mlp:
    """A multilayer perceptron.

    widths: the hidden layers from the input; (64, 64, 64) on 64 features with 10 classes is 64-64-64-64-10. Empty:
        softmax regression.
    """

    source: ClassVar[str] = (
        "Rumelhart, Hinton, Williams, Learning representations by back-propagating errors, Nature 323, 1986"
    )
    widths: tuple[Count, ...] = (64, 64, 64)

    def build(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Sequential:
        """Blocks fc1, fc2, ...: one for each hidden layer, and the output layer."""
        sizes = list(pairwise([math.prod(input_shape), *self.widths, n_outputs]))
        blocks = [self._hidden(n_in, n_out) for n_in, n_out in sizes[:-1]] + [chain_of(linear=nn.Linear(*sizes[-1]))]
        blocks[0] = chain_of(flatten=nn.Flatten(), **dict(blocks[0].named_children()))
        return nn.Sequential(OrderedDict((f"fc{i}", block) for i, block in enumerate(blocks, start=1)))

    def narrowed(self, rate: float, *, convolutions: bool = True) -> Self:  # noqa: ARG002  it has none
        """The model of the leading units, rate x width of each hidden layer rounded up; inputs and outputs stay."""
        return replace(self, widths=tuple(n_kept(rate, n) for n in self.widths))

    def _hidden(self, n_in: int, n_out: int) -> nn.Sequential:
        return chain_of(linear=nn.Linear(n_in, n_out), relu=nn.ReLU())
