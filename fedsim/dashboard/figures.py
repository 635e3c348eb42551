"""Figures: a tidy frame of `frames.py` in, a Plotly figure out; no state, no files.

Names are text: Plotly reads some HTML in names, labels and ticks, so they are escaped here. Backgrounds are transparent
and greys middling, so that a figure stands on a light or a dark page; the report adjusts the text to the page's theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from fedsim.dashboard.palette import DASHES, INK, PATTERNS, Style, Styles
from fedsim.statistics.words import format_share

N_BANDS = 8
"""More bands than this hide one another: then only the medians are drawn."""

_GREY = "#888888"
_WIDE = 8  # how many times longer the longest run must be for a logarithmic time axis


def accuracy_over_time(frame: pd.DataFrame, styles: Styles, targets: Sequence[float] = ()) -> go.Figure:
    """Median accuracy against simulated seconds with its band; targets dotted, labelled at the right edge.

    frame: `frames.accuracy_frame(runs, over="time_s")`.
    """
    ends_s = frame.groupby("policy")["time_s"].max()
    is_wide = ends_s.min() > 0 and ends_s.max() >= _WIDE * ends_s.min()
    figure = _accuracy(frame, "time_s", styles, "simulated time (s), logarithmic" if is_wide else "simulated time (s)")
    if is_wide:  # on a straight axis the soonest policies would share a few pixels; time 0 falls off a logarithmic one
        figure.update_xaxes(type="log", dtick="D2")
    for target in targets:
        figure.add_hline(y=target, line={"dash": "dot", "width": 1, "color": _GREY})
        figure.add_annotation(
            {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 4, "y": target, "showarrow": False},
            text=format_share(target),
        )
    return figure


def accuracy_over_bytes(frame: pd.DataFrame, styles: Styles) -> go.Figure:
    """Median accuracy against the bytes that all devices together have uploaded, with its band.

    frame: `frames.accuracy_frame(runs, over="uploaded_bytes")`.
    """
    figure = _accuracy(frame, "uploaded_bytes", styles, "uploaded by all devices")
    return figure.update_xaxes(tickformat="~s", ticksuffix="B")


def round_times(frame: pd.DataFrame, styles: Styles) -> go.Figure:
    """The share of rounds that took at most so long, on a logarithmic axis. frame: `frames.round_times_frame(runs)`."""
    figure = _figure("round time (s), logarithmic", "share of rounds at most so long")
    for label, rows in _policies(frame):
        line = {"shape": "hv", "width": 2, **_line(styles[label])}
        points = {"x": rows["round_s"].tolist(), "y": rows["share"].tolist()}
        figure.add_scatter(**points, mode="lines", line=line, **_identity(label, styles[label]))
    # One tick a decade and at 2 and 5: Plotly's own choice drops the decade from ticks like "2".
    return figure.update_xaxes(type="log", dtick="D2").update_yaxes(range=[0, 1.02], tickformat=".0%")


def layer_contributors(frame: pd.DataFrame, styles: Styles) -> go.Figure:
    """Mean contributors per round and layer, bars side by side. frame: `frames.layers_frame(runs)`."""
    figure = _figure("layer, from the input to the output", "devices per round (mean)")
    for label, rows in _policies(frame):
        style = styles[label]
        marker = {"color": style.colour, "pattern": {"shape": PATTERNS[style.dash]}}
        bars = {"x": rows["layer"].tolist(), "y": rows["n_contributors"].tolist(), "marker": marker}
        figure.add_bar(**bars, **_identity(label, style))
    names = frame.drop_duplicates("layer").sort_values("layer")
    ticks = {"tickvals": names["layer"].tolist(), "ticktext": [escape(str(name)) for name in names["layer_name"]]}
    return figure.update_xaxes(tickmode="array", **ticks).update_layout(barmode="group", bargap=0.25)


def _accuracy(frame: pd.DataFrame, x: str, styles: Styles, x_title: str) -> go.Figure:
    figure = _figure(x_title, "test accuracy")
    policies = _policies(frame)
    # All bands before all medians: a later band must not veil an earlier line.
    for label, rows in policies if len(policies) <= N_BANDS else []:
        if rows["n_seeds"].iloc[0] > 1:
            _add_band(figure, rows, x, label, styles[label])
    for label, rows in policies:
        points = {"x": rows[x].tolist(), "y": rows["accuracy"].tolist()}
        line = {"shape": "hv", "width": 2, **_line(styles[label])}
        figure.add_scatter(**points, mode="lines", line=line, **_identity(label, styles[label]))
    return figure.update_yaxes(tickformat=".0%").update_xaxes(rangemode="tozero")


def _add_band(figure: go.Figure, rows: pd.DataFrame, x: str, label: str, style: Style) -> None:
    edge: dict[str, Any] = {"x": rows[x].tolist(), "mode": "lines", "showlegend": False, "hoverinfo": "skip"}
    edge |= {"line": {"shape": "hv", "width": 0}, "meta": {"policy": label}}
    figure.add_scatter(**edge, y=rows["low"].tolist())
    figure.add_scatter(**edge, y=rows["high"].tolist(), fill="tonexty", fillcolor=style.faded(0.2))


def _policies(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(label), rows) for label, rows in frame.groupby("policy", sort=False)]


def _line(style: Style) -> dict[str, str]:
    return {"color": style.colour, "dash": DASHES[style.dash]}


def _identity(label: str, style: Style) -> dict[str, Any]:
    """Whose trace it is: `name` for readers (escaped), `meta` for scripts (as it is)."""
    return {"name": escape(label), "meta": {"policy": label, "is_ink": style.hue == INK}}


def _figure(x_title: str, y_title: str) -> go.Figure:
    axis: dict[str, Any] = {"gridcolor": "rgba(136,136,136,0.25)", "linecolor": _GREY, "zeroline": False}
    axis |= {"automargin": True, "showline": True}
    return go.Figure(
        layout={
            "template": go.layout.Template(),  # empty: the default one weighs 7 kB a figure and paints backgrounds
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, sans-serif", "size": 14, "color": _GREY},
            "margin": {"l": 56, "r": 52, "t": 16, "b": 52},
            "height": 420,
            "xaxis": axis | {"title": {"text": x_title}},
            "yaxis": axis | {"title": {"text": y_title}},
            "hovermode": "closest",
            "showlegend": True,
        }
    )
