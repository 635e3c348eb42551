"""The clock alone, played before the run: what a policy without feedback will ask the learner to do.

Such a policy never looks at what was learned, so its whole story can be told without training. The learner then knows
which contributions of later rounds start from a model that it has already, and trains them together with those of now.
That pays for asynchronous policies, which hand over one contribution at a time; others send everything from the newest
model and take it at once, and a short look at the beginning tells which kind it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.facts import AggregateReport, AggregateRequest, Evaluation, ModelShape
from fedsim.protocols import Policy
from fedsim.timing.book import ClosedJobs, ClosedRound
from fedsim.timing.server import SimServer
from fedsim.timing.untrained import Untrained
from fedsim.timing.weather import Weather

_LOOK = 30  # rounds after which an asynchronous policy has shown itself
_MOST = 20_000  # requests that are remembered; later ones are trained as they come


def requests_ahead(
    weather: Weather, policy: Policy, *, horizon_s: float, n_rounds: int | None
) -> Sequence[AggregateRequest]:
    """The requests of the run in order, from the first; none if the policy asks for feedback, or never mixes versions."""
    if getattr(policy, "feedback", frozenset()):
        return []
    look = _LOOK if n_rounds is None else min(_LOOK, n_rounds)
    if not any(_is_stale(request) for request in _played(weather, policy, horizon_s, look)):
        return []
    return _played(weather, policy, horizon_s, min(_MOST, n_rounds or _MOST))


def _is_stale(request: AggregateRequest) -> bool:
    return bool((request.contributions.version != request.version).any())


def _played(weather: Weather, policy: Policy, horizon_s: float, n_rounds: int) -> list[AggregateRequest]:
    learner = _Listening(weather.shape)
    SimServer(weather, learner, _Counting(n_rounds), horizon_s=horizon_s).play(policy)
    return learner.requests


class _Listening:
    """A learner that trains nothing and remembers what it was asked."""

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        self.requests: list[AggregateRequest] = []
        self._untrained = Untrained(shape)

    def aggregate(self, request: AggregateRequest) -> AggregateReport:
        self.requests.append(request)
        return self._untrained.aggregate(request)

    def evaluate(self, n_rows: int | None = None) -> Evaluation | None:
        return self._untrained.evaluate(n_rows)


class _Counting:
    """A book that keeps nothing but the number of rounds."""

    def __init__(self, n_rounds: int) -> None:
        self._left = n_rounds

    def before_change(self, now_s: float) -> None:
        pass

    def jobs_closed(self, jobs: ClosedJobs) -> None:
        pass

    def round_closed(self, closed: ClosedRound) -> str | None:  # noqa: ARG002  # the role has it
        self._left -= 1
        return None if self._left > 0 else "played far enough"
