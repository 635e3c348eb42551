"""What the terminal shows when a scenario has been run: a table a person can act on, and the sentence under it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.markup import escape
from rich.table import Table

from fedsim.dashboard.tables import speed_up_words
from fedsim.statistics.comparison import compare_targets, headline
from fedsim.statistics.reading import Run
from fedsim.statistics.results import Comparison, PolicyResult
from fedsim.statistics.sentences import NO_TARGET, NOTHING_TRAINED, not_within
from fedsim.statistics.summary import summarise
from fedsim.statistics.words import format_bytes, format_s, format_share


def ending(runs: Sequence[Run]) -> tuple[Table, str]:
    """The table (best first at the headline target) and one sentence that claims no more than the seeds allow."""
    comparisons = [c for c in compare_targets(runs) if c.results]
    first = headline(comparisons)
    labels = [r.label for r in first.results] if first else list(dict.fromkeys(run.label for run in runs))
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("policy", overflow="fold")
    for comparison in comparisons:
        table.add_column(f"{format_share(comparison.target)} after", justify="right")
    if first is not None and first.reference is not None:
        table.add_column(escape(f"times sooner than {first.reference}"), justify="right")
    for name in ("accuracy", "rounds", "up", "used"):
        table.add_column(name, justify="right", no_wrap=True)
    for label in labels:
        table.add_row(
            escape(label), *(_time(c.of(label)) for c in comparisons), *_sooner(label, first), *_costs(label, runs)
        )
    if first is not None:
        return table, first.sentence
    if all(run.evaluations.empty for run in runs):
        return table, NOTHING_TRAINED
    all_said = compare_targets(runs)
    return table, all_said[0].sentence if all_said else NO_TARGET


def _time(result: PolicyResult | None) -> str:
    if result is None:
        return ""
    return format_s(result.median_s) if result.reached_always and result.median_s is not None else not_within(result)


def _costs(label: str, runs: Sequence[Run]) -> list[str]:
    """Medians over seeds: final accuracy, rounds, bytes up, and the share of device FLOPs that was used."""
    rows = [summarise(run) for run in runs if run.label == label]
    ended = sorted({row["outcome"] for row in rows} - {"finished"})
    accuracies = [row["final_accuracy"] for row in rows if row["final_accuracy"] is not None]
    used = [row["used_flops_share"] for row in rows if row["used_flops_share"] is not None]
    return [
        " ".join([*(f"{np.median(accuracies):.3f}" for _ in accuracies[:1]), *ended]),
        f"{np.median([row['n_rounds'] for row in rows]):.0f}",
        format_bytes(float(np.median([row["uploaded_bytes"] for row in rows]))),
        format_share(float(np.median(used))) if used else "",
    ]


def _sooner(label: str, first: Comparison | None) -> list[str]:
    if first is None or first.reference is None:
        return []
    result = first.of(label)
    return ["1" if label == first.reference else speed_up_words(result.speed_up if result else None)]
