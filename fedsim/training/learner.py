"""The learner on torch: trains exactly the steps and layers that devices finished, when the server aggregates them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.facts import (
    AggregateReport,
    AggregateRequest,
    Array,
    Contributions,
    Evaluation,
    IntArray,
    LayerStatistics,
    ModelShape,
)
from fedsim.training import choice, kernels, passes, reference, update_statistics
from fedsim.training.cohort import Cohort, Workbench
from fedsim.training.own_layers import OwnLayers
from fedsim.training.resident import Resident
from fedsim.training.server_step import ServerStep
from fedsim.training.state import Tensors
from fedsim.training.subnetworks import Subnetworks

_AHEAD_BYTES, _MOST_AHEAD = 2**28, 256  # of sums for requests still to come


@dataclass
class TorchLearner:
    """All learning state of one run. Implements `fedsim.protocols.Learner`.

    weights: the global model of now, `[parameter]`. Older versions are kept as long as a job under way may name them.
    machine: how torch was set up. subnetworks: narrower models to train. kernels: how many contributions each kernel has trained.
    ahead: the requests that are still to come, if they are known (a clock that waits for nobody can be played
        beforehand); contributions to later requests are trained together with those of now that pulled the same model.
    """

    at: Workbench
    traits: choice.Traits
    evaluation: Resident
    server_step: ServerStep
    weights: Tensors
    machine: dict[str, Any]
    subnetworks: Subnetworks
    kernels: dict[str, int] = field(default_factory=dict)
    ahead: Sequence[AggregateRequest] = ()
    _n_requests: int = 0
    _older: dict[int, Tensors] = field(default_factory=dict)
    _sums: dict[int, _Sum] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.own_layers = OwnLayers(self.at.model, np.zeros(self.shape.n_layers, dtype=np.int64))

    @property
    def shape(self) -> ModelShape:
        return self.at.model.shape

    @property
    def notes(self) -> list[str]:
        """What makes the run's bytes depend on this machine, and what fell back to a slower way."""
        found = list(self.at.chunks.notes)
        if self.traits.on_cuda:
            found.append("cuda: chunks follow free memory, and its kernels add in no fixed order")
        if self.traits.mixes_rows and self.at.training.engine == "auto":
            found.append("fallback: a row's output depends on the others of its batch; trained by the reference loop")
        return found

    def flat_weights(self) -> tuple[Array, IntArray]:
        """The global model of now in float64 and the layer of each parameter, from the input, `[parameter]` both."""
        values = [w.detach().cpu().to(torch.float64).contiguous().view(-1).numpy() for w in self.weights]
        layers = [np.full(len(v), layer) for v, layer in zip(values, self.at.model.layer_of, strict=True)]
        return np.concatenate(values), np.concatenate(layers)

    @torch.no_grad()
    def aggregate(self, request: AggregateRequest) -> AggregateReport:
        """`new_l = old_l + sum_k W[k, l] delta_k,l`, without ever keeping a device's model."""
        contributions, table = request.used
        statistics = None
        terms, wanted = contributions.terms, request.wanted - {"change_norm"}
        if terms.subnetwork is not None:
            change, computed_flops, statistics = self._with_subnetworks(request)
        elif terms.pulls is not None or terms.pushes is not None:
            change, computed_flops, statistics = self._with_own_layers(request)
        elif wanted:
            change, computed_flops, statistics = self._with_statistics(request)
        else:
            self._train_what_is_due(request)
            done = self._sums.pop(self._n_requests, None)
            change, computed_flops = (self._zeros(), 0.0) if done is None else (done.change, done.computed_flops)
        self._n_requests += 1
        if request.base == "from_now":
            self._move_to_now(change, contributions, table, request.version)
        touched = [i for i, column in enumerate(self.at.model.columns(contributions)) if table[:, column].any()]
        for i in self.at.model.statistics:
            # A correction goes beyond the devices' own (SALF's 1 / (1 - p)); beyond theirs a variance may be negative.
            total = float(table[:, self.at.model.columns(contributions)[i]].sum())
            change[i].div_(max(total, 1.0))
        report = self._apply(change, touched, request)
        return replace(report, computed_flops=computed_flops, statistics=statistics)

    # ---- training ---------------------------------------------------------------------------------------------------

    def _train_what_is_due(self, request: AggregateRequest) -> None:
        """Train what this request lacks, and with it what later ones will want of the same start versions."""
        now = self._n_requests
        sum_ = self._sums.setdefault(now, _Sum(self._zeros()))
        due = set(np.unique(request.used[0].version).tolist()) - sum_.versions
        window = [(now, request), *self._to_come(now)] if due else []
        for version in sorted(due):
            found = [(number, *_of_version(one, version)) for number, one in window]
            found = [(number, c, table) for number, c, table in found if len(c)]
            for number, _, _ in found:
                self._sums.setdefault(number, _Sum(self._zeros())).versions.add(version)
            contributions = Contributions.concatenate([c for _, c, _ in found])
            target = np.repeat(np.arange(len(found)), [len(c) for _, c, _ in found])
            cohort = self._cohort(contributions, np.concatenate([t for _, _, t in found]), target, request.version)
            sums = [self._sums[number] for number, _, _ in found]
            flops = self._train([one.change for one in sums], cohort)
            for one, (_, c, _) in zip(sums, found, strict=True):
                one.computed_flops += self._share(flops, c, contributions)

    def _to_come(self, now: int) -> list[tuple[int, AggregateRequest]]:
        """Requests that contributions may be trained for already, `(number, request)`."""
        model_bytes = sum(w.numel() * w.element_size() for w in self.weights)
        n = min(_MOST_AHEAD, _AHEAD_BYTES // model_bytes)
        return list(enumerate(self.ahead[now + 1 : now + 1 + n], start=now + 1))

    def _cohort(self, contributions: Contributions, table: Array, target: IntArray, now: int) -> Cohort:
        version = int(contributions.version[0])
        start = self.weights if version == now else self._older[version]
        rate = reference.learning_rate(self.at.training, version)
        return Cohort(start, rate, contributions, table, target)

    def _train(self, changes: Sequence[Tensors], cohort: Cohort) -> float:
        """Train a cohort, each contribution by the kernel chosen for it; returns the FLOPs that it took."""
        return kernels.train(changes, cohort, self.at, self.traits, self.kernels)

    def _share(self, flops: float, mine: Contributions, everyone: Contributions) -> float:
        """What of the FLOPs of contributions trained together belongs to some of them: as their devices' work."""
        plan = self.at.batches.plan
        used, of_all = (float(c.used_flops(self.shape, plan).sum()) for c in (mine, everyone))
        return flops if used == of_all else used * (flops / of_all)

    def _zeros(self) -> Tensors:
        return [torch.zeros_like(w) for w in self.weights]

    def _with_statistics(self, request: AggregateRequest) -> tuple[Tensors, float, LayerStatistics]:
        change, (contributions, table) = self._zeros(), request.used
        cohorts = self._cohorts(contributions, table, request.version)
        flops, found = update_statistics.add(change, cohorts, self._train, self.at.model, request.wanted)
        return change, flops, found

    def _cohorts(self, contributions: Contributions, table: Array, now: int) -> list[tuple[IntArray, Cohort]]:
        """Contributions by the version that they pulled: (their rows, cohort)."""
        found = []
        for version in np.unique(contributions.version).tolist():
            rows = np.flatnonzero(contributions.version == version)
            target = np.zeros(len(rows), dtype=np.int64)
            found.append((rows, self._cohort(contributions.where(rows), table[rows], target, now)))
        return found

    def _with_own_layers(self, request: AggregateRequest) -> tuple[Tensors, float, LayerStatistics | None]:
        """Of devices that keep layers to themselves: everybody trains, because their next tasks start from here."""
        _refuse_from_now(request)
        change, contributions = self._zeros(), request.contributions
        table = np.where(contributions.holds_layer, request.weights, 0.0)
        cohorts = self._cohorts(contributions, table, request.version)
        flops, statistics = self.own_layers.add(change, cohorts, self._train, request.wanted - {"change_norm"})
        return change, flops, statistics

    def _with_subnetworks(self, request: AggregateRequest) -> tuple[Tensors, float, LayerStatistics | None]:
        _refuse_from_now(request)
        contributions, table = request.used
        cohorts = self._cohorts(contributions, table, request.version)
        return self.subnetworks.add(self._zeros(), cohorts, request, self.kernels)

    # ---- the global model -------------------------------------------------------------------------------------------

    def _move_to_now(self, change: Tensors, contributions: Contributions, table: Array, now: int) -> None:
        """Turn changes since the pulled model into distances from the model of now (FedAsync's mixing)."""
        for version in np.unique(contributions.version).tolist():
            if version == now:
                continue
            weight = table[contributions.version == version].sum(axis=0)
            for i, column in enumerate(self.at.model.columns(contributions)):
                change[i].add_(self._older[version][i] - self.weights[i], alpha=float(weight[column]))

    def _apply(self, change: Tensors, touched: list[int], request: AggregateRequest) -> AggregateReport:
        version = request.version + bool(touched)
        before = [self.weights[i].clone() for i in touched] if self.server_step.has_state else None
        if touched:
            if request.version in request.kept_versions:
                self._older[request.version] = [w.clone() for w in self.weights]
            has_gradient = self.at.model.has_gradient
            self.server_step.apply(self.weights, change, [i for i in touched if has_gradient[i]])
            for i in touched:
                if not has_gradient[i]:  # running statistics are averaged; a step along them means nothing
                    self.weights[i].add_(change[i])
        kept = set(request.kept_versions.tolist())
        self._older = {v: weights for v, weights in self._older.items() if v in kept}
        is_finite = all(bool(torch.isfinite(self.weights[i]).all()) for i in touched)
        moved = [change[i] for i in touched]
        if before is not None:
            moved = [self.weights[i] - was for i, was in zip(touched, before, strict=True)]
        layers = [self.at.model.layer_of[i] for i in touched]
        self.own_layers.changed_at[layers] = version
        return AggregateReport(version, is_finite, computed_flops=0.0, change_norm=self._norms(moved, touched))

    def _norms(self, moved: Tensors, touched: list[int]) -> Array:
        """L2 norms of what the parameters moved, `[layer]`."""
        squares = np.zeros(self.shape.n_layers)
        for i, tensor in zip(touched, moved, strict=True):
            if self.at.model.has_gradient[i]:
                norm = torch.linalg.vector_norm(tensor, dtype=torch.float64)
                squares[self.at.model.layer_of[i]] += float(norm) ** 2
        return np.sqrt(squares)

    @torch.no_grad()
    def evaluate(self, n_rows: int | None = None) -> Evaluation:
        """Accuracy (NaN without classes), also by label, and mean loss of the global model on the first `n_rows` evaluation rows (all if None)."""
        model = self.at.model
        weights = model.ready(self.weights)
        if self.at.training.batch_norm == "static":
            model.take_statistics(self.at.data)
        n = len(self.evaluation) if n_rows is None else min(n_rows, len(self.evaluation))
        sums: list[tuple[Tensor | None, float]] = []

        def evaluate(begin: int, end: int) -> Any:
            x, labels = self.evaluation.between(begin, end)
            out = passes.outputs(model.blocks, weights, x)
            n_right, loss = model.loss.n_right(out, labels), float(model.loss.sum(out, labels))
            return lambda: sums.append((n_right, loss))

        self.at.each(n, evaluate)
        loss = sum(loss for _, loss in sums) / n
        found = [n_right for n_right, _ in sums if n_right is not None]
        if not found:
            return Evaluation(np.nan, loss)
        n_right = torch.stack(found).sum(dim=0).cpu()
        n_of_label = self.evaluation.labels[:n].bincount(minlength=len(n_right)).cpu()
        label_accuracy = n_right.double() / n_of_label  # no row of a label: 0 / 0, which is NaN
        return Evaluation(int(n_right.sum()) / n, loss, label_accuracy.numpy())


@dataclass
class _Sum:
    """What a request will add to the model; versions: the start versions whose contributions are in it already."""

    change: Tensors
    computed_flops: float = 0.0
    versions: set[int] = field(default_factory=set)


def _refuse_from_now(request: AggregateRequest) -> None:
    if request.base == "from_now":
        raise ValueError('base="from_now" mixes whole models; leave it out for layers that are kept and sub-networks')


def _of_version(request: AggregateRequest, version: int) -> tuple[Contributions, Array]:
    contributions, table = request.used
    rows = np.flatnonzero(contributions.version == version)
    return contributions.where(rows), table[rows]
