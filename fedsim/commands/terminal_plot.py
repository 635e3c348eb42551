"""Accuracy against simulated time as text, at most 100 columns by 16 rows: the figure that ends a run.

Medians over seeds, held from evaluation to evaluation. On a terminal with colours a line is braille dots in its policy's
colour; elsewhere it is a letter for each policy, in ASCII, so that a log can be read. Targets are dotted.
Not drawn by plotext: it joins values instead of holding them, and writes colour codes of its own, which neither rich nor
NO_COLOR knows of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil, floor
from operator import itemgetter
from string import ascii_letters

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from fedsim.dashboard.frames import curve_frame
from fedsim.dashboard.palette import INK, Style, styles
from fedsim.facts import Array, BoolArray, IntArray
from fedsim.statistics.reading import Run
from fedsim.statistics.words import digits, format_share

MOST_COLUMNS, MOST_ROWS = 100, 16
FEWEST_COLUMNS = 40
"""In fewer the axes leave no room for lines, and nothing is drawn."""

_WIDE = 8  # how many times longer the longest run must be for a logarithmic axis, as in the report
_LEFT = 6  # columns: a share, and the axis
_MOST_LEGEND_ROWS = 3
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # of a braille character, `[row, column]`
_STROKES = ("1", "1100", "10", "11110010", "11111100", "1111110010")  # of palette.DASHES, dot by dot


@dataclass(frozen=True)
class Line:
    """One policy: seconds, ascending, and the median accuracy from then on, `[evaluation]` each."""

    label: str
    style: Style
    time_s: Array
    accuracy: Array


@dataclass(frozen=True)
class Curve:
    """Lines, drawn as wide as the console allows, `columns` at most."""

    lines: Sequence[Line]
    targets: Sequence[float]
    columns: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = min(self.columns, options.max_width, MOST_COLUMNS)
        with_colours = console.is_terminal and console.color_system is not None and not console.no_color
        if columns >= FEWEST_COLUMNS:
            yield from _drawn(self.lines, self.targets, columns, is_braille=with_colours and not options.ascii_only)


def curve(runs: Sequence[Run], width: int) -> Curve | None:
    """The plot of these runs, at most `width` columns wide; None if no accuracy was evaluated."""
    frame = curve_frame(runs, over="time_s")
    if frame.empty or frame["time_s"].max() <= 0:
        return None
    looks = styles((run.label, run.kind) for run in runs)
    lines = [
        Line(str(label), looks[str(label)], rows["time_s"].to_numpy(np.float64), rows["accuracy"].to_numpy(np.float64))
        for label, rows in frame.groupby("policy", sort=False)
    ]
    return Curve(lines, runs[0].targets, width)


def _drawn(lines: Sequence[Line], targets: Sequence[float], columns: int, *, is_braille: bool) -> list[Text]:
    """The rows: what is drawn, the plot, its axis, and whose line is whose."""
    legend = _legend(lines, columns, is_braille=is_braille)
    n_rows = MOST_ROWS - 3 - len(legend)
    low, high = _share_range(lines, targets)
    row_of = {target: n_rows - 1 - round((target - low) / (high - low) * (n_rows - 1)) for target in targets}
    called = {row: ", ".join(format_share(t) for t in sorted(targets) if row_of[t] == row) for row in row_of.values()}
    n_columns = columns - _LEFT - max((len(words) + 1 for words in called.values()), default=0)
    edges_s, is_log = _edges(lines, n_columns)

    cells = [[(" ", "")] * n_columns for _ in range(n_rows)]
    for row in called:
        cells[row] = [("." if i % 2 else " ", "dim" if is_braille else "") for i in range(n_columns)]
    for i, line in enumerate(lines):
        marked = _marks(line, edges_s, n_rows, low, high, is_braille=is_braille)
        for row, column in np.argwhere(marked):
            before = ord(cells[row][column][0]) - 0x2800
            dots = int(marked[row, column]) | (before if before > 0 else 0)
            cells[row][column] = (chr(0x2800 + dots), _colour(line.style)) if is_braille else (_letter(i), "")

    bar, corner, dash, tick = "│└─┴" if is_braille else "|+-+"
    shares = {row: format_share(high - (high - low) * row / (n_rows - 1)) for row in (0, n_rows - 1)}
    rows = [Text(f"accuracy (median) over simulated time (s){', logarithmic' if is_log else ''}")]
    for i, row_cells in enumerate(cells):
        right = f" {called[i]}" if i in called else ""
        alike = [("".join(c for c, _ in same), look) for look, same in groupby(row_cells, key=itemgetter(1))]
        rows.append(Text.assemble(f"{shares.get(i, ''):>{_LEFT - 1}}", bar, *alike, right))
    marks, labels = _ticks(edges_s, tick, dash, is_log=is_log)
    rows += [Text(" " * (_LEFT - 1) + corner + marks), Text(" " * _LEFT + labels)]
    for row_text in (*rows, *legend):
        row_text.no_wrap, row_text.overflow = True, "crop"
        row_text.rstrip()
    return [*rows, *legend]


def _share_range(lines: Sequence[Line], targets: Sequence[float]) -> tuple[float, float]:
    """Whole tenths around all that is drawn."""
    drawn = np.concatenate([*(line.accuracy for line in lines), np.array(targets, dtype=np.float64)])
    low, high = floor(float(drawn.min()) * 10 + 1e-9) / 10, ceil(float(drawn.max()) * 10 - 1e-9) / 10
    return low, max(high, low + 0.1)


def _edges(lines: Sequence[Line], n_columns: int) -> tuple[Array, bool]:
    """Seconds at the edges of the columns, `[column + 1]`, and whether they grow by a factor."""
    ends_s = [float(line.time_s[-1]) for line in lines]
    if min(ends_s) * _WIDE > max(ends_s) or min(ends_s) <= 0:
        return np.linspace(0.0, max(ends_s), n_columns + 1), False
    first_s = min(float(line.time_s[line.time_s > 0][0]) for line in lines)  # time 0 has no place on such an axis
    return np.geomspace(first_s, max(ends_s), n_columns + 1), True


def _marks(line: Line, edges_s: Array, n_rows: int, low: float, high: float, *, is_braille: bool) -> IntArray:
    """What the line marks of each character, `[row, column]`: dots of a braille character, or 1."""
    n_down, n_across = (4, 2) if is_braille else (1, 1)
    n_columns = len(edges_s) - 1
    fine_s = np.interp(np.arange(n_columns * n_across + 1) / n_across, np.arange(n_columns + 1), edges_s)
    first, last = (np.searchsorted(line.time_s, at_s, side="right") - 1 for at_s in (fine_s[:-1], fine_s[1:]))
    # A column in which the line starts or ends shows what there is of it.
    is_drawn = (last >= 0) & (fine_s[:-1] <= line.time_s[-1]) & _stroke(line.style, len(first), is_braille=is_braille)
    height = np.round((line.accuracy - low) / (high - low) * (n_rows * n_down - 1)).astype(np.int64)
    marks = np.zeros((n_rows, n_columns), dtype=np.int64)
    for i in np.flatnonzero(is_drawn):
        # Upright parts of the steps only where dots are fine enough to show them.
        held = height[max(first[i], 0) : last[i] + 1] if is_braille else height[last[i] : last[i] + 1]
        for up in range(held.min(), held.max() + 1):
            row, down = divmod(n_rows * n_down - 1 - up, n_down)
            marks[row, i // n_across] |= _DOTS[down, i % 2] if is_braille else 1
    return marks


def _stroke(style: Style, n: int, *, is_braille: bool) -> BoolArray:
    """Where a dashed line is drawn; letters need no dashes."""
    stroke = _STROKES[style.dash] if is_braille else "1"
    return np.resize(np.array([dot == "1" for dot in stroke]), n)


def _ticks(edges_s: Array, tick: str, dash: str, *, is_log: bool) -> tuple[str, str]:
    """The axis with its ticks, and their seconds below. edges_s: seconds at the edges of the columns, `[column + 1]`."""
    n = len(edges_s) - 1
    marks, labels, free_from = [dash] * n, [" "] * n, 0
    for at_s in _round_numbers(edges_s[0], edges_s[-1], is_log=is_log):
        column, words = int(np.searchsorted(edges_s[1:], at_s * (1 - 1e-9))), digits(at_s)
        start = min(max(0, column - len(words) // 2), n - len(words))
        if start >= free_from:
            marks[column] = tick
            labels[start : start + len(words)] = words
            free_from = start + len(words) + 2
    return "".join(marks), "".join(labels).rstrip()


def _round_numbers(low: float, high: float, *, is_log: bool) -> list[float]:
    """1, 2, 5 times powers of ten, or about five multiples of one of them, between both."""
    lowest = low if is_log else high / 100
    powers = range(floor(np.log10(lowest)), ceil(np.log10(high)) + 1)
    steps = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    if not is_log:
        step = min(steps, key=lambda one: abs(high / one - 5))
        steps = [i * step for i in range(1, int(high / step + 1e-9) + 1)]
    return [step for step in steps if low <= step * (1 + 1e-9) and step <= high * (1 + 1e-9)]


def _legend(lines: Sequence[Line], columns: int, *, is_braille: bool) -> list[Text]:
    """Rows of marks and names; names that find no room are counted."""
    rows, n_in_row = [Text(" " * _LEFT)], 0
    for i, line in enumerate(lines):
        mark = (_sample(line.style), _colour(line.style)) if is_braille else _letter(i)
        name = "".join(c if c.isprintable() else "?" for c in line.label)  # a name from a file may hold control codes
        entry = Text.assemble(mark, " ", _cropped(name, columns - _LEFT - 8))
        if n_in_row and rows[-1].cell_len + 3 + entry.cell_len > columns:
            if len(rows) == _MOST_LEGEND_ROWS:
                return [*rows[:-1], Text(f"{' ' * _LEFT}and {len(lines) - i + n_in_row} more")]
            rows.append(Text(" " * _LEFT))
            n_in_row = 0
        rows[-1].append("   " if n_in_row else "").append_text(entry)
        n_in_row += 1
    return rows


def _cropped(name: str, most: int) -> str:
    return name if cell_len(name) <= most else f"{set_cell_size(name, most - 2).rstrip()}.."


def _letter(i: int) -> str:
    return ascii_letters[i % len(ascii_letters)]


def _sample(style: Style) -> str:
    """Three characters of the line."""
    dots = _stroke(style, 6, is_braille=True)
    return "".join(chr(0x2800 + 0x04 * int(a) + 0x20 * int(b)) for a, b in dots.reshape(3, 2))


def _colour(style: Style) -> str:
    """The policy's colour; ink is what the terminal writes in."""
    return "bold" if style.hue == INK else style.hue
