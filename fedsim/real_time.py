"""Where the real time of a run goes: seconds on this machine's clock, spent in training, in evaluation, and in all.

They stand in the manifest and in no table: another run of the same scenario takes another time.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

from fedsim.facts import AggregateReport, AggregateRequest, Evaluation, ModelShape
from fedsim.protocols import Learner


class TimedLearner:
    """A learner that counts the real seconds for which the clock waits for it. Implements `fedsim.protocols.Learner`.

    training_s, evaluation_s: spent in `aggregate` and in `evaluate` so far. Everything else is the learner's own.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self.training_s = self.evaluation_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)

    @property
    def shape(self) -> ModelShape:
        return self._learner.shape

    def aggregate(self, request: AggregateRequest) -> AggregateReport:
        start = perf_counter()
        try:
            return self._learner.aggregate(request)
        finally:
            self.training_s += perf_counter() - start

    def evaluate(self, n_rows: int | None = None) -> Evaluation | None:
        start = perf_counter()
        try:
            return self._learner.evaluate(n_rows)
        finally:
            self.evaluation_s += perf_counter() - start
