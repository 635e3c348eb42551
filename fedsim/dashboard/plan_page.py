"""plan.html: how each setting of a policy trades round time against work that counts, from closed forms alone.

Takes plain records (`Curve` by shape: policy, kind, setting, unit, stated, points, knee, reason), so that the planner of
the live dashboard can draw the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Protocol

import plotly.graph_objects as go

from fedsim.dashboard.figures import base_figure, identity, line_of
from fedsim.dashboard.markup import paragraph, swatch, table, text
from fedsim.dashboard.page import page
from fedsim.dashboard.palette import Style, Styles, styles
from fedsim.statistics.words import digits, format_bytes, format_count, format_s, format_share
from fedsim.statistics.writing import write_atomically

QUESTIONS = {
    "k": "How many devices to wait for?",
    "deadline_s": "How long a deadline?",
    "budget_s": "How large a budget for a device's width?",
    "local_steps": "How many local steps?",
}
_AXES = {
    "k": "devices waited for",
    "deadline_s": "deadline (s)",
    "budget_s": "budget (s)",
    "local_steps": "local steps",
}
SHOWN = {
    "round_s": "round",
    "participation_share": "devices that count",
    "effective_cohort": "effective cohort",
    "n_steps": "local steps per device",
}
"""Columns of the tables, by measure."""

FORMATS: dict[str, Callable[[float], str]] = {
    "round_s": format_s,
    "participation_share": format_share,
    "effective_cohort": digits,
    "n_steps": digits,
    "used_flops": lambda flops: f"{format_count(flops)} FLOPs",
    "uploaded_bytes": format_bytes,
}

MEASURES = {
    "round_s": ("round time (s)", "Mean seconds of a round"),
    "participation_share": ("share of devices", "Devices whose work enters a round"),
    "effective_cohort": ("effective cohort (devices)", "Devices whose plain mean would vary as little"),
}


class Point(Protocol):
    """One value of a setting; None where there is no closed form."""

    @property
    def value(self) -> float: ...
    @property
    def round_s(self) -> float | None: ...
    @property
    def participation_share(self) -> float | None: ...
    @property
    def effective_cohort(self) -> float | None: ...
    @property
    def n_steps(self) -> float | None: ...
    @property
    def used_flops(self) -> float | None: ...
    @property
    def reasons(self) -> Mapping[str, str]: ...


class Curve(Protocol):
    """One setting of one policy."""

    @property
    def policy(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def setting(self) -> str: ...
    @property
    def stated(self) -> float: ...
    @property
    def points(self) -> Sequence[Point]: ...
    @property
    def knee(self) -> float | None: ...
    @property
    def reason(self) -> str | None: ...


def write_plan(path: Path, name: str, curves: Sequence[Curve], advice: Sequence[str]) -> Path:
    """Write the page; its path. advice: sentences for the first screen."""
    write_atomically(path, plan_page(name, curves, advice))
    return path


def plan_page(name: str, curves: Sequence[Curve], advice: Sequence[str]) -> str:
    """The page as text."""
    looks = styles((curve.policy, curve.kind) for curve in curves)
    opening = f"<h1>{text(name)}: what do the settings buy?</h1>" + "".join(
        paragraph(sentence, "answer" if i == 0 else "") for i, sentence in enumerate(advice)
    )
    figures: dict[str, Any] = {}
    sections = []
    for setting, question in QUESTIONS.items():
        own = [curve for curve in curves if curve.setting == setting]
        if not own:
            continue
        parts = []
        for measure in MEASURES:
            figure = measure_figure(own, measure, looks)
            if figure is None:
                continue
            key = f"{setting}-{measure}"
            figures[key] = {"": figure.to_plotly_json()}
            parts.append(_place(key, MEASURES[measure][1], own, looks))
        sections.append((question, "".join(parts) + _reasons(own) + _table(own)))
    return page(title=f"{name} · fedsim plan", opening=opening, sections=sections, places=figures)


def measure_figure(curves: Sequence[Curve], measure: str, looks: Styles) -> go.Figure | None:
    """One measure against one setting, a line for each policy; a star at the knee, a ring at the stated value."""
    figure = base_figure(
        f"{_AXES[curves[0].setting]}, logarithmic" if _is_wide(curves) else _AXES[curves[0].setting],
        MEASURES[measure][0],
    )
    is_empty = True
    for curve in curves:
        points = [p for p in curve.points if getattr(p, measure) is not None]
        if not points:
            continue
        is_empty = False
        x, y = [p.value for p in points], [getattr(p, measure) for p in points]
        style = looks[curve.policy]
        line = {"width": 2, **line_of(style)}
        figure.add_scatter(
            x=x, y=y, mode="lines+markers", line=line, marker={"size": 4}, **identity(curve.policy, style)
        )
        _mark(figure, curve, points, measure, style)
    if _is_wide(curves):
        figure.update_xaxes(type="log", dtick="D2")
    if measure == "participation_share":
        figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return None if is_empty else figure.update_yaxes(rangemode="tozero")


def _is_wide(curves: Sequence[Curve]) -> bool:
    return curves[0].setting != "k"


def _mark(figure: go.Figure, curve: Curve, points: Sequence[Point], measure: str, style: Style) -> None:
    for value, symbol, what in ((curve.stated, "circle-open", "stated"), (curve.knee, "star", "knee")):
        here = [p for p in points if value is not None and abs(p.value - value) <= 1e-9 * abs(value)]
        if here:
            marker = {"size": 13, "symbol": symbol, "color": style.colour, "line": {"width": 2}}
            point = {"x": [here[0].value], "y": [getattr(here[0], measure)], "mode": "markers", "marker": marker}
            hover = f"{what}: %{{x:.4g}}, %{{y:.4g}}<extra>{escape(curve.policy)}</extra>"
            figure.add_scatter(**point, hovertemplate=hover, showlegend=False, meta={"policy": curve.policy})


def _place(key: str, title: str, curves: Sequence[Curve], looks: Styles) -> str:
    boxes = "".join(
        f'<label><input type="checkbox" checked data-policy="{text(label)}">{swatch(looks[label])} {text(label)}</label>'
        for label in dict.fromkeys(curve.policy for curve in curves)
    )
    return (
        f"<h3>{text(title)}</h3><figure><fieldset><legend>Policies shown</legend>{boxes}</fieldset>"
        f'<div class="plot" id="{key}" role="img" aria-label="{text(title)}"></div>'
        f"<figcaption>A ring marks what the scenario states, a star the knee.</figcaption></figure>"
    )


def _reasons(curves: Sequence[Curve]) -> str:
    return "".join(paragraph(f"{c.policy}: no closed form; {c.reason}.", "note") for c in curves if c.reason)


def _table(curves: Sequence[Curve]) -> str:
    notes = Notes()
    rows = [[text(curve.policy), *map(text, cells(curve, point, notes))] for curve in curves for point in curve.points]
    header = ("policy", "value", *SHOWN.values(), "")
    said = "".join(paragraph(note, "note") for note in notes.lines())
    return table("Every value that was looked at.", header, rows) + said if rows else ""


class Notes:
    """Reasons why a table's cells have no number, numbered in the order in which they are met; equal ones share a number."""

    def __init__(self) -> None:
        self._met: dict[str, None] = {}

    def cell(self, reason: str) -> str:
        """What stands in place of the number."""
        self._met.setdefault(reason)
        return f"none ({list(self._met).index(reason) + 1})"

    def lines(self) -> list[str]:
        """What stands below the table."""
        return [f"({i + 1}) No number: {reason}." for i, reason in enumerate(self._met)]


def cells(curve: Curve, point: Point, notes: Notes) -> list[str]:
    """Value, the measures of `SHOWN`, and what is special about it; plain text. notes: take up why one has no number."""
    is_near = [v is not None and abs(point.value - v) <= 1e-9 * abs(v) for v in (curve.stated, curve.knee)]
    special = ", ".join(word for word, holds in zip(("stated", "knee"), is_near, strict=True) if holds)
    return [digits(point.value), *(measure_cell(point, measure, notes) for measure in SHOWN), special]


def measure_cell(point: Point, measure: str, notes: Notes) -> str:
    """One measure with its unit, or a reference to the reason why there is none."""
    value = getattr(point, measure)
    return notes.cell(point.reasons[measure]) if value is None else FORMATS[measure](value)
