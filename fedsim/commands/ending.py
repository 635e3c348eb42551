"""What the terminal shows when a scenario has been run: a table a person can act on, the sentence under it, where the
real time went, and what a run has to say of itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from fedsim.commands import terminal_plot
from fedsim.dashboard.tables import Rows, labels_best_first, speed_up_words
from fedsim.statistics.comparison import compare_targets, headline
from fedsim.statistics.reading import Run
from fedsim.statistics.results import Comparison, PolicyResult
from fedsim.statistics.sentences import not_within, place_words, without_targets
from fedsim.statistics.summary import summary
from fedsim.statistics.words import format_bytes, format_s, format_share, plural


def ending(runs: Sequence[Run], rows: Rows | None = None) -> tuple[Table, str]:
    """The table (best first at the headline target) and one sentence that claims no more than the seeds allow.

    rows: `summary(runs)` if it is known.
    """
    rows = summary(runs) if rows is None else rows
    comparisons = [c for c in compare_targets(runs) if c.results]
    first = headline(comparisons)
    labels = [r.label for r in first.results] if first else list(dict.fromkeys(run.label for run in runs))
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    if first is not None:
        table.add_column("place", justify="right", no_wrap=True)
    table.add_column("policy", overflow="fold", min_width=_policy_width(labels))
    for comparison in comparisons:
        table.add_column(f"{format_share(comparison.target)} after", justify="right")
    if first is not None and first.reference is not None:
        table.add_column(escape(f"times sooner than {first.reference}"), justify="right")
    for name in ("accuracy", "rounds", "up", "used"):
        table.add_column(name, justify="right", no_wrap=True)
    for label in labels:
        place = [place_words(first.place(label))] if first is not None else []
        times = [_time(c.of(label)) for c in comparisons]
        table.add_row(*place, escape(label), *times, *_sooner(label, first), *_costs(label, rows))
    if first is not None:
        return table, f"{first.sentence} {first.ranking}".strip()
    all_said = [] if all(run.evaluations.empty for run in runs) else compare_targets(runs)
    return table, all_said[0].sentence if all_said else without_targets(runs)


def heard(runs: Sequence[Run], rows: Rows | None = None) -> Table | None:
    """What stands behind the accuracies, in the order of `ending`, medians over seeds: who was heard (where devices are slow
    or fast for good), how far a version moves the layers (where something was trained), and bytes for nothing; None if
    there is neither of the first two. rows: as in `ending`.
    """
    rows = summary(runs) if rows is None else rows
    has_classes = any(len(row["update_share"]) > 1 for row in rows)
    has_steps = any(_shares(row) for row in rows)
    if not (has_classes or has_steps):
        return None
    labels = labels_best_first(runs, headline([c for c in compare_targets(runs) if c.results]))
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("policy", overflow="fold", min_width=_policy_width(labels))
    names = ["updates from the slowest", "accuracy on their labels", "on the fastest's"] if has_classes else []
    names += ["step, share of the largest"] if has_steps else []
    for name in (*names, "up wasted", "down wasted"):
        table.add_column(name, justify="right")
    for label in labels:
        own = [row for row in rows if row["policy"] == label]
        cells = [_median([row[of].get(name) for row in own]) for of, name in _OF_CLASSES] if has_classes else []
        shares = [share for row in own for share in _shares(row)]
        cells += [f"{min(shares):.2f}-{max(shares):.2f}" if shares else ""] if has_steps else []
        cells += [_median([_wasted_share(row, of) for row in own]) for of in ("uploaded_bytes", "downloaded_bytes")]
        table.add_row(escape(label), *cells)
    return table


_OF_CLASSES = (("update_share", "slowest"), ("mix_accuracy", "slowest"), ("mix_accuracy", "fastest"))


def _wasted_share(row: dict[str, Any], of: str) -> float | None:
    wasted = row[f"wasted_{of}"]
    return None if wasted is None or not row[of] else wasted / row[of]


def _shares(row: dict[str, Any]) -> list[float]:
    return [share for share in row["effective_step_share"].values() if share is not None]


def _median(shares: Sequence[float | None]) -> str:
    known = [share for share in shares if share is not None]
    return format_share(float(np.median(known))) if known else ""


def curve(runs: Sequence[Run], width: int) -> RenderableType | None:
    """Median accuracy against simulated time, at most `width` columns wide; None if no accuracy was evaluated."""
    return terminal_plot.curve(runs, width)


def real_time(runs: Sequence[Run]) -> str | None:
    """One line: the real seconds of these runs, summed, and what they were spent on; None if no manifest tells.

    Real time starts when a run's data and model are there; runs side by side (--jobs) count each for itself.
    """
    told = [run.manifest["real_s"] for run in runs if "real_s" in run.manifest]
    setup_s, total_s, training_s, evaluation_s = (
        sum(float(real_s[name]) for real_s in told) for name in ("setup", "total", "training", "evaluation")
    )
    if total_s <= 0:
        return None
    training, evaluation = training_s / total_s, evaluation_s / total_s
    return (
        f"Real time: {format_s(total_s)} for {plural(len(told), 'run')}, of which {_percent(training)} training, "
        f"{_percent(evaluation)} evaluation, {_percent(max(0.0, 1 - training - evaluation))} all else; "
        f"{format_s(setup_s)} of setup before."
    )


def notes(run: Run) -> list[str]:
    """What this run departed from, one line each, every one once; those that cost it reproducible bytes say so."""
    of_run = f"{run.label}, seed {run.seed}"
    distinct = dict.fromkeys(str(note) for note in run.manifest.get("notes", ()))
    is_not = "; this run is not byte-reproducible"
    return [f"{of_run}: {note}{'' if note.startswith('fallback:') else is_not}" for note in distinct]


def _percent(share: float) -> str:
    """ "92 %", "4.7 %": whole from 10 % on, so that a small share is not rounded away."""
    return f"{100 * share:.{1 if share < 0.0995 else 0}f} %"


def _time(result: PolicyResult | None) -> str:
    if result is None:
        return ""
    return format_s(result.median_s) if result.reached_always and result.median_s is not None else not_within(result)


def _costs(label: str, rows: Rows) -> list[str]:
    """Medians over seeds: final accuracy, rounds, bytes up, and the share of device FLOPs that was used."""
    rows = [row for row in rows if row["policy"] == label]
    ended = sorted({row["outcome"] for row in rows} - {"finished"})
    accuracies = [row["final_accuracy"] for row in rows if row["final_accuracy"] is not None]
    used = [row["used_flops_share"] for row in rows if row["used_flops_share"] is not None]
    return [
        " ".join([f"{np.median(accuracies):.3f}" if accuracies else "-", *ended]),
        f"{np.median([row['n_rounds'] for row in rows]):.0f}",
        format_bytes(float(np.median([row["uploaded_bytes"] for row in rows]))),
        format_share(float(np.median(used))) if used else "",
    ]


def _sooner(label: str, first: Comparison | None) -> list[str]:
    if first is None or first.reference is None:
        return []
    result = first.of(label)
    return ["1" if label == first.reference else speed_up_words(result.speed_up if result else None)]


def _policy_width(labels: Sequence[str]) -> int:
    """Columns for names that are short; long ones are folded."""
    return min(20, max(map(len, labels)))
