"""Least squares: outputs y - A w for a matrix A and a vector y that come in with each sample; nothing else to learn.

Each step of training is then known exactly: its gradient is A^T (A w - y), its Hessian A^T A. The parameters w stand in
blocks, so that policies which train suffixes have layers to train; a block takes its columns of A off what the blocks
before it have left of y.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, MinLen
from torch import Tensor, nn

from fedsim.facts import BadInput


@dataclass(frozen=True)
class Quadratic:
    """w in blocks of `layer_sizes` parameters; the loss is 1/2 ||y - A w||^2. Every parameter starts at 1.

    layer_sizes: parameters of each layer, from the input; they add up to the data set's n_parameters.
    """

    source: ClassVar[str] = "least squares, as in Bottou, Curtis, Nocedal, SIAM Review 60, 2018, arXiv 1606.04838"
    loss: ClassVar[str] = "half_squared_norm"
    layer_sizes: Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)] = (3, 2, 2)

    def build(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Sequential:  # noqa: ARG002  there are no classes
        """Blocks w1, w2, ... on inputs `[y, A column by column]`; as many outputs as parameters."""
        p = sum(self.layer_sizes)
        if prod(input_shape) != p * (p + 1):
            raise BadInput(
                f"quadratic with layer_sizes that add up to {p} needs inputs of {p * (p + 1)} numbers (a vector and a "
                f"matrix); got {input_shape}: use it with the data set quadratic, of n_parameters: {p}",
                at=("model",),
            )
        return nn.Sequential(OrderedDict((f"w{i}", _Block(n, p)) for i, n in enumerate(self.layer_sizes, start=1)))


class _Block(nn.Module):
    """From `[row, n_rows + columns x n_rows]`, what is left of y and the columns of A to come, to the same for the next."""

    def __init__(self, n_columns: int, n_rows: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(n_columns))
        self.sizes = [n_rows, n_columns * n_rows]

    def forward(self, x: Tensor) -> Tensor:
        n_rows, n_mine = self.sizes
        left, mine, rest = x[:, :n_rows], x[:, n_rows : n_rows + n_mine], x[:, n_rows + n_mine :]
        # As a product of matrices, which is what FLOPs are counted by.
        fitted = torch.bmm(self.w.expand(len(x), 1, -1), mine.reshape(len(x), -1, n_rows)).squeeze(1)
        return torch.cat([left - fitted, rest], dim=1)
