"""The report's figures, each with the words around it.

A figure is one function here and one line in `PLACES`. It gets the runs with what was found about them and returns a
`Place`: one drawing, or several between which controls choose; or None where the runs have nothing to draw.

    from fedsim.dashboard.drawings import drawings
    {one.name: one.figure for one in drawings(runs)}    # Plotly figures
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from gzip import compress

import pandas as pd

from fedsim.dashboard import budgets, device_frames, figures, findings, frames, timeline
from fedsim.dashboard.drawing import Control, Drawing, Material, Place, csv
from fedsim.statistics.reading import Run
from fedsim.statistics.words import format_s


def drawings(runs: Sequence[Run]) -> list[Drawing]:
    """The report's figures as they stand when it is opened, in its order."""
    material = Material.of(runs)
    return [place.first for _, place in places(material)]


def places(material: Material) -> list[tuple[str, Place]]:
    """(section, place) of every figure that these runs have something for."""
    found = ((section, draw(material)) for section, draw in PLACES)
    return [(section, place) for section, place in found if place is not None]


# ---- the first screen -----------------------------------------------------------------------------------------------


def _curve(material: Material) -> Place | None:
    """Accuracy and loss against every cumulative column."""
    metrics: list[frames.Metric] = ["accuracy", "loss"]
    views: dict[tuple[str, ...], Drawing] = {
        (of, over): view
        for of in metrics
        for over in material.axes
        if (view := _curve_view(material, over, of)) is not None
    }
    if not views:
        return None
    vertical = [(of, of) for of in dict.fromkeys(of for of, _ in views)]
    across = [(over, figures.axis_words(over)[0]) for over in dict.fromkeys(over for _, over in views)]
    return Place("curve", views, (Control("Show", vertical), Control("against", across)))


def _curve_view(material: Material, over: str, of: frames.Metric) -> Drawing | None:
    frame = frames.curve_frame(material.runs, over, of)
    if frame.empty:
        return None
    is_loss = of == "loss"
    exact = (
        frames.expected_loss_frame(material.runs, over) if is_loss and over in ("time_s", "round") else pd.DataFrame()
    )
    reached = budgets.reached_frame(material.comparisons)
    figure = figures.curve(
        frame,
        material.styles,
        over=over,
        of=of,
        targets=material.targets,
        reached=reached if len(reached) else None,
        expected=exact if len(exact) else None,
    )
    if is_loss:
        caption = f"Each line joins the losses at the evaluations, {_band(frame, 'the mean')}. {_EXACT_LINE if len(exact) else ''}"
    else:
        caption = f"Each line holds the accuracy of the last evaluation, {_band(frame)}. A line ends where the first of its seeds ends."
        caption += _RINGS if over == "time_s" and len(reached) else ""
    title = findings.curve(frame, over, of)
    return Drawing(f"{of}_over_{over}", title, caption.strip(), figure, frame, exact if len(exact) else None)


_RINGS = " A ring marks the median time after which a policy had a target and kept it."
_EXACT_LINE = "The thin dashed line is the exact expectation, nothing fitted."


# ---- what if there is less time? ------------------------------------------------------------------------------------


def _budget(material: Material) -> Place | None:
    frame = budgets.budget_frame(material.runs)
    if frame.empty:
        return None
    order = {label: place for place, label in enumerate(material.labels)}
    caption = "A point is the median over seeds, its bar their range (the quartiles from 10 seeds on). Hollow points: a run had ended by then."
    views: dict[tuple[str, ...], Drawing] = {}
    for budget_s, rows in frame.groupby("budget_s"):
        own = rows.sort_values("policy", key=lambda labels: labels.map(order))
        words = format_s(float(str(budget_s)))
        figure = figures.accuracy_at_budget(own, material.styles)
        views[(words,)] = Drawing("accuracy_at_budget", findings.accuracy_at_budget(own), caption, figure, own)
    values = list(views)
    middle = len(values) // 2  # first shown: a budget that neither everybody nor nobody has used up
    ordered = {values[middle]: views[values[middle]], **views}
    return Place("budget", ordered, (Control("Time", [(words, words) for (words,) in values], "slider"),))


def _front(material: Material) -> Place | None:
    frame = budgets.front_frame(material.runs)
    if frame.empty:
        return None
    caption = "Thin: the best median accuracy that a policy has had so far. Points: what no policy had sooner."
    figure = figures.pareto_front(frame, material.styles)
    return Place.of(Drawing("pareto_front", findings.pareto_front(frame), caption, figure, frame))


# ---- where does the time go? ----------------------------------------------------------------------------------------

_CUT_OFF = (
    " A run that ended at a time lacks its last round, which is longer than most: where rounds are few, those that are "
    "drawn are too short."
)


def _round_times(material: Material) -> Place | None:
    frame, law = frames.round_times_frame(material.runs), frames.round_law_frame(material.runs)
    if frame.empty:
        return None
    caption = "All rounds of all seeds: the height of a line is the share of rounds that took at most so long."
    if len(law):
        caption += f" {_EXACT_LINE}{_CUT_OFF if any(_is_cut_off(run) for run in material.runs) else ''}"
    figure = figures.round_times(frame, law, material.styles)
    return Place.of(Drawing("round_times", findings.round_times(frame), caption, figure, frame, law))


def _is_cut_off(run: Run) -> bool:
    """Whether the run ended in the middle of a round."""
    return len(run.rounds) > 0 and float(run.rounds["end_s"].iloc[-1]) < run.simulated_s


def _time_shares(material: Material) -> Place | None:
    frame = device_frames.time_shares_frame(material.runs, material.device_times)
    if frame.empty:
        return None
    caption = (
        "The time of all devices, up to the end of each run's last round. Dropped is all the time given to tasks that "
        "never entered the model, waiting is time without a task."
    )
    return Place.of(Drawing("time_shares", findings.time_shares(frame), caption, figures.time_shares(frame), frame))


_TIMELINE_BYTES = 800_000  # of all timelines on a page with their data, compressed
_MOST_TIMELINES = 24


def _timeline(material: Material) -> Place | None:
    """Rounds of one seed of each policy, as many as the page has room for."""
    runs = {run.label: run for run in reversed(material.runs) if run.has_tasks and len(run.rounds)}
    shown = [runs[label] for label in material.labels if label in runs]
    views: dict[tuple[str, ...], Drawing] = {}
    options = []
    for i, run in enumerate(shown):
        numbers = _rounds_with_room(run, len(shown))
        length_s = (run.rounds["end_s"] - run.rounds["start_s"]).to_numpy()
        extremes = {int(length_s.argmax()): ", the longest", int(length_s.argmin()): ", the shortest"}
        for number in numbers:
            drawn = timeline.draw_round(run, number)
            of_all = (
                f" Shown are {len(numbers)} of the {len(run.rounds):,} rounds of this seed; fedsim dashboard has all."
            )
            caption = drawn.caption + (of_all if len(numbers) < len(run.rounds) else "")
            name = f"timeline_of_round_{number}"
            views[str(i), f"{i}-{number}"] = Drawing(name, drawn.title, caption, drawn.figure, drawn.frame)
        options += [
            (f"{i}-{number}", f"{number} ({format_s(length_s[number])}{extremes.get(number, '')})")
            for number in sorted(numbers)
        ]
    if not views:
        return None
    choices = [(str(i), f"{run.label}, seed {run.seed}") for i, run in enumerate(shown)]
    return Place("timeline", views, (Control("Run", choices), Control("round", options)))


def _rounds_with_room(run: Run, n_runs: int) -> list[int]:
    """Numbers of rounds, a usual one first, then the extremes, then evenly spread, as many as a run's share of the page."""
    numbers = timeline.rounds_to_show(run, max(1, _MOST_TIMELINES // n_runs))
    if not numbers:
        return []
    usual = numbers[2] if len(numbers) > 2 else numbers[0]
    drawn = timeline.draw_round(run, usual)
    n_bytes = len(compress(f"{drawn.figure.to_json()}{csv(drawn.frame) or ''}".encode()))
    n = max(1, int(_TIMELINE_BYTES / n_runs / n_bytes))
    return list(dict.fromkeys([usual, *numbers]))[:n]


# ---- who takes part? ------------------------------------------------------------------------------------------------


def _layers(material: Material) -> Place | None:
    frame = frames.layers_frame(material.runs)
    if frame.empty:
        return None
    caption = (
        "How many devices' updates a layer receives per round, mean over all rounds and seeds; empty rounds count."
    )
    if frame["expected"].notna().any():
        caption += " The diamonds are the exact expectations, nothing fitted."
    figure = figures.layer_contributors(frame, material.styles)
    return Place.of(Drawing("layer_contributors", findings.layer_contributors(frame), caption, figure, frame))


def _heard(material: Material) -> Place | None:
    frame = device_frames.heard_frame(material.runs)
    if frame.empty:
        return None
    caption = (
        "Each class's share of all updates that were used, all rounds and seeds. The line is its share of the devices."
    )
    figure = figures.who_was_heard(frame, material.styles)
    return Place.of(Drawing("who_was_heard", findings.who_was_heard(frame), caption, figure, frame))


def _served(material: Material) -> Place | None:
    frame = device_frames.served_frame(material.runs)
    if frame.empty:
        return None
    caption = (
        "The final model on rows with the label mix of each class's own data: the median over seeds and their range."
    )
    figure = figures.served(frame, material.styles)
    return Place.of(Drawing("served", findings.served(frame), caption, figure, frame))


# ---- is the clock right? --------------------------------------------------------------------------------------------


def _exact_loss(over: str) -> Callable[[Material], Place | None]:
    """The loss beside its closed form; over rounds only for policies whose closed form knows rounds alone."""

    def draw(material: Material) -> Place | None:
        runs = list(material.runs)
        exact = frames.expected_loss_frame(runs, over)
        if over == "time_s" and frames.curve_frame(runs, over).empty:
            return None  # without accuracies the loss stands on the first screen
        if over == "round":
            over_time = set(frames.expected_loss_frame(runs, "time_s")["policy"])
            exact = exact[~exact["policy"].isin(over_time)]
        runs = [run for run in runs if run.label in set(exact["policy"])]
        if not runs:
            return None
        frame = frames.curve_frame(runs, over, "loss")
        caption = f"Each line joins the losses at the evaluations, {_band(frame, 'the mean')}. {_EXACT_LINE}"
        figure = figures.curve(frame, material.styles, over=over, of="loss", expected=exact)
        title = findings.curve(frame, over, "loss")
        name = {"time_s": "exact_loss_over_time", "round": "exact_loss_over_rounds"}[over]
        return Place.of(Drawing(name, title, caption, figure, frame, exact))

    return draw


PLACES: tuple[tuple[str, Callable[[Material], Place | None]], ...] = (
    ("curve", _curve),
    ("budget", _budget),
    ("budget", _front),
    ("time", _round_times),
    ("time", _timeline),
    ("time", _time_shares),
    ("part", _layers),
    ("part", _heard),
    ("part", _served),
    ("theory", _exact_loss("time_s")),
    ("theory", _exact_loss("round")),
)
"""(section of the report, what draws it), in the page's order."""


def _band(frame: pd.DataFrame, middle: str = "the median") -> str:
    if frame.empty or frame["n_seeds"].max() == 1:
        return "one seed a policy"
    if frame["policy"].nunique() > figures.N_BANDS:
        return f"{middle} over seeds (bands left out: they would hide one another)"
    many = frame["n_seeds"].min() >= frames.N_SEEDS_FOR_QUARTILES
    few = frame["n_seeds"].max() < frames.N_SEEDS_FOR_QUARTILES
    width = (
        "the quartiles" if many else "the smallest and largest" if few else "the quartiles, or all of fewer than 10,"
    )
    return f"{middle} over seeds; the band shows {width} at each point"
