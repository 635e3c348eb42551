"""A round of many devices: neighbours in the order share a row, in which heights are shares of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from fedsim.dashboard.figures import PHASE_WORDS, PHASES
from fedsim.dashboard.timeline_parts import N_ROWS, N_TICKS, STACKED, add_ticks, look, phase_trace, short
from fedsim.facts import Array, IntArray
from fedsim.statistics.words import format_share

_N_PARTS = 25  # of the order, by how far devices came; with more of them only those of whom nothing is kept are apart
_N_FRONTS = 1_000
_N_MARKS = 9  # with a hover text, along a shared row


def _shared_rows(frame: pd.DataFrame, n: int) -> IntArray:
    """Where the rows begin in the order of devices, and where the last one ends.

    Neighbours that came equally far share a row, so that the order within it is that of the phases.
    """
    far = frame[frame["phase"].isin(["download", "compute", "upload"])].groupby("row").size()
    n_pieces = far.reindex(range(n), fill_value=0).to_numpy()
    parts = np.append(np.flatnonzero(np.diff(n_pieces, prepend=-1)), n)
    if len(parts) > _N_PARTS:
        parts = np.append(np.flatnonzero(np.diff(n_pieces > 0, prepend=-1)), n)
    size = -(-n // N_ROWS)
    cuts = [np.linspace(a, b, -(-(b - a) // size) + 1).round() for a, b in pairwise(parts.tolist())]
    return np.unique(np.concatenate(cuts)).astype(np.int64)


def add_shared(figure: go.Figure, frame: pd.DataFrame, n: int, length_s: float) -> None:
    """What lies behind is drawn first, the whole height of all phases up to it; the next one covers its own share."""
    edges = _shared_rows(frame, n)
    row = np.searchsorted(edges, frame["row"], side="right") - 1
    heights = np.cumsum(_n_in_phase(frame, row, len(edges) - 1, length_s), axis=0)  # from the row's lower edge
    for i in reversed(range(len(STACKED))):
        x, y = _outlines(heights[i], edges[1:], length_s)
        marker = look(STACKED[i])
        fill: dict[str, Any] = {"fillcolor": marker["color"]}
        if marker["pattern"]["shape"]:
            fill = {"fillpattern": marker["pattern"] | {"fgcolor": marker["color"], "bgcolor": "rgba(0,0,0,0)"}}
        area: dict[str, Any] = {"mode": "lines", "line": {"width": 0}, "fill": "toself", "hoverinfo": "skip"}
        figure.add_scatter(x=x, y=y, **area, **fill, **phase_trace(STACKED[i]), showlegend=False)
    _add_step_fronts(figure, frame.assign(shared=row), edges)
    _add_row_hover(figure, frame.assign(shared=row), edges, length_s)
    width = 10 ** int(np.log10(n / 2))
    width *= 2 if n / width > 8 else 1
    places = [1, *range(width, n + 1, width)]
    ticks = {"tickvals": [place - 1 for place in places], "ticktext": [f"{place:,}" for place in places]}
    figure.update_yaxes(tickmode="array", **ticks)


def _n_in_phase(frame: pd.DataFrame, row: IntArray, n_rows: int, length_s: float) -> Array:
    """How many devices of each row are in each phase from each tick on, `[phase of STACKED, row, tick]`."""
    stacked = frame["phase"].map({name: i for i, name in enumerate(STACKED)})
    is_drawn = stacked.notna().to_numpy()
    phase = stacked[is_drawn].to_numpy(np.int64)
    ticks = np.round(frame[["start_s", "end_s"]].to_numpy(np.float64)[is_drawn] / length_s * N_TICKS).astype(np.int64)
    changes = np.zeros((len(STACKED), n_rows, N_TICKS + 1))
    for tick, change in zip(ticks.T, (1.0, -1.0), strict=True):
        np.add.at(changes, (phase, row[is_drawn], tick), change)
    return np.cumsum(changes, axis=2)


def _outlines(heights: Array, lower: IntArray, length_s: float) -> tuple[list[Any], list[Any]]:
    """Step functions `[row, tick]` over the rows' lower edges, as one polygon a row, with gaps between them."""
    x: list[Any] = []
    y: list[Any] = []
    for edge, height in zip((lower - 0.5).tolist(), heights, strict=True):
        turns = np.flatnonzero(np.diff(height, prepend=0.0))
        if len(turns):
            after = height[turns]
            before = np.concatenate([[0.0], after[:-1]])
            x += [*short(np.repeat(turns, 2) * (length_s / N_TICKS)), None]
            y += [*(edge - np.stack([before, after], axis=1).ravel()).tolist(), None]
    return x, y


def _add_step_fronts(figure: go.Figure, frame: pd.DataFrame, edges: IntArray) -> None:
    """A line through a row where half of its devices had ended a step and gone on to the next."""
    steps = frame[(frame["phase"] == "compute") & (frame["step"] >= 0)]
    ends = steps.groupby(["shared", "row", "ordinal", "step"])["end_s"].max().reset_index()
    found = ends.groupby(["shared", "step"])["end_s"].agg(["median", "size"]).reset_index()
    is_followed = found["shared"].eq(found["shared"].shift(-1))
    n_devices = np.diff(edges)[found["shared"].to_numpy(np.int64)]
    found = found[is_followed & (found["size"] >= n_devices / 2)]
    if len(found) <= _N_FRONTS:  # more of them would paint the picture white
        upper, lower = (edges[found["shared"].to_numpy(np.int64) + i] - 0.5 for i in (0, 1))
        add_ticks(figure, found["median"].to_numpy(np.float64), (upper + lower) / 2, (lower - upper) / 2)


def _add_row_hover(figure: go.Figure, frame: pd.DataFrame, edges: IntArray, length_s: float) -> None:
    """Invisible marks along the middle of every row, with a sentence about its devices."""
    span_s = frame["end_s"] - frame["start_s"]
    spent_s = {phase: span_s[frame["phase"] == phase].groupby(frame["shared"]).sum() for phase in PHASES}
    shares = pd.DataFrame(spent_s, index=range(len(edges) - 1)).fillna(0.0)
    shares = shares.div(shares.sum(axis=1), axis=0)
    rows = zip(edges[:-1].tolist(), edges[1:].tolist(), shares.to_numpy().tolist(), strict=True)
    words = [_row_words(first, last, spent) for first, last, spent in rows]
    marks = np.linspace(0.02, 0.98, _N_MARKS) * length_s
    figure.add_scatter(
        x=short(np.tile(marks, len(words))),
        y=np.repeat((edges[1:] + edges[:-1] - 1) / 2, len(marks)).tolist(),
        customdata=np.repeat(words, len(marks)).tolist(),
        hovertemplate="%{customdata}<extra></extra>",
        mode="markers",
        marker={"opacity": 0, "size": 1},
        showlegend=False,
        meta={"phase": ""},
    )
    figure.update_layout(hoverdistance=60)


def _row_words(first: int, last: int, shares: Sequence[float]) -> str:
    """shares: of the row's time, in each of `PHASES`."""
    spent = [
        f"{format_share(share)} {PHASE_WORDS[phase]}" for phase, share in zip(PHASES, shares, strict=True) if share
    ]
    return f"places {first + 1} to {last}:<br>{',<br>'.join(spent)}"
