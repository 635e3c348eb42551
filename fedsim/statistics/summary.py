"""summary.json and summary.csv: one object, one row, for each run.

The keys are an interface that people script against. No wall-clock values: the same tables give the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.statistics.reading import Run
from fedsim.statistics.time_to_accuracy import first_crossing_s, sustained_s
from fedsim.statistics.writing import write_atomically


def summarise(run: Run) -> dict[str, Any]:
    """What one run came to.

    policy, seed; time_to_accuracy_s (sustained) and first_crossing_s: target -> seconds, None if never (sustained: also
    None where the scenario fixes no `sustain_s`); final_accuracy: of the last evaluation, None if there is none or it is
    not a number; n_rounds; simulated_s; uploaded_bytes, downloaded_bytes, device_flops: sums over the closed rounds;
    used_flops_share: the share of device_flops that entered the model, None if nothing was computed; outcome.
    """
    rounds, device_flops = run.rounds, float(run.rounds["device_flops"].sum())
    return {
        "policy": run.label,
        "seed": run.seed,
        "time_to_accuracy_s": {repr(target): _sustained_s(run, target) for target in run.targets},
        "first_crossing_s": {repr(target): first_crossing_s(*_curve(run), target) for target in run.targets},
        "final_accuracy": final_accuracy(run),
        "n_rounds": len(rounds),
        "simulated_s": run.simulated_s,
        "uploaded_bytes": int(rounds["uploaded_bytes"].sum()),
        "downloaded_bytes": int(rounds["downloaded_bytes"].sum()),
        "device_flops": device_flops,
        "used_flops_share": float(rounds["used_flops"].sum()) / device_flops if device_flops else None,
        "outcome": run.outcome,
    }


def summary(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """`summarise` for each run, in the order given."""
    return [summarise(run) for run in runs]


def write_summary(scenario_folder: Path | str, runs: Sequence[Run]) -> tuple[Path, Path]:
    """Write summary.json and summary.csv into the scenario's folder; their paths.

    In the table each target has its own columns, `time_to_accuracy_s@0.9`, `first_crossing_s@0.9`; an empty cell is
    null.
    """
    folder, rows = Path(scenario_folder), summary(runs)
    json_path, csv_path = folder / "summary.json", folder / "summary.csv"
    write_atomically(json_path, json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomically(csv_path, as_csv([_flat(row) for row in rows]))
    return json_path, csv_path


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV text with the columns of all of them, in the order of first appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def final_accuracy(run: Run) -> float | None:
    """Accuracy of the model that the run ended with, on all evaluation rows; None if nothing was trained or there are no
    classes.

    Where the grid is evaluated on a subset of the rows, this alone is measured on all of them.
    """
    if run.manifest.get("final"):
        accuracy_at_end = run.manifest["final"]["accuracy"]
        return None if accuracy_at_end is None else float(accuracy_at_end)
    _, accuracy = _curve(run)
    return float(accuracy[-1]) if len(accuracy) and np.isfinite(accuracy[-1]) else None


def _curve(run: Run) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return run.evaluations["time_s"].to_numpy(np.float64), run.evaluations["accuracy"].to_numpy(np.float64)


def _sustained_s(run: Run, target: float) -> float | None:
    return None if run.sustain_s is None else sustained_s(*_curve(run), target, run.sustain_s, run.followed_s)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        flat |= {f"{key}@{target}": s for target, s in value.items()} if isinstance(value, dict) else {key: value}
    return flat
