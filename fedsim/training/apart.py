"""Contributions trained each into a sum of its own, where somebody must see what a single device changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedsim.facts import Array, BoolArray, IntArray
from fedsim.training.cohort import Cohort
from fedsim.training.kernels import Train
from fedsim.training.state import Tensors, WorkingModel

_BYTES = 2**26  # of updates that exist at once: fixed, because the size of a group changes bits


def each(
    cohort: Cohort, train: Train, own: Callable[[IntArray], Sequence[Tensors]] | None = None
) -> Iterator[tuple[IntArray, list[Tensors], float]]:
    """(contributions, the change of each `[contribution][parameter]`, FLOPs), as many at a time as the memory allows.

    own: how far the starts of some contributions are from the cohort's, if they have starts of their own.
    """
    model_bytes = sum(p.numel() * p.element_size() for p in cohort.start)
    size = max(1, _BYTES // model_bytes)
    for begin in range(0, len(cohort), size):
        group = np.arange(begin, min(begin + size, len(cohort)))
        mine = cohort.where(group)
        held = np.arange(mine.table.shape[1]) >= mine.table.shape[1] - mine.contributions.depth[:, None]
        alone = replace(
            mine,
            table=held.astype(np.float64),
            target=np.arange(len(group)),
            own=None if own is None else own(group),
        )
        updates = [[torch.zeros_like(p) for p in cohort.start] for _ in group]
        yield group, updates, train(updates, alone)


def squares(values: Sequence[Tensor], model: WorkingModel, is_held: BoolArray) -> Array:
    """Sums of squares of what has a gradient, `[layer]`; 0 in layers that are not held."""
    found = np.zeros(model.n_layers)
    for value, layer, has_gradient in zip(values, model.layer_of, model.has_gradient, strict=True):
        if has_gradient and is_held[layer]:
            found[layer] += float(value.double().square().sum())
    return found


def differences(values: Sequence[Tensor], others: Sequence[Tensor]) -> Tensors:
    return [one - other for one, other in zip(values, others, strict=True)]
