"""A run's records: kept while the clock goes, written once at the end as a run folder that pandas opens.

The format is described in docs/reference/run-folder.md. Nothing here is pickled, no wall-clock value enters a table,
and a reader never sees half a folder: it is written beside its place and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import numpy as np

from fedsim.evaluations import Evaluations, Grid
from fedsim.facts import Array, BoolArray, Evaluation, IntArray
from fedsim.protocols import Learner
from fedsim.speed_classes import SpeedClasses
from fedsim.timing.book import ClosedJobs, ClosedRound, Milestones

SCHEMA_VERSION = 1
JOURNAL, STARTED = "journal.jsonl", "started.json"
_COSTS = ("uploaded_bytes", "downloaded_bytes", "device_flops")
_WASTES = {"wasted_uploaded_bytes": "uploaded_bytes", "wasted_downloaded_bytes": "downloaded_bytes"}
_TABLES = ("rounds", "layers", "evaluations")
Table = dict[str, list[Any]]


@dataclass(frozen=True)
class Progress:
    """How far a run is. share: of its stop rule, 0 ... 1."""

    simulated_s: float
    n_rounds: int
    accuracy: float | None
    share: float


@dataclass
class RunBook:
    """Keeps the tables of one run and says when it is over. Implements `fedsim.timing.book.Book`.

    grid: when the model is evaluated; None: never. at_targets: stop when every target has been sustained. journal: an
    open text file that gets a line per round. speed: the classes of the fleet; None: all devices are alike.
    label_shares: the label mixes of these, `[class, label]`.
    """

    learner: Learner
    grid: Grid | None
    horizon_s: float = np.inf
    n_rounds: int | None = None
    at_targets: bool = False
    record_tasks: bool = True
    record_updates: bool = False
    on_progress: Callable[[Progress], None] = lambda _: None
    journal: IO[str] | None = None
    speed: SpeedClasses | None = None
    label_shares: Array | None = None
    rounds: Table = field(default_factory=dict)
    layers: Table = field(default_factory=dict)
    classes: Table = field(default_factory=dict)
    _tasks: list[tuple[ClosedJobs, int, BoolArray]] = field(default_factory=list)
    _updates: list[dict[str, Any]] = field(default_factory=list)
    _unresolved: list[ClosedJobs] = field(default_factory=list)
    _totals: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_COSTS, 0.0))
    _version: int = 0
    _n_journalled: int = 0
    n_closed: int = 0

    def __post_init__(self) -> None:
        self._evaluations = Evaluations(self.learner, self.grid, self.horizon_s, self.label_shares)

    # ---- what the clock reports ---------------------------------------------------------------------------------

    def before_change(self, now_s: float) -> None:
        """Evaluate at every grid time before `now_s` that is not done yet: the model has not changed since."""
        self._evaluations.before_change(now_s, self._version, self._so_far())

    def jobs_closed(self, jobs: ClosedJobs) -> None:
        self._unresolved.append(jobs)

    def round_closed(self, closed: ClosedRound) -> str | None:
        costs = self._resolve(closed.contributions.device, closed.contributions.ordinal)
        staleness = self._version - closed.contributions.version
        self._version = closed.report.version
        _append(
            self.rounds,
            round=self.n_closed,
            start_s=closed.start_s,
            end_s=closed.end_s,
            version=closed.report.version,
            n_sent=closed.n_sent,
            n_contributions=len(closed.contributions),
            **costs,
            used_flops=closed.used_flops,
            computed_flops=closed.report.computed_flops,
            staleness_mean=float(staleness.mean()) if len(staleness) else np.nan,
            staleness_max=int(staleness.max()) if len(staleness) else np.nan,
            decided_s=closed.decision.at_s,
            decided_by=closed.decision.by,
            decided_n=closed.decision.n,
        )
        self._record_layers_and_classes(closed)
        self._record_updates(closed)
        self.n_closed += 1
        self._evaluations.after_round(closed.end_s, self.n_closed, self._version, self._so_far())
        self._tell(closed)
        return self._is_over(closed.end_s)

    def final(self) -> Evaluation | None:
        """The model that the run ended with, on all evaluation rows; None if nothing was trained."""
        return self._evaluations.final(self._version)

    def _record_layers_and_classes(self, closed: ClosedRound) -> None:
        used, held, n_layers = closed.contributions, closed.contributions.holds_layer, closed.contributions.n_layers
        _extend(
            self.layers,
            round=[self.n_closed] * n_layers,
            layer=range(n_layers),
            n_contributors=held.sum(axis=0).tolist(),
            weight_sum=closed.weights.sum(axis=0).tolist(),
            change_norm=[np.nan] * n_layers
            if closed.report.change_norm is None
            else closed.report.change_norm.tolist(),
        )
        n_classes = 1 if self.speed is None else len(self.speed)
        in_class = np.zeros(len(used), dtype=np.int64) if self.speed is None else self.speed.of_device[used.device]
        n_parameters, weights = self.learner.shape.n_parameters, closed.weights
        if len(weights) > len(used):  # rows of zeros belong to contributions that were not used
            weights = weights[weights.any(axis=1)]
        weight = np.where(held, weights, 0.0) @ (n_parameters / n_parameters.sum())
        _extend(
            self.classes,
            round=[self.n_closed] * n_classes,
            speed_class=range(n_classes),
            n_used=np.bincount(in_class, minlength=n_classes).tolist(),
            n_steps=np.bincount(in_class, weights=used.n_steps, minlength=n_classes).tolist(),
            weight_sum=np.bincount(in_class, weights=weight, minlength=n_classes).tolist(),
        )

    def _record_updates(self, closed: ClosedRound) -> None:
        found = closed.report.statistics
        if found is None or not self.record_updates:
            return
        n, n_layers = found.squared_norm.shape
        distance = np.full((n, n_layers), np.nan) if found.squared_distance is None else found.squared_distance
        held = found.squared_norm > 0.0
        columns = {
            "round": np.full((n, n_layers), self.n_closed),
            "device": np.broadcast_to(found.device[:, None], (n, n_layers)),
            "layer": np.broadcast_to(np.arange(n_layers), (n, n_layers)),
            "squared_norm": found.squared_norm,
            "squared_distance": distance,
        }
        self._updates.append({name: column[held] for name, column in columns.items()})

    # ---- inside -------------------------------------------------------------------------------------------------

    def _so_far(self) -> dict[str, float]:
        return {"round": self.n_closed, **self._totals}

    def _resolve(self, used_device: IntArray, used_ordinal: IntArray) -> dict[str, float]:
        """Settle what became of the jobs closed since the last aggregate; returns their costs, and what was for nothing."""
        costs = dict.fromkeys((*_COSTS, *_WASTES), 0.0)
        used = np.sort(_key(used_device, used_ordinal), kind="stable")  # at no cost where it is sorted already
        for jobs in self._unresolved:
            for name in _COSTS:
                costs[name] += float(getattr(jobs, name).sum())
            is_used = _is_among(_key(jobs.device, jobs.ordinal), used)
            if not is_used.all():
                for name, of in _WASTES.items():
                    costs[name] += float(getattr(jobs, of)[~is_used].sum())
            if self.record_tasks:
                self._tasks.append((jobs, self.n_closed, is_used))
        self._unresolved.clear()
        for name in _COSTS:
            self._totals[name] += costs[name]
        return costs

    def _tell(self, closed: ClosedRound) -> None:
        latest = self._evaluations.latest[1]
        accuracy = None if latest is None or np.isnan(latest.accuracy) else latest.accuracy
        shares = [closed.end_s / self.horizon_s, self.n_closed / self.n_rounds if self.n_rounds else 0.0]
        share = min(1.0, max(shares))
        self.on_progress(Progress(closed.end_s, self.n_closed, accuracy, share))
        if self.journal is not None:
            line = {"round": self.n_closed - 1, "start_s": closed.start_s, "end_s": closed.end_s}
            line |= {"version": closed.report.version, "n_contributions": len(closed.contributions), **self._totals}
            self.journal.write(json.dumps(line | {"share": share, "evaluations": self._new_evaluations()}) + "\n")

    def _new_evaluations(self) -> list[dict[str, Any]]:
        """The rows since the journal's last line; numbers that are none are null."""
        rows = self._evaluations.rows
        n_rows = len(rows.get("time_s", ()))
        new = range(self._n_journalled, n_rows)
        self._n_journalled = n_rows
        return [{name: column[i] if np.isfinite(column[i]) else None for name, column in rows.items()} for i in new]

    def _is_over(self, now_s: float) -> str | None:
        if self.n_rounds is not None and self.n_closed >= self.n_rounds:
            return "stop.n_rounds is reached"
        if self.at_targets and self._evaluations.has_sustained_all(now_s):
            return "every target has been sustained"
        return None

    # ---- tables -------------------------------------------------------------------------------------------------

    def tables(self) -> dict[str, dict[str, Any]]:
        """The run folder's tables as columns, by name."""
        self._close_open_jobs()
        tables: dict[str, dict[str, Any]] = {
            "rounds": _typed(self.rounds, _ROUNDS),
            "layers": _typed(self.layers, _LAYERS),
            "classes": _typed(self.classes, _CLASSES),
            "evaluations": _typed(self._evaluations.rows, _EVALUATIONS),
        }
        if self.record_updates:
            parts = self._updates
            tables["updates"] = {
                name: np.concatenate([np.empty(0, kind), *(part[name] for part in parts)]).astype(kind)
                for name, kind in _UPDATES.items()
            }
        if self.record_tasks:
            tables |= {"tasks": self._task_columns(), "milestones": self._milestone_columns()}
        return tables

    def _close_open_jobs(self) -> None:
        self._resolve(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))

    def _task_columns(self) -> dict[str, Any]:
        names = [f.name for f in fields(ClosedJobs) if f.name not in ("outcome", "ended_s", "milestones")]
        columns: dict[str, Any] = {
            name: np.concatenate([np.empty(0, _TASKS[name]), *(getattr(jobs, name) for jobs, _, _ in self._tasks)])
            for name in names
        }
        sizes = [len(jobs.device) for jobs, _, _ in self._tasks]
        columns["round"] = np.repeat(np.array([closed for _, closed, _ in self._tasks], dtype=np.int64), sizes)
        columns["ended_s"] = np.repeat(np.array([jobs.ended_s for jobs, _, _ in self._tasks], dtype=np.float64), sizes)
        outcomes = [np.where(used, "used", _OUTCOME[jobs.outcome]) for jobs, _, used in self._tasks]
        columns["outcome"] = np.concatenate([np.empty(0, "<U9"), *outcomes]).astype(object)
        return columns

    def _milestone_columns(self) -> dict[str, Any]:
        """Sorted by round, so that one round can be read without the others."""
        parts = [(jobs.milestones, closed) for jobs, closed, _ in self._tasks if jobs.milestones is not None]
        sizes = [len(passed.device) for passed, _ in parts]
        columns: dict[str, Any] = {"round": np.repeat(np.array([closed for _, closed in parts], dtype=np.int32), sizes)}
        for f in fields(Milestones):
            kind = _MILESTONES[f.name]
            columns[f.name] = np.concatenate([np.empty(0, kind), *(getattr(passed, f.name) for passed, _ in parts)])
        return columns


_OUTCOME = {"taken": "dropped", "cancelled": "cancelled", "empty": "empty", "open": "open"}
_ROUNDS = {
    "round": "i8",
    "start_s": "f8",
    "end_s": "f8",
    "version": "i8",
    "n_sent": "i8",
    "n_contributions": "i8",
} | dict.fromkeys((*_COSTS, *_WASTES, "used_flops", "computed_flops", "staleness_mean", "staleness_max"), "f8")
_ROUNDS |= {"decided_s": "f8", "decided_by": "O", "decided_n": "f8"}
_LAYERS = {"round": "i8", "layer": "i8", "n_contributors": "i8", "weight_sum": "f8", "change_norm": "f8"}
_CLASSES = {"round": "i8", "speed_class": "i8", "n_used": "i8", "n_steps": "i8", "weight_sum": "f8"}
_EVALUATIONS = {"time_s": "f8", "version": "i8", "round": "i8"} | dict.fromkeys(
    ("accuracy", "loss", "accuracy_slowest", "accuracy_fastest", *_COSTS), "f8"
)
_UPDATES = {"round": "i8", "device": "i8", "layer": "i8", "squared_norm": "f8", "squared_distance": "f8"}
_TASKS = dict.fromkeys((f.name for f in fields(ClosedJobs)), "f8") | dict.fromkeys(
    ("device", "ordinal", "version", "asked_steps", "n_steps", "depth"), "i8"
)
# Half as wide as elsewhere: there may be ten of these rows for every task.
_MILESTONES = dict.fromkeys(("device", "ordinal", "step", "layer"), "i4") | {"ended_s": "f8"}
_ROWS_AT_ONCE = 65_536  # rows of a file that are read together: a round is found without reading all of a large table


def _append(table: Table, **row: Any) -> None:
    for name, value in row.items():
        table.setdefault(name, []).append(value)


def _extend(table: Table, **columns: Iterable[float]) -> None:
    """Several rows at once."""
    for name, values in columns.items():
        table.setdefault(name, []).extend(values)


def _typed(table: Table, types: Mapping[str, str]) -> dict[str, Any]:
    return {name: np.asarray(table.get(name, []), dtype=kind) for name, kind in types.items()}


def _key(device: IntArray, ordinal: IntArray) -> IntArray:
    return device << 32 | ordinal


def _is_among(keys: IntArray, ascending: IntArray) -> BoolArray:
    """Whether each key is one of these."""
    if not len(ascending):
        return np.zeros(len(keys), dtype=np.bool_)
    return np.asarray(ascending[np.minimum(np.searchsorted(ascending, keys), len(ascending) - 1)] == keys)


# ---- the folder -----------------------------------------------------------------------------------------------------


def partial_folder(folder: Path) -> Path:
    """Where a run that is not finished keeps its journal; made anew."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(20, "is in the way of a run's folder", str(folder))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def write_start(partial: Path, facts: Mapping[str, Any]) -> None:
    """What a run that has begun is about, for those who watch it: the manifest as far as it is known."""
    (partial / STARTED).write_text(json.dumps(facts, sort_keys=True) + "\n", encoding="utf-8")


def write(
    folder: Path,
    partial: Path,
    tables: Mapping[str, Mapping[str, Any]],
    manifest: Mapping[str, Any],
    expected: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Rename a partial folder, once it is whole, to the run's own; an older run of that name is removed just before."""
    import pandas as pd

    for name, columns in tables.items():
        pd.DataFrame(dict(columns)).to_parquet(partial / f"{name}.parquet", index=False, row_group_size=_ROWS_AT_ONCE)
    for name, facts in (("expected", list(expected)), ("manifest", manifest)):
        text = json.dumps(facts, indent=1, sort_keys=True, allow_nan=False)
        (partial / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    for name in (JOURNAL, STARTED):
        (partial / name).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def fingerprint_of(folder: Path) -> str | None:
    """The fingerprint that a finished run was written with; None if there is no such run, or a table is gone."""
    if not all((folder / f"{name}.parquet").is_file() for name in _TABLES):
        return None
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        fingerprint = manifest["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return fingerprint if isinstance(fingerprint, str) else None
