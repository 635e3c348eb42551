"""The learner on torch: trains exactly the steps and layers that devices finished, when the server aggregates them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from fedsim.facts import AggregateReport, AggregateRequest, Array, Contributions, Evaluation, IntArray, ModelShape
from fedsim.training import one_step, reference
from fedsim.training.batches import Batches
from fedsim.training.resident import Resident
from fedsim.training.server_step import ServerStep
from fedsim.training.settings import Training
from fedsim.training.state import Tensors, WorkingModel

_EVALUATION_ROWS = 512  # rows of a chunk; fixed, because the chunk size changes the last bits of a loss


@dataclass
class TorchLearner:
    """All learning state of one run. Implements `fedsim.protocols.Learner`.

    weights: the global model of now, `[parameter]`. Older versions are kept as long as a job under way may name them.
    kernels: how many contributions each kernel has trained.
    """

    model: WorkingModel
    data: Resident
    evaluation: Resident
    batches: Batches
    training: Training
    server_step: ServerStep
    weights: Tensors
    kernels: dict[str, int] = field(default_factory=dict)
    _older: dict[int, Tensors] = field(default_factory=dict)

    @property
    def shape(self) -> ModelShape:
        return self.model.shape

    def aggregate(self, request: AggregateRequest) -> AggregateReport:
        """`new_l = old_l + sum_k W[k, l] delta_k,l`, without ever keeping a device's model."""
        used = np.flatnonzero(request.weights.any(axis=1))
        contributions, table = request.contributions.where(used), request.weights[used]
        change = [torch.zeros_like(w) for w in self.weights]
        computed_before = self.model.computed_flops
        left: IntArray = np.arange(len(contributions))
        if self.training.engine == "auto" and request.base == "from_start":
            left = self._train_one_step_cohorts(change, contributions, table, request.version)
        for k in left.tolist():
            self._train_alone(change, contributions, k, table[k], request)
        touched = [i for i, layer in enumerate(self.model.layer_of) if table[:, layer].any()]
        return self._apply(change, touched, request, self.model.computed_flops - computed_before)

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

    def _train_one_step_cohorts(
        self, change: Tensors, contributions: Contributions, table: Array, now: int
    ) -> IntArray:
        """Train what one batch can do; returns the contributions that are left."""
        mine = np.flatnonzero(one_step.is_one_step(contributions) & (contributions.version == now))
        if len(mine) < 2:
            return np.arange(len(contributions))
        cohort, weights = contributions.where(mine), table[mine]
        rate = reference.learning_rate(self.training, now)
        self.model.load(self.weights)
        gradient = [torch.zeros_like(w) for w in self.weights]
        done = one_step.add_gradients(gradient, self.model, cohort, weights, self.data, self.batches)
        entered = (weights * cohort.holds_layer)[done].sum(axis=0)
        for i, layer in enumerate(self.model.layer_of):
            gradient[i].add_(self.weights[i], alpha=self.training.weight_decay * float(entered[layer]))
            change[i].add_(gradient[i], alpha=-rate)
        self._count("one_step", len(done))
        return np.setdiff1d(np.arange(len(contributions)), mine[done])

    def _train_alone(
        self, change: Tensors, contributions: Contributions, k: int, weights: Array, request: AggregateRequest
    ) -> None:
        version = int(contributions.version[k])
        start = self.weights if version == request.version else self._older[version]
        delta = reference.change(self.model, start, contributions, k, self.data, self.batches, self.training)
        held = contributions.holds_layer[k]
        for i, layer in enumerate(self.model.layer_of):
            if not held[layer]:
                continue
            if request.base == "from_now":
                delta[i].add_(start[i]).sub_(self.weights[i])
            change[i].add_(delta[i], alpha=float(weights[layer]))
        self._count("reference", 1)

    def _count(self, kernel: str, n: int) -> None:
        if n:
            self.kernels[kernel] = self.kernels.get(kernel, 0) + n

    def evaluate(self, n_rows: int | None = None) -> Evaluation:
        """Accuracy and mean cross-entropy of the global model on the first `n_rows` evaluation rows (all if None)."""
        self.model.load(self.weights)
        n = len(self.evaluation) if n_rows is None else min(n_rows, len(self.evaluation))
        n_right, loss = 0, 0.0
        with torch.no_grad():
            for start in range(0, n, _EVALUATION_ROWS):
                stop = min(start + _EVALUATION_ROWS, n)
                out = self.model.chain.module(self.evaluation.inputs[start:stop])
                labels = self.evaluation.labels[start:stop]
                n_right += int((out.argmax(dim=1) == labels).sum())
                loss += float(functional.cross_entropy(out, labels, reduction="sum"))
        return Evaluation(accuracy=n_right / n, loss=loss / n)
