"""Runs for MLflow, in a folder of files: no server, no database, no network.

A metric's step counts simulated time in the export's unit; its timestamp is a whole number of milliseconds, which is all
that MLflow keeps, so the exact seconds stand beside it as the metrics evaluations/time_s and rounds/end_s. A second export
puts new runs in the place of the old ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.facts import BadInput
from fedsim.trackers.environment import environment
from fedsim.trackers.points import Series, StepUnit, TrackedRun, in_words

_IDENTITY = "fedsim.identity"
_MOST_PER_BATCH = 1_000  # metrics in one call; MLflow takes no more
_MOST_TAGS = 100
_MOST_CHARACTERS = 6_000  # of a parameter
_CUT = " ... cut here; the whole is in manifest.json"
# A folder of files needs nothing besides mlflow-skinny, where a database needs SQLAlchemy; newer MLflow writes one only
# if told so. The other two keep it from calling home.
_ENVIRONMENT = {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


def write(runs: Sequence[TrackedRun], folder: Path, unit: StepUnit) -> str:
    """Write every run into the MLflow folder, one experiment for each scenario; how to look at them."""
    with environment(_ENVIRONMENT):
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=folder.resolve().as_uri())
        try:
            for run in runs:
                _write_run(client, run, unit)
        except MlflowException as error:
            raise BadInput(f"{folder}: MLflow refuses: {str(error).splitlines()[0]}") from error
    return f"MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {folder}"


def _write_run(client: Any, run: TrackedRun, unit: StepUnit) -> None:
    from mlflow.entities import Metric, Param, RunTag

    experiment = client.get_experiment_by_name(run.scenario)
    where = client.create_experiment(run.scenario) if experiment is None else experiment.experiment_id
    earlier = client.search_runs([where], filter_string=f"tags.`{_IDENTITY}` = '{run.identity}'", max_results=1_000)
    # Simulated time starts at 0, which MLflow would take for no time at all, and so for now.
    new = client.create_run(where, start_time=1, run_name=run.name).info.run_id
    metrics = [
        Metric(_key(one.name), value, timestamp, step)
        for one in (*run.series, *_times(run.series))
        for value, timestamp, step in _points(one, unit)
    ]
    for batch in _batches(metrics, _MOST_PER_BATCH):
        client.log_batch(new, metrics=batch)
    params = [Param(_key(name), _cut(in_words(value))) for name, value in run.parameters.items()]
    tags = {**run.results, "step_unit": unit.name, _IDENTITY: run.identity}
    for some in _batches(params, _MOST_TAGS):
        client.log_batch(new, params=some)
    client.log_batch(new, tags=[RunTag(_key(name), in_words(value)) for name, value in tags.items()])
    status = "FINISHED" if run.results["outcome"] == "finished" else "FAILED"
    client.set_terminated(new, status, end_time=round(1_000 * float(run.results["simulated_s"])))
    # Only now: an export that is broken off leaves the old runs.
    for old in earlier:
        client.delete_run(old.info.run_id)


def _times(series: Sequence[Series]) -> list[Series]:
    """The moments of each table as numbers of their own."""
    found = []
    for table, column in (("evaluations", "time_s"), ("rounds", "end_s")):
        # Rows whose every number is unknown have no moment to tell.
        time_s = {
            row: at_s
            for one in series
            if one.name.startswith(f"{table}/")
            for row, at_s in zip(one.row.tolist(), one.time_s.tolist(), strict=True)
        }
        rows = np.array(sorted(time_s), dtype=np.int64)
        seconds = np.array([time_s[row] for row in rows.tolist()])
        found.append(Series(f"{table}/{column}", seconds, seconds, rows))
    return found


def _points(one: Series, unit: StepUnit) -> Iterator[tuple[float, int, int]]:
    timestamps = np.round(1_000 * one.time_s).astype(np.int64)
    yield from zip(one.values.tolist(), timestamps.tolist(), unit.steps(one.time_s).tolist(), strict=True)


def _key(name: str) -> str:
    """A name of the letters that MLflow takes; "@" becomes " at "."""
    return re.sub(r"[^\w./ -]", "_", name.replace("@", " at "))[:250]


def _cut(words: str) -> str:
    return words if len(words) <= _MOST_CHARACTERS else words[: _MOST_CHARACTERS - len(_CUT)] + _CUT


def _batches(items: Sequence[Any], n: int) -> Iterator[Sequence[Any]]:
    for i in range(0, len(items), n):
        yield items[i : i + n]
