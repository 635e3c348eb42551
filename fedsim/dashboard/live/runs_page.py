"""The page of finished runs: who is sooner, as a curve over seconds, rounds, bytes or FLOPs, and as a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from dash import Dash, Input, Output, State, dcc, html
from dash.exceptions import PreventUpdate

from fedsim.dashboard import figures, findings, frames
from fedsim.dashboard.live import chooser
from fedsim.dashboard.live.desk import Choice, Query, Remembered, asked_policies, choice, nothing_yet, renamed, written
from fedsim.dashboard.live.parts import Cell, blank, figure_box, group, note, policy, table, two_lines
from fedsim.statistics import sentences
from fedsim.statistics.catalogue import Catalogue, Entry
from fedsim.statistics.comparison import compare_targets, headline
from fedsim.statistics.reading import Run
from fedsim.statistics.results import Comparison, PolicyResult
from fedsim.statistics.summary import final_accuracy
from fedsim.statistics.words import format_bytes, format_count, format_range, format_s, format_share, plural

PATH, NAME = "/", "Runs"

OVER = {
    "time_s": "simulated seconds",
    "round": "rounds",
    "uploaded_bytes": "bytes up",
    "downloaded_bytes": "bytes down",
    "device_flops": "device FLOPs",
}
OF = {"accuracy": "accuracy", "loss": "loss"}
_OTHER_SETTINGS = (
    "These runs differ in more than their policies, so times stand side by side and no claim is made; the page Settings "
    "shows what differs."
)
_NOTHING_CHOSEN = "Nothing is chosen. Tick a scenario and a policy that have finished runs."
_NO_CURVE = "These runs have no {} to draw: the clock ran alone, or their model has none."


def layout(catalogue: Catalogue, query: Query) -> list[Cell]:
    """The page, as its address has it."""
    entries = catalogue.look()
    over, of = _asked(query, "over", OVER), _asked(query, "of", OF)
    axes = [
        group("Against", _radio("runs-over", OVER, over)),
        group("Shown", _radio("runs-of", OF, of)),
    ]
    return [
        html.P(id="runs-answer", className="answer"),
        html.P(id="runs-ranking", className="note"),
        chooser.layout("runs", entries, query, default=chooser.latest(entries)),
        html.Div(axes, className="row"),
        figure_box("runs-curve", caption_id="runs-caption", data_id="runs-data"),
        html.Div(id="runs-table"),
        html.Div(id="runs-broken"),
        dcc.Store(id="runs-query"),
    ]


def register(app: Dash, catalogue: Catalogue) -> None:
    """What the controls do."""
    chooser.register(app, "runs", catalogue)
    compared = Remembered(compare_targets)
    # Policies change with the scenarios: what these are is only looked at, or all would be shown twice.
    scenarios_now = State("runs-scenarios", "value")
    chosen = [Input(f"runs-{name}", "value") for name in ("policies", "seeds", "over", "of")]

    @app.callback(
        Output("runs-answer", "children"),
        Output("runs-ranking", "children"),
        Output("runs-curve", "figure"),
        Output("runs-curve-title", "children"),
        Output("runs-curve-figure", "hidden"),
        Output("runs-caption", "children"),
        Output("runs-table", "children"),
        Output("runs-broken", "children"),
        Output("runs-query", "data"),
        *chosen,
        Input("listing", "data"),
        scenarios_now,
    )
    def show(
        policies: list[str], seeds: list[int], over: str, of: str, _: str, scenarios: list[str]
    ) -> tuple[Any, ...]:
        entries = catalogue.look()
        if not entries:
            return nothing_yet(catalogue.folder), "", blank(), "", True, "", "", "", ""
        over, of = _known(over, OVER), _known(of, OF)
        own = choice(entries, scenarios or [], policies or [], seeds)
        read, reasons = catalogue.curves(own.entries)
        runs = renamed(read, own)
        address = _address(entries, scenarios or [], policies or [], seeds or [], over, of)
        broken = _broken([entry for entry in entries if entry.scenario in set(scenarios or [])], reasons)
        if not runs:
            return _NOTHING_CHOSEN, "", blank(), "", True, "", "", broken, address
        comparisons = compared.of(runs, own)
        answer, ranking = _answer(runs, comparisons)
        figure, title, caption = _curve(runs, own, over, of)
        shown = _table(runs, comparisons, own)
        ranking = ranking if figure is not None else _NO_CURVE.format(of)
        return answer, ranking, figure or blank(), title, figure is None, caption, shown, broken, address

    @app.callback(
        Output("runs-data-file", "data"),
        Input("runs-data", "n_clicks"),
        *[State(one.component_id, "value") for one in chosen],
        scenarios_now,
        prevent_initial_call=True,
    )
    def save(n: int, policies: list[str], seeds: list[int], over: str, of: str, scenarios: list[str]) -> Any:
        if not n:
            raise PreventUpdate
        own = choice(catalogue.look(), scenarios or [], policies or [], seeds)
        frame = frames.curve_frame(renamed(catalogue.curves(own.entries)[0], own), _known(over, OVER), _known(of, OF))  # type: ignore[arg-type]
        return {"content": frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"), "filename": "curve.csv"}


def _curve(runs: Sequence[Run], own: Choice, over: str, of: str) -> tuple[go.Figure | None, str, str]:
    """Figure, title and caption; no figure where nothing was evaluated."""
    frame = frames.curve_frame(runs, over, of)  # type: ignore[arg-type]
    if frame.empty:
        return None, "", ""
    targets = sorted({target for run in runs for target in run.targets}) if of == "accuracy" else ()
    figure = figures.curve(frame, own.looks, over=over, of=of, targets=targets)
    # The boxes above are the legend. What somebody has zoomed into stays while runs come in, until the axes change.
    figure.update_layout(showlegend=False, uirevision=f"{over} {of}")
    n_seeds = plural(int(frame["n_seeds"].max()), "seed")
    middle = "median" if of == "accuracy" else "mean"
    return figure, findings.curve(frame, over, of), f"Line: {middle} over up to {n_seeds}; {_band(frame)}"


def _band(frame: Any) -> str:
    if frame["n_seeds"].max() == 1:
        return "one seed a policy."
    if frame["policy"].nunique() > figures.N_BANDS:
        return f"bands are left out, as {frame['policy'].nunique()} would hide one another."
    edges = "smallest and largest" if frame["n_seeds"].max() < frames.N_SEEDS_FOR_QUARTILES else "quartiles"
    return f"band: {edges} at each point. A line ends where the first of its seeds ends."


def _answer(runs: Sequence[Run], comparisons: Sequence[Comparison]) -> tuple[str, str]:
    """The sentence of the first screen, and what the seeds do not allow to say of places."""
    if len({_setting(run) for run in runs}) > 1:
        return _OTHER_SETTINGS, next((one.sentence for one in comparisons if not one.results), "")
    first = headline(comparisons)
    return (first.sentence, first.ranking) if first is not None else (sentences.without_targets(runs), "")


def _setting(run: Run) -> str:
    """What runs must share to be compared: their scenario but for its name, policies and seeds."""
    scenario = {
        key: value for key, value in run.manifest["scenario"].items() if key not in ("name", "policies", "seeds")
    }
    return json.dumps(scenario, sort_keys=True)


def _table(runs: Sequence[Run], comparisons: Sequence[Comparison], own: Choice) -> html.Div:
    """One row a policy, best first."""
    compared = [comparison for comparison in comparisons if comparison.results]
    first = headline(compared)
    ranked = [result.label for result in first.results] if first else []
    rows = []
    for name in dict.fromkeys([*ranked, *(run.label for run in runs)]):
        same = [run for run in runs if run.label == name]
        rows.append(
            [
                policy(name, own.looks[name]),
                *(two_lines(reached_words(comparison.of(name))) for comparison in compared),
                two_lines(_over_seeds([a for run in same if (a := final_accuracy(run)) is not None], format_share)),
                _over_seeds([_spent(run, "uploaded_bytes") for run in same], format_bytes, with_range=False),
                _over_seeds([_spent(run, "device_flops") for run in same], format_count, with_range=False),
                _over_seeds([run.manifest["outcome"]["round"] for run in same], format_count, with_range=False),
                _over_seeds([run.simulated_s for run in same], format_s, with_range=False),
                str(len(same)),
            ]
        )
    header = ["policy", *(f"time to {format_share(c.target)}" for c in compared), "final accuracy", "uploaded"]
    header += ["device FLOPs", "rounds", "simulated", "seeds"]
    return table("Each policy: median over seeds, in parentheses the range over seeds", header, rows)


def reached_words(result: PolicyResult | None) -> str:
    """ "212 s (204-231)", "not within 600 s (7 of 10 seeds)"."""
    if result is None:
        return "not compared"
    if result.reached_always:
        return _over_seeds([time_s for time_s in result.reached_s if time_s is not None], format_s)
    if result.median_s is None:
        return sentences.not_within(result)
    return f"{format_s(result.median_s)} ({sentences.not_within(result)})"


def _spent(run: Run, column: str) -> float:
    return float(run.evaluations[column].iloc[-1]) if len(run.evaluations) else float("nan")


def _over_seeds(values: Sequence[float], in_words: Any, *, with_range: bool = True) -> str:
    known = [value for value in values if np.isfinite(value)]
    return format_range(known, in_words, with_range=with_range) if known else "not evaluated"


def _broken(entries: Sequence[Entry], reasons: Sequence[str]) -> Cell:
    """Folded: the folders that hold no finished run, each with its reason."""
    told = list(dict.fromkeys([*(entry.reason for entry in entries if entry.state == "broken"), *reasons]))
    if not told:
        return ""
    are = "folder is" if len(told) == 1 else "folders are"
    lines = [html.Li(reason) for reason in told[:100]]
    more = [note(f"And {len(told) - 100} more.")] if len(told) > 100 else []
    opened = html.Details(
        [html.Summary(f"{len(told)} {are} left out, because no finished run lies there"), html.Ul(lines)]
    )
    return [opened, *more]


def _address(
    entries: Sequence[Entry],
    scenarios: Sequence[str],
    policies: Sequence[str],
    seeds: Sequence[int],
    over: str,
    of: str,
) -> str:
    return written(
        {
            "scenario": list(scenarios),
            "policy": asked_policies(entries, scenarios, policies),
            "seed": [str(seed) for seed in seeds] or None,
            "over": None if over == "time_s" else over,
            "of": None if of == "accuracy" else of,
        }
    )


def _radio(control_id: str, words: dict[str, str], value: str) -> dcc.RadioItems:
    options = [{"label": label, "value": key} for key, label in words.items()]
    return dcc.RadioItems(id=control_id, options=options, value=value, className="row")


def _asked(query: Query, key: str, words: dict[str, str]) -> str:
    return _known(next(iter(query.get(key, ())), ""), words)


def _known(value: str | None, words: dict[str, str]) -> str:
    return value if value in words else next(iter(words))
