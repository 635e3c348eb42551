"""report.html: what a scenario's runs say, on one page.

The first screen holds the answer in one sentence, the table and the curve; the rest stands under questions. Everything
comes from run folders; the same runs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from fedsim.dashboard import agreement, figures, findings, frames, tables
from fedsim.dashboard.markup import details, download, json_block, paragraph, swatch, text
from fedsim.dashboard.page import page
from fedsim.dashboard.palette import Styles, styles
from fedsim.statistics import sentences
from fedsim.statistics.agreement import agreements
from fedsim.statistics.comparison import N_SEEDS_FOR_A_CLAIM, compare_targets, headline
from fedsim.statistics.reading import Run, broken_folders
from fedsim.statistics.results import Comparison
from fedsim.statistics.words import digits, format_s, format_share, listed, plural
from fedsim.statistics.writing import write_atomically


@dataclass(frozen=True)
class _Drawing:
    """A figure with what stands around it. exact: the closed forms drawn over the simulated points, if any."""

    name: str
    title: str
    caption: str
    figure: go.Figure
    frame: pd.DataFrame
    exact: pd.DataFrame | None = None


def write_report(scenario_folder: Path | str, runs: Sequence[Run]) -> Path:
    """Write report.html into the scenario's folder; its path.

    Run folders there that are not finished are named on the page. Without runs the page says what to do next.
    """
    folder = Path(scenario_folder)
    path = folder / "report.html"
    write_atomically(path, report(folder.name, runs, left_out=broken_folders(folder)))
    return path


def report(name: str, runs: Sequence[Run], left_out: Sequence[str] = ()) -> str:
    """The page as text. name: shown if there are no runs. left_out: one line for each folder that is not finished."""
    if not runs:
        opening = _heading(name) + paragraph(sentences.NO_RUNS, "answer") + _left_out(left_out)
        return page(title=f"{name} · fedsim report", opening=opening, sections=[], figures={})
    name = str(runs[0].manifest["scenario"].get("name", name))
    looks = styles((run.label, run.kind) for run in runs)
    comparisons = compare_targets(runs)
    first = headline(comparisons)
    losses = _losses(runs, looks) if frames.has_loss_curve(runs) else []
    curve = _curve(runs, looks) or (losses.pop(0) if losses else None)
    drawings = {key: d for key, d in _drawings(runs, looks).items() if d is not None}
    opening = _heading(name) + paragraph(_answer(runs, first), "answer")
    opening += paragraph(first.ranking, "note") if first is not None and first.ranking else ""
    opening += tables.results_table(runs, comparisons, first, looks)
    opening += _uneven_ends(runs) + (_figure(curve, looks) if curve else "")
    drawn = [*([curve] if curve else []), *drawings.values(), *losses]
    return page(
        title=f"{name} · fedsim report",
        opening=opening,
        sections=_sections(runs, looks, comparisons, first, drawings, losses, left_out),
        figures={d.name: _plotly(d.figure) for d in drawn},
    )


def _sections(
    runs: Sequence[Run],
    looks: Styles,
    comparisons: Sequence[Comparison],
    first: Comparison | None,
    drawings: dict[str, _Drawing],
    losses: Sequence[_Drawing],
    left_out: Sequence[str],
) -> list[tuple[str, str]]:
    shown = {key: _figure(drawing, looks) for key, drawing in drawings.items()}
    labels = tables.labels_best_first(runs, first)
    phases = frames.phases_frame(runs)
    costs = tables.cost_table(runs, labels, looks) + tables.waste_table(runs, labels, looks)
    heard = _who_takes_part(runs, labels, looks)
    took_time = tables.phases_table(phases, looks) if len(phases) else ""
    no_rounds = paragraph("No round was closed. Extend stop.simulated_s, or shorten the rounds.")
    return [
        ("How sure is that?", _certainty(runs, looks, comparisons)),
        ("What does it cost?", costs + _COST_NOTE + shown.get("bytes", "")),
        ("Where does the time go?", shown.get("rounds", no_rounds) + took_time),
        ("Who takes part?", shown.get("layers", no_rounds) + shown.get("heard", "") + heard),
        ("Does it agree with theory?", _theory(runs, looks) + "".join(_figure(loss, looks) for loss in losses)),
        ("What exactly was run?", _what_was_run(runs, looks, left_out)),
    ]


_COST_NOTE = paragraph(
    "Sums over the rounds that were closed. Wasted are FLOPs that devices spent on work that never entered the model "
    "(dropped, cancelled, or stopped in the middle), uploads that were not used, and downloads for tasks that came to "
    "nothing.",
    "note",
)
_HEARD_NOTE = paragraph(
    "Devices are slow or fast by the seconds of a step that they keep for the whole run. Updates are those that entered "
    "the model; local steps the whole ones in them; weight is that of their layers in the model, mean over its parameters. "
    "The accuracy is that of the final model on rows with the label mix of the class's own data.",
    "note",
)
_STEP_NOTE = paragraph(
    "How far one version moves the model at the policy's own learning rate. Policies far apart here differ in learning "
    "rate, whatever their settings say: choose each one's own before ranking them. Staleness: by how many versions the model "
    "had moved on when an update entered it, mean over updates.",
    "note",
)
_NO_CLASSES = "All devices take equally long for a step, apart from luck that is drawn anew: nobody is slow for good."
_NOT_RECORDED = "These runs do not say how fast each device is. Run the scenario again (--again) to know who was heard."


def _who_takes_part(runs: Sequence[Run], labels: Sequence[str], looks: Styles) -> str:
    """Who was heard, and how far what they said moved the model."""
    if not all(run.speed_classes for run in runs):
        heard = paragraph(_NOT_RECORDED)
    elif max(len(run.speed_classes) for run in runs) < 2:
        heard = paragraph(_NO_CLASSES)
    else:
        heard = tables.heard_table(runs, labels, looks) + _HEARD_NOTE
    if not any(run.layers["change_norm"].notna().any() for run in runs):
        return heard
    return heard + tables.effective_step_table(runs, labels, looks) + _STEP_NOTE


def _curve(runs: Sequence[Run], looks: Styles) -> _Drawing | None:
    frame = frames.accuracy_frame(runs, over="time_s")
    if frame.empty:
        return None
    targets = sorted({target for run in runs for target in run.targets})
    figure = figures.accuracy_over_time(frame, looks, targets)
    caption = f"Each line holds the accuracy of the last evaluation, {_band(frame)}. A line ends where the first of its seeds ends."
    return _Drawing("accuracy_over_time", findings.accuracy_over_time(frame), caption, figure, frame)


_EXACT_LINE = "The thin dashed line is the exact expectation, nothing fitted."
_CUT_OFF = (
    " A run that ended at a time lacks its last round, which is longer than most: where rounds are few, those that are "
    "drawn are too short."
)


def _losses(runs: Sequence[Run], looks: Styles) -> list[_Drawing]:
    """The loss over time; over rounds too, for policies whose closed form knows rounds alone."""
    frame, exact = frames.loss_frame(runs, over="time_s"), frames.expected_loss_frame(runs, over="time_s")
    if frame.empty:
        return []
    held = f"Each line joins the losses at the evaluations, {_band(frame, 'the mean')}. {_EXACT_LINE if len(exact) else ''}"
    figure = figures.loss_over_time(frame, exact, looks)
    drawings = [_Drawing("loss_over_time", findings.loss_over_time(frame), held.strip(), figure, frame, exact)]
    by_round = frames.expected_loss_frame(runs, over="round")
    by_round = by_round[~by_round["policy"].isin(set(exact["policy"]))]
    if len(by_round):
        frame = frames.loss_frame([run for run in runs if run.label in set(by_round["policy"])], over="round")
        held = f"Each line joins the losses after the rounds that were evaluated, {_band(frame, 'the mean')}. {_EXACT_LINE}"
        figure = figures.loss_over_rounds(frame, by_round, looks)
        title = findings.loss_over_rounds(frame)
        drawings.append(_Drawing("loss_over_rounds", title, held, figure, frame, by_round))
    return drawings


def _is_cut_off(run: Run) -> bool:
    """Whether the run ended in the middle of a round."""
    return len(run.rounds) > 0 and float(run.rounds["end_s"].iloc[-1]) < run.simulated_s


def _theory(runs: Sequence[Run], looks: Styles) -> str:
    return agreement.section(agreements(runs), looks, {run.label: run.layer_names for run in runs})


def _drawings(runs: Sequence[Run], looks: Styles) -> dict[str, _Drawing | None]:
    spent, rounds, layers, law, heard = (
        frames.accuracy_frame(runs, over="uploaded_bytes"),
        frames.round_times_frame(runs),
        frames.layers_frame(runs),
        frames.round_law_frame(runs),
        frames.heard_frame(runs),
    )
    by_bytes = f"The same accuracies against what all devices together had uploaded, {_band(spent)}."
    by_round = "All rounds of all seeds: the height of a line is the share of rounds that took at most so long."
    if len(law):
        by_round += f" {_EXACT_LINE}{_CUT_OFF if any(_is_cut_off(run) for run in runs) else ''}"
    by_layer = (
        "How many devices' updates a layer receives per round, mean over all rounds and seeds; empty rounds count."
    )
    if layers["expected"].notna().any():
        by_layer += " The diamonds are the exact expectations, nothing fitted."
    return {
        "bytes": None
        if spent.empty
        else _Drawing(
            "accuracy_over_bytes",
            findings.accuracy_over_bytes(spent),
            by_bytes,
            figures.accuracy_over_bytes(spent, looks),
            spent,
        ),
        "rounds": None
        if rounds.empty
        else _Drawing(
            "round_times", findings.round_times(rounds), by_round, figures.round_times(rounds, law, looks), rounds, law
        ),
        "layers": None
        if layers.empty
        else _Drawing(
            "layer_contributors",
            findings.layer_contributors(layers),
            by_layer,
            figures.layer_contributors(layers, looks),
            layers,
        ),
        "heard": None
        if heard.empty
        else _Drawing(
            "who_was_heard",
            findings.who_was_heard(heard),
            "Each class's share of all updates that were used, all rounds and seeds. The line is its share of the devices.",
            figures.who_was_heard(heard, looks),
            heard,
        ),
    }


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


def _heading(name: str) -> str:
    return f"<h1>{text(name)}: which policy is sooner?</h1>"


def _answer(runs: Sequence[Run], first: Comparison | None) -> str:
    if first is not None:
        return first.sentence
    return sentences.without_targets(runs)


def _uneven_ends(runs: Sequence[Run]) -> str:
    """A warning where runs ended at different times (a target reached, a number of rounds); else nothing."""
    ends_s = [run.simulated_s for run in runs]
    if format_s(min(ends_s)) == format_s(max(ends_s)):
        return ""
    span = f"between {format_s(min(ends_s))} and {format_s(max(ends_s))}"
    return paragraph(f"Runs ended {span}: final accuracy, bytes and FLOPs are those of each run's own end.", "note")


def _certainty(runs: Sequence[Run], looks: Styles, comparisons: Sequence[Comparison]) -> str:
    compared = [comparison for comparison in comparisons if comparison.results]
    if not compared:
        return paragraph(_answer(runs, comparisons[0] if comparisons else None))
    seeds, sustain_s = compared[0].seeds, runs[0].sustain_s or 0.0
    left_out = sorted({run.seed for run in runs} - set(seeds))
    words = [
        f"{plural(len(seeds), 'seed')} ({_seed_names(seeds)}), the same weather for every policy under "
        f"one seed. A claim about the winner is made from {N_SEEDS_FOR_A_CLAIM} seeds on.",
        f"A target counts as reached at the start of the first {format_s(sustain_s)} in which no evaluation lies below it; "
        "the first crossing stands beside it. A run that never does so counts as censored, not as missing.",
        "Times sooner: the geometric mean over seeds of the ratio of times, with a 95 % bootstrap interval (BCa) from 3 "
        "seeds on. A bound is given where one of the two did not get there under every seed.",
        "Place: all that a policy may have in this order, all policies at once at an error of 5 %, divided over the "
        "targets (Tukey's range test on log times, seeds as blocks; supposes that all policies' times scatter alike).",
    ]
    if runs[0].every_n_rounds is not None:
        words.append(sentences.by_rounds(runs[0].every_n_rounds))
    if left_out:
        words.append(f"Left out of the comparison: seeds that not every policy has run ({_seed_names(left_out)}).")
    parts = [paragraph(sentence) for sentence in words]
    for comparison in compared:
        said = f"{comparison.sentence} {comparison.ranking}".strip()
        parts += [tables.certainty_table(comparison, looks), paragraph(said), _pairing(comparison)]
    return "".join(parts)


def _seed_names(seeds: Sequence[int]) -> str:
    """ "0, 1 and 4", "0 to 11"."""
    if len(seeds) > 3 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return listed([str(seed) for seed in seeds])


def _pairing(comparison: Comparison) -> str:
    """How alike the paired times are; silent where there are too few to say."""
    known = [
        f"{digits(result.speed_up.correlation)} ({result.label})"
        for result in comparison.results
        if result.speed_up is not None and result.speed_up.correlation is not None
    ]
    if not known:
        return ""
    of_target = format_share(comparison.target)
    return paragraph(f"Correlation with {comparison.reference}'s log times to {of_target}: {listed(known)}.", "note")


def _what_was_run(runs: Sequence[Run], looks: Styles, left_out: Sequence[str]) -> str:
    scenarios: list[Any] = []
    for run in runs:
        if run.manifest["scenario"] not in scenarios:
            scenarios.append(run.manifest["scenario"])
    parameters = {run.label: run.manifest["policy"] for run in runs}
    mixed = f"These runs come from {len(scenarios)} different scenarios; compare with care."
    first = {key: runs[0].manifest.get(key) for key in ("seeds", "layers", "versions", "machine")}
    return (
        (paragraph(mixed) if len(scenarios) > 1 else "")
        + _left_out(left_out)
        + details(f"{plural(len(runs), 'run')} and how they ended", tables.runs_table(runs, looks))
        + details("Policies and their parameters", json_block(parameters))
        + "".join(details("The scenario, every default filled in", json_block(scenario)) for scenario in scenarios[:3])
        + details("Seeds, layers, versions and machine of the first run", json_block(first))
    )


def _left_out(reasons: Sequence[str]) -> str:
    if not reasons:
        return ""
    items = "".join(f"<li>{text(reason)}</li>" for reason in reasons[:50])
    return f"{paragraph('Left out, because they are not finished:')}<ul>{items}</ul>"


def _figure(drawing: _Drawing, looks: Styles) -> str:
    """A figure's place on the page: title, legend to tick policies off and on, plot, caption, data."""
    labels = [str(label) for label in drawing.frame["policy"].unique()]
    boxes = "".join(
        f'<label><input type="checkbox" checked data-policy="{text(label)}">{swatch(looks[label])} {text(label)}</label>'
        for label in labels
    )
    data = download(f"{drawing.name}.csv", _csv(drawing.frame))
    if drawing.exact is not None and len(drawing.exact):
        data += " " + download(f"{drawing.name}_exact.csv", _csv(drawing.exact), "exact expectation (CSV)")
    return (
        f"<h3>{text(drawing.title)}</h3><figure><fieldset><legend>Policies shown</legend>{boxes}</fieldset>"
        f'<div class="plot" id="{drawing.name}" role="img" aria-label="{text(drawing.title)}"></div>'
        f"<figcaption>{text(drawing.caption)} {data}</figcaption></figure>"
    )


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _plotly(figure: go.Figure) -> dict[str, Any]:
    """Data and layout as plain values, numbers to six digits: what an eye can tell, at half the size."""
    plain = figure.to_plotly_json()
    return {"data": _rounded(plain["data"]), "layout": _rounded(plain["layout"])}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
