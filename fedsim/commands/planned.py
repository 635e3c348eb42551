"""The tables that `fedsim plan` prints, and what it says: where the knees lie, what it cannot know, what to do next."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedsim.commands.plan import Curve, next_step
from fedsim.dashboard.plan_page import SHOWN, Notes, cells
from fedsim.statistics.words import digits, format_s

_UNKNOWN = (
    "Not known from closed forms: accuracy. More devices per round, more layers and more local steps help learning by an "
    "amount that depends on the data, and a device that never takes part biases the model whatever the round time."
)


def planned(curves: Sequence[Curve]) -> tuple[list[RenderableType], list[str]]:
    """A table for each setting of each policy, and sentences."""
    return [_table(curve) for curve in curves], advice(curves)


def advice(curves: Sequence[Curve]) -> list[str]:
    """Knees, the limits of what is known, and entries to simulate next."""
    knees = [
        f"{curve.policy} bends at {curve.setting} = {digits(curve.knee)} ({_round(curve)} a round)"
        for curve in curves
        if curve.knee is not None
    ]
    said = "; ".join(knees) + "." if knees else "No setting bends: work grows in proportion to a round's seconds."
    entries = list(next_step(curves))
    todo = ["To simulate next, beside the stated settings:", *entries] if entries else []
    return [said, _UNKNOWN, *todo]


def _round(curve: Curve) -> str:
    at = next(p for p in curve.points if p.value == curve.knee)
    return format_s(at.round_s or 0.0)


def _table(curve: Curve) -> RenderableType:
    """With the reasons of what has no number below it."""
    title = f"{curve.policy}: {curve.setting}" + (f" (no closed form: {curve.reason})" if curve.reason else "")
    table = Table(title=escape(title), title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in (curve.setting, *SHOWN.values(), ""):
        table.add_column(name, justify="right", no_wrap=True)
    notes = Notes()
    for point in curve.points:
        table.add_row(*map(escape, cells(curve, point, notes)))
    return Group(table, *(Text(line) for line in notes.lines()))
