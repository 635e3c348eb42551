"""Accuracy and time traded against each other, as tidy frames: at a budget of seconds, at a target, on the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fedsim.dashboard.frames import band, by_label, curve_frame, held_at, joined
from fedsim.statistics.reading import Run
from fedsim.statistics.results import Comparison

N_BUDGETS = 40


def reached_frame(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Median sustained time to each target: policy, target, time_s; without those that half of the seeds never had."""
    rows = [
        {"policy": result.label, "target": comparison.target, "time_s": result.median_s}
        for comparison in comparisons
        for result in comparison.results
        if result.median_s is not None
    ]
    return pd.DataFrame(rows, columns=["policy", "target", "time_s"])


def budget_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Accuracy when the time is up: budget_s, policy, accuracy (median over seeds), low, high, n_seeds, has_ended, known_s.

    Budgets grow by equal factors from the first evaluation to the end of the longest run. Where a run had ended earlier its
    last accuracy stands for it; has_ended says that one of the policy's runs had, and known_s when the first of them did.
    Policies without accuracy are left out.
    """
    curves = {
        label: [(run.evaluations["time_s"].to_numpy(), run.evaluations["accuracy"].to_numpy()) for run in own]
        for label, own in by_label(runs).items()
        if all(len(run.evaluations) and run.evaluations["accuracy"].notna().all() for run in own)
    }
    times_s = [time_s[time_s > 0] for own in curves.values() for time_s, _ in own]
    times_s = [time_s for time_s in times_s if len(time_s)]
    if not times_s:
        return pd.DataFrame()
    budgets_s = np.geomspace(min(t[0] for t in times_s), max(t[-1] for t in times_s), N_BUDGETS)
    budgets_s = np.array([float(f"{budget_s:.3g}") for budget_s in budgets_s])  # what a slider can say
    parts = []
    for label, own in curves.items():
        held = np.array([held_at(time_s, accuracy, budgets_s) for time_s, accuracy in own])
        low, high = band(held)
        known_s = min(time_s[-1] for time_s, _ in own)
        columns = {
            "budget_s": budgets_s,
            "policy": label,
            "accuracy": np.median(held, axis=0),
            "low": low,
            "high": high,
        }
        columns |= {"n_seeds": len(own), "has_ended": budgets_s > known_s * (1 + 1e-9), "known_s": known_s}
        parts.append(pd.DataFrame(columns))
    return joined(parts, []).drop_duplicates(["budget_s", "policy"])


def front_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """The best median accuracy so far: policy, time_s, accuracy, is_front; a row for each moment at which it grew.

    is_front: no policy had as much sooner, nor more at the same moment.
    """
    curve = curve_frame(runs, over="time_s")
    curve = curve[curve["time_s"] > 0]
    grew = curve["accuracy"] > curve.groupby("policy")["accuracy"].transform(
        lambda a: a.cummax().shift(fill_value=-np.inf)
    )
    frame = curve[grew][["policy", "time_s", "accuracy"]].reset_index(drop=True)
    in_time = frame.sort_values(["time_s", "accuracy"], ascending=[True, False], kind="stable")
    best_before = in_time["accuracy"].cummax().shift(fill_value=-np.inf)
    return frame.assign(is_front=(in_time["accuracy"] > best_before).reindex(frame.index))
