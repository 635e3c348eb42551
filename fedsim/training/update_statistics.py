"""Squared norms of the devices' updates, and their distances from the aggregate, layer by layer.

A concatenated gradient does not show a device's own part of it. So where these are wanted, each device is trained into a
sum of its own, a few devices at a time, and its update is forgotten once it is measured; norms thus cost batches of one
device instead of many, at the same FLOPs. Distances need the aggregate, which is known only after the last device: they
cost every device's FLOPs a second time. A policy or a scenario that does not ask pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from fedsim.facts import Array, IntArray
from fedsim.training.cohort import Cohort, Workbench
from fedsim.training.state import Tensors

Train = Callable[[Sequence[Tensors], Cohort], float]
_BYTES = 2**26  # of updates that exist at once: fixed, because the size of a group changes bits


def add_norms(change: Tensors, norms: Array, rows: IntArray, cohort: Cohort, train: Train, at: Workbench) -> float:
    """Add the cohort's weighted updates to `change`, their squared norms to `norms[rows]`; returns the FLOPs."""
    flops = 0.0
    for group, updates, its_flops in _each(cohort, train):
        flops += its_flops
        for k, update in zip(group.tolist(), updates, strict=True):
            for i, layer in enumerate(at.model.layer_of):
                norms[rows[k], layer] += float(update[i].double().square().sum())
                change[i].add_(update[i], alpha=float(cohort.table[k, layer]))
    return flops


def add_distances(
    change: Tensors, distances: Array, rows: IntArray, cohort: Cohort, train: Train, at: Workbench
) -> float:
    """Add to `distances[rows]` the squared distances of the cohort's updates from `change`; returns the FLOPs."""
    flops = 0.0
    held = cohort.contributions.holds_layer
    for group, updates, its_flops in _each(cohort, train):
        flops += its_flops
        for k, update in zip(group.tolist(), updates, strict=True):
            for i, layer in enumerate(at.model.layer_of):
                if held[k, layer]:
                    distances[rows[k], layer] += float((update[i] - change[i]).double().square().sum())
    return flops


def _each(cohort: Cohort, train: Train) -> Iterator[tuple[IntArray, list[Tensors], float]]:
    """(contributions, the update of each, FLOPs), as many at a time as the fixed memory allows."""
    model_bytes = sum(p.numel() * p.element_size() for p in cohort.start)
    size = max(1, _BYTES // model_bytes)
    for begin in range(0, len(cohort), size):
        group = np.arange(begin, min(begin + size, len(cohort)))
        mine = cohort.where(group)
        whole = replace(mine, table=mine.contributions.holds_layer.astype(float), target=np.arange(len(group)))
        updates = [[torch.zeros_like(p) for p in cohort.start] for _ in group]
        yield group, updates, train(updates, whole)
