"""report.html: what a scenario's runs say, on one page.

The first screen holds the answer in one sentence, the table and the curve; the rest stands under questions. Everything
comes from run folders; the same runs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedsim.dashboard import agreement, device_frames, tables
from fedsim.dashboard.drawing import Material, Place
from fedsim.dashboard.drawings import places
from fedsim.dashboard.markup import answer, details, json_block, paragraph, text
from fedsim.dashboard.page import page
from fedsim.dashboard.palette import Styles
from fedsim.dashboard.places import place_data, place_markup
from fedsim.statistics import sentences
from fedsim.statistics.agreement import agreements
from fedsim.statistics.comparison import N_SEEDS_FOR_A_CLAIM
from fedsim.statistics.reading import Run, broken_folders
from fedsim.statistics.results import Comparison
from fedsim.statistics.words import digits, format_s, format_share, listed, plural
from fedsim.statistics.writing import write_atomically


def write_report(scenario_folder: Path | str, runs: Sequence[Run], *, is_whole: bool = True) -> Path:
    """Write report.html into the scenario's folder, or selection.html of some of its runs; the path.

    Run folders there that are not finished are named on the page. Without runs the page says what to do next.
    """
    folder = Path(scenario_folder)
    path = folder / ("report.html" if is_whole else "selection.html")
    write_atomically(path, report(folder.name, runs, left_out=broken_folders(folder, known=runs) if is_whole else ()))
    return path


def report(name: str, runs: Sequence[Run], left_out: Sequence[str] = ()) -> str:
    """The page as text. name: shown if there are no runs. left_out: one line for each folder that is not finished."""
    if not runs:
        opening = _heading(name) + answer(sentences.NO_RUNS) + _left_out(left_out)
        return page(title=f"{name} · fedsim report", opening=opening, sections=[], places={})
    name = str(runs[0].manifest["scenario"].get("name", name))
    material = Material.of(runs)
    found = places(material)
    first = material.first
    opening = _heading(name) + answer(_answer(runs, first))
    opening += paragraph(f"{first.ranking if first is not None else ''} {_setup(runs)}".strip(), "note")
    opening += tables.results_table(runs, material.rows, material.comparisons, first, material.styles)
    opening += _uneven_ends(runs, has_target=first is not None) + _what_they_do(runs, material.labels)
    opening += _shown(found, "curve", material.styles)
    return page(
        title=f"{name} · fedsim report",
        opening=opening,
        sections=_sections(material, found, left_out),
        places={place.name: place_data(place) for _, place in found},
    )


def _sections(material: Material, found: Sequence[tuple[str, Place]], left_out: Sequence[str]) -> list[tuple[str, str]]:
    runs, looks, labels = material.runs, material.styles, material.labels
    shown = {section: _shown(found, section, looks) for section, _ in found}
    phases = device_frames.phases_frame(runs, material.device_times)
    took_time = tables.phases_table(phases, looks) if len(phases) else ""
    costs = tables.cost_table(material.rows, labels, looks) + tables.waste_table(material.rows, labels, looks)
    no_rounds = paragraph("No round was closed. Extend stop.simulated_s, or shorten the rounds.")
    less_time = [("What if there is less time?", shown["budget"])] if "budget" in shown else []
    return [
        ("How sure is that?", _certainty(runs, looks, material.comparisons)),
        *less_time,
        ("What does it cost?", costs + _COST_NOTE),
        ("Where does the time go?", shown.get("time", no_rounds) + took_time),
        ("Who takes part?", shown.get("part", no_rounds) + _who_takes_part(material)),
        ("Is the clock right?", _theory(runs, looks) + shown.get("theory", "")),
        ("What exactly was run?", _what_was_run(runs, looks, left_out)),
    ]


def _shown(found: Sequence[tuple[str, Place]], section: str, looks: Styles) -> str:
    return "".join(place_markup(place, looks) for own, place in found if own == section)


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


def _who_takes_part(material: Material) -> str:
    """Who was heard, and how far what they said moved the model."""
    runs, labels, looks = material.runs, material.labels, material.styles
    if not all(run.speed_classes for run in runs):
        heard = paragraph(_NOT_RECORDED)
    elif max(len(run.speed_classes) for run in runs) < 2:
        heard = paragraph(_NO_CLASSES)
    else:
        heard = tables.heard_table(runs, labels, looks) + _HEARD_NOTE
    if not any(run.layers["change_norm"].notna().any() for run in runs):
        return heard
    return heard + tables.effective_step_table(material.rows, runs[0].layer_names, labels, looks) + _STEP_NOTE


def _theory(runs: Sequence[Run], looks: Styles) -> str:
    return agreement.section(agreements(runs), looks, {run.label: run.layer_names for run in runs})


def _heading(name: str) -> str:
    return f"<h1>{text(name)}: which policy is sooner?</h1>"


def _answer(runs: Sequence[Run], first: Comparison | None) -> str:
    if first is not None:
        return first.sentence
    return sentences.without_targets(runs)


def _setup(runs: Sequence[Run]) -> str:
    """What was simulated, in a line."""
    scenario = runs[0].manifest["scenario"]
    data, model = (scenario.get(key, {}).get("kind") for key in ("data", "model"))
    words = [plural(scenario["fleet"]["n_devices"], "device"), *([f"data set {data}"] if data else [])]
    words += [f"model {model} of {plural(len(runs[0].layer_names), 'layer')}"] if model else []
    words.append(plural(len({run.seed for run in runs}), "seed"))
    return f"{', '.join(words)}. All times are simulated."


def _what_they_do(runs: Sequence[Run], labels: Sequence[str]) -> str:
    """Folded: each policy in its own words; nothing for older runs, which have none."""
    said = {run.label: run.manifest["policy"].get("summary") for run in runs}
    items = "".join(f"<li><strong>{text(label)}</strong>: {text(said[label])}</li>" for label in labels if said[label])
    return details("What each policy does", f"<ul>{items}</ul>") if items else ""


def _uneven_ends(runs: Sequence[Run], *, has_target: bool) -> str:
    """A warning where runs ended at different times (a target reached, a number of rounds); else nothing."""
    ends_s = [run.simulated_s for run in runs]
    if format_s(min(ends_s)) == format_s(max(ends_s)):
        return ""
    span = f"between {format_s(min(ends_s))} and {format_s(max(ends_s))}"
    what = "final accuracy and wasted share" if has_target else "final accuracy, bytes and FLOPs"
    return paragraph(f"Runs ended {span}: {what} are those of each run's own end.", "note")


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
