"""A figure as a paper prints it: one or two columns wide, 8 pt, black text, no background, fit for black and white.

Takes any Plotly figure and returns a new one; sizes are CSS pixels, 96 to the inch. Colours stay; on top of them lines get
dashes of their own, markers symbols, and bars hatches where grey alone would not tell them apart. A line that is drawn
pale under another of the same policy stays as it is: the dash goes to the line over it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import ceil
from textwrap import wrap
from typing import Any, Literal

import plotly.graph_objects as go

from fedsim.dashboard.monochrome import is_pale, set_dashes, set_hatches, set_symbols

Width = Literal["single", "double"]

PX_PER_INCH = 96
WIDTH_IN: Mapping[Width, float] = {"single": 3.4, "double": 7.0}
"""Inches of one column and of both."""

# These three have the same widths, so that an SVG set in one of them keeps its layout where only another is installed.
FONTS = "Helvetica, Arial, Liberation Sans, sans-serif"
LEGEND_BELOW: Mapping[str, Any] = {
    "orientation": "h",
    "xref": "container",
    "x": 0.5,
    "xanchor": "center",
    "title": None,
    "yref": "container",
    "y": 0,
    "yanchor": "bottom",
    "bgcolor": "rgba(0,0,0,0)",
    "borderwidth": 0,
    "traceorder": "normal",  # bands would turn it round
}
_LETTER_EM = {
    **dict.fromkeys("ijl'|", 0.22),
    **dict.fromkeys(" .,:;!/\\tfrI()[]-", 0.3),
    **dict.fromkeys("mwMW%@", 0.85),
    **dict.fromkeys("ABCDEFGHJKLNOPQRSTUVXYZ&", 0.68),
}
_FONT_PX = 8 / 72 * PX_PER_INCH
_THIN = 0.6  # of the widths of lines and markers on the screen
_HEIGHT_IN: Mapping[Width, float] = {"single": 2.1, "double": 2.8}
_SCREEN_HEIGHT_PX = 420  # of a figure that is as high as most
_LEGEND_ROW_PX = 19
_LEGEND_ENTRY_PX = 43  # beside the name: the line, and the space around both
_LEFT_PX = 48  # of the plot, where the ticks are numbers
_CONTROLS = ("updatemenus", "sliders")


def paper(figure: go.Figure, width: Width = "single") -> go.Figure:
    """A new figure for print, 3.4 or 7 inches wide; `figure` is left as it is. A long legend stands below and adds to the
    height; hover texts and controls are gone.
    """
    spec = figure.to_plotly_json()
    traces, layout = spec["data"], spec["layout"]
    for trace in traces:
        _thin(trace)
    inked(traces, "#000000")
    set_dashes(traces)
    set_hatches(traces)
    set_symbols(traces)
    one_entry_each(traces)
    _lay_out(layout, traces, width)
    return go.Figure(spec)


def one_entry_each(traces: Sequence[dict[str, Any]]) -> list[str]:
    """Let each name stand in the legend once, beside its first opaque trace; the names, in order."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for trace in traces:
        if trace.get("name") and trace.get("showlegend") is not False:
            by_name.setdefault(trace["name"], []).append(trace)
    for own in by_name.values():
        shown = next((trace for trace in own if not is_pale(trace)), own[0])
        for trace in own:
            trace["showlegend"] = trace is shown
    return list(by_name)


def inked(traces: Sequence[dict[str, Any]], ink: str) -> None:
    """Draw in `ink` what is black on a light page and white on a dark one."""
    for trace in traces:
        meta = trace.get("meta")
        if not (isinstance(meta, dict) and meta.get("is_ink")):
            continue
        for part in ("line", "marker"):
            if isinstance(trace.get(part), dict):
                trace[part]["color"] = ink


def without_controls(layout: dict[str, Any]) -> None:
    """A picture has no buttons."""
    for name in _CONTROLS:
        layout.pop(name, None)


def _thin(trace: dict[str, Any]) -> None:
    """Screen widths to those of print, in line, marker, and the marker's edge."""
    if trace.get("type", "scatter") in ("scatter", "scattergl"):
        line = trace.setdefault("line", {})
        line["width"] = _THIN * line.get("width", 2)
    marker = trace.get("marker")
    if isinstance(marker, dict) and isinstance(marker.get("size"), int | float):
        marker["size"] *= _THIN
    edge = marker.get("line") if isinstance(marker, dict) else None
    if isinstance(edge, dict) and isinstance(edge.get("width"), int | float):
        edge["width"] *= _THIN


def _lay_out(layout: dict[str, Any], traces: Sequence[dict[str, Any]], width: Width) -> None:
    """Size, type, axes, margins and the legend's place."""
    without_controls(layout)
    _set_type(layout)
    for trace in traces:
        _set_type(trace, in_black=False)
    for shape in layout.get("shapes", ()):
        shape["line"] = shape.get("line", {}) | {"width": _THIN * shape.get("line", {}).get("width", 2)}
    names = [trace["name"] for trace in traces if trace.get("showlegend") and trace.get("name")]
    beside = _beside_the_axis(layout)
    has_legend = layout.get("showlegend") is not False and len(names) > 1 and not set(names) <= set(beside)
    width_px = WIDTH_IN[width] * PX_PER_INCH
    scale = layout.get("height", _SCREEN_HEIGHT_PX) / _SCREEN_HEIGHT_PX
    plot_px = _HEIGHT_IN[width] * PX_PER_INCH * scale
    left_px = max([20 + text_px(word) for word in beside], default=_LEFT_PX)
    plot_width_px = width_px - left_px - right_of_plot_px(layout)
    legend_px = _LEGEND_ROW_PX * _n_rows(names, plot_width_px) if has_legend else 0
    # In steps of 8 px, 6 points, 25 pixels of 300 to the inch: then a sheet and a PNG have the size of the figure exactly.
    height_px = 8 * ceil((plot_px + legend_px) / 8)
    layout |= {"width": width_px, "height": height_px, "autosize": False}
    layout |= {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "hovermode": False}
    layout["font"] = {"family": FONTS, "size": _FONT_PX, "color": "#000000"}
    layout["margin"] = {"l": 4, "r": max(6, right_of_plot_px(layout)), "t": 6, "b": 4, "pad": 0}
    layout["showlegend"] = has_legend
    layout["legend"] = layout.get("legend", {}) | LEGEND_BELOW
    for name in {"xaxis", "yaxis", *(key for key in layout if re.fullmatch(r"[xy]axis\d*", key))}:
        axis = layout.setdefault(name, {})
        _set_axis(axis, room_px=plot_px - 40 if name.startswith("y") else width_px - 50)
    if isinstance(layout.get("title"), dict) and layout["title"].get("text"):
        text = _folded(layout["title"]["text"], width_px)
        layout["title"] |= {"text": text, "x": 0, "xref": "paper", "yref": "container", "automargin": True}


def _set_type(part: Any, *, in_black: bool = True) -> None:
    """Every font inside `part` at 8 pt, or smaller where it is so on the screen; and black."""
    if isinstance(part, list | tuple):
        for one in part:
            _set_type(one, in_black=in_black)
    if not isinstance(part, dict):
        return
    for key, value in part.items():
        if key == "template":
            continue
        if key.endswith("font") and isinstance(value, dict):
            value["size"] = min(value.get("size", _FONT_PX), _FONT_PX)
            if in_black:
                value["color"] = "#000000"
        else:
            _set_type(value, in_black=in_black)


def _set_axis(axis: dict[str, Any], room_px: float) -> None:
    """Thin black lines, ticks outside, labels as near as they can be. room_px: for the title, in its direction."""
    axis |= {"automargin": True, "color": "#000000", "linecolor": "#000000", "linewidth": 0.75}
    axis |= {"ticks": "outside", "ticklen": 3, "tickwidth": 0.75, "tickcolor": "#000000"}
    axis |= {"gridcolor": "#dddddd", "gridwidth": 0.5, "ticklabelstandoff": 0}
    title = axis.get("title")
    if isinstance(title, dict) and title.get("text"):
        font = title.get("font", {}) | {"size": _FONT_PX, "color": "#000000"}  # left alone it is larger than the rest
        title |= {"text": _folded(title["text"], room_px), "standoff": 4, "font": font}


def _folded(text: str, room_px: float) -> str:
    """Text on as many lines as it needs, each about as long as the others; what holds markup is left alone."""
    n_lines = ceil(text_px(text) / room_px)
    if "<" in text or n_lines < 2:
        return text
    return "<br>".join(wrap(text, ceil(1.15 * len(text) / n_lines), break_long_words=False))


def _beside_the_axis(layout: dict[str, Any]) -> list[str]:
    """What is written at the ticks of the vertical axis, where they are words."""
    words = layout.get("yaxis", {}).get("ticktext")
    return [str(word) for word in words] if words is not None else []


def _n_rows(names: Sequence[str], width_px: float) -> int:
    """Rows of the legend: Plotly gives each entry the width of the longest, and all of them that of the plot."""
    entry_px = _LEGEND_ENTRY_PX + max(map(text_px, names))
    return ceil(len(names) / max(1, int(width_px / entry_px)))


def right_of_plot_px(layout: dict[str, Any], font_px: float = _FONT_PX) -> float:
    """Room for what is written at the right edge, such as the names of targets: Plotly leaves none for annotations."""
    beyond = [
        one
        for one in layout.get("annotations", ())
        if one.get("xref") == "paper" and one.get("x", 0) >= 1 and one.get("xanchor") == "left"
    ]
    return max((text_px(one.get("text", ""), font_px) + one.get("xshift", 0) + 4 for one in beyond), default=0)


def text_px(text: str, font_px: float = _FONT_PX) -> float:
    """About how long a line of text is, from the widths of Helvetica's letters."""
    return font_px * sum(_LETTER_EM.get(letter, 0.56) for letter in text)
