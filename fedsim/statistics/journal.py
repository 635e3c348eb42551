"""A run that is under way, followed while it grows: what it is about, how far it is, its evaluations so far.

It keeps two files in `.seed-<k>.partial/`: `started.json`, the manifest as far as it is known, and `journal.jsonl`, a line
for each closed round. Each look reads what was added since the last one. The last line may be half written: it waits for
its end. Both files vanish when the run is finished, just before the folder is renamed; what was read of them stays.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

JOURNAL, STARTED = "journal.jsonl", "started.json"
SILENT_S = 120.0
"""Without a new line for so long, real seconds, a run may have been stopped."""

_LINE = ("round", "end_s", "share")
_ROW = ("time_s", "round", "accuracy", "loss", "uploaded_bytes", "downloaded_bytes", "device_flops")


@dataclass
class Follower:
    """Follows the run in one partial folder.

    n_rounds: closed so far. simulated_s: when the last of them was closed. share: of its stop rule, 0 ... 1.
    problem: what is wrong with the journal, in words, else "". changed_s: last sign of life, seconds since 1970.
    """

    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    n_rounds: int = 0
    simulated_s: float = 0.0
    share: float = 0.0
    problem: str = ""
    changed_s: float = 0.0
    _rows: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _ROW})
    _file: tuple[int, int] = (0, 0)
    _n_read: int = 0
    _n_lines: int = 0

    @property
    def n_bytes(self) -> int:
        """Of the journal, read so far: grows with every line."""
        return self._n_read

    @property
    def accuracy(self) -> float | None:
        """Of the last evaluation; None before the first, or if there are no classes."""
        accuracies = self._rows["accuracy"]
        return None if not accuracies or np.isnan(accuracies[-1]) else accuracies[-1]

    @property
    def evaluations(self) -> pd.DataFrame:
        """The evaluations so far, with those columns of a finished run's table that are drawn."""
        return pd.DataFrame(self._rows, dtype=np.float64)

    def look(self) -> None:
        """Read what is new."""
        if not self.facts:
            self.facts = read_started(self.folder / STARTED)
        try:
            with (self.folder / JOURNAL).open("rb") as journal:
                stat = os.fstat(journal.fileno())
                if (stat.st_dev, stat.st_ino) != self._file or stat.st_size < self._n_read:
                    self._begin_anew(stat)
                self.changed_s = stat.st_mtime
                journal.seek(self._n_read)
                new = journal.read(stat.st_size - self._n_read)
        except FileNotFoundError:
            self.changed_s = self.changed_s or _made_s(self.folder)
            return
        whole, newline, _ = new.rpartition(b"\n")
        self._n_read += len(whole) + len(newline)
        for line in whole.splitlines():
            self._n_lines += 1
            self._take(line)

    def silent_s(self, now_s: float) -> float | None:
        """Real seconds since the last sign of life if they are many, else None. now_s: seconds since 1970."""
        silence_s = now_s - self.changed_s
        return silence_s if silence_s >= SILENT_S else None

    def _begin_anew(self, stat: os.stat_result) -> None:
        """Another run has begun under the same name."""
        if self._file != (0, 0):
            self.facts = read_started(self.folder / STARTED)
        self._file, self._n_read, self._n_lines = (stat.st_dev, stat.st_ino), 0, 0
        self.n_rounds, self.simulated_s, self.share, self.problem = 0, 0.0, 0.0, ""
        self._rows = {name: [] for name in _ROW}

    def _take(self, line: bytes) -> None:
        try:
            told = json.loads(line)
            n_closed, end_s, share = (float(told[name]) for name in _LINE)
            rows = [[np.nan if row[name] is None else float(row[name]) for name in _ROW] for row in told["evaluations"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            self.problem = f"{self.folder / JOURNAL}:{self._n_lines}: not a line that fedsim writes; run it again"
            return
        self.n_rounds, self.simulated_s, self.share = int(n_closed) + 1, end_s, share
        for row in rows:
            for name, value in zip(_ROW, row, strict=True):
                self._rows[name].append(value)


def read_started(path: Path) -> dict[str, Any]:
    """What a run that has begun says of itself; empty if it is not there, or only half written."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def label_of(facts: dict[str, Any]) -> str | None:
    """The policy's name in results; None if the facts do not say."""
    policy = facts.get("policy")
    label = policy.get("label") if isinstance(policy, dict) else None
    return None if label is None else str(label)


def _made_s(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
