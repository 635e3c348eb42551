"""Squared norms of the devices' updates, and their distances from the aggregate, layer by layer.

A concatenated gradient does not show a device's own part of it. So where these are wanted, each device is trained into a
sum of its own, a few devices at a time; norms thus cost batches of one device instead of many, at the same FLOPs.
Distances need the aggregate, which is known only after the last device: the updates are held until then if they fit a
fixed memory, else every device is trained a second time. A policy or a scenario that does not ask pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fedsim.facts import IntArray, LayerStatistics, Wanted
from fedsim.training import apart
from fedsim.training.cohort import Cohort
from fedsim.training.kernels import Train
from fedsim.training.state import Tensors, WorkingModel

_HELD_BYTES = 2**28  # of updates held for their distances: fixed, because a second training counts FLOPs anew


def add(
    change: Tensors,
    cohorts: Sequence[tuple[IntArray, Cohort]],
    train: Train,
    model: WorkingModel,
    wanted: frozenset[Wanted],
) -> tuple[float, LayerStatistics]:
    """Add the weighted updates of the cohorts, (rows of the used contributions, those of one version), to `change`.

    Returns the FLOPs that it took, and the statistics of each row.
    """
    n = sum(len(rows) for rows, _ in cohorts)
    flops, devices, norms = 0.0, np.zeros(n, dtype=np.int64), np.zeros((n, model.n_layers))
    held: list[tuple[int, Tensors]] | None = [] if n * _bytes(change) <= _HELD_BYTES else None
    for rows, cohort in cohorts:
        devices[rows] = cohort.contributions.device
        is_held = cohort.contributions.holds_layer
        for group, updates, its_flops in apart.each(cohort, train):
            flops += its_flops
            for k, update in zip(group.tolist(), updates, strict=True):
                norms[rows[k]] = apart.squares(update, model, is_held[k])
                for i, column in enumerate(model.columns(cohort.contributions)):
                    change[i].add_(update[i], alpha=float(cohort.table[k, column]))
                if held is not None and "update_distance" in wanted:
                    held.append((int(rows[k]), update))
    if "update_distance" not in wanted:
        return flops, LayerStatistics(devices, norms, None)
    distances = np.zeros_like(norms)
    for rows, cohort in cohorts:
        is_held = cohort.contributions.holds_layer
        for group, updates, its_flops in _again(rows, cohort, train, held):
            flops += its_flops
            for k, update in zip(group.tolist(), updates, strict=True):
                distances[rows[k]] = apart.squares(apart.differences(update, change), model, is_held[k])
    return flops, LayerStatistics(devices, norms, distances)


def _again(
    rows: IntArray, cohort: Cohort, train: Train, held: list[tuple[int, Tensors]] | None
) -> Iterable[tuple[IntArray, list[Tensors], float]]:
    """Once more (contributions, their updates, FLOPs): those that were held, or anew."""
    if held is None:
        return apart.each(cohort, train)
    of_row = dict(held)
    return [(np.arange(len(cohort)), [of_row[int(row)] for row in rows], 0.0)]


def _bytes(tensors: Tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
