"""What the planner's page is made of: controls of a start, the table of its policies, figures; and what a planner is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import log10
from typing import Any, Protocol

import plotly.graph_objects as go
from dash import dcc, html

from fedsim.dashboard.figures import base_figure, identity, line_of
from fedsim.dashboard.live.parts import Cell, field, group, note, policy, table
from fedsim.dashboard.palette import Styles
from fedsim.dashboard.plan_page import MEASURES, QUESTIONS, SHOWN, Curve, Notes, Point, measure_cell, measure_figure
from fedsim.facts import Array, BadInput
from fedsim.statistics.words import digits, format_s, listed

COLUMNS = {**SHOWN, "used_flops": "work that counts", "uploaded_bytes": "uploaded"}
SLIDER, BOX, CHOICE, PROBLEM, TICKED = (f"planner-{name}" for name in ("slider", "box", "choice", "problem", "ticked"))
_STEPS_OF_A_DECADE = 100
_DECIMAL: dict[str, Any] = {"inputMode": "decimal"}  # the keyboard of a phone


class Control(Protocol):
    """One number or choice. key: its place in the scenario. policy: position of the policy that it belongs to, None: the
    fleet. unit: in which it is shown, `scale` of the scenario's units. stated, least, most: in the scenario's units. until:
    key of the control whose value is the largest one. choices: names, of a control that is no number.
    """

    @property
    def key(self) -> str: ...
    @property
    def words(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def stated(self) -> float | str: ...
    @property
    def least(self) -> float: ...
    @property
    def most(self) -> float: ...
    @property
    def is_whole(self) -> bool: ...
    @property
    def is_log(self) -> bool: ...
    @property
    def policy(self) -> int | None: ...
    @property
    def until(self) -> str | None: ...
    @property
    def scale(self) -> float: ...
    @property
    def choices(self) -> Mapping[str, Any]: ...


class Row(Protocol):
    """A round of one policy; pending: measures that are not known yet; times: its law, seconds and shares of rounds."""

    @property
    def position(self) -> int: ...
    @property
    def label(self) -> str: ...
    @property
    def point(self) -> Point: ...
    @property
    def pending(self) -> Collection[str]: ...
    @property
    def times(self) -> tuple[Array, Array] | None: ...
    @property
    def moved(self) -> Sequence[str]: ...


class Screen(Protocol):
    """What is known so far. curves: of one setting; n_curves: how many there are to be."""

    @property
    def rows(self) -> Sequence[Row]: ...
    @property
    def curves(self) -> Sequence[Curve]: ...
    @property
    def n_curves(self) -> int: ...
    @property
    def is_whole(self) -> bool: ...


class Planner(Protocol):
    """What the page asks. Raises BadInput, at the place of what is wrong, with what is no scenario's value."""

    def starts(self) -> Sequence[str]: ...
    def settings(self, name: str) -> Sequence[Control]: ...
    def policies(self, name: str) -> Sequence[tuple[str, str]]: ...
    def turnable(self, name: str) -> Sequence[str]: ...
    def screen(
        self, name: str, values: Mapping[str, float | str], shown: Collection[int], setting: str, within_s: float
    ) -> Screen: ...
    def scenario_text(self, name: str, values: Mapping[str, float | str], shown: Collection[int]) -> str: ...


# ---- controls -------------------------------------------------------------------------------------------------------


def controls(own: Sequence[Control], policies: Sequence[tuple[str, str]], looks: Styles) -> list[Cell]:
    """The fleet's, then a card for each policy with its box."""
    cards = []
    for i, (label, _) in enumerate(policies):
        ticked = dcc.Checklist(
            [{"label": policy(label, looks[label]), "value": i}],
            [i],
            id={"type": TICKED, "policy": i},
            className="tick",
        )
        cards.append(html.Div([ticked, *(_control(one) for one in own if one.policy == i)], className="card"))
    fleet = html.Div([_control(one) for one in own if one.policy is None], className="cards")
    return [group("The fleet", fleet), group("The policies", html.Div(cards, className="cards"))]


def _control(one: Control) -> html.Div:
    """A number's box and slider, or a choice, under one visible label."""
    label = f"{one.words} ({one.unit})" if one.unit else one.words
    problem = html.P(id={"type": PROBLEM, "key": one.key}, className="problem", role="alert")
    if one.choices:
        picker_id = {"type": CHOICE, "key": one.key}
        picker = dcc.Dropdown(list(one.choices), one.stated, id=picker_id, clearable=False, searchable=False)
        return html.Div([html.Label([html.Span(label), picker], className="choice"), problem], className="control")
    box = dcc.Input(
        text_of(one),
        id={"type": BOX, "key": one.key, "walk": walk(one)},
        type="text",
        debounce=True,
        autoComplete="off",
        **_DECIMAL,
    )
    named = html.Label([html.Span(label), box])
    aria: dict[str, Any] = {"role": "group", "aria-label": label}
    return html.Div([named, html.Div(_slider(one), **aria), problem], className="control")


def _slider(one: Control) -> dcc.Slider:
    least, most, now = (_position(one, float(value)) for value in (one.least, one.most, one.stated))
    return dcc.Slider(
        min=least,
        max=most,
        step=1 if one.is_whole else 1 / _STEPS_OF_A_DECADE if one.is_log else 0.05,
        value=now,
        id={"type": SLIDER, "key": one.key, "walk": walk(one)},
        marks=None,
        updatemode="drag",
        allow_direct_input=False,
    )


def walk(one: Control) -> str:
    """How the slider's position becomes the number in the box."""
    return "whole" if one.is_whole else "log" if one.is_log else "plain"


def _position(one: Control, value: float) -> float:
    return log10(value / one.scale) if one.is_log else value


def text_of(one: Control) -> str:
    """The stated value as the box shows it."""
    return f"{float(one.stated) / one.scale:.12g}"


def value_of(one: Control, written: str | None) -> float | str:
    """What somebody has written into a box. Raises BadInput at the control if it is no number."""
    text = (written or "").strip()
    if text == text_of(one):
        return one.stated  # with all its digits
    at = tuple(one.key.split("/"))
    try:
        value = float(text)
    except ValueError:
        said = f"{text!r} is no number" if text else "nothing is written here"
        raise BadInput(f"{said}; write one, for example {text_of(one)}", at) from None
    if one.is_whole and not value.is_integer():
        raise BadInput(f"{text} is no whole number; write one, for example {text_of(one)}", at)
    return int(value) if one.is_whole else value * one.scale


# ---- what is said and drawn -----------------------------------------------------------------------------------------


def answer(rows: Sequence[Row]) -> str:
    """The shortest and the longest round."""
    known = sorted((row.point.round_s, row.label) for row in rows if row.point.round_s is not None)
    if not known:
        is_early = any("round_s" in row.pending for row in rows)
        return (
            "Computing." if is_early else "None of these policies has a closed form for its round time on this fleet."
        )
    if len(known) == 1:
        return f"At these numbers a round of {known[0][1]} takes {format_s(known[0][0])} on average."
    (least_s, first), *_, (most_s, last) = known
    return f"At these numbers a round takes {format_s(least_s)} ({first}) to {format_s(most_s)} ({last}) on average."


def rows_table(rows: Sequence[Row], looks: Styles) -> list[Cell]:
    """A row for each policy, and below the table why some have no number."""
    notes = Notes()
    body = [
        [
            html.Div([policy(row.label, looks[row.label]), *([html.Small(", ".join(row.moved))] if row.moved else [])]),
            *("computing" if name in row.pending else measure_cell(row.point, name, notes) for name in COLUMNS),
        ]
        for row in rows
    ]
    caption = "A round on average, from closed forms. Work and uploads are those of all devices together."
    return [table(caption, ("policy", *COLUMNS.values()), body), *map(note, notes.lines())]


def times_figure(rows: Sequence[Row], looks: Styles) -> go.Figure | None:
    """The share of rounds at most so long, a line for each policy; None if no law is known."""
    drawn = [row for row in rows if row.times is not None]
    figure = base_figure("round time (s), logarithmic", "share of rounds at most that long")
    for row in drawn:
        assert row.times is not None
        line = {"width": 2, **line_of(looks[row.label])}
        t_s, share = row.times
        hover = "%{y:.0%} of rounds within %{x:.3g} s"
        figure.add_scatter(
            x=t_s, y=share, mode="lines", line=line, hovertemplate=hover, **identity(row.label, looks[row.label])
        )
    figure.update_xaxes(type="log", dtick="D2").update_yaxes(tickformat=".0%", range=[0, 1.02])
    return figure.update_layout(showlegend=False) if drawn else None


def times_caption(rows: Sequence[Row]) -> str:
    """How to read the laws, and who has none."""
    without = [row.label for row in rows if row.times is None and not row.pending]
    left_out = f" Without a law in closed form: {listed(without)}." if without else ""
    return f"Each line: the share of rounds that are over by then. A vertical piece: that many rounds last exactly so long.{left_out}"


def setting_figures(curves: Sequence[Curve], looks: Styles) -> dict[str, go.Figure | None]:
    """Each measure against the setting."""
    found = {name: measure_figure(curves, name, looks) if curves else None for name in MEASURES}
    return {name: None if one is None else one.update_layout(showlegend=False) for name, one in found.items()}


def setting_words(curves: Sequence[Curve], n_curves: int) -> str:
    """Where the curves bend, which have no closed form, or how many are still to come."""
    knees = [f"{one.policy} bends at {digits(one.knee)}" for one in curves if one.knee is not None]
    none = [f"{one.policy} has no closed form: it {one.reason}" for one in curves if one.reason]
    if len(curves) < n_curves:
        return f"Computing the curves; {len(curves)} of {n_curves} are known."
    told = [*knees, *none]
    return f"{'; '.join(told)}." if told else "No curve bends: work grows in proportion to a round's seconds."


def setting_picker(settings: Sequence[str]) -> list[Cell]:
    """Which setting's curves are shown; nothing where there is none."""
    options = [{"label": QUESTIONS[name], "value": name} for name in settings]
    first = settings[0] if settings else None
    picker = dcc.RadioItems(options, first, id="planner-setting", className="row")
    return [field("Curves of one setting, the others as above", picker, "planner-setting")]
