"""What the two kinds of round timelines share: how phases look, where steps end, which devices share a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from fedsim.dashboard.figures import PHASE_WORDS, PHASES
from fedsim.facts import Array, BadInput

N_SINGLE = 60
"""More devices than this share rows, unless some of them are asked for."""

N_ROWS = 50
"""About as many rows do devices share."""

N_TICKS = 400
"""Moments of a shared row: about two pixels each."""

STACKED = ("download", "compute", "upload", "dropped")
"""The phases that are drawn; in a shared row from its lower edge, where the late devices are."""

_TICK = {"color": "rgba(255,255,255,0.9)", "width": 1}


def look(phase: str) -> dict[str, Any]:
    """A bar's marker."""
    colour, pattern = PHASES[phase]
    return {"color": colour, "pattern": {"shape": pattern, "size": 6}}


def phase_trace(phase: str) -> dict[str, Any]:
    """Which phase a trace shows."""
    return {"name": PHASE_WORDS[phase], "meta": {"phase": phase}, "legendgroup": phase}


def add_ticks(figure: go.Figure, at_s: Array, middle: Array, half: float) -> None:
    """Short verticals where a step ends."""
    if len(at_s):
        nothing = np.full(len(at_s), None)
        x = np.stack([short(at_s), short(at_s), nothing], axis=1).ravel().tolist()
        y = np.stack([middle - half, middle + half, nothing], axis=1).ravel().tolist()
        what: dict[str, Any] = {"mode": "lines", "line": _TICK, "hoverinfo": "skip", "showlegend": False}
        figure.add_scatter(x=x, y=y, **what, name="end of a step", meta={"phase": "compute"})


def short(values: npt.NDArray[np.floating[Any]] | pd.Series[float]) -> list[float]:
    """Five digits: a hundredth of a pixel, at half the bytes."""
    return [float(f"{value:.5g}") for value in values]


def within(devices: tuple[int, int], n: int) -> tuple[int, int]:
    """Those of the places first ... last-1 that there are. Raises BadInput if there is none of them."""
    first, last = max(0, devices[0]), min(n, devices[1])
    if not first < last:
        raise BadInput(f"devices {devices[0]} to {devices[1]}: this round has {n}; choose from 0 to {n}")
    return first, last


def group_size(n: int) -> int:
    """Devices to a row."""
    return 1 if n <= N_SINGLE else -(-n // N_ROWS)
