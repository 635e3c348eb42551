"""The page of one round as a picture: which device did what, when. Any round of any finished run that recorded tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dash import Dash, Input, Output, State, dcc, html

from fedsim.dashboard.live.desk import Query, policy_names, whole_numbers, written
from fedsim.dashboard.live.parts import Cell, blank, field, figure_box
from fedsim.dashboard.timeline import N_SINGLE, draw_round
from fedsim.facts import BadInput
from fedsim.statistics.catalogue import Catalogue, Entry

PATH, NAME = "/timeline", "Timeline"

_NO_RUN = (
    "No finished run here has recorded what its devices did. Set record_tasks: true in the scenario and run it again "
    "(--again)."
)


def layout(catalogue: Catalogue, query: Query) -> list[Cell]:
    """The page, as its address has it."""
    options = _options(catalogue.look())
    known = {option["value"] for option in options}
    asked = next((one for one in query.get("run", ()) if one in known), options[0]["value"] if options else None)
    number = next(iter(whole_numbers(query.get("round", ()))), 0)
    first, last = (next(iter(whole_numbers(query.get(key, ()))), None) for key in ("first", "last"))
    return [
        html.P(id="timeline-answer", className="answer"),
        html.Div(
            [
                field(
                    "Run",
                    dcc.Dropdown(id="timeline-run", options=options, value=asked, clearable=False),
                    "timeline-run",
                ),
                _number("timeline-round", "Round", number, "from 0; arrow keys go on"),
                _number("timeline-first", "First device in order", first, "from 1; empty: all devices", least=1),
                _number("timeline-last", "Last device in order", last, "empty: all devices", least=1),
            ],
            className="row",
        ),
        figure_box("timeline-round-picture", caption_id="timeline-caption"),
        dcc.Store(id="timeline-query"),
    ]


def register(app: Dash, catalogue: Catalogue) -> None:
    """What the controls do."""

    @app.callback(Output("timeline-run", "options"), Input("listing", "data"), prevent_initial_call=True)
    def follow(_: str) -> list[dict[str, str]]:
        return _options(catalogue.look())

    @app.callback(
        Output("timeline-answer", "children"),
        Output("timeline-round-picture", "figure"),
        Output("timeline-round-picture-box", "style"),
        Output("timeline-round-picture-figure", "hidden"),
        Output("timeline-caption", "children"),
        Output("timeline-round", "max"),
        Output("timeline-query", "data"),
        Input("timeline-run", "value"),
        *[Input(f"timeline-{name}", "value") for name in ("round", "first", "last")],
        State("timeline-round", "max"),
    )
    def show(
        run_id: str | None, number: int | None, first: int | None, last: int | None, most: int | None
    ) -> tuple[Any, ...]:
        if run_id is None:
            return _NO_RUN, blank(), {}, True, "", most, ""
        try:
            run = catalogue.whole(run_id)
        except BadInput as error:  # deleted, or broken since it was listed
            return str(error), blank(), {}, True, "", most, ""
        n_rounds = len(run.rounds)
        if number is None or not 0 <= number < n_rounds:
            wrong = (
                f"This run closed {n_rounds} rounds: give one from 0 to {n_rounds - 1}."
                if n_rounds
                else "No round was closed."
            )
            return wrong, blank(), {}, True, "", max(0, n_rounds - 1), ""
        try:
            drawn = draw_round(run, int(number), devices=_range(first, last))
        except (OSError, ValueError) as error:  # rows that it does not have; a table that cannot be read
            why = str(error).partition("\n")[0]
            return f"This cannot be shown: {why}.", blank(), {}, True, "", n_rounds - 1, ""
        height = {"height": f"{drawn.figure.layout.height or 420}px"}
        address = written({"run": run_id, "round": str(number), "first": _text(first), "last": _text(last)})
        caption = drawn.caption + _zoom(drawn.frame, first, last)
        return drawn.title, drawn.figure, height, drawn.frame.empty, caption, n_rounds - 1, address


def _range(first: int | None, last: int | None) -> tuple[int, int] | None:
    """Places of single devices: from 1 and with the last one on the page, from 0 and without it for `draw_round`."""
    if first is None and last is None:
        return None
    start = max(1, int(first or 1)) - 1
    return start, max(start + 1, int(start + N_SINGLE if last is None else last))


def _zoom(frame: Any, first: int | None, last: int | None) -> str:
    """How to see single devices, where many share a row."""
    n = 0 if frame.empty else int(frame["row"].max()) + 1
    return (
        f" For single devices give the first and the last to show, up to {N_SINGLE} at a time."
        if n > N_SINGLE and _range(first, last) is None
        else ""
    )


def _options(entries: Sequence[Entry]) -> list[dict[str, str]]:
    """Finished runs that recorded their tasks."""
    names = policy_names(entries)
    own = [entry for entry in entries if entry.state == "finished" and entry.has_tasks]
    return [{"label": f"{names[entry.policy_id]}, seed {entry.seed}", "value": entry.id} for entry in own]


def _number(control_id: str, label: str, value: int | None, hint: str, least: int = 0) -> html.Div:
    control = dcc.Input(id=control_id, type="number", min=least, step=1, value=value, debounce=0.2)
    return field(label, control, control_id, hint, of_class="number")


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)
