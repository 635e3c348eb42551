"""Runs for Weights & Biases, written offline; `wandb sync` sends them when you say so.

Simulated seconds, as they are, are the axis of every chart (time_s); numbers keep all their digits. A second export puts
new offline runs in the place of the old ones, which have the same id.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedsim.facts import BadInput
from fedsim.trackers.environment import environment
from fedsim.trackers.points import StepUnit, TrackedRun

TIME = "time_s"
_QUIET = {"mode": "offline", "silent": True, "console": "off"} | dict.fromkeys(
    # It would record the program, the repository and the machine, none of which made these numbers.
    ("disable_code", "disable_git", "x_disable_stats", "x_disable_meta"),
    True,
)
_ENVIRONMENT = {"WANDB_ERROR_REPORTING": "false"}  # offline says nothing of reports about itself


def write(runs: Sequence[TrackedRun], folder: Path, _unit: StepUnit) -> str:
    """Write every run as an offline run in folder/wandb, one project for each scenario; how to send them. No axis here
    counts whole steps, so it needs no unit.
    """
    with environment(_ENVIRONMENT):
        import wandb  # type: ignore[import-not-found, unused-ignore]

        folder.mkdir(parents=True, exist_ok=True)
        try:
            for run in runs:
                _write_run(wandb, run, folder)
        except wandb.errors.Error as error:
            raise BadInput(f"{folder}: wandb refuses: {str(error).splitlines()[0]}") from error
    return f"wandb sync {folder / 'wandb'}/offline-run-*"


def _write_run(wandb: Any, run: TrackedRun, folder: Path) -> None:
    earlier = set(folder.glob(f"wandb/offline-run-*-{run.identity}"))
    started = wandb.init(
        dir=os.fspath(folder),
        project=run.folders[0],
        group=run.policy,
        name=run.name,
        id=run.identity,
        config=dict(run.parameters),
        settings=wandb.Settings(**_QUIET),
    )
    started.define_metric(TIME)
    started.define_metric("*", step_metric=TIME)
    for row in _rows(run):
        started.log(row)
    started.summary.update(dict(run.results))
    started.finish(exit_code=0 if run.results["outcome"] == "finished" else 1)
    for old in earlier:
        shutil.rmtree(old)


def _rows(run: TrackedRun) -> Iterator[dict[str, Any]]:
    """The rows of both tables, in the order of time."""
    rows: dict[tuple[float, str, int], dict[str, Any]] = {}
    for one in run.series:
        table = one.name.partition("/")[0]
        for time_s, row, value in zip(one.time_s.tolist(), one.row.tolist(), one.values.tolist(), strict=True):
            rows.setdefault((time_s, table, row), {TIME: time_s})[one.name] = value
    for key in sorted(rows):
        yield rows[key]
