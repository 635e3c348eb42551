"""A round as a picture: device x time, what each device did when.

    from fedsim.dashboard.timeline import draw_round
    drawn = draw_round(run, 12)                     # title (the finding), caption, figure, frame
    drawn = draw_round(run, 12, devices=(0, 50))    # the 50 devices whose work was done first, one row each

or in two halves, `timeline_frame(run, 12)` (see `timeline_frame.py`) and `round_timeline(frame, facts)`. Up to 60
devices get a row each. Of more, neighbours in the order share a row, in which the height of a colour is the share of them
that were in this phase; `devices=(first, last)` gives places first ... last-1 of the order a row each.

Which rounds to keep where not all can be: `rounds_to_show(run, n)`. Size as JSON before compression, measured: 170 bytes
for every segment of a single device, so 80 kB for 50 devices that take 5 steps through 4 layers; 75 to 145 kB for 1,000
devices in shared rows, however many steps they take (a tenth of it compressed).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fedsim.dashboard.figure_parts import GREY, base_figure
from fedsim.dashboard.figures import PHASE_WORDS, PHASES
from fedsim.dashboard.timeline_frame import RoundFacts, missing, round_facts, rounds_to_show, timeline_frame
from fedsim.dashboard.timeline_parts import N_SINGLE, STACKED, add_ticks, group_size, look, phase_trace, short, within
from fedsim.dashboard.timeline_shared import add_shared
from fedsim.dashboard.timeline_words import caption, decision, finding
from fedsim.facts import IntArray
from fedsim.statistics.reading import Run
from fedsim.statistics.words import format_s

__all__ = [
    "LEGEND",
    "N_SINGLE",
    "DrawnRound",
    "RoundFacts",
    "draw_round",
    "missing",
    "round_facts",
    "round_timeline",
    "rounds_to_show",
    "timeline_frame",
]

_N_SHADES = 6  # of the layers of a step, from the output (dark) to the input (light)
_BAR = 0.86  # of a row's height
_TOP, _BOTTOM = 92, 56  # pixels around the axes: above are the legend and the decision's words

LEGEND: Mapping[str, tuple[str, str]] = {PHASE_WORDS[phase]: fill for phase, fill in PHASES.items()}
"""Words -> fill and pattern of the phases, for pages that draw their own legend."""


@dataclass(frozen=True)
class DrawnRound:
    """A round's picture with what stands around it. title: what is seen, also the text for those who cannot see it.

    frame: of `timeline_frame` without its words, which are in the figure.
    """

    title: str
    caption: str
    figure: go.Figure
    frame: pd.DataFrame


def draw_round(run: Run, number: int, devices: tuple[int, int] | None = None) -> DrawnRound:
    """Read, order and draw one round. Raises BadInput for a round that the run did not close, or places it has not.

    An empty frame and a figure without traces where the run kept no tasks; the caption then says what to do about it.
    """
    facts, frame = round_facts(run, number), timeline_frame(run, number)
    figure = round_timeline(frame, facts, devices=devices, layer_names=run.layer_names)
    words = caption(frame, facts, devices)
    return DrawnRound(finding(frame, facts), f"{words} {missing(run)}".strip(), figure, frame.drop(columns="words"))


# ---- the figure -----------------------------------------------------------------------------------------------------


def round_timeline(
    frame: pd.DataFrame,
    facts: RoundFacts,
    *,
    devices: tuple[int, int] | None = None,
    layer_names: tuple[str, ...] = (),
) -> go.Figure:
    """frame: `timeline_frame(run, facts.number)`. devices: places first ... last-1 in its order, a row each; left out: all.

    layer_names: of the model, from the input; decides how many shades the layers have.
    """
    n = 0 if frame.empty else int(frame["row"].max()) + 1
    first, last = (0, n) if devices is None or frame.empty else within(devices, n)
    size = group_size(n) if devices is None else 1
    figure = base_figure("seconds since the round began", "device" if size == 1 else "devices, in order")
    if frame.empty:
        return figure
    shown = frame[frame["row"].between(first, last - 1)]
    if size == 1:
        _add_single(figure, shown, first, last, len(layer_names))
        height = max(100, (last - first) * (22 if last - first <= 25 else 14))
    else:
        add_shared(figure, shown, n, facts.length_s)
        height = 500
    _add_legend(figure)
    _add_decision(figure, facts, first, last)
    legend = {"orientation": "h", "y": 1 + 26 / height, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    legend |= {"itemclick": False, "itemdoubleclick": False, "font": {"size": 12}}
    margin = {"t": _TOP, "b": _BOTTOM, "r": 16}
    figure.update_layout(height=_TOP + height + _BOTTOM, legend=legend, barmode="overlay", margin=margin)
    figure.update_yaxes(range=[last - 0.5, first - 0.5], showgrid=False)
    return figure.update_xaxes(range=[0, facts.length_s * 1.01])


def _add_single(figure: go.Figure, frame: pd.DataFrame, first: int, last: int, n_layers: int) -> None:
    for phase in STACKED:
        rows = frame[(frame["phase"] == phase) & ((phase != "compute") | (frame["layer"] < 0))]
        figure.add_bar(**_bars(rows), **phase_trace(phase), marker=look(phase), showlegend=False)
    in_layers = frame[(frame["phase"] == "compute") & (frame["layer"] >= 0)]
    shades = _shade(in_layers["layer"].to_numpy(np.int64), max(n_layers, 1))
    for shade in np.unique(shades).tolist():
        colour = _lighter(PHASES["compute"][0], 0.15 + 0.6 * shade / max(1, _N_SHADES - 1))
        trace = phase_trace("compute") | {"meta": {"phase": "compute", "shade": shade}, "showlegend": False}
        figure.add_bar(**_bars(in_layers[shades == shade]), **trace, marker={"color": colour})
    _add_waiting(figure, frame[frame["phase"] == "waiting"])
    steps = frame[(frame["doing"] == "compute") & (frame["step"] >= 0)]
    ends = steps.groupby(["row", "ordinal", "step"])["end_s"].max().reset_index()
    is_followed = ends["row"].eq(ends["row"].shift(-1)) & ends["ordinal"].eq(ends["ordinal"].shift(-1))
    add_ticks(figure, ends[is_followed]["end_s"].to_numpy(), ends[is_followed]["row"].to_numpy(), _BAR / 2)
    names = frame.drop_duplicates("row").sort_values("row")
    ticks = {"tickvals": names["row"].tolist(), "ticktext": [str(device) for device in names["device"]]}
    figure.update_yaxes(tickmode="array", **ticks, tickfont={"size": 11 if last - first <= 25 else 9})


def _bars(rows: pd.DataFrame) -> dict[str, Any]:
    """Horizontal bars from start to end."""
    bars = {"base": short(rows["start_s"]), "x": short(rows["end_s"] - rows["start_s"]), "y": rows["row"].tolist()}
    words = {
        "customdata": [escape(one).replace("; ", ";<br>") for one in rows["words"]],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
    return bars | words | {"orientation": "h", "width": _BAR}


def _add_waiting(figure: go.Figure, rows: pd.DataFrame) -> None:
    edge = {"color": PHASES["waiting"][0], "line": {"width": 0}}
    figure.add_bar(**_bars(rows), **phase_trace("waiting"), marker=edge, showlegend=False)


def _add_legend(figure: go.Figure) -> None:
    """The same in every timeline, whatever happened: bars without a length."""
    for phase in STACKED:
        figure.add_bar(x=[None], y=[None], orientation="h", marker=look(phase), **phase_trace(phase))


def _shade(layer: IntArray, n_layers: int) -> IntArray:
    """0 for the output layer to `_N_SHADES` - 1 for the input layer."""
    from_output = n_layers - 1 - layer
    return np.asarray(np.round(from_output * (_N_SHADES - 1) / max(1, n_layers - 1)), dtype=np.int64)


def _lighter(colour: str, share: float) -> str:
    """So far on the way to white."""
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(value + (255 - value) * share):02X}" for value in rgb)


def _add_decision(figure: go.Figure, facts: RoundFacts, first: int, last: int) -> None:
    """Dotted for a deadline, solid for an arrival or a finisher."""
    words = decision(facts)
    if not words or not 0 <= facts.decided_s <= facts.length_s * 1.0001:
        return
    line = {"width": 2, "dash": "dot" if facts.decided_by == "deadline" else "solid", "color": GREY}
    what: dict[str, Any] = {"mode": "lines", "hoverinfo": "skip", "showlegend": False, "meta": {"is_ink": True}}
    figure.add_scatter(x=[facts.decided_s] * 2, y=[first - 0.5, last - 0.5], line=line, name=words, **what)
    is_late = facts.decided_s > facts.length_s / 2
    figure.add_annotation(
        x=facts.decided_s,
        y=1,
        yref="paper",
        yanchor="bottom",
        xanchor="right" if is_late else "left",
        showarrow=False,
        text=f"{words}, {format_s(facts.decided_s)}",
        font={"size": 12},
    )
