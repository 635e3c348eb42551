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
import pandas as pd

from fedsim.statistics.effective_step import effective_step, of_the_largest
from fedsim.statistics.heard import heard
from fedsim.statistics.reading import Run
from fedsim.statistics.time_to_accuracy import first_crossing_s, sustained_s
from fedsim.statistics.writing import write_atomically


def summarise(run: Run) -> dict[str, Any]:
    """What one run came to.

    policy, seed; time_to_accuracy_s (sustained) and first_crossing_s: target -> seconds, None if never (sustained: also
    None where the scenario fixes no `sustain_s`); final_accuracy: of the last evaluation, None if there is none or it is
    not a number; n_rounds; simulated_s; uploaded_bytes, downloaded_bytes, device_flops: sums over the closed rounds;
    used_flops_share: the share of device_flops that entered the model, None if nothing was computed; wasted_flops,
    wasted_uploaded_bytes, wasted_downloaded_bytes: spent on what never did; staleness_mean, staleness_max: of the
    contributions that were used; device_share, update_share, step_share, weight_share and mix_accuracy: speed class ->
    as in `heard`; effective_step: layer -> as in `effective_step`; outcome.
    """
    rounds, device_flops, classes = run.rounds, float(run.rounds["device_flops"].sum()), heard(run)
    used_flops = float(rounds["used_flops"].sum())
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
        "used_flops_share": used_flops / device_flops if device_flops else None,
        "wasted_flops": device_flops - used_flops,
        "wasted_uploaded_bytes": _sum(rounds["wasted_uploaded_bytes"]),
        "wasted_downloaded_bytes": _sum(rounds["wasted_downloaded_bytes"]),
        "staleness_mean": _mean_staleness(run),
        "staleness_max": None if rounds["staleness_max"].isna().all() else int(rounds["staleness_max"].max()),
        "device_share": {one.name: one.device_share for one in classes},
        "update_share": {one.name: one.update_share for one in classes},
        "step_share": {one.name: one.step_share for one in classes},
        "weight_share": {one.name: one.weight_share for one in classes},
        "mix_accuracy": {one.name: one.accuracy for one in classes},
        "effective_step": effective_step(run),
        "outcome": run.outcome,
    }


def summary(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """`summarise` for each run, in the order given.

    effective_step_share: layer -> share of the largest effective step of any of these runs under the same seed.
    """
    rows = [summarise(run) for run in runs]
    shares = of_the_largest([row["seed"] for row in rows], [row["effective_step"] for row in rows])
    return [row | {"effective_step_share": share} for row, share in zip(rows, shares, strict=True)]


def write_summary(scenario_folder: Path | str, rows: Sequence[dict[str, Any]]) -> tuple[Path, Path]:
    """Write `summary(runs)` as summary.json and summary.csv into the scenario's folder; their paths.

    In the table each target, speed class and layer has its own columns, `time_to_accuracy_s@0.9`, `update_share@slowest`;
    an empty cell is null.
    """
    folder = Path(scenario_folder)
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


def _sum(column: pd.Series[Any]) -> int | None:
    """None where it was not recorded."""
    return None if column.isna().any() else int(column.sum())


def _mean_staleness(run: Run) -> float | None:
    """Over contributions, not over rounds."""
    filled = run.rounds[run.rounds["staleness_mean"].notna()]
    n = filled["n_contributions"]
    return float((filled["staleness_mean"] * n).sum() / n.sum()) if len(filled) else None


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        flat |= {f"{key}@{of}": inner for of, inner in value.items()} if isinstance(value, dict) else {key: value}
    return flat
