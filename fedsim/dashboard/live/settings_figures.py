"""Figures of runs that differ in settings: a map over two of them, points over one, lines across all.

Frames of `settings_frame.py` in, Plotly figures out. What comes from files is escaped: Plotly reads some HTML in texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fedsim.dashboard.figures import base_figure, identity
from fedsim.dashboard.live.settings_frame import Measure, Value, in_order, outcomes, shown
from fedsim.dashboard.palette import Style, Styles
from fedsim.statistics.reading import Run
from fedsim.statistics.words import format_s, plural

N_LABELLED = 120
"""More cells than this hold no words; they are told where the pointer is."""

_GREY = "#888888"
_CLEAR = "rgba(128,128,128,0.01)"  # a ground behind words, which the page paints in its own colour
_WIDE = 20.0  # how many times the largest of positive numbers must be the smallest for a logarithmic axis
_BEYOND, _ABSENT = 1.14, -0.14  # where censored times, and settings that a run does not have, stand on an axis 0 ... 1


def heat_map(frame: pd.DataFrame, x: str, y: str, measure: Measure) -> go.Figure:
    """The median of `measure` over two settings; cells that were not reached are hatched and say so. frame: `cells(...)`."""
    figure = base_figure(escape(x), escape(y))
    columns, rows = in_order(frame["x"].tolist()), in_order(frame["y"].tolist())
    found: list[Any] = list(frame.itertuples())
    at = [(columns.index(one.x), rows.index(one.y), one) for one in found]
    z, words, said = (np.full((len(rows), len(columns)), fill, dtype=object) for fill in (None, "", ""))
    for i, j, one in at:
        if not np.isnan(one.value):
            z[j, i] = float(one.value)
            words[j, i] = one.words if len(at) <= N_LABELLED else ""
            said[j, i] = _sentence(one, x, y, measure)
    bar = {"title": {"text": measure.words, "side": "right"}, "thickness": 12, "outlinewidth": 0}
    if measure.key == "final_accuracy":
        bar["tickformat"] = ".0%"
    else:
        bar["ticksuffix"] = " s"
    figure.add_heatmap(
        z=z.tolist(),
        text=words.tolist(),
        texttemplate="%{text}",
        customdata=said.tolist(),
        hovertemplate="%{customdata}<extra></extra>",
        colorscale="Cividis",
        reversescale=measure.key != "final_accuracy",  # the better, the brighter
        colorbar=bar,
        xgap=2,
        ygap=2,
        showscale=bool(frame["value"].notna().any()),
    )
    _hatch(
        figure, [(i, j, one.words, _sentence(one, x, y, measure)) for i, j, one in at if np.isnan(one.value)], len(at)
    )
    for axis, values in (("xaxis", columns), ("yaxis", rows)):
        ticks = {"tickvals": list(range(len(values))), "ticktext": [escape(shown(value)) for value in values]}
        figure.update_layout(
            {axis: {"tickmode": "array", **ticks, "showgrid": False, "range": [-0.5, len(values) - 0.5]}}
        )
    figure.update_yaxes(title={"standoff": 12})
    figure.update_layout(showlegend=False, height=max(320, min(900, 120 + 56 * len(rows))))
    return figure


def points(
    runs: Sequence[Run], settings: Sequence[Mapping[str, Value]], x: str, measure: Measure, looks: Styles
) -> go.Figure:
    """`measure` over one setting: a point a run, a line through the medians of each kind of policy.

    Runs that did not get there are hollow triangles at the time up to which they were followed.
    """
    figure = base_figure(escape(x), f"{measure.words} (s)" if measure.key != "final_accuracy" else measure.words)
    came_to = outcomes(runs, measure)
    has = [i for i, own in enumerate(settings) if x in own]
    values = in_order([settings[i][x] for i in has])
    is_number = all(not isinstance(value, str) for value in values)
    place: dict[Value, float] = {value: float(value) if is_number else i for i, value in enumerate(values)}
    for kind in dict.fromkeys(runs[i].kind for i in has) if is_number else ():
        own = [i for i in has if runs[i].kind == kind]
        _median_line(figure, came_to.iloc[own], [place[settings[i][x]] for i in own], looks[runs[own[0]].label])
    for label in dict.fromkeys(runs[i].label for i in has):
        own = [i for i in has if runs[i].label == label]
        _run_points(
            figure, [runs[i] for i in own], came_to.iloc[own], [place[settings[i][x]] for i in own], measure, looks
        )
    if not is_number:
        ticks = {"tickvals": list(range(len(values))), "ticktext": [escape(shown(value)) for value in values]}
        figure.update_xaxes(tickmode="array", **ticks, range=[-0.5, len(values) - 0.5])
    elif min(place.values()) > 0 and max(place.values()) >= _WIDE * min(place.values()):
        figure.update_xaxes(type="log", title={"text": f"{escape(x)}, logarithmic"})
    if measure.key == "final_accuracy":
        figure.update_yaxes(tickformat=".0%")
    return figure.update_layout(showlegend=False)


def parallel(
    runs: Sequence[Run],
    settings: Sequence[Mapping[str, Value]],
    keys: Sequence[str],
    judged: Sequence[Measure],
    looks: Styles,
) -> go.Figure:
    """A line a run across an axis for each setting that differs and each measure.

    Above an axis of times stand those that were not reached; below an axis, runs that do not have the setting.
    """
    figure = base_figure("", "")
    axes = [_setting_axis(settings, key) for key in keys] + [_measure_axis(runs, measure) for measure in judged]
    names = [_broken_at_dots(key) for key in keys] + [
        "<br>".join(map(escape, wrap(measure.words, 9))) for measure in judged
    ]
    for label in dict.fromkeys(run.label for run in runs):
        which = [i for i, run in enumerate(runs) if run.label == label]
        x: list[float | None] = []
        y: list[float | None] = []
        said: list[str] = []
        for i in which:
            x += [*range(len(axes)), None]
            y += [*(places[i] for places, _, _ in axes), None]
            said += [
                f"{escape(label)}, seed {runs[i].seed}: {name.replace('<br>', '')} {words[i]}"
                for name, (_, words, _) in zip(names, axes, strict=True)
            ]
            said.append("")
        line = {"width": 1.5, "color": looks[label].colour}
        traced = {
            "x": x,
            "y": y,
            "customdata": said,
            "hovertemplate": "%{customdata}<extra></extra>",
            "mode": "lines+markers",
        }
        figure.add_scatter(**traced, line=line, marker={"size": 5}, opacity=0.7, **identity(label, looks[label]))
    for i, (_, _, ticks) in enumerate(axes):
        figure.add_shape(type="line", x0=i, x1=i, y0=0, y1=1, line={"color": _GREY, "width": 1}, layer="below")
        for height, words in ticks:
            figure.add_annotation(
                x=i, y=height, text=words, showarrow=False, xanchor="left", xshift=6, font={"size": 12}, bgcolor=_CLEAR
            )
    ticks_of_x = {"tickvals": list(range(len(axes))), "ticktext": names, "tickangle": 0, "side": "top"}
    figure.update_xaxes(tickmode="array", **ticks_of_x, showgrid=False, showline=False, range=[-0.2, len(axes) - 0.3])
    figure.update_yaxes(visible=False, range=[-0.2, 1.2])
    return figure.update_layout(showlegend=False, margin={"l": 16, "r": 16, "t": 64, "b": 16}, height=440)


def _hatch(figure: go.Figure, censored: Sequence[tuple[int, int, str, str]], n_cells: int) -> None:
    if not censored:
        return
    edge_x = [x for i, _, _, _ in censored for x in (i - 0.49, i + 0.49, i + 0.49, i - 0.49, i - 0.49, None)]
    edge_y = [y for _, j, _, _ in censored for y in (j - 0.48, j - 0.48, j + 0.48, j + 0.48, j - 0.48, None)]
    pattern = {"shape": "/", "fgcolor": "rgba(136,136,136,0.6)", "bgcolor": "rgba(136,136,136,0.12)", "size": 8}
    area = {"mode": "lines", "line": {"width": 0}, "fill": "toself", "hoverinfo": "skip"}
    figure.add_scatter(x=edge_x, y=edge_y, fillpattern=pattern, **area, name="not reached", meta={})
    told = {"mode": "markers+text", "marker": {"opacity": 0, "size": 24}, "textposition": "middle center"}
    figure.add_scatter(
        x=[i for i, _, _, _ in censored],
        y=[j for _, j, _, _ in censored],
        text=[
            escape(words.partition(" (")[0]).replace("within ", "within<br>") if n_cells <= N_LABELLED else ""
            for _, _, words, _ in censored
        ],
        customdata=[said for _, _, _, said in censored],
        hovertemplate="%{customdata}<extra></extra>",
        **told,
        name="not reached",
        meta={},
    )


def _sentence(one: Any, x: str, y: str, measure: Measure) -> str:
    where = f"{x} {shown(one.x)}, {y} {shown(one.y)}"
    return escape(f"{where}: {measure.words} {one.words}, median of {plural(one.n_runs, 'run')}")


def _median_line(figure: go.Figure, came_to: pd.DataFrame, places: Sequence[float], style: Style) -> None:
    known = came_to.assign(place=places)
    known = known[known.groupby("place")["value"].transform(lambda value: value.notna().all())]
    medians = known.groupby("place")["value"].median()
    if len(medians) > 1:
        line = {"width": 2, "color": style.colour}
        figure.add_scatter(
            x=medians.index.tolist(), y=medians.tolist(), mode="lines", line=line, hoverinfo="skip", meta={}
        )


def _run_points(
    figure: go.Figure,
    runs: Sequence[Run],
    came_to: pd.DataFrame,
    places: Sequence[float],
    measure: Measure,
    looks: Styles,
) -> None:
    """The runs of one policy."""
    label = runs[0].label
    is_known = came_to["value"].notna().to_numpy()
    heights = np.where(is_known, came_to["value"], came_to["followed_s"] if measure.target is not None else np.nan)
    said = [
        f"{label}, seed {run.seed}: {measure.words} "
        + (measure.in_words(height) if known else f"not within {format_s(height)}")
        for run, height, known in zip(runs, heights, is_known, strict=True)
    ]
    marker = {
        "size": 9,
        "color": looks[label].colour,
        "symbol": ["circle" if k else "triangle-up-open" for k in is_known],
    }
    told = {"customdata": [escape(one) for one in said], "hovertemplate": "%{customdata}<extra></extra>"}
    figure.add_scatter(
        x=list(places), y=heights.tolist(), mode="markers", marker=marker, **told, **identity(label, looks[label])
    )


Axis = tuple[list[float], list[str], list[tuple[float, str]]]
"""Of a parallel axis: the height of each run, what it says there, and the ticks (height, words), escaped."""


def _setting_axis(settings: Sequence[Mapping[str, Value]], key: str) -> Axis:
    values = in_order([own[key] for own in settings if key in own])
    heights = _heights(values)
    places = [heights[own[key]] if key in own else _ABSENT for own in settings]
    words = [escape(shown(own[key])) if key in own else "not set" for own in settings]
    ticks = [(heights[value], escape(_short(shown(value)))) for value in _some(values)]
    return places, words, ticks + ([(_ABSENT, "not set")] if any(key not in own for own in settings) else [])


def _measure_axis(runs: Sequence[Run], measure: Measure) -> Axis:
    came_to = outcomes(runs, measure)
    known = in_order([float(value) for value in came_to["value"] if not np.isnan(value)])
    heights, ends = _heights(known), [value for value in {*known[:1], *known[-1:]} if not isinstance(value, str)]
    missing = "not known" if measure.target is None else "not reached"
    places, words = [], []
    for value, followed_s in zip(came_to["value"], came_to["followed_s"], strict=True):
        places.append(_BEYOND if np.isnan(value) else heights[value])
        late = f"not within {format_s(followed_s)}" if measure.target is not None else missing
        words.append(late if np.isnan(value) else measure.in_words(value))
    ticks = [(heights[value], measure.in_words(float(value))) for value in ends]
    return places, words, ticks + ([(_BEYOND, missing)] if came_to["value"].isna().any() else [])


def _heights(values: Sequence[Value]) -> dict[Value, float]:
    """Value -> height, 0 ... 1: numbers to scale (of their logarithms, if they are far apart), words evenly."""
    numbers = [value for value in values if not isinstance(value, str)]
    if len(numbers) < len(values) or len(values) < 2:
        return {value: i / max(1, len(values) - 1) if len(values) > 1 else 0.5 for i, value in enumerate(values)}
    is_wide = numbers[0] > 0 and numbers[-1] >= _WIDE * numbers[0]
    scaled = np.log(numbers) if is_wide else np.array(numbers)
    return dict(zip(values, ((scaled - scaled[0]) / (scaled[-1] - scaled[0])).tolist(), strict=True))


def _some(values: Sequence[Value], most: int = 7) -> list[Value]:
    """All of a few values, the first and last of many numbers."""
    return list(values) if len(values) <= most or isinstance(values[-1], str) else [values[0], values[-1]]


def _short(text: str, most: int = 18) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _broken_at_dots(path: str) -> str:
    """ "fleet.compute.<br>step_s": a long path on two lines."""
    first, dot, last = path.rpartition(".")
    return f"{escape(first)}{dot}<br>{escape(last)}" if dot and len(path) > 14 else escape(path)
