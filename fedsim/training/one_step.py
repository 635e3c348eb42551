"""Cohorts of one local step: no per-device model ever exists.

All contributors start from the same weights, so the aggregate of a layer is one weighted sum of per-sample gradients.
Contributions are grouped by depth; a group's rows run as one batch, each row's loss scaled by its contribution's
weight, with the layers before the suffix outside the graph. FLOPs equal those of the exact suffix work.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fedsim.facts import Array, BoolArray, Contributions, IntArray
from fedsim.training.batches import Batches
from fedsim.training.resident import Resident
from fedsim.training.state import Tensors, WorkingModel

_RANK_ONE = 1e-12  # relative; far below the 1e-10 to which kernels must agree
_CHUNK_ACTIVATIONS = 2**21  # activations held at once: fixed, so that chunks do not depend on the machine


def is_one_step(contributions: Contributions) -> BoolArray:
    """Exactly one gradient, over some suffix, `[contribution]`."""
    return np.asarray(contributions.n_steps + (contributions.partial_depth > 0) == 1)


def as_product(table: Array) -> tuple[Array, Array] | None:
    """a, b with table = a[:, None] * b[None, :], or None if the table is no such product."""
    k, layer = np.unravel_index(np.abs(table).argmax(), table.shape)
    largest = table[k, layer]
    if largest == 0.0:
        return np.zeros(len(table)), np.zeros(table.shape[1])
    a, b = table[:, layer], table[k, :] / largest
    return (a, b) if np.abs(table - a[:, None] * b).max() <= _RANK_ONE * abs(largest) else None


def add_gradients(
    total: Tensors, model: WorkingModel, contributions: Contributions, table: Array, data: Resident, batches: Batches
) -> IntArray:
    """Add sum_k table[k, layer] * gradient_k to `total` for each group whose table is a product.

    The model's parameters must hold the start weights. Returns the contributions that were done; the others are left
    to another kernel.
    """
    done = [np.empty(0, dtype=np.int64)]
    depths = contributions.depth
    for depth in np.unique(depths):
        group = np.flatnonzero(depths == depth)
        factors = as_product(table[group][:, model.n_layers - depth :])
        if factors is None:
            continue
        _add_group(total, model, contributions.where(group), int(depth), factors, data, batches)
        done.append(group)
    return np.concatenate(done)


def _add_group(
    total: Tensors,
    model: WorkingModel,
    group: Contributions,
    depth: int,
    factors: tuple[Array, Array],
    data: Resident,
    batches: Batches,
) -> None:
    per_contribution, per_layer = factors
    first = model.first_of(depth)
    layers = np.asarray(model.layer_of[first:]) - (model.n_layers - depth)
    steps = [batches.rows(d, o, 0) for d, o in zip(group.device.tolist(), group.ordinal.tolist(), strict=True)]
    row_weights = np.concatenate(
        [np.full(len(rows), w / len(rows)) for rows, w in zip(steps, per_contribution, strict=True)]
    )
    for rows, weights in _chunks(np.concatenate(steps), row_weights, _chunk_rows(model)):
        x, labels = data.gather(rows)
        scale = torch.from_numpy(weights).to(x)

        def weighted_loss(out: Tensor, labels: Tensor = labels, scale: Tensor = scale) -> Tensor:
            return (functional.cross_entropy(out, labels, reduction="none") * scale).sum()

        gradients = model.suffix_gradients(x, weighted_loss, depth)
        for target, gradient, layer in zip(total[first:], gradients, layers, strict=True):
            target.add_(gradient, alpha=float(per_layer[layer]))


def _chunks(rows: IntArray, weights: Array, size: int) -> Iterator[tuple[IntArray, Array]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size], weights[start : start + size]


def _chunk_rows(model: WorkingModel) -> int:
    """Rows of a chunk: the power of two that keeps a chunk's activations within a fixed number."""
    return int(2 ** np.clip(np.floor(np.log2(_CHUNK_ACTIVATIONS / model.shape.n_activations.sum())), 4, 12))
