"""Pieces of a page: swatches, tables, figures with their titles. Strings become text here, never markup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import plotly.graph_objects as go
from dash import dcc, html

from fedsim.dashboard.palette import INK, STROKES, Style

Cell = Any
"""A Dash component or a text."""

_HIDDEN: dict[str, Any] = {"aria-hidden": "true"}


def swatch(style: Style) -> html.Span:
    """A short line in the policy's colour and dash; decoration, so hidden from screen readers."""
    line = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="28" height="10"><line x1="1" y1="5" x2="27" y2="5" '
        f'stroke="#000" stroke-width="4" stroke-dasharray="{STROKES[style.dash]}"/></svg>'
    )
    mask = f'url("data:image/svg+xml,{quote(line)}")'
    colour = "var(--ink)" if style.hue == INK else style.hue
    look = {"backgroundColor": colour, "maskImage": mask, "WebkitMaskImage": mask}
    return html.Span(className="swatch", style=look, **_HIDDEN)


def policy(name: str, style: Style | None) -> html.Span:
    """A policy's name behind its swatch."""
    return html.Span([*([swatch(style)] if style else []), html.Span(name)], className="policy")


def two_lines(words: str) -> list[Cell]:
    """ "212 s (204-231)" with what stands in parentheses on a small line of its own."""
    number, bracket, rest = words.partition(" (")
    return [number, html.Small(f"({rest}")] if bracket else [words]


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> html.Div:
    """A table in its own scrolling box; the first cell of a row names it."""
    head = html.Thead(html.Tr([html.Th(name, scope="col") for name in header]))
    body = html.Tbody([html.Tr([html.Th(row[0], scope="row"), *map(html.Td, row[1:])]) for row in rows])
    box: dict[str, Any] = {"tabIndex": "0", "role": "region", "aria-label": caption}
    return html.Div([note(caption), html.Div(html.Table([head, body]), className="scroll", **box)])


def note(words: str) -> html.P:
    """A paragraph that explains."""
    return html.P(words, className="note")


def figure_box(graph_id: str, *, caption_id: str, data_id: str | None = None) -> html.Figure:
    """The place of a figure: its title, itself, its caption and, where there is a `data_id`, a button for its data."""
    data = []
    if data_id is not None:
        data = [html.Button("data (CSV)", id=data_id, className="link", n_clicks=0), dcc.Download(id=f"{data_id}-file")]
    titled: dict[str, Any] = {"aria-labelledby": f"{graph_id}-title"}
    graph = dcc.Graph(id=graph_id, figure=blank(), config={"displayModeBar": False}, responsive=True, className="plot")
    return html.Figure(
        [
            html.H3(id=f"{graph_id}-title"),
            html.Div(graph, id=f"{graph_id}-box", className="plotbox", role="img", **titled),
            html.Figcaption([html.Span(id=caption_id), " ", *data]),
        ],
        id=f"{graph_id}-figure",
    )


def blank() -> go.Figure:
    """A figure without anything, not even axes, until there is something to show."""
    hidden = {"visible": False}
    clear = "rgba(0,0,0,0)"
    return go.Figure(
        layout={"template": {}, "xaxis": hidden, "yaxis": hidden, "paper_bgcolor": clear, "plot_bgcolor": clear}
    )


def field(label: str, control: Any, control_id: str, hint: str = "", of_class: str = "") -> html.Div:
    """A control under its visible label. of_class: "number" for a narrow one."""
    told = [html.Small(hint)] if hint else []
    return html.Div([html.Label(label, htmlFor=control_id), control, *told], className=f"field {of_class}".strip())


def group(legend: str, *controls: Cell) -> html.Fieldset:
    """Controls that belong together, under a visible heading."""
    return html.Fieldset([html.Legend(legend), *controls])
