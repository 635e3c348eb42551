"""The plot that ends a run: what it shows, and that it never breaks a line."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from fedsim.commands import ending, terminal_plot
from fedsim.statistics.reading import read_scenario
from tests.run_folders import climb, write_run


@pytest.fixture
def runs(tmp_path):
    """Two policies and two seeds: 0 to 90 % in 200 and 400 s of 600."""
    for position, (label, reached_at) in enumerate([("early", 20), ("late", 40)]):
        for seed in range(2):
            write_run(tmp_path / "demo", label, seed, climb(reached_at), kind=label, position=position)
    return read_scenario(tmp_path / "demo")


def printed(curve, width=100, **options) -> list[str]:
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(curve)
    return console.file.getvalue().splitlines()


def columns_of(row: str, letter: str) -> list[int]:
    return [i for i, mark in enumerate(row) if mark == letter]


def test_in_a_log_it_is_plain_ascii_within_its_columns_and_rows(runs):
    for width in (40, 63, 100, 300):
        rows = printed(ending.curve(runs, width), width)
        assert 10 <= len(rows) <= 16
        assert max(map(len, rows)) <= min(width, 100)
        assert all(row.isascii() and row == row.rstrip() for row in rows)


def test_it_is_as_wide_as_asked_and_as_the_console_allows(runs):
    assert max(map(len, printed(ending.curve(runs, 60), 100))) <= 60
    assert max(map(len, printed(ending.curve(runs, 100), 60))) <= 60
    assert max(map(len, printed(ending.curve(runs, 100), 100))) > 90


def test_on_a_terminal_too_narrow_for_it_there_is_nothing(runs):
    assert printed(ending.curve(runs, 100), 39) == []


def test_every_policy_has_a_letter_in_the_plot_and_beside_its_name(runs):
    rows = printed(ending.curve(runs, 100))
    assert rows[-1].split() == ["a", "early", "b", "late"]
    assert all(any(columns_of(row[6:], letter) for row in rows[1:-3]) for letter in "ab")


def test_the_sooner_policy_stands_to_the_left(runs):
    """0 to 90 % in 12 rows: the seventh from the top begins at 4.5 / 11 of it, which is first evaluated after 90 and 170 s;
    600 s in 89 columns of 6.74 s.
    """
    row = printed(ending.curve(runs, 100))[1 + 6][6:]
    assert columns_of(row, "a")[0] == int(90 / 6.74)
    assert columns_of(row, "b")[0] == int(170 / 6.74)


def test_the_top_and_the_bottom_are_the_tenths_around_all_values(runs):
    rows = printed(ending.curve(runs, 100))
    assert [rows[1].strip()[:5], rows[-4].strip()[:4]] == ["90 %|", "0 %|"]


def test_a_target_is_a_dotted_line_with_its_name(runs):
    rows = printed(ending.curve(runs, 100))
    assert rows[1].endswith(" 90 %")
    assert ". . . . ." in rows[1]


def test_the_axis_says_what_it_is_with_its_unit_and_its_numbers(runs):
    rows = printed(ending.curve(runs, 100))
    assert rows[0] == "accuracy (median) over simulated time (s)"
    assert rows[-2].split() == ["100", "200", "300", "400", "500", "600"]
    assert rows[-3].count("+") == 7


def test_a_tick_stands_at_its_time():
    marks, labels = terminal_plot._ticks(np.linspace(0, 100, 51), "+", "-", is_log=False)
    assert [i for i, mark in enumerate(marks) if mark == "+"] == [9, 19, 29, 39, 49]  # 20, 40, ... at 2 s a column
    assert labels.split() == ["20", "40", "60", "80", "100"]


def test_the_axis_is_logarithmic_where_runs_differ_much_in_length(tmp_path):
    write_run(tmp_path / "demo", "short", 0, climb(2, n_points=4), position=0)  # 30 s
    write_run(tmp_path / "demo", "long", 0, climb(40), position=1)  # 600 s
    rows = printed(ending.curve(read_scenario(tmp_path / "demo"), 100))
    assert rows[0].endswith("(s), logarithmic")
    assert rows[-2].split() == ["10", "20", "50", "100", "200", "500"]


def test_the_median_of_the_seeds_is_drawn(tmp_path):
    for seed, accuracy in enumerate([0.1, 0.5, 0.6]):
        write_run(tmp_path / "demo", "flat", seed, [accuracy] * 10, targets=())
    rows = printed(ending.curve(read_scenario(tmp_path / "demo"), 60))
    assert [row.strip()[:4] for row in rows if "aaaa" in row] == ["50 %"]


def test_a_value_is_held_until_the_next(tmp_path):
    """20 % until 300 s and 80 % from then on: two rows, and nothing between them in letters."""
    write_run(tmp_path / "demo", "step", 0, [0.2] * 30 + [0.8] * 31, targets=())
    rows = [row[6:] for row in printed(ending.curve(read_scenario(tmp_path / "demo"), 66))[1:-3]]
    drawn = [columns_of(row, "a") for row in rows if "a" in row]
    assert drawn == [list(range(29, 60)), list(range(29))]  # the column that ends at 300 s shows what holds then


def test_there_is_nothing_where_nothing_was_evaluated(tmp_path):
    write_run(tmp_path / "timed", "a", 0, [])
    write_run(tmp_path / "loss", "a", 0, [float("nan")] * 5)
    for folder in ("timed", "loss"):
        assert ending.curve(read_scenario(tmp_path / folder), 100) is None


def test_a_terminal_gets_the_policies_colours_in_braille(runs):
    shown = "\n".join(printed(ending.curve(runs, 100), force_terminal=True, color_system="truecolor"))
    assert "\x1b[38;2;0;114;178m" in shown  # 0072B2
    assert "\x1b[38;2;213;94;0m" in shown  # D55E00
    assert any(0x2800 < ord(mark) < 0x2900 for mark in shown)


def test_no_color_is_respected(runs, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    shown = printed(ending.curve(runs, 100), force_terminal=True, color_system="truecolor")
    assert "\n".join(shown).isascii()
    assert "\x1b" not in "".join(shown)


def test_two_settings_of_one_policy_differ_in_dash_on_a_terminal(tmp_path):
    for position, label in enumerate(["stsyn(k=5)", "stsyn(k=9)"]):
        write_run(tmp_path / "demo", label, 0, [0.1 + 0.5 * position] * 60, kind="stsyn", position=position, targets=())
    curve = ending.curve(read_scenario(tmp_path / "demo"), 80)
    rows = [
        row
        for row in printed(curve, 80, force_terminal=True, color_system="truecolor")
        if "\x1b[38;2;0;114;178m" in row
    ]
    n_marks = sorted(sum(0x2800 < ord(mark) < 0x2900 for mark in row) for row in rows[:2])
    assert n_marks == [37, 74]  # of 74 columns the solid one has all; the dashed one two dots, one character, of four


def test_a_name_is_text_and_cannot_steer_the_terminal(tmp_path):
    write_run(tmp_path / "demo", "[red]x[/red]\x1b[2J\ny", 0, climb(20))
    rows = printed(ending.curve(read_scenario(tmp_path / "demo"), 100))
    assert rows[-1].strip() == "a [red]x[/red]?[2J?y"


def test_names_without_room_are_cut_or_counted(tmp_path):
    for position in range(9):
        label = f"{position} has a long name that goes on and on"
        write_run(tmp_path / "demo", label, 0, climb(20), kind=f"{position}", position=position)
    rows = printed(ending.curve(read_scenario(tmp_path / "demo"), 45), 45)
    assert len(rows) == 16
    assert rows[-3].strip() == "a 0 has a long name that goes o.."
    assert rows[-1].strip() == "and 7 more"
