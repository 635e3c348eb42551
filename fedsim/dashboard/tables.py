"""The report's tables: one row a policy, best first, numbers in words.

Shows what `statistics` computed; a number is the median over seeds, in parentheses the range over seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fedsim.dashboard.markup import swatch, table, text
from fedsim.dashboard.palette import Styles
from fedsim.statistics.heard import Heard, heard
from fedsim.statistics.reading import Run
from fedsim.statistics.results import Comparison, PolicyResult
from fedsim.statistics.sentences import not_within, place_words
from fedsim.statistics.speed_up import SpeedUp
from fedsim.statistics.words import (
    digits,
    format_bytes,
    format_count,
    format_range,
    format_ratio,
    format_s,
    format_share,
    plural,
)

Rows = Sequence[dict[str, Any]]
"""`statistics.summary.summary` of the runs."""

_FIRST_CAPTION = (
    "Each policy: median over seeds, in parentheses the range over seeds. Times sooner: the geometric mean of the seeds' "
    "own ratios, in parentheses its 95 % interval"
)
_REFERENCE = "1 <small>(the reference)</small>"
_OF_A_CLASS = {
    "device_share": "",
    "update_share": "none used",
    "step_share": "none used",
    "weight_share": "none used",
    "accuracy": "not evaluated",
}


def results_table(
    runs: Sequence[Run], rows: Rows, comparisons: Sequence[Comparison], first: Comparison | None, styles: Styles
) -> str:
    """The first table. first: the comparison that orders the rows and gives the speed-ups; None: the scenario's order."""
    compared = [c for c in comparisons if c.results]
    has_speed_up = first is not None and first.reference is not None
    body = []
    for label in _best_first(runs, first):
        row = [_name(label, styles), *(_reached(c.of(label)) for c in compared)]
        if first is not None and has_speed_up:
            row.append(_speed_up_cell(first, label))
        body.append(row + _costs([run for run in runs if run.label == label], _of(rows, label), first))
    header = ["policy", *(f"time to {format_share(c.target)}" for c in compared)]
    header += [f"times sooner than {first.reference}"] if first is not None and has_speed_up else []
    until = f" to {format_share(first.target)}" if first is not None else ""
    header += ["final accuracy", f"uploaded{until}", f"device FLOPs{until}", "wasted share"]
    return table(
        _FIRST_CAPTION if has_speed_up else "Each policy: median over seeds, in parentheses the range over seeds",
        header,
        body,
    )


def certainty_table(comparison: Comparison, styles: Styles) -> str:
    """How often and how soon each policy reached one target."""
    rows = [
        [
            _name(result.label, styles),
            place_words(comparison.place(result.label)),
            f"{result.n_reached} of {plural(result.n_seeds, 'seed')}",
            "not reached by half" if result.median_s is None else format_s(result.median_s),
            format_s(result.restricted_mean_s),
            _median_first(result),
            _speed_up_cell(comparison, result.label),
        ]
        for result in comparison.results
    ]
    horizon_s = comparison.results[0].horizon_s
    mean = f"mean, restricted to {format_s(horizon_s)}" if np.isfinite(horizon_s) else "mean"
    sooner = f"times sooner than {comparison.reference}" if comparison.reference else "times sooner"
    header = ["policy", "place", "reached in", "median", mean, "first crossing (median)", sooner]
    return table(f"Reaching {format_share(comparison.target)}", header, rows)


def cost_table(rows: Rows, labels: Sequence[str], styles: Styles) -> str:
    """What each policy spent by the end of its runs."""
    body = []
    for label in labels:
        own = _of(rows, label)
        body.append(
            [
                _name(label, styles),
                _over_seeds([s["simulated_s"] for s in own], format_s),
                _over_seeds([s["n_rounds"] for s in own], format_count),
                _over_seeds([s["uploaded_bytes"] for s in own], format_bytes),
                _over_seeds([s["downloaded_bytes"] for s in own], format_bytes),
                _over_seeds([s["device_flops"] for s in own], format_count),
            ]
        )
    header = ["policy", "simulated", "rounds", "uploaded", "downloaded", "device FLOPs"]
    return table("Spent by the end: median over seeds, in parentheses the range over seeds", header, body)


def waste_table(rows: Rows, labels: Sequence[str], styles: Styles) -> str:
    """What of it came to nothing, and which share that is."""
    body = []
    for label in labels:
        own = _of(rows, label)
        cells = []
        for spent, wasted, in_words in (
            ("device_flops", "wasted_flops", format_count),
            ("uploaded_bytes", "wasted_uploaded_bytes", format_bytes),
            ("downloaded_bytes", "wasted_downloaded_bytes", format_bytes),
        ):
            known = [s for s in own if s[wasted] is not None]
            cells.append(_over_seeds([s[wasted] for s in known], in_words, if_none="not recorded"))
            shares = [s[wasted] / s[spent] for s in known if s[spent]]
            cells.append(_over_seeds(shares, format_share, if_none="nothing sent" if known else "not recorded"))
        body.append([_name(label, styles), *cells])
    header = ["policy", "FLOPs wasted", "of all", "uploads wasted", "of all", "downloads wasted", "of all"]
    return table("Wasted of this: median over seeds, in parentheses the range over seeds", header, body)


def heard_table(runs: Sequence[Run], labels: Sequence[str], styles: Styles) -> str:
    """What part each speed class had in each policy's model, and how well that serves it."""
    rows = []
    for label in labels:
        by_class: dict[str, list[Heard]] = {}
        for one in (one for run in runs if run.label == label for one in heard(run)):
            by_class.setdefault(one.name, []).append(one)
        for name, own in by_class.items():
            row = [_name(label, styles), text(name), _over_seeds([one.unit_s for one in own], format_s)]
            for of, if_none in _OF_A_CLASS.items():
                known = [value for one in own if (value := getattr(one, of)) is not None]
                row.append(_over_seeds(known, format_share, if_none=if_none))
            rows.append(row)
    header = ["policy", "devices", "a full step takes", "of all devices", "of updates", "of local steps", "of weight"]
    header += ["accuracy on their labels"]
    return table("Who was heard: median over seeds, in parentheses the range over seeds", header, rows)


def effective_step_table(rows: Rows, layer_names: Sequence[str], labels: Sequence[str], styles: Styles) -> str:
    """How far a version moves each layer, and how old the updates in it are."""
    body = []
    for label in labels:
        own = _of(rows, label)
        staleness = [row["staleness_mean"] for row in own if row["staleness_mean"] is not None]
        cells = [
            _step_cell([(row["effective_step"][name], row["effective_step_share"][name]) for row in own])
            for name in layer_names
        ]
        body.append([_name(label, styles), _over_seeds(staleness, digits, if_none="not recorded"), *cells])
    header = ["policy", "staleness (versions)", *layer_names]
    return table("Effective step: root-mean-square change per parameter and version, median over seeds", header, body)


def _step_cell(steps: Sequence[tuple[float | None, float | None]]) -> str:
    """steps: each seed's, and its share of the largest."""
    known = [(step, share) for step, share in steps if step is not None and share is not None]
    if not known:
        return "not recorded"
    step, share = (digits(float(np.median(column))) for column in zip(*known, strict=True))
    return f"{text(step)} <small>{text(share)} of the largest</small>"


def phases_table(frame: pd.DataFrame, styles: Styles) -> str:
    """Mean seconds of a used task's phases. frame: `device_frames.phases_frame(runs)`, not empty."""
    rows = [
        [
            _name(str(row["policy"]), styles),
            format_count(float(row["n_tasks"])),
            *(format_s(float(row[phase])) for phase in ("download_s", "compute_s", "upload_s")),
        ]
        for row in frame.to_dict("records")
    ]
    header = ["policy", "tasks", "download", "compute", "upload"]
    return table("A task whose work was used: mean seconds of its phases", header, rows)


def runs_table(runs: Sequence[Run], styles: Styles) -> str:
    """Every run and how it ended."""
    rows = [
        [
            _name(run.label, styles),
            str(run.seed),
            text(_ending(run)),
            format_count(len(run.rounds)),
            format_s(run.simulated_s),
        ]
        for run in runs
    ]
    return table("Runs", ["policy", "seed", "outcome", "rounds", "simulated"], rows)


def speed_up_words(speed_up: SpeedUp | None) -> str:
    """ "2.6 (2.2-3.1)", "at least 2.6", "at most 0.8", or why there is no number."""
    if speed_up is None or speed_up.factor is None:
        return "cannot be said"
    if speed_up.bound == "exact":
        return format_ratio(speed_up.factor, speed_up.low, speed_up.high)
    if speed_up.bound == "at_most" and speed_up.factor < 1:
        return f"at least {digits(1 / speed_up.factor)} times later"
    return f"{speed_up.bound.replace('_', ' ')} {digits(speed_up.factor)}"


def labels_best_first(runs: Sequence[Run], first: Comparison | None) -> list[str]:
    """Labels in the order of the comparison, then those it lacks in the order of the scenario."""
    return _best_first(runs, first)


def _best_first(runs: Sequence[Run], first: Comparison | None) -> list[str]:
    ranked = [result.label for result in first.results] if first else []
    return list(dict.fromkeys([*ranked, *(run.label for run in runs)]))


def _name(label: str, styles: Styles) -> str:
    return f'<span class="policy">{swatch(styles[label])} {text(label)}</span>'


def _reached(result: PolicyResult | None) -> str:
    if result is None:
        return "not compared"
    if result.reached_always:
        return _over_seeds([time_s for time_s in result.reached_s if time_s is not None], format_s)
    if result.median_s is None:
        return _with_small(not_within(result))
    return f"{text(format_s(result.median_s))} <small>{_with_small(not_within(result))}</small>"


def _speed_up_cell(comparison: Comparison, label: str) -> str:
    result = comparison.of(label)
    if result is None:
        return "not compared"
    return _REFERENCE if label == comparison.reference else _with_small(speed_up_words(result.speed_up))


def _of(rows: Rows, label: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["policy"] == label]


def _costs(runs: Sequence[Run], own: Rows, first: Comparison | None) -> list[str]:
    shares = [1 - s["used_flops_share"] for s in own if s["used_flops_share"] is not None]
    accuracies = [s["final_accuracy"] for s in own if s["final_accuracy"] is not None]
    return [
        _over_seeds(accuracies, format_share) if accuracies else _no_accuracy(runs),
        _spent(runs, own, first, "uploaded_bytes", format_bytes),
        _spent(runs, own, first, "device_flops", format_count),
        _over_seeds(shares, format_share, with_range=False) if shares else "nothing computed",
    ]


def _spent(
    runs: Sequence[Run], own: Rows, first: Comparison | None, column: str, in_words: Callable[[float], str]
) -> str:
    """Median of what was spent when the target of the first comparison was reached; without one, by the end.

    Where half of the seeds never reached it, more than they spent in all.
    """
    if first is None:
        return _over_seeds([row[column] for row in own], in_words, with_range=False)
    reached_s = [row["time_to_accuracy_s"][repr(first.target)] for row in own]
    spent = [
        np.inf if time_s is None else float(run.evaluations[column][run.evaluations["time_s"] <= time_s].iloc[-1])
        for run, time_s in zip(runs, reached_s, strict=True)
    ]
    if np.isfinite(np.median(spent)):
        return _over_seeds(spent, in_words, with_range=False)
    least = min(row[column] for row, time_s in zip(own, reached_s, strict=True) if time_s is None)
    return f"more than {text(in_words(least))}"


def _no_accuracy(runs: Sequence[Run]) -> str:
    return "not evaluated" if all(run.evaluations.empty for run in runs) else "no classes"


def _over_seeds(
    values: Sequence[float],
    in_words: Callable[[float], str],
    *,
    with_range: bool = True,
    if_none: str = "nothing computed",
) -> str:
    """Markup of `format_range`, or why there is nothing."""
    return _with_small(format_range(values, in_words, with_range=with_range)) if values else if_none


def _with_small(words: str) -> str:
    """Markup of "212 s (204-231)" with what stands in parentheses on a small line of its own."""
    number, bracket, rest = words.partition(" (")
    return f"{text(number)} <small>{text(bracket.strip() + rest)}</small>" if bracket else text(words)


def _median_first(result: PolicyResult) -> str:
    known = [time_s for time_s in result.first_s if time_s is not None]
    if not known:
        return "never"
    median_s = float(np.median([np.inf if time_s is None else time_s for time_s in result.first_s]))
    return format_s(median_s) if np.isfinite(median_s) else f"in {len(known)} of {plural(result.n_seeds, 'seed')}"


def _ending(run: Run) -> str:
    reason = str(run.manifest["outcome"].get("reason") or "")
    return f"{run.outcome}: {reason}" if reason else run.outcome
