"""What devices did with the time, and whose work was heard, as tidy frames: runs in, one row per drawn bar or point out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedsim.dashboard.frames import band, by_label, joined
from fedsim.facts import Array
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


@dataclass(frozen=True)
class DeviceTime:
    """What the devices of a run did, device-seconds up to the end of its last round, `phases_s` by phase but waiting.

    used_s: download, compute and upload of the tasks that were used, whole; n_used: how many these are.
    """

    phases_s: dict[str, float]
    used_s: Array
    n_used: int


def device_times(runs: Sequence[Run]) -> dict[Run, DeviceTime]:
    """Of the runs that recorded their tasks and closed a round. Reads each table of tasks once, and keeps none."""
    return {run: spent for run in runs if (spent := _device_time(run)) is not None}


def time_shares_frame(runs: Sequence[Run], times: Mapping[Run, DeviceTime] | None = None) -> pd.DataFrame:
    """What devices did with the time until the last round was closed: policy, phase, share; runs that recorded their tasks.

    Phases are download, compute and upload of tasks that were used or still under way, dropped for all the time given to
    others, and waiting for the rest. All seeds of a policy together. times: `device_times(runs)` if they are known.
    """
    times = device_times(runs) if times is None else times
    parts = []
    for label, own in by_label([run for run in runs if run in times]).items():
        sums_s = sum((pd.Series(times[run].phases_s) for run in own[1:]), pd.Series(times[own[0]].phases_s))
        total_s = sum(
            float(run.rounds["end_s"].iloc[-1]) * run.manifest["scenario"]["fleet"]["n_devices"] for run in own
        )
        if total_s > 0:
            sums_s["waiting"] = max(0.0, total_s - float(sums_s.sum()))
            parts.append(pd.DataFrame({"policy": label, "phase": sums_s.index, "share": (sums_s / total_s).to_numpy()}))
    return joined(parts, ["policy", "phase", "share"])


def phases_frame(runs: Sequence[Run], times: Mapping[Run, DeviceTime] | None = None) -> pd.DataFrame:
    """Mean seconds of the phases of the tasks that were used: policy, n_tasks, download_s, compute_s, upload_s.

    Only of runs that recorded their tasks. times: `device_times(runs)` if they are known.
    """
    times = device_times(runs) if times is None else times
    parts = []
    for label, own in by_label([run for run in runs if run in times]).items():
        n_used = sum(times[run].n_used for run in own)
        if n_used:
            means_s = np.sum([times[run].used_s for run in own], axis=0) / n_used
            names = ("download_s", "compute_s", "upload_s")
            row = {"policy": label, "n_tasks": n_used} | dict(zip(names, means_s.tolist(), strict=True))
            parts.append(pd.DataFrame([row]))
    return joined(parts, ["policy", "n_tasks", "download_s", "compute_s", "upload_s"])


def _device_time(run: Run) -> DeviceTime | None:
    tasks = run.task_columns(["round", "outcome", *_TASK_TIMES], later=["ended_s"])
    if tasks is None or run.rounds.empty:
        return None
    ends_s = run.rounds["end_s"].to_numpy(np.float64)
    closed_s = ends_s[np.minimum(tasks["round"].to_numpy(np.int64), len(ends_s) - 1)]  # one past the last: still open
    if "ended_s" in tasks:
        closed_s = np.minimum(closed_s, tasks["ended_s"].to_numpy(np.float64))
    times_s = [tasks[name].to_numpy(np.float64) for name in _TASK_TIMES]
    sent_s, downloaded_s, computed_s, arrived_s = times_s
    # What never came is cut off when the task was closed; what was stopped with nothing to send ends there and then.
    is_empty = (tasks["outcome"] == "empty").to_numpy()
    over_s = np.where(is_empty & np.isfinite(computed_s), computed_s, np.fmin(arrived_s, closed_s))
    marks = [np.fmin(np.where(np.isnan(at_s), over_s, at_s), over_s) for at_s in (sent_s, downloaded_s, computed_s)]
    spans = np.maximum(np.diff([*marks, over_s], axis=0), 0.0)  # [phase, task]
    is_used, is_open = ((tasks["outcome"] == outcome).to_numpy() for outcome in ("used", "open"))
    is_kept = is_used | is_open
    phases_s = dict(zip(("download", "compute", "upload"), spans[:, is_kept].sum(axis=1).tolist(), strict=True))
    phases_s["dropped"] = float(spans[:, ~is_kept].sum())
    return DeviceTime(phases_s, np.diff(times_s, axis=0)[:, is_used].sum(axis=1), int(is_used.sum()))
