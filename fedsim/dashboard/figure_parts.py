"""What all figures share: axes, who a trace belongs to, how simulated values and closed forms look, bars side by side.

Names are text: Plotly reads some HTML in names, labels, ticks and hover texts, so they are escaped here.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from fedsim.dashboard.palette import DASHES, INK, PATTERNS, Style, Styles, styles

GREY = "#888888"
EDGE_GREY = "#7F7F7F"
BAR_SPACE = 0.75  # of the space between two places of an axis, shared by the policies' bars


def base_figure(x_title: str, y_title: str) -> go.Figure:
    """Axes and margins that every figure shares."""
    axis: dict[str, Any] = {"gridcolor": "rgba(136,136,136,0.25)", "linecolor": GREY, "zeroline": False}
    axis |= {"automargin": True, "showline": True}
    return go.Figure(
        layout={
            "template": go.layout.Template(),  # empty: the default one weighs 7 kB a figure and paints backgrounds
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, sans-serif", "size": 14, "color": GREY},
            "margin": {"l": 56, "r": 52, "t": 16, "b": 52},
            "height": 420,
            "xaxis": axis | {"title": {"text": x_title}},
            "yaxis": axis | {"title": {"text": y_title}},
            "hovermode": "closest",
            "hoverlabel": {"align": "left"},
            "showlegend": True,
        }
    )


def styles_of(frame: pd.DataFrame, given: Styles | None) -> Styles:
    """The given styles, or, in a notebook, new ones: a label's kind is what stands before its parenthesis."""
    if given is not None:
        return given
    return styles((str(label), str(label).partition("(")[0]) for label in frame["policy"].unique())


def by_policy(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The frame's rows policy by policy, in its order."""
    return [(str(label), rows) for label, rows in frame.groupby("policy", sort=False)]


def line_of(style: Style) -> dict[str, str]:
    """Colour and dash."""
    return {"color": style.colour, "dash": DASHES[style.dash]}


def identity(label: str, style: Style) -> dict[str, Any]:
    """Whose trace it is: `name` for readers (escaped), `meta` for scripts (as it is)."""
    return {"name": escape(label), "meta": {"policy": label, "is_ink": style.hue == INK}}


def hover(label: str, words: str) -> dict[str, str]:
    """A hover sentence that begins with the policy; words: a Plotly template."""
    name = escape(label).replace("%{", "&#37;{")  # would be read as a variable
    return {"hovertemplate": f"{name}: {words}<extra></extra>"}


def simulated_line(label: str, style: Style, shape: str = "hv", *, is_under: bool = False) -> dict[str, Any]:
    """What was simulated. is_under: wide and pale, so that the closed form over it is seen where the two agree."""
    width, opacity = (6, 0.4) if is_under else (2, 1.0)
    line = {"shape": shape, "width": width, **line_of(style)}
    return {"mode": "lines", "line": line, "opacity": opacity, **identity(label, style)}


def exact_line(label: str, style: Style) -> dict[str, Any]:
    """A closed form: thin and dashed, in the policy's colour."""
    line = {"width": 1.5, "color": style.colour, "dash": "dash"}
    return {"mode": "lines", "line": line, **identity(label, style)}


def exact_marks(label: str) -> dict[str, Any]:
    """Closed forms of single numbers: diamonds in ink, edged so that they stand out from any bar."""
    marker = {"symbol": "diamond", "size": 9, "color": EDGE_GREY, "line": {"width": 1, "color": "#ffffff"}}
    mark = {"mode": "markers", "marker": marker, **hover(label, "exact expectation %{y:.4~g} devices a round")}
    return {**mark, "name": escape(label), "meta": {"policy": label, "is_ink": True}}


def add_band(figure: go.Figure, rows: pd.DataFrame, x: str, label: str, style: Style, shape: str) -> None:
    """Between the columns low and high, 20 % opaque."""
    edge: dict[str, Any] = {"x": rows[x].tolist(), "mode": "lines", "showlegend": False, "hoverinfo": "skip"}
    edge |= {"line": {"shape": shape, "width": 0}, "meta": {"policy": label}}
    figure.add_scatter(**edge, y=rows["low"].tolist())
    figure.add_scatter(**edge, y=rows["high"].tolist(), fill="tonexty", fillcolor=style.faded(0.2))


def add_bars(figure: go.Figure, frame: pd.DataFrame, x: str, y: str, name: str, looks: Styles, words: str) -> float:
    """The policies' bars side by side over each x; returns how wide one is. words: the hover template after the policy, in
    which %{customdata} is column `name`.
    """
    policies = by_policy(frame)
    width = BAR_SPACE / max(1, len(policies))
    for i, (label, rows) in enumerate(policies):
        style, left = looks[label], i * width - BAR_SPACE / 2
        marker = {"color": style.colour, "pattern": {"shape": PATTERNS[style.dash]}}
        bars = {"x": rows[x].tolist(), "y": rows[y].tolist(), "marker": marker}
        bars["customdata"] = [escape(str(one)) for one in rows[name]]
        # Stated and not left to Plotly, so that the diamonds stay on their bars when a policy is taken off.
        place = {"offset": left, "width": width, **hover(label, words)}
        figure.add_bar(**bars, **place, **identity(label, style))
    return width


def named_ticks(figure: go.Figure, frame: pd.DataFrame, x: str, name: str) -> go.Figure:
    """Ticks of the x axis at the places of column `x`, called as column `name` says."""
    named = frame.drop_duplicates(x).sort_values(x)
    ticks = {"tickvals": named[x].tolist(), "ticktext": [escape(str(one)) for one in named[name]]}
    return figure.update_xaxes(tickmode="array", **ticks)


def add_targets(figure: go.Figure, targets: Sequence[float], words: Sequence[str]) -> None:
    """Dotted horizontals, called at the right edge."""
    for target, word in zip(targets, words, strict=True):
        figure.add_hline(y=target, line={"dash": "dot", "width": 1, "color": GREY})
        figure.add_annotation(
            {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 4, "y": target, "showarrow": False}, text=word
        )
