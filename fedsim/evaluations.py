"""When the global model is evaluated, and what came of it: the rows of the `evaluations` table.

Two cadences: moments of simulated time common to all policies, or the ends of every so many rounds. The same weights
are never evaluated twice on the same rows. Knows neither the clock nor the trainer: the book says when the model is
about to change and when a round has closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsim.facts import Array, Evaluation
from fedsim.protocols import Learner
from fedsim.speed_classes import mix_accuracy

_ROUNDING = 1e-9  # relative: where a window ends is known up to the last bits of a sum


@dataclass(frozen=True)
class Grid:
    """When the model is evaluated, on `n_rows` rows (all if None).

    step_s: at 0, step_s, 2 step_s, ... every_n_rounds, where step_s is None: at 0 and at the end of every so manieth
    round. targets are accuracies; sustain_s is how long one must be held to count as reached.
    Raises ValueError unless exactly one of step_s and every_n_rounds is stated.
    """

    step_s: float | None
    n_rows: int | None = None
    targets: tuple[float, ...] = ()
    sustain_s: float = 0.0
    every_n_rounds: int | None = None

    def __post_init__(self) -> None:
        if (self.step_s is None) == (self.every_n_rounds is None):
            raise ValueError("a grid is of seconds or of rounds; state one of step_s and every_n_rounds")


@dataclass
class Evaluations:
    """The evaluations of one run, as they come.

    horizon_s: where a grid of seconds ends. label_shares: the label mixes of the device classes, from the fastest to the
    slowest, `[class, label]`; None where there is but one. rows: columns of the table. latest: the version that was
    evaluated last (-1: none yet) and what came of it.
    """

    learner: Learner
    grid: Grid | None
    horizon_s: float = np.inf
    label_shares: Array | None = None
    rows: dict[str, list[Any]] = field(default_factory=dict)
    latest: tuple[int, Evaluation | None] = (-1, None)
    _held_since_s: float = np.inf
    _is_sustained: bool = False

    def before_change(self, now_s: float, version: int, so_far: Mapping[str, float]) -> None:
        """Evaluate what is due before `now_s`: the model has had this version since the last round closed.

        so_far: the row's further columns (rounds closed, costs).
        """
        if self.grid is None:
            return
        if self.grid.step_s is None:
            if not self.rows:
                self._add(self.grid, 0.0, version, so_far)
            return
        while (at_s := self._next_s(self.grid.step_s)) < now_s and self._add(self.grid, at_s, version, so_far):
            pass

    def after_round(self, end_s: float, n_closed: int, version: int, so_far: Mapping[str, float]) -> None:
        """Evaluate at a round's end, if the cadence is in rounds and this one is due."""
        if self.grid is not None and self.grid.every_n_rounds and n_closed % self.grid.every_n_rounds == 0:
            self._add(self.grid, end_s, version, so_far)

    def has_sustained_all(self, now_s: float) -> bool:
        """Whether the highest target has been held for `sustain_s`, seen from `now_s`, when a round has just closed."""
        if self.grid is None or not self.grid.targets:
            return False
        if self.grid.step_s is None:
            return self._is_sustained or self._window_end_s(self.grid) <= now_s * (1 + _ROUNDING)
        n = int(np.ceil(self.grid.sustain_s / self.grid.step_s - 1e-9)) + 1
        latest = self.rows.get("accuracy", [])[-n:]
        return len(latest) == n and min(latest) >= max(self.grid.targets)

    def final(self, version: int) -> Evaluation | None:
        """The model of now, this version, on all rows; computed only if the latest evaluation was not just that."""
        is_known = self.grid is not None and self.grid.n_rows is None and self.latest[0] == version
        return self.latest[1] if is_known else self.learner.evaluate()

    def _next_s(self, step_s: float) -> float:
        at_s = len(self.rows.get("time_s", ())) * step_s
        # 200 steps of horizon / 200 may miss the horizon by the last bit, and the last evaluation with it.
        return self.horizon_s if abs(at_s - self.horizon_s) <= _ROUNDING * step_s else at_s

    def _add(self, grid: Grid, at_s: float, version: int, so_far: Mapping[str, float]) -> bool:
        """Whether a row was added: a learner that trains nothing has no accuracy."""
        if self.latest[0] != version:  # never the same weights twice
            self.latest = (version, self.learner.evaluate(grid.n_rows))
        evaluation = self.latest[1]
        if evaluation is None:
            return False
        row = {"time_s": at_s, "version": version, "accuracy": evaluation.accuracy, "loss": evaluation.loss}
        for name, value in {**row, **self._on_mixes(evaluation), **so_far}.items():
            self.rows.setdefault(name, []).append(value)
        if grid.targets:
            self._follow(grid, at_s, is_held=evaluation.accuracy >= max(grid.targets))
        return True

    def _on_mixes(self, evaluation: Evaluation) -> dict[str, float]:
        """Accuracy on the label mixes of the slowest and the fastest devices; NaN if there is no such thing."""
        if self.label_shares is None or evaluation.label_accuracy is None:
            return {"accuracy_slowest": np.nan, "accuracy_fastest": np.nan}
        fastest, slowest = (mix_accuracy(self.label_shares[i], evaluation.label_accuracy) for i in (0, -1))
        return {"accuracy_slowest": slowest, "accuracy_fastest": fastest}

    def _follow(self, grid: Grid, at_s: float, *, is_held: bool) -> None:
        """Remember since when the highest target has been held."""
        # Rounds may be longer than a window: what was sustained before this evaluation is not taken back by it.
        self._is_sustained = self._is_sustained or self._window_end_s(grid) < at_s * (1 - _ROUNDING)
        self._held_since_s = min(self._held_since_s, at_s) if is_held else np.inf

    def _window_end_s(self, grid: Grid) -> float:
        return self._held_since_s + grid.sustain_s
