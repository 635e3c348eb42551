"""What devices did with the time, and whose work was heard, as tidy frames: runs in, one row per drawn bar or point out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fedsim.dashboard.frames import band, by_label, joined
from fedsim.statistics.heard import class_sums, heard
from fedsim.statistics.reading import Run

_CLASS_SUMS = {"update_share": "n_used", "step_share": "n_steps", "weight_share": "weight_sum"}
_TASK_TIMES = ["sent_s", "downloaded_s", "computed_s", "arrived_s"]


def heard_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Shares of each speed class, all rounds of all seeds together: policy, place (from the fastest, 0), speed_class,
    device_share, update_share, step_share, weight_share. Empty if no fleet has two classes.

    Seeds draw fleets of their own; classes of one name count as one. A policy of which no update was used is left out.
    """
    rows = [
        {
            "policy": run.label,
            "speed_class": str(one["name"]),
            "device_share": one["n_devices"],
            **{share: class_sums(run, column)[i] for share, column in _CLASS_SUMS.items()},
        }
        for run in runs
        for i, one in enumerate(run.speed_classes)
    ]
    columns = ["policy", "place", "speed_class", "device_share", *_CLASS_SUMS]
    frame = pd.DataFrame(rows, columns=columns)
    frame["place"] = frame["speed_class"].map(_class_places(runs))
    frame = frame.groupby(["policy", "place", "speed_class"], sort=False, as_index=False).sum()
    frame = frame[frame.groupby("policy")["update_share"].transform("sum") > 0]
    if frame["speed_class"].nunique() < 2:
        return pd.DataFrame(columns=columns)
    shares = ["device_share", *_CLASS_SUMS]
    frame[shares] = frame[shares] / frame.groupby("policy")[shares].transform("sum")
    return frame.reset_index(drop=True)


def served_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """The final model's accuracy on each speed class's label mix: policy, place (from the fastest, 0), speed_class, accuracy
    (median over seeds), low, high, n_seeds. Empty if no fleet has two classes.
    """
    places = _class_places(runs)
    found: dict[tuple[str, int, str], list[float]] = {}
    for run in runs:
        for one in heard(run):
            if one.accuracy is not None:
                found.setdefault((run.label, places[one.name], one.name), []).append(one.accuracy)
    rows = []
    for (label, place, name), values in found.items():
        low, high = (float(edge[0]) for edge in band(np.array(values)[:, None]))
        row = {"policy": label, "place": place, "speed_class": name, "accuracy": float(np.median(values))}
        rows.append(row | {"low": low, "high": high, "n_seeds": len(values)})
    columns = ["policy", "place", "speed_class", "accuracy", "low", "high", "n_seeds"]
    return pd.DataFrame(rows if len(places) > 1 else [], columns=columns)


def _class_places(runs: Sequence[Run]) -> dict[str, int]:
    """Names of speed classes from the fastest: "middle" between "fastest" and "slowest", whatever else there is."""
    at: dict[str, float] = {}
    for run in runs:
        for i, one in enumerate(run.speed_classes):
            name, share = str(one["name"]), i / max(1, len(run.speed_classes) - 1)
            at[name] = min(share, at.get(name, share))
    return {name: place for place, name in enumerate(sorted(at, key=at.__getitem__))}


def time_shares_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """What devices did with the time until the last round was closed: policy, phase, share; runs that recorded their tasks.

    Phases are download, compute and upload of tasks that were used or still under way, dropped for all the time given to
    others, and waiting for the rest. All seeds of a policy together.
    """
    parts = []
    for label, own in by_label(runs).items():
        sums, total_s = pd.Series(dtype=np.float64), 0.0
        for run in own:
            spent = _time_spent(run)
            if spent is not None:
                sums = sums.add(pd.Series(spent), fill_value=0.0)
                total_s += float(run.rounds["end_s"].iloc[-1]) * run.manifest["scenario"]["fleet"]["n_devices"]
        if total_s > 0:
            sums["waiting"] = max(0.0, total_s - float(sums.sum()))
            parts.append(pd.DataFrame({"policy": label, "phase": sums.index, "share": (sums / total_s).to_numpy()}))
    return joined(parts, ["policy", "phase", "share"])


def _time_spent(run: Run) -> dict[str, float] | None:
    """Device-seconds of each phase up to the last round's end; None where no tasks were recorded or no round was closed."""
    tasks = run.task_columns(["round", "outcome", *_TASK_TIMES], later=["ended_s"])
    if tasks is None or run.rounds.empty:
        return None
    ends_s = run.rounds["end_s"].to_numpy(np.float64)
    closed_s = ends_s[np.minimum(tasks["round"].to_numpy(np.int64), len(ends_s) - 1)]  # one past the last: still open
    if "ended_s" in tasks:
        closed_s = np.minimum(closed_s, tasks["ended_s"].to_numpy(np.float64))
    sent_s, downloaded_s, computed_s, arrived_s = (tasks[name].to_numpy(np.float64) for name in _TASK_TIMES)
    # What never came is cut off when the task was closed; what was stopped with nothing to send ends there and then.
    is_empty = (tasks["outcome"] == "empty").to_numpy()
    over_s = np.where(is_empty & np.isfinite(computed_s), computed_s, np.fmin(arrived_s, closed_s))
    marks = [np.fmin(np.where(np.isnan(at_s), over_s, at_s), over_s) for at_s in (sent_s, downloaded_s, computed_s)]
    spans = np.maximum(np.diff([*marks, over_s], axis=0), 0.0)  # [phase, task]
    is_dropped = ~tasks["outcome"].isin(["used", "open"]).to_numpy()
    kept = dict(zip(("download", "compute", "upload"), spans[:, ~is_dropped].sum(axis=1).tolist(), strict=True))
    return kept | {"dropped": float(spans[:, is_dropped].sum())}


def phases_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Mean seconds of the phases of the tasks that were used: policy, n_tasks, download_s, compute_s, upload_s.

    Only of runs that recorded their tasks.
    """
    parts = []
    for label, own in by_label(runs).items():
        tables = (run.task_columns(["outcome", *_TASK_TIMES]) for run in own)
        tasks = [table[table["outcome"] == "used"] for table in tables if table is not None]
        used = pd.concat(tasks) if tasks else pd.DataFrame()
        if len(used):
            phases = {
                "download_s": (used["downloaded_s"] - used["sent_s"]).mean(),
                "compute_s": (used["computed_s"] - used["downloaded_s"]).mean(),
                "upload_s": (used["arrived_s"] - used["computed_s"]).mean(),
            }
            parts.append(pd.DataFrame([{"policy": label, "n_tasks": len(used)} | phases]))
    return joined(parts, ["policy", "n_tasks", "download_s", "compute_s", "upload_s"])
