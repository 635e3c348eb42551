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
_BAR_SPACE = 0.75  # of the space between two layers, shared by the policies' bars
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


def loss_over_time(frame: pd.DataFrame, expected: pd.DataFrame, styles: Styles) -> go.Figure:
    """Mean loss against simulated seconds with its band, the closed form dashed over it.

    frame, expected: `frames.loss_frame(runs, over="time_s")`, `frames.expected_loss_frame(runs, over="time_s")`.
    """
    return _loss(frame, expected, "time_s", styles, "simulated time (s)", "%{x:.4g} s")


def loss_over_rounds(frame: pd.DataFrame, expected: pd.DataFrame, styles: Styles) -> go.Figure:
    """As `loss_over_time`, against rounds."""
    return _loss(frame, expected, "round", styles, "rounds", "%{x} rounds")


def round_times(frame: pd.DataFrame, law: pd.DataFrame, styles: Styles) -> go.Figure:
    """The share of rounds that took at most so long, on a logarithmic axis; the closed form dashed over it.

    frame, law: `frames.round_times_frame(runs)`, `frames.round_law_frame(runs)`.
    """
    figure = base_figure("round time (s), logarithmic", "share of rounds at most so long")
    under = set(law["policy"])
    for label, rows in _policies(frame):
        points = {"x": rows["round_s"].tolist(), "y": rows["share"].tolist()}
        hover = {"hovertemplate": "%{y:.1%} of rounds took at most %{x:.4g} s"}
        figure.add_scatter(**points, **hover, **_simulated_line(label, styles[label], is_under=label in under))
    for label, rows in _policies(law):
        points = {"x": rows["round_s"].tolist(), "y": rows["share"].tolist()}
        hover = {"hovertemplate": "exact expectation: %{y:.1%} of rounds take at most %{x:.4g} s"}
        figure.add_scatter(**points, **hover, **_exact_line(label, styles[label]))
    # One tick a decade and at 2 and 5: Plotly's own choice drops the decade from ticks like "2".
    return figure.update_xaxes(type="log", dtick="D2").update_yaxes(range=[0, 1.02], tickformat=".0%")


def layer_contributors(frame: pd.DataFrame, styles: Styles) -> go.Figure:
    """Mean contributors per round and layer, bars side by side, closed forms as diamonds. frame: `frames.layers_frame(runs)`."""
    figure = base_figure("layer, from the input to the output", "devices per round (mean)")
    width = _add_bars(figure, frame, "layer", "n_contributors", styles, "%{y:.4g} devices a round (mean)")
    for i, (label, rows) in enumerate(_policies(frame)):
        known = rows[rows["expected"].notna()]
        if len(known):
            centre = (i + 0.5) * width - _BAR_SPACE / 2
            figure.add_scatter(
                x=(known["layer"] + centre).tolist(), y=known["expected"].tolist(), **_exact_marks(label)
            )
    return _named_ticks(figure, frame, "layer", "layer_name").update_yaxes(rangemode="tozero")


def who_was_heard(frame: pd.DataFrame, styles: Styles) -> go.Figure:
    """Each speed class's share of the updates, bars side by side, over a line at its share of the devices.

    frame: `frames.heard_frame(runs)`, not empty.
    """
    figure = base_figure("speed class", "share of the updates that were used")
    _add_bars(figure, frame, "place", "update_share", styles, "%{y:.1%} of the updates")
    classes = frame.drop_duplicates("place").sort_values("place")
    edges = [(place - _BAR_SPACE / 2, place + _BAR_SPACE / 2, None) for place in classes["place"]]
    heights = [(share, share, None) for share in classes["device_share"]]
    line = {"mode": "lines", "line": {"width": 2, "color": "#7F7F7F"}, "connectgaps": False}
    figure.add_scatter(
        x=[x for edge in edges for x in edge],
        y=[y for height in heights for y in height],
        hovertemplate="%{y:.1%} of the devices",
        name="share of the devices",
        meta={"is_ink": True},
        **line,
    )
    _named_ticks(figure, frame, "place", "speed_class")
    return figure.update_yaxes(rangemode="tozero", tickformat=".0%")


def _add_bars(figure: go.Figure, frame: pd.DataFrame, x: str, y: str, styles: Styles, hovertemplate: str) -> float:
    """The policies' bars side by side over each x; returns how wide one is."""
    policies = _policies(frame)
    width = _BAR_SPACE / max(1, len(policies))
    for i, (label, rows) in enumerate(policies):
        style, left = styles[label], i * width - _BAR_SPACE / 2
        marker = {"color": style.colour, "pattern": {"shape": PATTERNS[style.dash]}}
        bars = {"x": rows[x].tolist(), "y": rows[y].tolist(), "marker": marker}
        # Stated and not left to Plotly, so that the diamonds stay on their bars when a policy is taken off.
        place = {"offset": left, "width": width, "hovertemplate": hovertemplate}
        figure.add_bar(**bars, **place, **identity(label, style))
    return width


def _named_ticks(figure: go.Figure, frame: pd.DataFrame, x: str, name: str) -> go.Figure:
    named = frame.drop_duplicates(x).sort_values(x)
    ticks = {"tickvals": named[x].tolist(), "ticktext": [escape(str(one)) for one in named[name]]}
    return figure.update_xaxes(tickmode="array", **ticks)


def _accuracy(frame: pd.DataFrame, x: str, styles: Styles, x_title: str) -> go.Figure:
    figure = base_figure(x_title, "test accuracy")
    _add_curves(figure, frame, x, "accuracy", styles, "hv")
    return figure.update_yaxes(tickformat=".0%").update_xaxes(rangemode="tozero")


def _loss(frame: pd.DataFrame, expected: pd.DataFrame, x: str, styles: Styles, x_title: str, at: str) -> go.Figure:
    figure = base_figure(x_title, "loss (mean over seeds)")
    under = frozenset(expected["policy"])
    _add_curves(figure, frame, x, "loss", styles, "linear", under, hovertemplate=f"loss %{{y:.4g}} after {at}")
    for label, rows in _policies(expected):
        points = {"x": rows[x].tolist(), "y": rows["loss"].tolist()}
        hover = {"hovertemplate": f"exact expectation: loss %{{y:.4g}} after {at}"}
        figure.add_scatter(**points, **hover, **_exact_line(label, styles[label]))
    drawn = pd.concat([frame["low"], frame["high"], expected["loss"]]) if len(expected) else frame["low"]
    if drawn.min() > 0 and frame["loss"].max() >= _WIDE * frame["loss"].min():
        figure.update_yaxes(type="log", dtick="D2", title={"text": "loss (mean over seeds), logarithmic"})
    return figure.update_xaxes(rangemode="tozero")


def _add_curves(
    figure: go.Figure,
    frame: pd.DataFrame,
    x: str,
    y: str,
    styles: Styles,
    shape: str,
    under: frozenset[str] = frozenset(),
    hovertemplate: str | None = None,
) -> None:
    """Lines with their bands. shape: "hv" holds a value, "linear" joins values. under: policies that have a closed form drawn over their line."""
    policies = _policies(frame)
    # All bands before all lines: a later band must not veil an earlier line.
    for label, rows in policies if len(policies) <= N_BANDS else []:
        if rows["n_seeds"].iloc[0] > 1:
            _add_band(figure, rows, x, label, styles[label], shape)
    for label, rows in policies:
        points = {"x": rows[x].tolist(), "y": rows[y].tolist(), "hovertemplate": hovertemplate}
        figure.add_scatter(**points, **_simulated_line(label, styles[label], shape, is_under=label in under))


def _simulated_line(label: str, style: Style, shape: str = "hv", *, is_under: bool) -> dict[str, Any]:
    """What was simulated. is_under: wide and pale, so that the closed form over it is seen where the two agree."""
    width, opacity = (6, 0.4) if is_under else (2, 1.0)
    line = {"shape": shape, "width": width, **line_of(style)}
    return {"mode": "lines", "line": line, "opacity": opacity, **identity(label, style)}


def _exact_line(label: str, style: Style) -> dict[str, Any]:
    """A closed form: thin and dashed, in the policy's colour."""
    line = {"width": 1.5, "color": style.colour, "dash": "dash"}
    return {"mode": "lines", "line": line, **identity(label, style)}


def _exact_marks(label: str) -> dict[str, Any]:
    """Closed forms of single numbers: diamonds in ink, edged so that they stand out from any bar."""
    marker = {"symbol": "diamond", "size": 9, "color": "#7F7F7F", "line": {"width": 1, "color": "#ffffff"}}
    mark = {"mode": "markers", "marker": marker, "hovertemplate": "exact expectation: %{y:.4g} devices a round"}
    return {**mark, "name": escape(label), "meta": {"policy": label, "is_ink": True}}


def _add_band(figure: go.Figure, rows: pd.DataFrame, x: str, label: str, style: Style, shape: str) -> None:
    edge: dict[str, Any] = {"x": rows[x].tolist(), "mode": "lines", "showlegend": False, "hoverinfo": "skip"}
    edge |= {"line": {"shape": shape, "width": 0}, "meta": {"policy": label}}
    figure.add_scatter(**edge, y=rows["low"].tolist())
    figure.add_scatter(**edge, y=rows["high"].tolist(), fill="tonexty", fillcolor=style.faded(0.2))


def _policies(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(label), rows) for label, rows in frame.groupby("policy", sort=False)]


def line_of(style: Style) -> dict[str, str]:
    """Colour and dash."""
    return {"color": style.colour, "dash": DASHES[style.dash]}


def identity(label: str, style: Style) -> dict[str, Any]:
    """Whose trace it is: `name` for readers (escaped), `meta` for scripts (as it is)."""
    return {"name": escape(label), "meta": {"policy": label, "is_ink": style.hue == INK}}


def base_figure(x_title: str, y_title: str) -> go.Figure:
    """Axes and margins that every figure shares."""
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
