"""What the figures draw, as tidy frames: runs in, one row per drawn point out.

A frame is also what a figure offers as CSV, so that the data beside a figure are the points in it. Long runs are thinned
without hiding extremes. Knows no colours and no Plotly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from fedsim.facts import Array, IntArray
from fedsim.statistics.reading import Run

N_POINTS = 4_000
"""Drawn points of one figure, shared by its policies: the page must stay under 6 MB."""

N_SEEDS_FOR_QUARTILES = 10

Metric = Literal["accuracy", "loss"]

_NO_AXIS = {"time_s", "version", "accuracy", "loss", "accuracy_slowest", "accuracy_fastest"}
_N_LAW_POINTS = 200  # of a closed form's cdf, per policy


def curve_frame(runs: Sequence[Run], over: str, of: Metric = "accuracy") -> pd.DataFrame:
    """Accuracy or loss against a cumulative column of the evaluations (`axes_of`): policy, `over`, `of`, low, high (over
    seeds), n_seeds.

    The value at x is that of the last evaluation by x. Of accuracies it is the median over seeds, of losses the mean (their
    closed form is a mean); the band is the smallest and largest of fewer than 10 seeds, else the quartiles. A policy's rows
    end where the first of its seeds ends, so that every point speaks for the same seeds.
    """
    by_policy = by_label(runs)
    parts = [_curve_rows(label, own, over, of, N_POINTS // len(by_policy)) for label, own in by_policy.items()]
    return joined(parts, ["policy", over, of, "low", "high", "n_seeds"])


def axes_of(runs: Sequence[Run]) -> list[str]:
    """What accuracy may be drawn against: the columns of the evaluations that never fall, seconds first."""
    tables = [run.evaluations for run in runs if len(run.evaluations)]
    if not tables:
        return []
    shared = [name for name in tables[0].columns if all(name in table.columns for table in tables)]
    return [
        "time_s",
        *(
            name
            for name in shared
            if name not in _NO_AXIS and all(_never_falls(table[name].to_numpy()) for table in tables)
        ),
    ]


def _never_falls(column: Array) -> bool:
    return np.issubdtype(column.dtype, np.number) and bool(np.isfinite(column).all() and (np.diff(column) >= 0).all())


def expected_loss_frame(runs: Sequence[Run], over: str) -> pd.DataFrame:
    """The closed forms of the loss, mean over seeds, where `curve_frame` has points: policy, `over`, loss.

    A policy is left out unless every seed has one; over seconds also if it was not evaluated every round or on a grid of
    time, since what is held of the last evaluation is then older than the model.
    """
    at, values = ("times_s", "mean_at") if over == "time_s" else ("rounds", "mean")
    by_policy = by_label(runs)
    parts = []
    for label, own in by_policy.items():
        is_stale = over == "time_s" and any((run.every_n_rounds or 1) > 1 for run in own)
        curves = [
            (np.asarray(one[at], dtype=np.float64), np.asarray(one[values], dtype=np.float64))
            for run in own
            if len(run.evaluations) and (one := _expected(run, "loss")).get(at) and one.get(values)
        ]
        if len(curves) < len(own) or is_stale:
            continue
        last = min(x[-1] for x, _ in curves)
        drawn = [run.evaluations[over].to_numpy(np.float64) for run in own]
        grid = np.unique(np.concatenate(drawn))
        grid = grid[(grid >= max(x[0] for x, _ in curves)) & (grid <= min(last, *(x[-1] for x in drawn)))]
        if len(grid):
            loss = np.mean([np.interp(grid, x, y) for x, y in curves], axis=0)
            kept = thinned([loss], max(50, N_POINTS // len(by_policy)))
            parts.append(pd.DataFrame({"policy": label, over: grid, "loss": loss}).iloc[kept])
    return joined(parts, ["policy", over, "loss"])


def round_times_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """The distribution of round times, all rounds of all seeds: policy, round_s, share of rounds at most that long.

    Each policy starts with a row of share 0. Rounds that took no time are left out (they have no place on a log axis).
    """
    by_policy = by_label(runs)
    parts = []
    for label, own in by_policy.items():
        round_s = np.sort(np.concatenate([run.rounds["end_s"] - run.rounds["start_s"] for run in own]))
        round_s = round_s[round_s > 0]
        if len(round_s):
            n_points = min(len(round_s), max(50, N_POINTS // len(by_policy)))
            kept = np.unique(np.linspace(0, len(round_s) - 1, n_points).round().astype(np.int64))
            share = np.concatenate([[0.0], (kept + 1) / len(round_s)])
            parts.append(pd.DataFrame({"policy": label, "round_s": round_s[np.r_[0, kept]], "share": share}))
    return joined(parts, ["policy", "round_s", "share"])


def round_law_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """The closed-form distribution of the round time: policy, round_s, share of rounds at most that long.

    Each seed has its fleet and so its law; they are mixed in proportion to their rounds, as `round_times_frame` does.
    A policy is left out unless every seed has a law.
    """
    parts = []
    for label, own in by_label(runs).items():
        played = [run for run in own if len(run.rounds)]
        laws = [law for run in played if (law := _cdf(_expected(run, "round_s"))) is not None]
        if laws and len(laws) == len(played):
            t_s = np.unique(np.concatenate([at_s[at_s > 0] for at_s, _ in laws]))
            shares = np.array([np.interp(t_s, at_s, reached, left=0.0) for at_s, reached in laws])
            share = np.average(shares, axis=0, weights=[len(run.rounds) for run in played])
            kept = thinned([share], _N_LAW_POINTS)
            parts.append(pd.DataFrame({"policy": label, "round_s": t_s[kept], "share": share[kept]}))
    return joined(parts, ["policy", "round_s", "share"])


def layers_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Mean contributors per round and layer, over all rounds of all seeds: policy, layer, layer_name, n_contributors,
    expected (the closed form, NaN unless every seed has one).

    Empty rounds count, with no contributors.
    """
    parts = []
    for label, own in by_label(runs).items():
        n_rounds = sum(len(run.rounds) for run in own)
        names = own[0].layer_names
        if n_rounds:
            total = sum((_contributors(run, len(names)) for run in own), np.zeros(len(names)))
            expected = sum(len(run.rounds) * _expected_contributors(run, len(names)) for run in own if len(run.rounds))
            columns = {"policy": label, "layer": range(len(names)), "layer_name": names}
            parts.append(pd.DataFrame(columns | {"n_contributors": total / n_rounds, "expected": expected / n_rounds}))
    return joined(parts, ["policy", "layer", "layer_name", "n_contributors", "expected"])


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


def by_label(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by their policy, in the order given."""
    by_policy: dict[str, list[Run]] = {}
    for run in runs:
        by_policy.setdefault(run.label, []).append(run)
    return by_policy


def _curve_rows(label: str, runs: Sequence[Run], over: str, of: Metric, n_points: int) -> pd.DataFrame:
    """The curve with its band: median accuracy or mean loss over seeds."""
    if any(run.evaluations.empty for run in runs):
        return pd.DataFrame()
    curves = [_curve(run, over, of) for run in runs]
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x[(x >= start) & (x <= end)] for x, _ in curves]))
    held = np.array([held_at(x, y, grid) for x, y in curves])  # [seed, point]
    grid, held = grid[np.isfinite(held).all(axis=0)], held[:, np.isfinite(held).all(axis=0)]
    if not len(grid):
        return pd.DataFrame()
    low, high = band(held)
    middle = np.median(held, axis=0) if of == "accuracy" else held.mean(axis=0)
    kept = thinned([low, middle, high], max(50, n_points))
    columns = {"policy": label, over: grid, of: middle, "low": low, "high": high, "n_seeds": len(runs)}
    return pd.DataFrame(columns).iloc[kept]


def held_at(x: Array, y: Array, at: Array) -> Array:
    """The last value by each point, `[point]`; x ascending, no point before the first x."""
    return np.asarray(y[np.searchsorted(x, at, side="right") - 1])


def band(held: Array) -> tuple[Array, Array]:
    """The edges of a band over seeds, `[seed, point]` -> `[point]` each: smallest and largest of few, else the quartiles."""
    edges = (0.25, 0.75) if len(held) >= N_SEEDS_FOR_QUARTILES else (0.0, 1.0)
    low, high = np.quantile(held, edges, axis=0)
    return low, high


def _curve(run: Run, over: str, of: str) -> tuple[Array, Array]:
    return run.evaluations[over].to_numpy(np.float64), run.evaluations[of].to_numpy(np.float64)


def _expected(run: Run, quantity: str) -> dict[str, Any]:
    """The closed form of a whole round; empty if there is none."""
    own = (one for one in run.expected if one["quantity"] == quantity and "no_closed_form" not in one)
    return next((one for one in own if not {"layer", "device"} & set(one)), {})


def _expected_contributors(run: Run, n_layers: int) -> Array:
    means = np.full(n_layers, np.nan)
    for one in run.expected:
        if one["quantity"] == "n_contributors" and "mean" in one:
            means[one["layer"]] = one["mean"]
    return means


def _cdf(time: dict[str, Any]) -> tuple[Array, Array] | None:
    """Seconds, strictly increasing, and P(at most so long) there, from 0; None if there is no law.

    The file holds quantiles, so that a jump of the law comes as one point again and again: the last point before it is
    repeated just before the jump.
    """
    if "cdf" not in time:
        return None
    at_s, reached = np.array(time["cdf"], dtype=np.float64).T
    distinct_s, first, n_times = np.unique(at_s, return_index=True, return_counts=True)
    before = np.concatenate([[0.0], reached])[first]
    jumps = (n_times > 1) | (first == 0)
    t_s = np.concatenate([np.nextafter(distinct_s[jumps], -np.inf), distinct_s])
    share = np.concatenate([before[jumps], np.maximum.reduceat(reached, first)])
    order = np.argsort(t_s, kind="stable")
    return t_s[order], share[order]


def _contributors(run: Run, n_layers: int) -> Array:
    layer = run.layers["layer"].to_numpy(np.int64)
    weights = run.layers["n_contributors"].to_numpy(np.float64)
    return np.bincount(layer, weights, minlength=n_layers)[:n_layers].astype(np.float64)


def joined(parts: Sequence[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    whole = [part for part in parts if len(part)]
    return pd.concat(whole, ignore_index=True) if whole else pd.DataFrame(columns=columns)
