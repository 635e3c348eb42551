"""A run as trackers keep one: a name, parameters, results, and numbers over simulated time.

Knows no tracker. Names are those of the run folder's tables and of the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fedsim.facts import Array, IntArray
from fedsim.scenario.labels import folder_name
from fedsim.statistics.reading import Run
from fedsim.statistics.summary import summarise
from fedsim.statistics.words import format_s

Value = bool | int | float | str

_UNITS = (("s", 1.0), ("ms", 1e3), ("us", 1e6))


@dataclass(frozen=True)
class Series:
    """One number over time, finite values only, in the order of the table: `[value]` each. row: in the table, from 0."""

    name: str
    time_s: Array
    values: Array
    row: IntArray


@dataclass(frozen=True)
class StepUnit:
    """What a tracker's integer step counts of simulated time: "s", "ms" or "us"."""

    name: str
    per_s: float

    def steps(self, time_s: Array) -> IntArray:
        """The nearest whole step of each time."""
        return np.round(time_s * self.per_s).astype(np.int64)


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker gets of one run.

    scenario, policy, seed_name: together the name. series: of the tables `evaluations` and `rounds`, called
    "<table>/<column>". parameters: what was asked for, flattened: "fleet.n_devices", "policy.k". results: what came of
    it; a target that was not reached is words.
    """

    scenario: str
    policy: str
    seed_name: str
    series: Sequence[Series]
    parameters: Mapping[str, Value]
    results: Mapping[str, Value]

    @property
    def name(self) -> str:
        return f"{self.scenario}/{self.policy}/{self.seed_name}"

    @property
    def folders(self) -> tuple[str, str, str]:
        """The same as names of folders, harmless whatever the label holds."""
        return folder_name(self.scenario), folder_name(self.policy), self.seed_name

    @property
    def identity(self) -> str:
        """Sixteen characters that the name alone decides."""
        parts = json.dumps([self.scenario, self.policy, self.seed_name])
        return hashlib.sha256(parts.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def tracked(run: Run) -> TrackedRun:
    """All that trackers are told of this run."""
    rounds = run.rounds.assign(round_s=run.rounds["end_s"] - run.rounds["start_s"])
    scenario = {key: value for key, value in run.manifest["scenario"].items() if key not in ("policies", "seeds")}
    policy = run.manifest["policy"]
    return TrackedRun(
        scenario=str(scenario.get("name", "scenario")),
        policy=run.label,
        seed_name=f"seed-{run.seed}",
        series=[
            *_series("evaluations", run.evaluations, "time_s"),
            *_series("rounds", rounds.drop(columns=["round", "start_s"]), "end_s"),
        ],
        parameters={
            **_flat(scenario),
            **_flat({"policy": {**policy.get("parameters", {}), "kind": run.kind, "label": run.label}}),
            "seed": run.seed,
        },
        results=_results(run),
    )


def step_unit(runs: Sequence[TrackedRun]) -> StepUnit:
    """One unit for all of these runs: seconds if every time is whole, else the first of ms and us that keeps the moments
    of each table apart (us if neither does).
    """
    moments = [np.unique(one.time_s) for run in runs for one in run.series]
    if all((time_s == np.round(time_s)).all() for time_s in moments):
        return StepUnit(*_UNITS[0])
    units = [StepUnit(*unit) for unit in _UNITS[1:]]
    apart = (unit for unit in units if all(len(np.unique(unit.steps(one))) == len(one) for one in moments))
    return next(apart, units[-1])


def in_words(value: Value) -> str:
    """A value as text that reads back as the same value."""
    return value if isinstance(value, str) else json.dumps(value)


def _series(table: str, rows: pd.DataFrame, time: str) -> list[Series]:
    time_s = rows[time].to_numpy(np.float64)
    found = []
    for column in rows.drop(columns=time).select_dtypes(include=["number", "bool"]):
        values = rows[column].to_numpy(np.float64)
        is_known = np.isfinite(values)
        if is_known.any():
            found.append(Series(f"{table}/{column}", time_s[is_known], values[is_known], np.flatnonzero(is_known)))
    return found


def _flat(block: Mapping[str, Any], before: str = "") -> dict[str, Value]:
    """Nested blocks as "a.b.c"; lists and null as JSON."""
    flat: dict[str, Value] = {}
    for key, value in block.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{before}{key}.")
        else:
            is_plain = isinstance(value, bool | int | float | str)
            flat[f"{before}{key}"] = value if is_plain else json.dumps(value, ensure_ascii=False)
    return flat


def _results(run: Run) -> dict[str, Value]:
    row = summarise(run)
    results: dict[str, Value] = {"outcome": run.outcome, "simulated_s": run.simulated_s, "n_rounds": row["n_rounds"]}
    if row["final_accuracy"] is not None:
        results["final_accuracy"] = row["final_accuracy"]
    for name in ("time_to_accuracy_s", "first_crossing_s"):
        for target, time_s in row[name].items():
            results[f"{name}@{target}"] = f"not within {format_s(run.followed_s)}" if time_s is None else time_s
    return results
