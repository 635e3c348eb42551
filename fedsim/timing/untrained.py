"""The learner that trains nothing: with it the clock runs alone."""

from __future__ import annotations

from fedsim.facts import AggregateReport, AggregateRequest, Evaluation, ModelShape


class Untrained:
    """Counts versions as a learner would; implements `fedsim.protocols.Learner`."""

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape

    def aggregate(self, request: AggregateRequest) -> AggregateReport:
        is_changed = len(request.used[0]) > 0
        return AggregateReport(version=request.version + is_changed, is_finite=True, computed_flops=0.0)

    def evaluate(self, n_rows: int | None = None) -> Evaluation | None:  # noqa: ARG002  # the role has it
        return None
