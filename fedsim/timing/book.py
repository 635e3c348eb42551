"""What the clock reports as it goes: the rows of the `tasks` table and the facts of a closed round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from fedsim.facts import AggregateReport, Array, Contributions, IntArray

Outcome = Literal["taken", "cancelled", "empty", "open"]


@dataclass(frozen=True)
class ClosedJobs:
    """Jobs that came to an end, or were under way when the run did; columns `[job]`, seconds on the clock (NaN: never).

    outcome: "taken" by the server, "cancelled", "empty" (stopped with nothing complete) or "open".
    """

    device: IntArray
    ordinal: IntArray
    version: IntArray
    sent_s: Array
    downloaded_s: Array
    computed_s: Array
    arrived_s: Array
    n_steps: IntArray
    depth: IntArray
    device_flops: Array
    uploaded_bytes: Array
    downloaded_bytes: Array
    outcome: Outcome


@dataclass(frozen=True)
class ClosedRound:
    """One aggregate. used_flops counts the contributions that entered it."""

    start_s: float
    end_s: float
    n_sent: int
    contributions: Contributions
    weights: Array
    used_flops: float
    report: AggregateReport


class Book(Protocol):
    """Whoever keeps the records, evaluates on the grid and knows when the run is over."""

    def before_change(self, now_s: float) -> None:
        """Called before the model changes at `now_s`: the moment to evaluate what held until now."""

    def jobs_closed(self, jobs: ClosedJobs) -> None: ...
    def round_closed(self, closed: ClosedRound) -> str | None:
        """Returns why the run is over, or None."""


class RunOver(Exception):  # not an error: the run's end, passed up through the policy's story
    """The run ends here. kind: "finished", "diverged" or "stalled"."""

    def __init__(self, kind: Literal["finished", "diverged", "stalled"], reason: str) -> None:
        super().__init__(reason)
        self.kind: Literal["finished", "diverged", "stalled"] = kind
        self.reason = reason
