"""Layers that devices keep for themselves from one task to the next, as FedLAMA's do between two averages of a layer.

What a device keeps is the change of each such layer since it last pulled it. Its next task starts from there, and what
it pushes in the end is the change over all of its tasks together. So a layer must not change on the server meanwhile,
and a device that has pushed a layer must pull it again.
Memory: devices x the parameters that they keep. Where distances from the aggregate are wanted, the pushed changes of one
aggregate are held besides, because the aggregate is known only after the last device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from fedsim.facts import BoolArray, Contributions, IntArray, LayerStatistics, Wanted
from fedsim.training import apart
from fedsim.training.cohort import Cohort
from fedsim.training.kernels import Train
from fedsim.training.state import Tensors, WorkingModel


@dataclass(frozen=True)
class _Kept:
    """After task `ordinal`: changes by parameter, and the version of which each layer was pulled, `[layer]`."""

    ordinal: int
    changes: dict[int, torch.Tensor]
    pulled_at: IntArray


@dataclass
class OwnLayers:
    """What every device keeps. changed_at: version that last changed each layer, `[layer]`."""

    model: WorkingModel
    changed_at: IntArray
    _kept: dict[int, _Kept] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Held for all devices together."""
        return sum(t.numel() * t.element_size() for kept in self._kept.values() for t in kept.changes.values())

    def add(
        self, change: Tensors, cohorts: Sequence[tuple[IntArray, Cohort]], train: Train, wanted: frozenset[Wanted]
    ) -> tuple[float, LayerStatistics | None]:
        """Train the cohorts, (rows of the request, contributions of one version); add what they push to `change`.

        Returns the FLOPs, and statistics of what was pushed if they are wanted. Raises ValueError for a device that
        goes on from layers that it does not have.
        """
        n = sum(len(rows) for rows, _ in cohorts)
        flops, devices, norms = 0.0, np.zeros(n, dtype=np.int64), np.zeros((n, self.model.n_layers))
        pushed: list[tuple[int, Tensors, BoolArray]] = []
        for rows, cohort in cohorts:
            held = cohort.contributions.holds_layer
            devices[rows] = cohort.contributions.device
            for group, totals, its_flops in self._trained(cohort, train):
                flops += its_flops
                for k, total in zip(group.tolist(), totals, strict=True):
                    for i, column in enumerate(self.model.columns(cohort.contributions)):
                        change[i].add_(total[i], alpha=float(cohort.table[k, column]))
                    if wanted:
                        norms[rows[k]] = apart.squares(total, self.model, held[k])
                    if "update_distance" in wanted:
                        pushed.append((int(rows[k]), total, held[k]))
        if not wanted:
            return flops, None
        distances = np.zeros_like(norms)
        for row, total, is_held in pushed:
            distances[row] = apart.squares(apart.differences(total, change), self.model, is_held)
        return flops, LayerStatistics(devices, norms, distances if "update_distance" in wanted else None)

    def _trained(self, cohort: Cohort, train: Train) -> Iterator[tuple[IntArray, list[Tensors], float]]:
        """(contributions, the change of each since it pulled each layer, FLOPs); what is not pushed is kept."""
        own: dict[int, Tensors] = {}

        def starts(group: IntArray) -> list[Tensors]:
            own.update({k: self._start(cohort.contributions, k, cohort.start) for k in group.tolist()})
            return [own[k] for k in group.tolist()]

        for group, totals, flops in apart.each(cohort, train, starts):
            for k, total in zip(group.tolist(), totals, strict=True):
                torch._foreach_add_(total, own.pop(k))
                self._keep(cohort.contributions, k, total)
            yield group, totals, flops

    def _start(self, contributions: Contributions, k: int, like: Tensors) -> Tensors:
        """How far the device's own layers are from those of the server, `[parameter]`; zero where it pulled them."""
        device, pulls = int(contributions.device[k]), contributions.terms.pulls
        offsets = [torch.zeros_like(p) for p in like]
        if pulls is None:
            return offsets
        kept = self._kept.get(device)
        if kept is None or kept.ordinal != int(contributions.ordinal[k]) - 1:
            raise ValueError(f"device {device} goes on from its own layers, but its task before was never aggregated")
        for i, layer in enumerate(self.model.layer_of):
            if pulls[layer]:
                continue
            if i not in kept.changes:
                raise ValueError(f"device {device} has pushed layer {layer}; let it pull the layer before it goes on")
            if self.changed_at[layer] > kept.pulled_at[layer]:
                raise ValueError(
                    f"layer {layer} has changed since device {device} pulled it; let it pull the layer again"
                )
            offsets[i].copy_(kept.changes[i])
        return offsets

    def _keep(self, contributions: Contributions, k: int, total: Tensors) -> None:
        terms, device, version = contributions.terms, int(contributions.device[k]), int(contributions.version[k])
        before = self._kept.pop(device, None)
        if terms.pushes is None:
            return
        pulled_at = np.full(len(self.changed_at), version)
        if terms.pulls is not None and before is not None:
            pulled_at = np.where(terms.pulls, version, before.pulled_at)
        changes = {i: total[i].clone() for i, layer in enumerate(self.model.layer_of) if not terms.pushes[layer]}
        self._kept[device] = _Kept(int(contributions.ordinal[k]), changes, pulled_at)
