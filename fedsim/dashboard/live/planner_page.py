"""The planner: what a round would take at other numbers, from closed forms, while somebody moves them.

The numbers in the boxes are what is asked; sliders write into them, in the browser. What is asked reaches the planner a
moment after the last move. It answers with what it has by then and is asked again until it has all: nothing that takes
long holds up what is quick, and what has been overtaken is dropped. A number that cannot be used is told beside its
control, and the last good picture stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dash import ALL, MATCH, Dash, Input, Output, State, dcc, html, no_update
from dash.exceptions import PreventUpdate

from fedsim.dashboard.live.parts import Cell, blank, field, figure_box, note
from fedsim.dashboard.live.planner_parts import (
    BOX,
    CHOICE,
    PROBLEM,
    SLIDER,
    TICKED,
    Planner,
    Screen,
    answer,
    controls,
    rows_table,
    setting_figures,
    setting_picker,
    setting_words,
    times_caption,
    times_figure,
    value_of,
)
from fedsim.dashboard.palette import Styles, styles
from fedsim.dashboard.plan_page import MEASURES
from fedsim.facts import BadInput

WITHIN_S = 0.25
"""For how long the planner computes before it shows what it has."""

_AGAIN_MS, _SETTLED_MS = 30, 100
_ALOUD: dict[str, Any] = {"aria-live": "polite"}
_FIGURES = ("times", *MEASURES)
_WORDS = (
    "Move a number: what a round takes and brings follows from closed forms, on the fleet of the first seed. Nothing is "
    "simulated, and accuracy is not known here."
)
_STATED = (
    "A ring marks the number above, a star the knee: beyond it a round's seconds grow faster than the work that counts."
)

# A slider writes into its box, a number in the box moves the slider; never both, so that nothing is rounded twice.
_PAIRED = """(text, position, id) => {
  const keep = dash_clientside.no_update, moved = dash_clientside.callback_context.triggered_id;
  if (!moved) return [keep, keep];
  if (moved.type === "planner-slider") {
    const number = id.walk === "log" ? 10 ** position : position;
    return [id.walk === "whole" ? String(Math.round(number)) : String(Number(number.toPrecision(3))), keep];
  }
  const number = Number(text);
  if (text.trim() === "" || !Number.isFinite(number) || (id.walk === "log" && number <= 0)) return [keep, keep];
  return [keep, id.walk === "log" ? Math.log10(number) : number];
}"""

# One question for all controls, once they have been still for a moment; an older one that still waits is dropped.
_ASKED = """(texts, choices, ticked, setting, textIds, choiceIds, start) => {
  const named = (values, ids) => Object.fromEntries(values.map((value, i) => [ids[i].key, value]));
  const asked = {start, setting, texts: named(texts, textIds), choices: named(choices, choiceIds), shown: ticked.flat()};
  const mine = (window.plannerAsked = (window.plannerAsked || 0) + 1);
  return new Promise((resolve) => setTimeout(
    () => resolve(mine === window.plannerAsked ? asked : dash_clientside.no_update), SETTLED));
}"""

# The largest K is the number of devices.
_LARGEST = """(texts, texts_ids, slider_ids, mosts) => {
  const n = Number(texts[texts_ids.findIndex((id) => id.key === "fleet/n_devices")]);
  return slider_ids.map((id, i) => id.key.endsWith("/k") && Number.isInteger(n) && n >= 1 ? n : mosts[i]);
}"""


def layout(planner: Planner) -> list[Cell]:
    """The page at its first start, as stated."""
    starts = list(planner.starts())
    start = dcc.Dropdown(starts, starts[0], id="planner-start", clearable=False)
    return [
        html.P(id="planner-answer", className="answer", **_ALOUD),
        note(_WORDS),
        html.Div(field("Start from the scenario", start, "planner-start"), hidden=len(starts) == 1, className="starts"),
        html.Div(id="planner-controls"),
        html.P(id="planner-problem", className="problem", role="alert"),
        html.Div(id="planner-table"),
        figure_box("planner-times", caption_id="planner-times-caption"),
        html.Div(id="planner-settings"),
        html.P(id="planner-bends", className="note", **_ALOUD),
        *(figure_box(f"planner-{name}", caption_id=f"planner-{name}-caption") for name in MEASURES),
        html.P(html.Button("Write the scenario file", id="planner-write", n_clicks=0)),
        html.Details([html.Summary("The scenario file as text"), html.Pre(id="planner-text", tabIndex=0)]),
        dcc.Download(id="planner-file"),
        dcc.Store(id="planner-asked"),
        dcc.Store(id="planner-drawn"),
        dcc.Interval(id="planner-again", interval=_AGAIN_MS, n_intervals=0, max_intervals=0),
    ]


def register(app: Dash, planner: Planner) -> None:
    """What the controls do."""
    _register_controls(app, planner)

    @app.callback(
        output={
            "answer": Output("planner-answer", "children"),
            "table": Output("planner-table", "children"),
            "figures": {name: Output(f"planner-{name}", "figure") for name in _FIGURES},
            "hidden": {name: Output(f"planner-{name}-figure", "hidden") for name in _FIGURES},
            "titles": {name: Output(f"planner-{name}-title", "children") for name in _FIGURES},
            "captions": {name: Output(f"planner-{name}-caption", "children") for name in _FIGURES},
            "bends": Output("planner-bends", "children"),
            "text": Output("planner-text", "children"),
            "problem": Output("planner-problem", "children"),
            "beside": Output({"type": PROBLEM, "key": ALL}, "children"),
            "drawn": Output("planner-drawn", "data"),
            "n_allowed": Output("planner-again", "max_intervals"),
        },
        inputs={
            "asked": Input("planner-asked", "data"),
            "n_asked": Input("planner-again", "n_intervals"),
            "places": State({"type": PROBLEM, "key": ALL}, "id"),
            "drawn": State("planner-drawn", "data"),
        },
        prevent_initial_call=True,
    )
    def show(
        asked: Mapping[str, Any] | None, n_asked: int, places: list[dict[str, str]], drawn: dict[str, Any] | None
    ) -> dict[str, Any]:
        if asked is None:
            raise PreventUpdate
        try:
            values, shown = _meant(planner, asked), sorted(asked["shown"])
            if not shown:
                raise BadInput("No policy is ticked. Tick one.")
            screen = planner.screen(asked["start"], values, shown, asked["setting"] or "", WITHIN_S)
            written = planner.scenario_text(asked["start"], values, shown)
        except BadInput as problem:
            return _KEPT | _placed(problem, [place["key"] for place in places])
        # Asked again once for every answer that is not whole: then no answer can be overtaken by the next question.
        n_allowed = no_update if screen.is_whole else n_asked + 1
        told = {"text": written, "problem": "", "beside": [""] * len(places), "n_allowed": n_allowed}
        return _picture(screen, styles(planner.policies(asked["start"])), asked, drawn or {}) | told

    @app.callback(
        Output("planner-file", "data"),
        Input("planner-write", "n_clicks"),
        State("planner-text", "children"),
        prevent_initial_call=True,
    )
    def write(_: int, text: str | None) -> Any:
        name = next(
            (line.removeprefix("name: ") for line in (text or "").splitlines() if line.startswith("name: ")), ""
        )
        return {"content": text, "filename": f"{name}.yaml", "type": "text/yaml"} if text else no_update


def _register_controls(app: Dash, planner: Planner) -> None:
    @app.callback(
        Output("planner-controls", "children"),
        Output("planner-settings", "children"),
        Input("planner-start", "value"),
    )
    def offer(start: str) -> tuple[list[Cell], list[Cell]]:
        policies = planner.policies(start)
        # What is on the screen says which start it belongs to, so that nothing is asked of another one meanwhile.
        own = [*controls(planner.settings(start), policies, styles(policies)), dcc.Store(id="planner-of", data=start)]
        return own, setting_picker(planner.turnable(start))

    in_browser: Any = app.clientside_callback
    here = {"key": MATCH, "walk": MATCH}
    in_browser(
        _PAIRED,
        Output({"type": BOX, **here}, "value"),
        Output({"type": SLIDER, **here}, "value"),
        Input({"type": BOX, **here}, "value"),
        Input({"type": SLIDER, **here}, "value"),
        State({"type": BOX, **here}, "id"),
        prevent_initial_call=True,
    )
    every = {"key": ALL, "walk": ALL}
    in_browser(
        _ASKED.replace("SETTLED", str(_SETTLED_MS)),
        Output("planner-asked", "data"),
        Input({"type": BOX, **every}, "value"),
        Input({"type": CHOICE, "key": ALL}, "value"),
        Input({"type": TICKED, "policy": ALL}, "value"),
        Input("planner-setting", "value"),
        State({"type": BOX, **every}, "id"),
        State({"type": CHOICE, "key": ALL}, "id"),
        State("planner-of", "data"),
        prevent_initial_call=True,
    )
    in_browser(
        _LARGEST,
        Output({"type": SLIDER, **every}, "max"),
        Input({"type": BOX, **every}, "value"),
        State({"type": BOX, **every}, "id"),
        State({"type": SLIDER, **every}, "id"),
        State({"type": SLIDER, **every}, "max"),
        prevent_initial_call=True,
    )


def _meant(planner: Planner, asked: Mapping[str, Any]) -> dict[str, float | str]:
    """What is written in the boxes and chosen, by key. Raises BadInput at a box that holds no number."""
    own = {one.key: one for one in planner.settings(asked["start"])}
    numbers = {key: value_of(own[key], text) for key, text in asked["texts"].items() if key in own}
    return {**numbers, **{key: str(name) for key, name in asked["choices"].items() if key in own}}


def _placed(problem: BadInput, keys: list[str]) -> dict[str, Any]:
    """Its line beside the control that it is about, or, if it is about none of them, for the whole page."""
    at = "/".join(map(str, problem.at))
    beside = [str(problem) if key == at else "" for key in keys]
    return {"beside": beside, "problem": "" if any(beside) else str(problem)}


_KEPT: dict[str, Any] = {
    **dict.fromkeys(("answer", "table", "bends", "text", "drawn", "n_allowed"), no_update),
    **dict.fromkeys(("figures", "hidden", "titles", "captions"), dict.fromkeys(_FIGURES, no_update)),
}
"""The last good picture."""


def _picture(screen: Screen, looks: Styles, asked: Mapping[str, Any], drawn: Mapping[str, Any]) -> dict[str, Any]:
    """All that is seen. drawn: what the figures in the browser show; each figure is sent once."""
    about = [asked[part] for part in ("start", "setting", "shown")]
    is_known = len(screen.curves) == screen.n_curves
    laws = [asked, [row.label for row in screen.rows if row.times is not None]]
    # Until all curves are known the last ones stand, unless they are about something else.
    curves = [about, asked if is_known else [one.policy for one in screen.curves]]
    stay = {"times": drawn.get("laws") == laws}
    stay |= dict.fromkeys(MEASURES, drawn.get("curves") == curves or (not is_known and drawn.get("about") == about))
    figures = {"times": times_figure(screen.rows, looks), **setting_figures(screen.curves, looks)}
    captions = {"times": times_caption(screen.rows)} | dict.fromkeys(MEASURES, _STATED)
    return {
        "answer": answer(screen.rows),
        "table": rows_table(screen.rows, looks),
        "figures": {name: no_update if stay[name] else figures[name] or blank() for name in _FIGURES},
        "hidden": {name: no_update if stay[name] else figures[name] is None for name in _FIGURES},
        "titles": {"times": "How long a round lasts", **{name: title for name, (_, title) in MEASURES.items()}},
        "captions": captions,
        "bends": setting_words(screen.curves, screen.n_curves) if asked["setting"] else "",
        "drawn": {
            "laws": laws,
            "curves": curves if not stay[next(iter(MEASURES))] else drawn.get("curves"),
            "about": about,
        },
    }
