"""Run folders as pandas frames.

A run folder is `<scenario>/<policy folder>/seed-<k>/`; docs/reference/run-folder.md describes its files. A folder that
lacks a file, a column or a key is not finished: `read_run` refuses it, `read_scenario` leaves it out and
`broken_folders` names it. What older runs of the same format do not have may be missing: closed forms, speed classes, and
columns that are read as NaN. Knows nothing of how runs are made.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyarrow.parquet import read_schema

from fedsim.facts import BadInput

SCHEMA_VERSION = 1

COLUMNS = {
    "rounds": [
        *("round", "start_s", "end_s", "version", "n_sent", "n_contributions"),
        *("uploaded_bytes", "downloaded_bytes", "device_flops", "used_flops"),
    ],
    "layers": ["round", "layer", "n_contributors", "weight_sum"],
    "evaluations": [
        *("time_s", "version", "round", "accuracy", "loss"),
        *("uploaded_bytes", "downloaded_bytes", "device_flops"),
    ],
}
"""The columns that every finished run has, table by table; `tasks` is optional."""

LATER_COLUMNS = {
    "rounds": [
        *("staleness_mean", "staleness_max", "wasted_uploaded_bytes", "wasted_downloaded_bytes"),
        *("decided_s", "decided_by", "decided_n"),
    ],
    "layers": ["change_norm"],
    "evaluations": ["accuracy_slowest", "accuracy_fastest"],
}
"""Columns that older runs lack; NaN in their tables."""

CLASSES = ["round", "speed_class", "n_used", "n_steps", "weight_sum"]
"""The columns of the table `classes`; older runs have none."""


class BrokenRunError(BadInput):
    """A folder that is not a finished run: which folder, what is wrong, and how to mend it."""


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run: a policy under one seed.

    manifest: manifest.json as it stands. rounds, layers, classes, evaluations: the tables of the same names, one row per
    round, per round and layer, per round and speed class, and per evaluation; `evaluations` is empty where only the clock
    ran. expected: the objects of expected.json, closed forms of this run's fleet; none where the file is missing.
    """

    folder: Path
    manifest: dict[str, Any]
    rounds: pd.DataFrame
    layers: pd.DataFrame
    classes: pd.DataFrame
    evaluations: pd.DataFrame
    expected: list[dict[str, Any]]

    @property
    def label(self) -> str:
        """The policy's name in results."""
        return str(self.manifest["policy"]["label"])

    @property
    def kind(self) -> str:
        """The policy's file on the shelf; two settings of one policy share it."""
        return str(self.manifest["policy"]["kind"])

    @property
    def seed(self) -> int:
        return int(self.manifest["seed"])

    @property
    def position(self) -> int:
        """The policy's place in the scenario, from 0."""
        return int(self.manifest["position"])

    @property
    def outcome(self) -> str:
        """ "finished", "diverged" or "stalled"."""
        return str(self.manifest["outcome"]["kind"])

    @property
    def setting(self) -> str:
        """All that the runs of one comparison share: the scenario without its policies and seeds, as text."""
        shared = {key: value for key, value in self.manifest["scenario"].items() if key not in ("policies", "seeds")}
        return json.dumps(shared, sort_keys=True)

    @property
    def simulated_s(self) -> float:
        """Simulated seconds at which the run ended."""
        return float(self.manifest["outcome"]["simulated_s"])

    @property
    def targets(self) -> tuple[float, ...]:
        """Target accuracies of the scenario, in its order."""
        return tuple(float(target) for target in self.manifest["scenario"]["evaluation"]["targets"])

    @property
    def grid_step_s(self) -> float | None:
        """Seconds between evaluations; None where nothing fixes a common grid, or where it is one of rounds."""
        step_s = self.manifest["grid_step_s"]
        return None if step_s is None else float(step_s)

    @property
    def every_n_rounds(self) -> int | None:
        """Rounds between evaluations; None where the grid is one of simulated time."""
        n_rounds = self.manifest["scenario"]["evaluation"].get("every_n_rounds")
        return None if n_rounds is None else int(n_rounds)

    @cached_property
    def followed_s(self) -> float:
        """Simulated seconds up to which the accuracy is known: those of the last evaluation on a grid of time, of the
        run's end where rounds are evaluated; 0 where nothing was.
        """
        if self.evaluations.empty:
            return 0.0
        return float(self.evaluations["time_s"].max()) if self.every_n_rounds is None else self.simulated_s

    @property
    def sustain_s(self) -> float | None:
        """How long a target must be held; None where nothing fixes it."""
        sustain_s = self.manifest["sustain_s"]
        return None if sustain_s is None else float(sustain_s)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The model's layers, from the input."""
        return tuple(str(layer["name"]) for layer in self.manifest["layers"])

    @property
    def speed_classes(self) -> list[dict[str, Any]]:
        """The fleet's speed classes, from the fastest, as the manifest describes them; none in older runs."""
        return list(self.manifest.get("speed_classes", []))

    @cached_property
    def tasks(self) -> pd.DataFrame | None:
        """One row per task, read when asked for (millions of rows in large fleets); None if not recorded."""
        return self._if_recorded("tasks")

    @cached_property
    def devices(self) -> pd.DataFrame | None:
        """One row per device, read when asked for; None if not recorded."""
        return self._if_recorded("devices")

    @property
    def has_tasks(self) -> bool:
        """Whether its tasks were recorded."""
        return (self.folder / "tasks.parquet").exists()

    def task_columns(self, columns: Sequence[str], later: Sequence[str] = ()) -> pd.DataFrame | None:
        """These columns of `tasks`, read anew and not kept; None if not recorded. Raises BrokenRunError.

        later: columns that older runs lack; they are then left out.
        """
        return self._if_recorded("tasks", columns=columns, later=later)

    def tasks_of_round(self, number: int) -> pd.DataFrame | None:
        """The rows of `tasks` that were settled in this round; only they are read. None if not recorded."""
        return self._if_recorded("tasks", filters=[("round", "==", number)])

    def milestones_of_round(self, number: int, last: int | None = None) -> pd.DataFrame | None:
        """When those tasks finished their steps and layers: the rows of `milestones` of this round (up to round `last`),
        read alone; None if not recorded, as in older runs.
        """
        last = number if last is None else last
        return self._if_recorded("milestones", filters=[("round", ">=", number), ("round", "<=", last)])

    def tasks_within_round(self, number: int) -> pd.DataFrame | None:
        """Those, and the tasks that were sent before the round ended and settled later (of servers that do not wait)."""
        end_s = float(self.rounds["end_s"].iloc[number])
        return self._if_recorded("tasks", filters=[("round", ">=", number), ("sent_s", "<", end_s)])

    def _if_recorded(
        self,
        name: str,
        *,
        columns: Sequence[str] | None = None,
        later: Sequence[str] = (),
        filters: list[tuple[str, str, float]] | None = None,
    ) -> pd.DataFrame | None:
        path = self.folder / f"{name}.parquet"
        if not path.exists():
            return None
        try:
            there = set(read_schema(path).names)
            wanted = None if columns is None else [*columns, *(column for column in later if column in there)]
            return pd.read_parquet(path, columns=wanted, filters=filters)
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            why = str(error).splitlines()[0]
            raise BrokenRunError(
                f"{self.folder}: {path.name} cannot be read ({why}); run it again (--again)"
            ) from error


def read_run(folder: Path | str) -> Run:
    """The run in `folder`. Raises BrokenRunError if it is not finished or was written by another version."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    tables = {name: read_table(folder, name, columns) for name, columns in COLUMNS.items()}
    classes = read_table(folder, "classes", CLASSES) if "speed_classes" in manifest else pd.DataFrame(columns=CLASSES)
    run = Run(folder, manifest, **tables, classes=classes, expected=_expected(folder))
    try:
        _ = (run.label, run.kind, run.seed, run.position, run.outcome, run.simulated_s, run.speed_classes)
        _ = (run.targets, run.grid_step_s, run.every_n_rounds, run.sustain_s, run.layer_names)
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenRunError(f"{folder}: manifest.json lacks or garbles {error}; run it again (--again)") from error
    return run


def read_scenario(folder: Path | str) -> list[Run]:
    """The finished runs of a scenario, by the policies' order in it, then by seed. See `broken_folders` for the rest."""
    runs = [run for run in map(_run_or_reason, _run_folders(Path(folder))) if isinstance(run, Run)]
    return sorted(runs, key=lambda run: (run.position, run.label, run.seed))


def broken_folders(folder: Path | str, known: Collection[Run] = ()) -> list[str]:
    """Why each unfinished run folder of a scenario is left out, one line each, in the order of folders.

    known: runs that were read already and are not looked at again.
    """
    whole = {run.folder for run in known}
    reasons = (_run_or_reason(path) for path in _run_folders(Path(folder)) if path not in whole)
    return [reason for reason in reasons if isinstance(reason, str)]


def _run_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/seed-*") if path.is_dir())


def _run_or_reason(folder: Path) -> Run | str:
    try:
        return read_run(folder)
    except BrokenRunError as error:
        return str(error)


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a finished run. Raises BrokenRunError."""
    path = folder / "manifest.json"
    if not path.exists():
        raise BrokenRunError(f"{folder}: no manifest.json, so the run has not finished; run it again (--again)")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenRunError(f"{folder}: manifest.json cannot be read ({error}); run it again (--again)") from error
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if not isinstance(manifest, dict) or version != SCHEMA_VERSION:
        raise BrokenRunError(
            f"{folder}: written in format {version}, this fedsim reads {SCHEMA_VERSION}; run it again (--again)"
        )
    return manifest


def _expected(folder: Path) -> list[dict[str, Any]]:
    path = folder / "expected.json"
    if not path.exists():
        return []
    try:
        expected = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BrokenRunError(f"{folder}: expected.json cannot be read ({error}); run it again (--again)") from error
    if not isinstance(expected, list) or not all(isinstance(one, dict) and "quantity" in one for one in expected):
        raise BrokenRunError(f"{folder}: expected.json is not a list of quantities; run it again (--again)")
    return expected


def read_table(folder: Path, name: str, columns: list[str]) -> pd.DataFrame:
    """A table of a finished run, with at least these columns. Raises BrokenRunError."""
    path = folder / f"{name}.parquet"
    if not path.exists():
        raise BrokenRunError(f"{folder}: no {path.name}, so the run has not finished; run it again (--again)")
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise BrokenRunError(f"{folder}: {path.name} cannot be read ({error}); run it again (--again)") from error
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise BrokenRunError(f"{folder}: {path.name} lacks the columns {', '.join(missing)}; run it again (--again)")
    later = [column for column in LATER_COLUMNS.get(name, ()) if column not in table.columns]
    return table.assign(**dict.fromkeys(later, np.nan))
