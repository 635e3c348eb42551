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
from fedsim.statistics.heard import class_sums
from fedsim.statistics.reading import Run

N_POINTS = 4_000
"""Drawn points of one figure, shared by its policies: the page must stay under 6 MB."""

N_SEEDS_FOR_QUARTILES = 10

Resource = Literal["time_s", "uploaded_bytes"]

_N_LAW_POINTS = 200  # of a closed form's cdf, per policy
_CLASS_SUMS = {"update_share": "n_used", "step_share": "n_steps", "weight_share": "weight_sum"}


def accuracy_frame(runs: Sequence[Run], over: Resource) -> pd.DataFrame:
    """Accuracy against simulated seconds or uploaded bytes: policy, `over`, accuracy, low, high (over seeds), n_seeds.

    The accuracy at x is that of the last evaluation by x, its median over seeds beside the band: smallest and largest
    of fewer than 10 seeds, else the quartiles. A policy's rows end where the first of its seeds ends, so that every
    point speaks for the same seeds.
    """
    by_policy = _by_policy(runs)
    parts = [_curve_rows(label, own, over, "accuracy", N_POINTS // len(by_policy)) for label, own in by_policy.items()]
    return _joined(parts, ["policy", over, "accuracy", "low", "high", "n_seeds"])


def loss_frame(runs: Sequence[Run], over: Literal["time_s", "round"]) -> pd.DataFrame:
    """Loss against simulated seconds or rounds: policy, `over`, loss, low, high (over seeds), n_seeds.

    As `accuracy_frame`, but the loss is the mean over seeds: its closed form is a mean, and losses are skewed.
    """
    by_policy = _by_policy(runs)
    parts = [_curve_rows(label, own, over, "loss", N_POINTS // len(by_policy)) for label, own in by_policy.items()]
    return _joined(parts, ["policy", over, "loss", "low", "high", "n_seeds"])


def expected_loss_frame(runs: Sequence[Run], over: Literal["time_s", "round"]) -> pd.DataFrame:
    """The closed forms of the loss, mean over seeds, where `loss_frame` has points: policy, `over`, loss.

    A policy is left out unless every seed has one; over seconds also if it was not evaluated every round or on a grid of
    time, since what is held of the last evaluation is then older than the model.
    """
    at, values = ("times_s", "mean_at") if over == "time_s" else ("rounds", "mean")
    by_policy = _by_policy(runs)
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
    return _joined(parts, ["policy", over, "loss"])


def has_loss_curve(runs: Sequence[Run]) -> bool:
    """Whether the loss is what these runs are about: it has a closed form, or there is no accuracy."""
    evaluated = [run for run in runs if not run.evaluations.empty]
    has_accuracy = any(run.evaluations["accuracy"].notna().any() for run in evaluated)
    return bool(evaluated) and (not has_accuracy or any(_expected(run, "loss") for run in evaluated))


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


def round_law_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """The closed-form distribution of the round time: policy, round_s, share of rounds at most that long.

    Each seed has its fleet and so its law; they are mixed in proportion to their rounds, as `round_times_frame` does.
    A policy is left out unless every seed has a law.
    """
    parts = []
    for label, own in _by_policy(runs).items():
        played = [run for run in own if len(run.rounds)]
        laws = [law for run in played if (law := _cdf(_expected(run, "round_s"))) is not None]
        if laws and len(laws) == len(played):
            t_s = np.unique(np.concatenate([at_s[at_s > 0] for at_s, _ in laws]))
            shares = np.array([np.interp(t_s, at_s, reached, left=0.0) for at_s, reached in laws])
            share = np.average(shares, axis=0, weights=[len(run.rounds) for run in played])
            kept = thinned([share], _N_LAW_POINTS)
            parts.append(pd.DataFrame({"policy": label, "round_s": t_s[kept], "share": share[kept]}))
    return _joined(parts, ["policy", "round_s", "share"])


def layers_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Mean contributors per round and layer, over all rounds of all seeds: policy, layer, layer_name, n_contributors,
    expected (the closed form, NaN unless every seed has one).

    Empty rounds count, with no contributors.
    """
    parts = []
    for label, own in _by_policy(runs).items():
        n_rounds = sum(len(run.rounds) for run in own)
        names = own[0].layer_names
        if n_rounds:
            total = sum((_contributors(run, len(names)) for run in own), np.zeros(len(names)))
            expected = sum(len(run.rounds) * _expected_contributors(run, len(names)) for run in own if len(run.rounds))
            columns = {"policy": label, "layer": range(len(names)), "layer_name": names}
            parts.append(pd.DataFrame(columns | {"n_contributors": total / n_rounds, "expected": expected / n_rounds}))
    return _joined(parts, ["policy", "layer", "layer_name", "n_contributors", "expected"])


def heard_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Shares of each speed class, all rounds of all seeds together: policy, place (from the fastest, 0), speed_class,
    device_share, update_share, step_share, weight_share. Empty if no fleet has two classes.

    Seeds draw fleets of their own; classes of one name count as one. A policy of which no update was used is left out.
    """
    rows = [
        {
            "policy": run.label,
            # Where it stands in its own fleet, 0 ... 1: "middle" between "fastest" and "slowest", whatever else there is.
            "place": i / max(1, len(run.speed_classes) - 1),
            "speed_class": str(one["name"]),
            "device_share": one["n_devices"],
            **{share: class_sums(run, column)[i] for share, column in _CLASS_SUMS.items()},
        }
        for run in runs
        for i, one in enumerate(run.speed_classes)
    ]
    columns = ["policy", "place", "speed_class", "device_share", *_CLASS_SUMS]
    frame = pd.DataFrame(rows, columns=columns)
    order = frame.groupby("speed_class")["place"].min().sort_values(kind="stable").index
    frame["place"] = frame["speed_class"].map({name: i for i, name in enumerate(order)})
    frame = frame.groupby(["policy", "place", "speed_class"], sort=False, as_index=False).sum()
    frame = frame[frame.groupby("policy")["update_share"].transform("sum") > 0]
    if frame["speed_class"].nunique() < 2:
        return pd.DataFrame(columns=columns)
    shares = ["device_share", *_CLASS_SUMS]
    frame[shares] = frame[shares] / frame.groupby("policy")[shares].transform("sum")
    return frame.reset_index(drop=True)


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


def _curve_rows(
    label: str, runs: Sequence[Run], over: str, of: Literal["accuracy", "loss"], n_points: int
) -> pd.DataFrame:
    """The curve with its band: median accuracy or mean loss over seeds."""
    if any(run.evaluations.empty for run in runs):
        return pd.DataFrame()
    curves = [_curve(run, over, of) for run in runs]
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x[(x >= start) & (x <= end)] for x, _ in curves]))
    held = np.array([y[np.searchsorted(x, grid, side="right") - 1] for x, y in curves])  # [seed, point]
    grid, held = grid[np.isfinite(held).all(axis=0)], held[:, np.isfinite(held).all(axis=0)]
    if not len(grid):
        return pd.DataFrame()
    edges = (0.25, 0.75) if len(runs) >= N_SEEDS_FOR_QUARTILES else (0.0, 1.0)
    low, high = np.quantile(held, edges, axis=0)
    middle = np.median(held, axis=0) if of == "accuracy" else held.mean(axis=0)
    kept = thinned([low, middle, high], max(50, n_points))
    columns = {"policy": label, over: grid, of: middle, "low": low, "high": high, "n_seeds": len(runs)}
    return pd.DataFrame(columns).iloc[kept]


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


def _joined(parts: Sequence[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    whole = [part for part in parts if len(part)]
    return pd.concat(whole, ignore_index=True) if whole else pd.DataFrame(columns=columns)
