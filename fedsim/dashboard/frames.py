"""What the figures draw, as tidy frames: runs in, one row per drawn point out.

A frame is also what a figure offers as CSV, so that the data beside a figure are the points in it. Long runs are thinned
without hiding extremes. Knows no colours and no Plotly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from fedsim.facts import Array, IntArray
from fedsim.statistics.reading import Run

N_POINTS = 4_000
"""Drawn points of one figure, shared by its policies: the page must stay under 6 MB."""

N_SEEDS_FOR_QUARTILES = 10

Resource = Literal["time_s", "uploaded_bytes"]


def accuracy_frame(runs: Sequence[Run], over: Resource) -> pd.DataFrame:
    """Accuracy against simulated seconds or uploaded bytes: policy, `over`, accuracy, low, high (over seeds), n_seeds.

    The accuracy at x is that of the last evaluation by x, its median over seeds beside the band: smallest and largest
    of fewer than 10 seeds, else the quartiles. A policy's rows end where the first of its seeds ends, so that every
    point speaks for the same seeds.
    """
    by_policy = _by_policy(runs)
    parts = [_accuracy_rows(label, own, over, N_POINTS // len(by_policy)) for label, own in by_policy.items()]
    return _joined(parts, ["policy", over, "accuracy", "low", "high", "n_seeds"])


def round_times_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """The distribution of round times, all rounds of all seeds: policy, round_s, share of rounds at most that long.

    Each policy starts with a row of share 0. Rounds that took no time are left out (they have no place on a log axis).
    """
    by_policy = _by_policy(runs)
    parts = []
    for label, own in by_policy.items():
        round_s = np.sort(np.concatenate([run.rounds["end_s"] - run.rounds["start_s"] for run in own]))
        round_s = round_s[round_s > 0]
        if len(round_s):
            n_points = min(len(round_s), max(50, N_POINTS // len(by_policy)))
            kept = np.unique(np.linspace(0, len(round_s) - 1, n_points).round().astype(np.int64))
            share = np.concatenate([[0.0], (kept + 1) / len(round_s)])
            parts.append(pd.DataFrame({"policy": label, "round_s": round_s[np.r_[0, kept]], "share": share}))
    return _joined(parts, ["policy", "round_s", "share"])


def layers_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Mean contributors per round and layer, over all rounds of all seeds: policy, layer, layer_name, n_contributors.

    Empty rounds count, with no contributors.
    """
    parts = []
    for label, own in _by_policy(runs).items():
        n_rounds = sum(len(run.rounds) for run in own)
        names = own[0].layer_names
        if n_rounds:
            total = sum((_contributors(run, len(names)) for run in own), np.zeros(len(names)))
            columns = {"policy": label, "layer": range(len(names)), "layer_name": names}
            parts.append(pd.DataFrame(columns | {"n_contributors": total / n_rounds}))
    return _joined(parts, ["policy", "layer", "layer_name", "n_contributors"])


def phases_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Mean seconds of the phases of the tasks that were used: policy, n_tasks, download_s, compute_s, upload_s.

    Only of runs that recorded their tasks.
    """
    parts = []
    for label, own in _by_policy(runs).items():
        tasks = [t[t["outcome"] == "used"] for t in (run.tasks for run in own) if t is not None]
        used = pd.concat(tasks) if tasks else pd.DataFrame()
        if len(used):
            phases = {
                "download_s": (used["downloaded_s"] - used["sent_s"]).mean(),
                "compute_s": (used["computed_s"] - used["downloaded_s"]).mean(),
                "upload_s": (used["arrived_s"] - used["computed_s"]).mean(),
            }
            parts.append(pd.DataFrame([{"policy": label, "n_tasks": len(used)} | phases]))
    return _joined(parts, ["policy", "n_tasks", "download_s", "compute_s", "upload_s"])


def thinned(columns: Sequence[Array], n_points: int) -> IntArray:
    """Ascending indices of about `n_points` rows that keep each column's extremes, `[point]` each column.

    Rows are cut into equal stretches; of each its first and last row and every column's smallest and largest stay.
    """
    n_rows = len(columns[0])
    if n_rows <= n_points:
        return np.arange(n_rows)
    n_stretches = max(1, n_points // (2 + 2 * len(columns)))
    kept: set[int] = set()
    for rows in np.array_split(np.arange(n_rows), n_stretches):
        kept |= {int(rows[0]), int(rows[-1])}
        kept |= {int(rows[pick(column[rows])]) for column in columns for pick in (np.argmin, np.argmax)}
    return np.array(sorted(kept))


def _by_policy(runs: Sequence[Run]) -> dict[str, list[Run]]:
    by_policy: dict[str, list[Run]] = {}
    for run in runs:
        by_policy.setdefault(run.label, []).append(run)
    return by_policy


def _accuracy_rows(label: str, runs: Sequence[Run], over: Resource, n_points: int) -> pd.DataFrame:
    if any(run.evaluations.empty for run in runs):
        return pd.DataFrame()
    curves = [
        (run.evaluations[over].to_numpy(np.float64), run.evaluations["accuracy"].to_numpy(np.float64)) for run in runs
    ]
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x[(x >= start) & (x <= end)] for x, _ in curves]))
    held = np.array([y[np.searchsorted(x, grid, side="right") - 1] for x, y in curves])  # [seed, point]
    grid, held = grid[np.isfinite(held).all(axis=0)], held[:, np.isfinite(held).all(axis=0)]
    if not len(grid):
        return pd.DataFrame()
    edges = (0.25, 0.75) if len(runs) >= N_SEEDS_FOR_QUARTILES else (0.0, 1.0)
    low, middle, high = np.quantile(held, [edges[0], 0.5, edges[1]], axis=0)
    kept = thinned([low, middle, high], max(50, n_points))
    columns = {"policy": label, over: grid, "accuracy": middle, "low": low, "high": high, "n_seeds": len(runs)}
    return pd.DataFrame(columns).iloc[kept]


def _contributors(run: Run, n_layers: int) -> Array:
    layer = run.layers["layer"].to_numpy(np.int64)
    weights = run.layers["n_contributors"].to_numpy(np.float64)
    return np.bincount(layer, weights, minlength=n_layers)[:n_layers].astype(np.float64)


def _joined(parts: Sequence[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    whole = [part for part in parts if len(part)]
    return pd.concat(whole, ignore_index=True) if whole else pd.DataFrame(columns=columns)
