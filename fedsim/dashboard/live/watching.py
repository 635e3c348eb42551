"""Runs in progress, followed while they grow, and those that have been finished lately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

import pandas as pd

from fedsim.statistics.catalogue import Catalogue, Entry
from fedsim.statistics.journal import Follower
from fedsim.statistics.summary import final_accuracy

FRESH_S = 1_800.0
"""A run that was finished within so many real seconds still stands among those that are watched."""

N_FRESH = 20
"""Of these, the latest so many."""


@dataclass(frozen=True, eq=False)
class Watched:
    """One run at one moment.

    share: of its stop rule, 0 ... 1. accuracy: the last known; None: none yet, or no classes. silent_s: real seconds
    without a sign of life, if they are many. problem: what is wrong with its files, else "". version: changes when
    anything above does.
    """

    entry: Entry
    share: float
    simulated_s: float
    n_rounds: int
    accuracy: float | None
    silent_s: float | None
    problem: str
    evaluations: pd.DataFrame
    version: str

    @property
    def is_going(self) -> bool:
        """Whether it has not been finished."""
        return self.entry.state == "in_progress"


@dataclass
class Watch:
    """Follows the runs of a catalogue; reads of each journal only what is new. Safe to use from several threads."""

    catalogue: Catalogue
    _followers: dict[str, Follower] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def look(self, now_s: float) -> tuple[list[Watched], tuple[Entry, ...]]:
        """Runs in progress and runs finished lately, and all that the catalogue holds. now_s: seconds since 1970."""
        with self._lock:
            entries = self.catalogue.look()
            going = {entry.id: entry for entry in entries if entry.state == "in_progress"}
            self._followers = {i: self._followers.get(i) or Follower(entry.folder) for i, entry in going.items()}
            watched = [self._going(entry, now_s) for entry in going.values()]
        return watched + self._finished(entries, now_s), entries

    def _going(self, entry: Entry, now_s: float) -> Watched:
        follower = self._followers[entry.id]
        follower.look()
        silent_s = follower.silent_s(now_s)
        minutes = -1 if silent_s is None else int(silent_s // 60)
        return Watched(
            entry,
            follower.share,
            follower.simulated_s,
            follower.n_rounds,
            follower.accuracy,
            silent_s,
            follower.problem,
            follower.evaluations,
            f"{entry.id} {entry.label} {follower.n_bytes} {minutes}",
        )

    def _finished(self, entries: Sequence[Entry], now_s: float) -> list[Watched]:
        fresh = [e for e in entries if e.state == "finished" and now_s - e.changed_s < FRESH_S]
        latest = sorted(fresh, key=lambda entry: -entry.changed_s)[:N_FRESH]
        runs, _ = self.catalogue.curves(latest)
        by_folder = {run.folder: run for run in runs}
        return [
            Watched(
                entry,
                1.0,
                run.simulated_s,
                int(run.manifest["outcome"]["round"]),
                final_accuracy(run),
                None,
                "",
                run.evaluations,
                f"{entry.id} finished {entry.changed_s}",
            )
            for entry in latest
            if (run := by_folder.get(entry.folder)) is not None
        ]
