"""Models that jobs under way have pulled: kept as long as they are needed, and where stale changes are measured from."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from fedsim import weights
from fedsim.facts import Jobs, Task
from fedsim.protocols import arrivals
from tests.laws.playing import learned

SPEEDS = {"n_devices": 5, "compute": {"step_s": [1.0, 1.3, 2.1, 4.7, 9.5], "task_factor": {"kind": "exponential"}}}


@dataclass(frozen=True)
class KAsync:
    """The first k to arrive are aggregated and start again; everybody else goes on with the model it has."""

    k: int
    base: Any

    def rounds(self, server):
        task = Task(n_steps=2)
        jobs = server.send(server.sample(), task)
        while True:
            yield from server.wait(jobs, arrivals(self.k))
            arrived = server.take(jobs)
            server.aggregate(arrived, 0.5 * weights.mean(arrived), base=self.base)
            left = jobs.where(~np.isin(jobs.device, arrived.device))
            jobs = Jobs.concatenate([left, server.send(arrived.device, task)])


@dataclass
class Hoarder:
    """Lets the learner keep every model there ever was, and counts how stale the contributions are."""

    learner: Any
    most_stale: int = 0

    @property
    def shape(self):
        return self.learner.shape

    def aggregate(self, request):
        self.most_stale = max(self.most_stale, int((request.version - request.contributions.version).max()))
        return self.learner.aggregate(replace(request, kept_versions=np.arange(request.version + 1)))

    def evaluate(self, n_rows=None):
        return self.learner.evaluate(n_rows)


@pytest.mark.parametrize("base", ["from_start", "from_now"])
@pytest.mark.parametrize("k", [1, 2])
def test_forgetting_models_that_nobody_holds_changes_no_result(tiny, k, base):
    values = tiny(fleet=SPEEDS, training={"batch_size": 8, "dtype": "float64"}, stop={"n_rounds": 25})
    hoarders = []

    def hoarding(learner):
        hoarders.append(Hoarder(learner))
        return hoarders[0]

    forgetful, hoarded = learned(values, KAsync(k, base)), learned(values, KAsync(k, base), hoarding)
    np.testing.assert_array_equal(forgetful[0], hoarded[0])
    assert hoarders[0].most_stale > 3, "nobody was stale"


@dataclass
class Mixing:
    """Lets a twin apply each request from the models that were pulled; the learner must then differ by what was missed.

    from_now: x + sum_k w_k (x_k - x); from_start: x + sum_k w_k (x_k - pulled_k). So the first is the second plus
    sum_k w_k (pulled_k - x).
    """

    learner: Any
    models: dict[int, np.ndarray] = field(default_factory=dict)
    n_stale: int = 0

    @property
    def shape(self):
        return self.learner.shape

    def aggregate(self, request):
        now = self.models[request.version] = flat(self.learner.weights)
        twin = copy.deepcopy(self.learner)
        twin.aggregate(replace(request, base="from_start"))
        pulled = [self.models[version] for version in request.contributions.version.tolist()]
        missed = sum(w * (model - now) for w, model in zip(request.weights[:, 0], pulled, strict=True))
        report = self.learner.aggregate(request)
        np.testing.assert_allclose(flat(self.learner.weights), flat(twin.weights) + missed, rtol=1e-12, atol=1e-14)
        self.n_stale += bool(np.abs(missed).max() > 1e-6)
        return report


def flat(weights):
    return np.concatenate([each.numpy().ravel().copy() for each in weights])


def test_a_change_from_now_is_the_change_from_start_plus_what_the_device_has_missed(tiny):
    values = tiny(fleet=SPEEDS, training={"batch_size": 8, "dtype": "float64"}, stop={"n_rounds": 15})
    mixings = []

    def mixing(learner):
        mixings.append(Mixing(learner))
        return mixings[0]

    learned(values, KAsync(2, "from_now"), mixing)
    assert mixings[0].n_stale > 5
