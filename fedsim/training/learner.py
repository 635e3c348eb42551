"""The learner on torch: trains exactly the steps and layers that devices finished, when the server aggregates them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fedsim.facts import AggregateReport, AggregateRequest, Array, Contributions, Evaluation, ModelShape
from fedsim.training import choice, loop, low_rank, mapped, one_batch, passes, reference, stacked
from fedsim.training.cohort import Cohort, Workbench
from fedsim.training.resident import Resident
from fedsim.training.server_step import ServerStep
from fedsim.training.state import Tensors

_KERNELS = {kernel.NAME: kernel.add for kernel in (one_batch, low_rank, stacked, mapped, loop, reference)}


@dataclass
class TorchLearner:
    """All learning state of one run. Implements `fedsim.protocols.Learner`.

    weights: the global model of now, `[parameter]`. Older versions are kept as long as a job under way may name them.
    kernels: how many contributions each kernel has trained.
    """

    at: Workbench
    traits: choice.Traits
    evaluation: Resident
    server_step: ServerStep
    weights: Tensors
    machine: dict[str, Any]
    kernels: dict[str, int] = field(default_factory=dict)
    _older: dict[int, Tensors] = field(default_factory=dict)

    @property
    def shape(self) -> ModelShape:
        return self.at.model.shape

    @torch.no_grad()
    def aggregate(self, request: AggregateRequest) -> AggregateReport:
        """`new_l = old_l + sum_k W[k, l] delta_k,l`, without ever keeping a device's model."""
        used = np.flatnonzero(request.weights.any(axis=1))
        contributions, table = request.contributions.where(used), request.weights[used]
        table = np.where(contributions.holds_layer, table, 0.0)
        change = [torch.zeros_like(w) for w in self.weights]
        computed_before = self.at.model.computed_flops
        for version in np.unique(contributions.version).tolist():
            mine = np.flatnonzero(contributions.version == version)
            self._add(change, contributions.where(mine), table[mine], request, version)
        touched = [i for i, layer in enumerate(self.at.model.layer_of) if table[:, layer].any()]
        return self._apply(change, touched, request, self.at.model.computed_flops - computed_before)

    def _add(
        self, change: Tensors, contributions: Contributions, table: Array, request: AggregateRequest, version: int
    ) -> None:
        """Train contributions of one start version, each by the kernel chosen for it."""
        training = self.at.training
        start = self.weights if version == request.version else self._older[version]
        rate = reference.learning_rate(training, version)
        cohort = Cohort(start, rate, contributions, table, np.zeros(len(contributions), dtype=np.int64))
        if training.engine == "reference":
            chosen = [(reference.NAME, np.arange(len(cohort)))]
        else:
            chosen = list(choice.groups(contributions, table, self.at.batches.plan, self.traits))
        for kernel, group in chosen:
            _KERNELS[kernel]([change], cohort.where(group), self.at)
            self.kernels[kernel] = self.kernels.get(kernel, 0) + len(group)
        if request.base == "from_now" and start is not self.weights:
            for i, layer in enumerate(self.at.model.layer_of):
                change[i].add_(start[i] - self.weights[i], alpha=float(table[:, layer].sum()))

    def _apply(self, change: Tensors, touched: list[int], request: AggregateRequest, flops: float) -> AggregateReport:
        version = request.version + bool(touched)
        if touched:
            if request.version in request.kept_versions:
                self._older[request.version] = [w.clone() for w in self.weights]
            self.server_step.apply(self.weights, change, touched)
        kept = set(request.kept_versions.tolist())
        self._older = {v: weights for v, weights in self._older.items() if v in kept}
        is_finite = all(bool(torch.isfinite(self.weights[i]).all()) for i in touched)
        return AggregateReport(version=version, is_finite=is_finite, computed_flops=flops)

    @torch.no_grad()
    def evaluate(self, n_rows: int | None = None) -> Evaluation:
        """Accuracy and mean cross-entropy of the global model on the first `n_rows` evaluation rows (all if None)."""
        model = self.at.model
        weights = model.ready(self.weights)
        n = len(self.evaluation) if n_rows is None else min(n_rows, len(self.evaluation))
        sums: list[tuple[int, float]] = []

        def evaluate(begin: int, end: int) -> Any:
            x, labels = self.evaluation.between(begin, end)
            out = passes.outputs(model.blocks, weights, x)
            n_right = int((out.argmax(dim=1) == labels).sum())
            loss = float(functional.cross_entropy(out, labels, reduction="sum"))
            return lambda: sums.append((n_right, loss))

        self.at.chunks.each(n, evaluate)
        return Evaluation(accuracy=sum(right for right, _ in sums) / n, loss=sum(loss for _, loss in sums) / n)
