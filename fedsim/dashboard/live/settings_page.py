"""The page of settings: what one or two settings do to the time to a target, and all that differ side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import plotly.graph_objects as go
from dash import Dash, Input, Output, State, dcc, html

from fedsim.dashboard.frames import N_POINTS
from fedsim.dashboard.live import chooser, settings_figures
from fedsim.dashboard.live.desk import Query, asked_policies, choice, nothing_yet, renamed, written
from fedsim.dashboard.live.parts import Cell, blank, field, figure_box, note
from fedsim.dashboard.live.settings_frame import Measure, Value, cells, differing, measures, most_told, settings_of
from fedsim.dashboard.palette import Styles
from fedsim.statistics.catalogue import Catalogue
from fedsim.statistics.reading import Run
from fedsim.statistics.words import listed, plural

PATH, NAME = "/settings", "Settings"

N_AXES = 10
"""Settings across which runs are drawn as lines; more would not be read."""

_NONE = ""
_NOTHING_CHOSEN = "Nothing is chosen. Tick scenarios and policies that have finished runs."
_ALL_ALIKE = (
    "The chosen runs have the same settings, apart from their seeds. Tick more scenarios or policies, or run the scenario "
    "again with another value under policies or variants."
)


def layout(catalogue: Catalogue, query: Query) -> list[Cell]:
    """The page, as its address has it."""
    entries = catalogue.look()
    asked = {key: next(iter(query.get(key, ())), None) for key in ("x", "y", "measure")}
    every = list(dict.fromkeys(entry.scenario for entry in entries))
    pickers = [
        field("Across", _picker("settings-x"), "settings-x"),
        field("Up", _picker("settings-y"), "settings-y"),
        field("Shown", _picker("settings-measure"), "settings-measure"),
    ]
    return [
        html.P(id="settings-answer", className="answer"),
        chooser.layout("settings", entries, query, default=every),
        html.Div(pickers, className="row"),
        figure_box("settings-map", caption_id="settings-caption"),
        figure_box("settings-lines", caption_id="settings-lines-caption"),
        html.Div(id="settings-note"),
        dcc.Store(id="settings-asked", data=asked),
        dcc.Store(id="settings-query"),
    ]


def _over(
    runs: Sequence[Run], settings: Sequence[Mapping[str, Value]], x: str, y: str, measure: Measure, looks: Styles
) -> tuple[go.Figure, str, str]:
    """Figure, title and caption of the measure over two settings, or over one: y is none, or x itself."""
    if y not in (_NONE, x):
        frame = cells(runs, settings, x, y, measure)
        return settings_figures.heat_map(frame, x, y, measure), _map_words(frame, x, y, measure), _MAP_CAPTION
    title = f"{measure.words.capitalize()} over {x}"
    return settings_figures.points(runs, settings, x, measure, looks), title, _POINTS_CAPTION


def register(app: Dash, catalogue: Catalogue) -> None:
    """What the controls do."""
    chooser.register(app, "settings", catalogue)
    # Policies change with the scenarios: what these are is only looked at, or all would be shown twice.
    scenarios_now = State("settings-scenarios", "value")
    chosen = [Input(f"settings-{name}", "value") for name in ("policies", "seeds")]

    def read(scenarios: list[str], policies: list[str], seeds: list[int]) -> tuple[list[Run], Any, list[str]]:
        own = choice(catalogue.look(), scenarios or [], policies or [], seeds)
        runs, reasons = catalogue.curves(own.entries)
        return renamed(runs, own), own.looks, reasons

    @app.callback(
        *[Output(f"settings-{name}", part) for name in ("x", "y", "measure") for part in ("options", "value")],
        *chosen,
        Input("listing", "data"),
        *[State(f"settings-{name}", "value") for name in ("x", "y", "measure")],
        State("settings-asked", "data"),
        scenarios_now,
    )
    def offer(
        policies: list[str], seeds: list[int], _: str, x: Any, y: Any, shown: Any, asked: Any, scenarios: list[str]
    ) -> list[Any]:
        runs, _looks, _reasons = read(scenarios, policies, seeds)
        settings = [settings_of(run) for run in runs]
        keys = differing(settings)
        judged = {one.key: one.words for one in measures(runs)} if runs else {}
        x, y, shown = (now if now is not None else asked[key] for now, key in ((x, "x"), (y, "y"), (shown, "measure")))
        if keys and x not in keys:
            x = most_told(settings, keys)[0]
        if keys and y != _NONE and (y not in keys or y == x):
            y = most_told(settings, keys, x)[1]
        across = [{"label": key, "value": key} for key in keys]
        up = [{"label": "nothing: a point for each run", "value": _NONE}, *across]
        options = [{"label": words, "value": key} for key, words in judged.items()]
        return [across, x, up, y, options, shown if shown in judged else next(iter(judged), None)]

    @app.callback(
        Output("settings-answer", "children"),
        Output("settings-map", "figure"),
        Output("settings-map-box", "style"),
        Output("settings-map", "style"),
        Output("settings-lines", "figure"),
        *[Output(f"settings-{name}-title", "children") for name in ("map", "lines")],
        *[Output(f"settings-{name}-figure", "hidden") for name in ("map", "lines")],
        Output("settings-caption", "children"),
        Output("settings-lines-caption", "children"),
        Output("settings-note", "children"),
        Output("settings-query", "data"),
        *chosen,
        *[Input(f"settings-{name}", "value") for name in ("x", "y", "measure")],
        Input("listing", "data"),
        scenarios_now,
    )
    def show(
        policies: list[str], seeds: list[int], x: str | None, y: str, shown: str | None, _: str, scenarios: list[str]
    ) -> tuple[Any, ...]:
        runs, looks, reasons = read(scenarios, policies, seeds)
        settings = [settings_of(run) for run in runs]
        keys = differing(settings)
        by_key = {one.key: one for one in measures(runs)} if runs else {}
        if not runs or not keys:
            said = _ALL_ALIKE if runs else _NOTHING_CHOSEN if catalogue.look() else nothing_yet(catalogue.folder)
            return said, blank(), {}, {}, blank(), "", "", True, True, "", "", _left_out(reasons), ""
        x = x if x in keys else keys[0]
        measure = by_key.get(shown or "", next(iter(by_key.values())))
        figure, title, caption = _over(runs, settings, x, y if y in keys else _NONE, measure, looks)
        judged = [one for one in by_key.values() if one is measure or one.key == "final_accuracy"]
        every = ceil(len(runs) * (min(len(keys), N_AXES) + len(judged)) / N_POINTS)  # so many runs share a line
        lines = settings_figures.parallel(runs[::every], settings[::every], keys[:N_AXES], judged, looks)
        about = f"{len(keys)} settings differ" if len(keys) > 1 else "one setting differs"
        answer = f"Among {plural(len(runs), 'run')} {about}: {listed(keys[:6])}{' and more' if len(keys) > 6 else ''}."
        lines_title = "Every run across all settings that differ"
        note_ = [*_pooled(settings, keys, x, y), *_left_out(reasons)]
        address = written(
            {
                "scenario": scenarios,
                "policy": asked_policies(catalogue.look(), scenarios or [], policies or []),
                "seed": [str(s) for s in seeds or []] or None,
                "x": x,
                "y": y,
                "measure": measure.key,
            }
        )
        sizes = {"height": f"{figure.layout.height}px"}, {"minWidth": f"{_map_width_px(figure)}px"}
        return (
            answer,
            figure,
            *sizes,
            lines,
            title,
            lines_title,
            False,
            False,
            caption,
            _LINES_CAPTION + (f" Of every {every} runs one is drawn." if every > 1 else ""),
            note_,
            address,
        )


_MAP_CAPTION = (
    "Each cell: the median over its runs, all their seeds together. Hatched: fewer than half of them got there in the time "
    "for which they were followed. Empty: no run has these two values."
)
_POINTS_CAPTION = (
    "Each point is a run, in its policy's colour; the line joins the medians of one kind of policy. Hollow triangles: not "
    "reached by the time at which they stand."
)
_LINES_CAPTION = (
    "Each line is a run, in its policy's colour. Above an axis of times: not reached. Below an axis: the run does not have "
    "that setting."
)


def _map_words(frame: Any, x: str, y: str, measure: Measure) -> str:
    """What the map shows: its best cell."""
    known, said = frame[frame["value"].notna()], measure.words.capitalize()
    if known.empty:
        return f"{said}: not reached with any of these values of {x} and {y}"
    is_time = measure.key != "final_accuracy"
    best = known.loc[known["value"].idxmin() if is_time else known["value"].idxmax()]
    return f"{said}: {'shortest' if is_time else 'highest'}, {best['words']}, with {x} {_plain(best['x'])} and {y} {_plain(best['y'])}"


def _map_width_px(figure: go.Figure) -> int:
    """Wide enough for the words in its cells; on a narrow page it scrolls."""
    n_columns = len(figure.data[0].z[0]) if figure.data and figure.data[0].type == "heatmap" else 0
    return min(1_060, 200 + 84 * n_columns) if n_columns else 0


def _plain(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def _pooled(settings: Sequence[Mapping[str, Value]], keys: Sequence[str], x: str, y: str) -> list[Cell]:
    """Which other settings differ within the runs that are shown as one, and how many runs do not have x or y."""
    told = []
    others = [key for key in keys if key not in (x, y)]
    if others:
        told.append(
            note(
                f"Not held fixed: {listed(others[:8])}{' and more' if len(others) > 8 else ''}. Tick fewer policies or scenarios to fix them."
            )
        )
    n_without = sum(any(key not in own for key in (x, y) if key) for own in settings)
    if n_without:
        told.append(
            note(
                f"Left out of the first figure: {plural(n_without, 'run')} without {' or '.join(key for key in (x, y) if key)}."
            )
        )
    return told


def _left_out(reasons: Sequence[str]) -> list[Cell]:
    return [html.Ul([html.Li(reason) for reason in reasons])] if reasons else []


def _picker(control_id: str) -> dcc.Dropdown:
    return dcc.Dropdown(id=control_id, clearable=False, options=[])
