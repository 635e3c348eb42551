"""Which settings of runs differ, and what each came to: manifests in, tidy frames out. Knows no Plotly and no Dash.

A setting is called by its dotted path in the scenario: `fleet.compute.step_s`; a policy's own settings are `policy.k`, its
training as it was run `training.learning_rate`. Names, labels, seeds, and what is merely recorded are no settings.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fedsim.statistics.reading import Run
from fedsim.statistics.summary import final_accuracy
from fedsim.statistics.survival import median_s
from fedsim.statistics.time_to_accuracy import sustained_s
from fedsim.statistics.words import format_s, format_share, plural

Value = float | str

_LEFT_OUT = {"name", "policies", "seeds", "training", "record_tasks", "record_updates"}
_NO_SETTINGS = {"data.data_dir"}  # where files lie decides nothing


@dataclass(frozen=True)
class Measure:
    """What the runs are judged by. target: of a time to accuracy; None: another measure."""

    key: str
    words: str
    target: float | None = None

    def in_words(self, value: float) -> str:
        """ "212 s", "90 %"."""
        return format_share(value) if self.key == "final_accuracy" else format_s(value)


FINAL_ACCURACY = Measure("final_accuracy", "final accuracy")
ROUND_S = Measure("round_s", "simulated seconds a round")


def measures(runs: Sequence[Run]) -> list[Measure]:
    """Those that these runs have: times to their targets, highest first, final accuracy, seconds a round."""
    evaluated = [run for run in runs if len(run.evaluations) and run.evaluations["accuracy"].notna().any()]
    targets = sorted({target for run in evaluated if run.sustain_s is not None for target in run.targets}, reverse=True)
    found = [Measure(f"time@{target!r}", f"time to {format_share(target)}", target) for target in targets]
    return [*found, *([FINAL_ACCURACY] if evaluated else []), ROUND_S]


def settings_of(run: Run) -> dict[str, Value]:
    """Dotted path -> value. A law or another part with a kind has that kind as its own value."""
    scenario = run.manifest["scenario"]
    own = {
        key: value
        for key, value in run.manifest["policy"].get("parameters", {}).items()
        if key not in ("label", "kind")
    }
    training = own.pop("training", None) or scenario.get("training") or {}
    found = {"policy.kind": run.kind} | dict(_flat("policy", own)) | dict(_flat("training", training))
    for key, part in scenario.items():
        if key not in _LEFT_OUT:
            found |= dict(_flat(key, part))
    return {key: value for key, value in found.items() if key not in _NO_SETTINGS}


def differing(settings: Sequence[Mapping[str, Value]]) -> list[str]:
    """The paths with at least two values among the runs that have them; those with the most values first."""
    values: dict[str, set[Value]] = {}
    for one in settings:
        for key, value in one.items():
            values.setdefault(key, set()).add(value)
    return sorted((key for key, own in values.items() if len(own) > 1), key=lambda key: (-len(values[key]), key))


def most_told(settings: Sequence[Mapping[str, Value]], keys: Sequence[str], x: str | None = None) -> tuple[str, str]:
    """The two of these settings over which a map shows most: the most runs have both, then the most pairs of values.

    x: the first of them, if it is fixed. The second is "" if there is only one.
    """
    pairs = [(a, b) for a in ([x] if x is not None else keys) for b in keys if a != b]
    if not pairs:
        return keys[0], ""

    def told(pair: tuple[str, str]) -> tuple[int, int]:
        has = [(own[pair[0]], own[pair[1]]) for own in settings if pair[0] in own and pair[1] in own]
        return len(has), len(set(has))

    return max(pairs, key=told)


def outcomes(runs: Sequence[Run], measure: Measure) -> pd.DataFrame:
    """One row a run, in their order: value (NaN where censored or unknown), followed_s (of a time: how long it is known)."""
    longest_s = max((run.followed_s for run in runs), default=0.0)
    rows = []
    for run in runs:
        # A run that broke down would never have got there: it counts as followed for as long as any run was.
        followed_s = longest_s if run.outcome in ("diverged", "stalled") else run.followed_s
        rows.append({"value": _value(run, measure), "followed_s": followed_s})
    return pd.DataFrame(rows, columns=["value", "followed_s"], dtype=np.float64)


def cells(
    runs: Sequence[Run], settings: Sequence[Mapping[str, Value]], x: str, y: str, measure: Measure
) -> pd.DataFrame:
    """A row for each pair of values that some run has: x, y, n_runs, value (median; NaN where censored), is_censored, words.

    Of times it is the Kaplan-Meier median: NaN unless half of the runs got there.
    """
    came_to = outcomes(runs, measure)
    groups: dict[tuple[Value, Value], list[int]] = {}
    for i, own in enumerate(settings):
        if x in own and y in own:
            groups.setdefault((own[x], own[y]), []).append(i)
    rows = [{"x": at[0], "y": at[1], **_cell(came_to.iloc[which], measure)} for at, which in groups.items()]
    return pd.DataFrame(rows, columns=["x", "y", "n_runs", "value", "is_censored", "words"])


def in_order(values: Sequence[Value]) -> list[Value]:
    """Each value once: numbers ascending, then words."""
    distinct = set(values)
    return [*sorted(v for v in distinct if not isinstance(v, str)), *sorted(v for v in distinct if isinstance(v, str))]


def shown(value: Value) -> str:
    """A value as text; numbers as they were written, in at most six digits."""
    return value if isinstance(value, str) else f"{value:.6g}"


def _cell(came_to: pd.DataFrame, measure: Measure) -> dict[str, Any]:
    n_runs, value = len(came_to), came_to["value"].to_numpy(np.float64)
    if measure.target is None:
        known = value[np.isfinite(value)]
        median = float(np.median(known)) if len(known) else np.nan
        words = measure.in_words(median) if len(known) else "not known"
        return {"n_runs": n_runs, "value": median, "is_censored": False, "words": words}
    followed_s = came_to["followed_s"].tolist()
    reached = [None if np.isnan(one) else float(one) for one in value]
    middle_s = median_s(reached, followed_s)
    if middle_s is not None:
        return {"n_runs": n_runs, "value": middle_s, "is_censored": False, "words": format_s(middle_s)}
    shortest_s = min(f for f, r in zip(followed_s, reached, strict=True) if r is None)
    n_reached = sum(one is not None for one in reached)
    words = f"not within {format_s(shortest_s)}" + (
        f" ({n_reached} of {plural(n_runs, 'run')} got there)" if n_reached else ""
    )
    return {"n_runs": n_runs, "value": np.nan, "is_censored": True, "words": words}


def _value(run: Run, measure: Measure) -> float:
    if measure.key == "round_s":
        n_rounds = int(run.manifest["outcome"]["round"])
        return run.simulated_s / n_rounds if n_rounds else np.nan
    if measure.target is None:
        accuracy = final_accuracy(run)
        return np.nan if accuracy is None else accuracy
    if run.evaluations.empty or run.sustain_s is None:
        return np.nan
    time_s, accuracy_then = (run.evaluations[name].to_numpy(np.float64) for name in ("time_s", "accuracy"))
    reached_s = sustained_s(time_s, accuracy_then, measure.target, run.sustain_s, run.followed_s)
    return np.nan if reached_s is None else reached_s


def _flat(path: str, part: Any) -> Iterator[tuple[str, Value]]:
    if isinstance(part, dict):
        if "kind" in part:
            yield path, str(part["kind"])
        for key, inner in part.items():
            if key != "kind":
                yield from _flat(f"{path}.{key}", inner)
    elif part is None:
        yield path, "none"
    elif isinstance(part, bool):
        yield path, "yes" if part else "no"
    elif isinstance(part, int | float):
        yield path, float(part)
    else:
        yield path, part if isinstance(part, str) else json.dumps(part)
