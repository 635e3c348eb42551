"""Parts of a model with fewer units in each hidden layer: cut out, trained as models of their own, and put back.

A part's parameters lie in the whole one's: along a cut dimension the leading units, or those that were drawn. Units that
are drawn: of a fully connected hidden layer `l` with C units, unit j of device d's task t gets the uniform
Luck(data seed, "subnetwork").row(C, task=t, step=l, lane=d), and the ceil(rate x C) smallest are kept, in ascending order.

Sources: Diao, Ding, Tarokh, HeteroFL, arXiv 2010.01264 (leading units, scaler, masked loss); Wen, Jeon, Huang, FedDrop,
arXiv 2109.15258 (drawn units).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.facts import AggregateRequest, Array, BadInput, Contributions, IntArray, LayerStatistics, Subnetwork
from fedsim.randomness import Luck
from fedsim.training import apart, kernels
from fedsim.training.choice import Traits
from fedsim.training.cohort import Cohort, Workbench
from fedsim.training.loss import CrossEntropy
from fedsim.training.operations import Scaled
from fedsim.training.state import Tensors, WorkingModel

Index = tuple[Any, ...]
"""Where a part's tensor lies in the whole one's, a slice or an index tensor per dimension."""


def scaled(part: nn.Module, whole: nn.Module) -> nn.Module:
    """The part, with the outputs of each of its layers that has fewer units divided by the share that it has."""
    if isinstance(part, nn.Linear | nn.Conv2d):
        n, of = len(part.weight), len(whole.weight)  # type: ignore[arg-type]  # of the same kind
        return part if n == of else nn.Sequential(part, Scaled(of / n))
    for (name, child), twin in zip(list(part.named_children()), whole.children(), strict=True):
        setattr(part, name, scaled(child, twin))
    return part


@dataclass(frozen=True)
class Part:
    """Where a narrower model's parameters lie in the whole one's: places, `[parameter]`.

    classes: the rows of the output layer that are put back; None: all.
    """

    model: WorkingModel
    places: list[Index]
    classes: Tensor | None = None

    def cut(self, whole: Tensors) -> Tensors:
        """Its parameters out of the whole model's."""
        return [w[place].clone() for w, place in zip(whole, self.places, strict=True)]

    def put(self, whole: Tensors, values: Tensors) -> None:
        """Add values of its parameters to the whole model's."""
        for i, (w, value) in enumerate(zip(whole, values, strict=True)):
            if self._is_masked(i):
                w[self._rows(i)] += value[self.classes]
            else:
                w[self.places[i]] += value

    def put_weights(self, whole: Tensors, of_layer: Array) -> None:
        """Add each layer's weight to the elements that it holds."""
        for i, layer in enumerate(self.model.layer_of):
            whole[i][self._rows(i) if self._is_masked(i) else self.places[i]] += float(of_layer[layer])

    def _is_masked(self, i: int) -> bool:
        return self.classes is not None and self.model.layer_of[i] == self.model.n_layers - 1

    def _rows(self, i: int) -> Index:
        """The place of the rows of the classes that the device has."""
        assert self.classes is not None
        first, *rest = self.places[i]
        if isinstance(first, slice):
            return (self.classes, *rest)
        return (self.classes.view(-1, *[1] * (first.dim() - 1)), *rest)


@dataclass(frozen=True)
class _Alike:
    """Contributions of one rate and loss, `rows`; parts: one that they share, or one for each of them.

    at: where their model is trained, and what decides about kernels.
    """

    rows: IntArray
    parts: list[Part]
    at: tuple[Workbench, Traits]

    def part_of(self, k: int) -> Part:
        return self.parts[k if len(self.parts) > 1 else 0]


@dataclass
class Subnetworks:
    """All narrower models that were asked for. build: that of (rate, whether convolutions are cut, whether scaled)."""

    whole: Workbench
    build: Callable[[float, bool, bool], tuple[Workbench, Traits]]
    luck: Luck
    _built: dict[tuple[float, bool, bool], tuple[Workbench, Traits]] = field(default_factory=dict)
    _classes: dict[int, tuple[int, ...]] = field(default_factory=dict)

    def add(
        self,
        change: Tensors,
        cohorts: Sequence[tuple[IntArray, Cohort]],
        request: AggregateRequest,
        n_trained: dict[str, int],
    ) -> tuple[Tensors, float, LayerStatistics | None]:
        """Train the cohorts, (rows of the used contributions, those of one version), and add their parts to `change`.

        Returns it with the FLOPs, and statistics of the parts' updates if they are wanted.
        """
        flops, held = 0.0, [torch.zeros_like(c) for c in change] if request.is_per_element else []
        seen: list[tuple[int, Part, Tensors]] | None = [] if request.wanted - {"change_norm"} else None
        for rows, cohort in cohorts:
            for alike in self._groups(cohort.contributions):
                mine = cohort.where(alike.rows)
                if len(alike.parts) == 1 and seen is None:
                    flops += _train_together(change, mine, alike, n_trained)
                else:
                    flops += _train_apart(change, mine, alike, n_trained, rows[alike.rows], seen)
                for part, table in zip(alike.parts, _tables(alike, mine.table), strict=True) if held else ():
                    part.put_weights(held, table)
        for c, of_holders in zip(change, held, strict=True) if held else ():
            c.div_(torch.where(of_holders > 0, of_holders, 1.0))
        if seen is None:
            return change, flops, None
        return change, flops, _statistics(seen, request.used[0], change, "update_distance" in request.wanted)

    def _groups(self, contributions: Contributions) -> Iterator[_Alike]:
        what, rate = contributions.terms.subnetwork, contributions.rate
        assert what is not None
        assert rate is not None
        members: dict[tuple[float, tuple[int, ...] | None], list[int]] = {}
        for k, (device, its_rate) in enumerate(zip(contributions.device.tolist(), rate.tolist(), strict=True)):
            classes = self._classes_of(device) if what.is_masked else None
            members.setdefault((its_rate, classes), []).append(k)
        for (its_rate, classes), rows in members.items():
            yield self._alike(what, its_rate, classes, contributions.where(np.array(rows)), np.array(rows))

    def _alike(
        self, what: Subnetwork, rate: float, classes: tuple[int, ...] | None, mine: Contributions, rows: IntArray
    ) -> _Alike:
        address = (rate, what.units == "leading", what.is_scaled)
        if address not in self._built:
            self._built[address] = self.build(*address)
        at, traits = self._built[address]
        present = None
        if classes is not None:
            if not isinstance(at.model.loss, CrossEntropy):
                raise BadInput("a masked loss needs a model with classes; leave the mask out", at=("model",))
            present = torch.tensor(classes, device=self.whole.data.labels.device)
            masked = replace(at.model, chain=replace(at.model.chain, loss=Masked(classes=present)))
            at = replace(at, model=masked)
        if what.units == "leading":
            places = [[tuple(slice(0, n) for n in p.shape) for p in at.model.parameters]]
        else:
            addresses = zip(mine.device.tolist(), mine.ordinal.tolist(), strict=True)
            places = [self._drawn_places(at, device, ordinal) for device, ordinal in addresses]
        return _Alike(rows, [Part(at.model, place, present) for place in places], (at, traits))

    def _drawn_places(self, at: Workbench, device: int, ordinal: int) -> list[Index]:
        """Of what one task of a device trains."""
        units: list[Tensor | None] = [None]  # of the layer before, from the input
        places: list[Index] = []
        for layer in range(at.model.n_layers):
            own: Tensor | None = None
            for i in at.model.parameters_of(layer):
                part, whole = at.model.parameters[i].shape, self.whole.model.parameters[i].shape
                if own is None and part[0] < whole[0]:
                    own = self._drawn(device, ordinal, layer, part[0], whole[0])
                places.append(_place(part, whole, [own, units[-1]]))
            units.append(own)
        return places

    def _drawn(self, device: int, ordinal: int, layer: int, n: int, of: int) -> Tensor:
        uniforms = self.luck.row(of, task=ordinal, step=layer, lane=device)
        kept = np.sort(np.argsort(uniforms, kind="stable")[:n])
        return torch.from_numpy(kept).to(self.whole.data.labels.device)

    def _classes_of(self, device: int) -> tuple[int, ...]:
        """Of which the device has samples."""
        if device not in self._classes:
            rows = torch.from_numpy(self.whole.batches.samples[device])
            self._classes[device] = tuple(np.unique(self.whole.data.labels.cpu()[rows].numpy()).tolist())
        return self._classes[device]


@dataclass(frozen=True)
class Masked(CrossEntropy):
    """Cross-entropy in which the outputs of all but some classes count as 0 (Diao et al., arXiv 2010.01264, section 3).

    classes: those whose outputs count, `[class]`.
    """

    classes: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def _masked(self, out: Tensor) -> Tensor:
        return torch.zeros_like(out).index_copy(1, self.classes, out[:, self.classes])

    def mean(self, out: Tensor, labels: Tensor) -> Tensor:
        return super().mean(self._masked(out), labels)

    def sum(self, out: Tensor, labels: Tensor) -> Tensor:
        return super().sum(self._masked(out), labels)

    def gradient(self, out: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        return self._masked(super().gradient(self._masked(out), labels, scale))


def _train_together(change: Tensors, cohort: Cohort, alike: _Alike, n_trained: dict[str, int]) -> float:
    """Add the weighted sum of what the cohort changed; returns the FLOPs."""
    start = alike.parts[0].cut(cohort.start)
    total = [torch.zeros_like(p) for p in start]
    flops = kernels.train([total], replace(cohort, start=start), *alike.at, n_trained)
    alike.parts[0].put(change, total)
    return flops


def _train_apart(
    change: Tensors,
    cohort: Cohort,
    alike: _Alike,
    n_trained: dict[str, int],
    rows: IntArray,
    seen: list[tuple[int, Part, Tensors]] | None,
) -> float:
    """The same where each has a part of its own; seen: remembers (row, part, what it changed) if anybody asks."""

    def train(updates: Sequence[Tensors], some: Cohort) -> float:
        return kernels.train(updates, some, *alike.at, n_trained)

    flops, is_shared = 0.0, len(alike.parts) == 1
    cuts = [alike.parts[0].cut(cohort.start)]
    # Parts of their own have starts of their own: differences from nothing.
    start = cuts[0] if is_shared else [torch.zeros_like(p) for p in cuts[0]]
    for group, updates, its_flops in apart.each(
        replace(cohort, start=start),
        train,
        None if is_shared else lambda group: [alike.parts[k].cut(cohort.start) for k in group.tolist()],
    ):
        flops += its_flops
        for k, update in zip(group.tolist(), updates, strict=True):
            part = alike.part_of(k)
            scales = cohort.table[k, list(part.model.layer_of)].tolist()
            part.put(change, [value * scale for value, scale in zip(update, scales, strict=True)])
            if seen is not None:
                seen.append((int(rows[k]), part, update))
    return flops


def _tables(alike: _Alike, table: Array) -> list[Array]:
    """Weights of each part, `[part][layer]`."""
    return [table.sum(axis=0)] if len(alike.parts) == 1 else list(table)


def _statistics(
    seen: Sequence[tuple[int, Part, Tensors]], contributions: Contributions, change: Tensors, wants_distance: bool
) -> LayerStatistics:
    """Squared norms, and squared distances from the aggregate where the part lies."""
    norms, distances = np.zeros((2, len(contributions), contributions.n_layers))
    everywhere = np.ones(contributions.n_layers, dtype=bool)
    for row, part, update in seen:
        norms[row] = apart.squares(update, part.model, everywhere)
        distances[row] = apart.squares(apart.differences(update, part.cut(change)), part.model, everywhere)
    return LayerStatistics(contributions.device, norms, distances if wants_distance else None)


def _place(part: torch.Size, whole: torch.Size, units: list[Tensor | None]) -> Index:
    """units: drawn in this layer (dimension 0) and in the one before it (dimension 1)."""
    if part == whole:
        return tuple(slice(0, n) for n in part)
    index: list[Tensor] = []
    for dim, (n, of) in enumerate(zip(part, whole, strict=True)):
        drawn = units[dim] if n < of else torch.arange(n)
        assert drawn is not None
        assert len(drawn) == n
        index.append(drawn.view([-1 if d == dim else 1 for d in range(len(part))]))
    return tuple(index)
