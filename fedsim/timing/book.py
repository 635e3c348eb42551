"""What the clock reports as it goes: the rows of the `tasks` table and the facts of a closed round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from fedsim.facts import AggregateReport, Array, Contributions, IntArray

Int32Array = npt.NDArray[np.int32]
Outcome = Literal["taken", "cancelled", "empty", "open"]


@dataclass(frozen=True)
class Milestones:
    """Whole local steps that jobs finished, and the layers of one step; columns `[milestone]`, job after job, ascending.

    The layers are those of the last step of which anything counts: of the step under way when the device was stopped,
    or else of the last whole one. step: from 0. layer: -1 for a whole step. ended_s: on the clock.
    """

    device: Int32Array
    ordinal: Int32Array
    step: Int32Array
    layer: Int32Array
    ended_s: Array


@dataclass(frozen=True)
class ClosedJobs:
    """Jobs that came to an end, or were under way when the run did; columns `[job]`, seconds on the clock (NaN: never).

    asked_steps: the most local steps that the task allowed; -1 for no limit.
    outcome: "taken" by the server, "cancelled", "empty" (stopped with nothing complete) or "open".
    ended_s: when that was. milestones: None unless the server was told to time them.
    """

    device: IntArray
    ordinal: IntArray
    version: IntArray
    sent_s: Array
    downloaded_s: Array
    computed_s: Array
    arrived_s: Array
    asked_steps: IntArray
    n_steps: IntArray
    depth: IntArray
    device_flops: Array
    uploaded_bytes: Array
    downloaded_bytes: Array
    outcome: Outcome
    ended_s: float
    milestones: Milestones | None = None


DecidedBy = Literal["deadline", "arrival", "step", "total_steps", ""]


@dataclass(frozen=True)
class Decision:
    """The end of a round's last `wait`. by: the condition that was due first; "" where the server only collected.

    at_s: seconds on the clock, NaN without a wait. n: how many arrivals, devices with their steps done, or steps in all
    it was about; NaN for a deadline.
    """

    at_s: float = float("nan")
    by: DecidedBy = ""
    n: float = float("nan")


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
    decision: Decision = Decision()


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
