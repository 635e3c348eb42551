"""Which places of a ranking two seeds allow to tell apart: by hand, by simulation, and in words."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.commands.ending import ending
from fedsim.statistics import ranking
from fedsim.statistics.comparison import compare
from tests.unit.test_statistics import scenario

KNOWN = np.ones(3, dtype=bool)


def three(middle):
    """Two seeds. Means 0.1, `middle`, 3.2; seed effects -0.1 and +0.1; residuals 0, 0 / 0.1, -0.1 / -0.1, 0.1."""
    return np.array([[0.0, 0.2], [middle, middle], [3.0, 3.4]])


def test_three_policies_under_two_seeds_by_hand():
    """SS = 4 x 0.01 on (3-1)(2-1) = 2 degrees: s = 0.1414, s / sqrt(2) = 0.1. Tables give q_0.05(3, 2) = 8.331.

    So 0.833 apart is enough: 0.94 - 0.1 is, 0.92 - 0.1 is not, and 3.2 is far from both.
    """
    assert ranking.told_apart(three(0.94), KNOWN).tolist() == [
        [False, True, True],
        [False, False, True],
        [False, False, False],
    ]
    assert ranking.told_apart(three(0.92), KNOWN).tolist() == [
        [False, False, True],
        [False, False, True],
        [False, False, False],
    ]
    assert ranking.places(ranking.told_apart(three(0.92), KNOWN)) == [(1, 2), (1, 2), (3, 3)]


def test_a_smaller_error_share_asks_for_more():
    """q_0.01(3, 2) = 19.0 in tables: 1.9 apart."""
    sooner = ranking.told_apart(three(0.94), KNOWN, error_share=0.01)
    assert sooner.tolist() == [[False, False, True], [False, False, True], [False, False, False]]
    assert not ranking.told_apart(three(1.4), KNOWN, error_share=0.01)[1, 2]


def test_a_seed_that_is_slow_for_all_says_nothing_about_them():
    """It is a block: added to every policy's time it changes no verdict."""
    for middle in (0.92, 0.94):
        shifted = three(middle) + np.array([0.0, 5.0])
        assert ranking.told_apart(shifted, KNOWN).tolist() == ranking.told_apart(three(middle), KNOWN).tolist()


def test_times_that_are_lower_bounds_neither_win_nor_say_how_times_scatter():
    """A policy censored at one horizon under both seeds has no residual; the other two alone have 1 degree: s = 0.2.

    Residuals of [0, 0.2] and [1.94, 1.54]: means 0.1, 1.74; seeds 0.97, 0.87, all 0.92: +-0.15. SS = 0.09 on 1 degree,
    s / sqrt(2) = 0.212, q_0.05(3, 1) = 26.98 in tables: 5.72 apart.
    """
    times = np.array([[0.0, 0.2], [1.94, 1.54], [5.9, 5.9]])
    is_known = np.array([True, True, False])
    assert ranking.told_apart(times, is_known).tolist() == [
        [False, False, True],
        [False, False, False],
        [False, False, False],
    ]
    times[2] = 5.7
    assert not ranking.told_apart(times, is_known).any()
    times[2] = -100.0
    assert not ranking.told_apart(times, is_known).any(), "a lower bound far below the others' times says nothing"


def test_one_seed_or_one_known_policy_tells_nobody_apart():
    assert not ranking.told_apart(np.array([[0.0], [9.0]]), np.ones(2, bool)).any()
    assert not ranking.told_apart(np.array([[0.0, 0.1], [9.0, 9.0]]), np.array([True, False])).any()


def test_residuals_that_happen_to_vanish_are_not_believed_below_what_the_grid_rounds():
    """Two policies, 0.5 apart under both seeds: no residual. q_0.05(2, 1) = 17.97: a variance of 0.0016 asks for 0.508."""
    times, known = np.array([[0.0, 0.3], [0.5, 0.8]]), np.ones(2, bool)
    assert ranking.told_apart(times, known)[0, 1]
    assert ranking.told_apart(times, known, least_variance=0.0015)[0, 1]
    assert not ranking.told_apart(times, known, least_variance=0.0016)[0, 1]


def test_one_comparison_of_twenty_tells_equal_policies_apart():
    """Six equal policies, two seeds, normal residuals: 5 % exactly, so 4,000 comparisons give 200 +- 14."""
    rng = np.random.default_rng(3)
    n = 4_000
    false = 0
    for _ in range(n):
        times = rng.normal(size=(1, 2)) + 0.3 * rng.normal(size=(6, 2))
        false += ranking.told_apart(times, np.ones(6, bool)).any()
    assert abs(false - 0.05 * n) < 4 * np.sqrt(n * 0.05 * 0.95)


def test_all_true_places_lie_in_their_intervals_but_for_one_comparison_of_twenty():
    """Some policies equal, some apart; true place of equal ones: any of theirs."""
    rng = np.random.default_rng(4)
    true, n, missed = np.array([0.0, 0.0, 0.8, 0.8, 3.0]), 2_000, 0
    first, last = [1, 1, 3, 3, 5], [2, 2, 4, 4, 5]
    for _ in range(n):
        times = true[:, None] + rng.normal(size=(1, 2)) + 0.15 * rng.normal(size=(5, 2))
        found = ranking.places(ranking.told_apart(times, np.ones(5, bool)))
        missed += any(low > f or high < h for (low, high), f, h in zip(found, first, last, strict=True))
    assert missed < 0.05 * n + 4 * np.sqrt(n * 0.05 * 0.95)


def test_neighbours_that_are_not_told_apart_stand_together_as_many_as_possible():
    """a, b | b, c overlap: a is told from c. d stands alone."""
    labels = ["a", "b", "c", "d"]
    sooner = np.zeros((4, 4), bool)
    sooner[0, 2] = sooner[0, 3] = sooner[1, 3] = sooner[2, 3] = True
    assert ranking.ties(labels, sooner) == [("a", "b"), ("b", "c")]
    assert ranking.places(sooner) == [(1, 2), (1, 3), (2, 3), (4, 4)]
    assert ranking.ties(labels, np.zeros((4, 4), bool)) == [("a", "b", "c", "d")]
    assert ranking.ties(labels, np.triu(np.ones((4, 4), bool), 1)) == []


@given(st.lists(st.floats(0, 5), min_size=2, max_size=8), st.floats(0.01, 2))
def test_who_stands_in_no_tie_has_one_place_and_ties_leave_no_neighbours_out(means, reach):
    mean = np.sort(means)
    sooner = mean[None, :] - mean[:, None] > reach
    labels = [str(i) for i in range(len(mean))]
    tied = ranking.ties(labels, sooner)
    for i, place in enumerate(ranking.places(sooner)):
        assert (place[0] == place[1]) == all(labels[i] not in tie for tie in tied)
    for one, other in pairwise(labels):
        assert sooner[int(one), int(other)] != any({one, other} <= set(tie) for tie in tied)


# ---- in words -------------------------------------------------------------------------------------------------------


def test_two_seeds_say_which_neighbours_they_do_not_tell_apart(tmp_path):
    """Log ratios to the seeds' means scatter by 2 to 5 %, so that 10 % apart is nothing and a factor of 3 is much."""
    reached = {"slow": [56, 58], "a": [10, 11], "b": [11, 11], "never": [None, None]}
    found = compare(scenario(tmp_path / "s", reached), 0.9)
    assert [result.label for result in found.results] == ["a", "b", "slow", "never"]
    assert found.ties == (("a", "b"), ("slow", "never"))
    assert found.ranking == "2 seeds do not tell a from b or slow from never."
    assert [found.place(label) for label in ("a", "b", "slow", "never")] == [(1, 2), (1, 2), (3, 4), (3, 4)]


def test_a_chain_of_neighbours_is_one_group_in_words_and_several_ties_in_fact(tmp_path):
    """Mean log times 0.23, 0.25 and 0.94 apart, s = 0.059, q_0.05(4, 3) = 6.82: 0.28 apart is told, for a and c too."""
    found = compare(scenario(tmp_path / "s", {"a": [13, 15], "b": [18, 17], "c": [22, 23], "far": [57, 58]}), 0.9)
    assert found.ties == (("a", "b"), ("b", "c"))
    assert found.places == ((1, 2), (1, 3), (2, 3), (4, 4))
    assert found.ranking == "2 seeds do not tell each of a, b and c from the next."


def test_where_each_is_tied_to_the_next_it_is_said_in_short(tmp_path):
    """Mean log times 0.28 and 0.36 apart, s = 0.070, q_0.05(3, 2) = 8.33: 0.41 apart is told."""
    found = compare(scenario(tmp_path / "s", {"a": [13, 15], "b": [19, 18], "c": [26, 27]}), 0.9)
    assert found.ties == (("a", "b"), ("b", "c"))
    assert found.ranking.startswith("2 seeds tell no policy from the next in this order, only some from those further")


def test_times_are_not_told_apart_within_what_their_grid_rounds(tmp_path):
    """b takes 1.1 times as long under both seeds: no residual at all. But times are known to 10 s: a variance of
    mean((10 / t)^2) / 12 = 0.00012, sd 0.011, and 17.97 x 0.011 / sqrt(2) = 0.14 is more than log 1.1 = 0.095."""
    assert compare(scenario(tmp_path / "s", {"a": [20, 40], "b": [22, 44]}), 0.9).places == ((1, 2), (1, 2))
    assert compare(scenario(tmp_path / "t", {"a": [20, 40], "b": [25, 50]}), 0.9).places == ((1, 1), (2, 2))


def test_where_no_two_are_told_apart_it_is_said_once(tmp_path):
    found = compare(scenario(tmp_path / "s", {"a": [20, 30], "b": [30, 21], "c": [25, 33]}), 0.9)
    assert found.ranking == "2 seeds tell no two of these policies apart."


def test_where_all_are_told_apart_it_is_said_on_what_that_rests(tmp_path):
    found = compare(scenario(tmp_path / "s", {"a": [3, 3, 3], "b": [15, 15, 16], "c": [55, 57, 56]}), 0.9)
    assert found.ranking == "3 seeds tell each policy from the next, if the times of all of them scatter alike."
    assert found.places == ((1, 1), (2, 2), (3, 3))


def test_one_seed_does_not_rank(tmp_path):
    found = compare(scenario(tmp_path / "s", {"a": [20], "b": [30]}), 0.9)
    assert found.places == ((1, 2), (1, 2))
    assert found.ranking.startswith("1 seed does not show how much such times scatter")


@pytest.mark.parametrize("others", [{}, {"c": [40, 43] * 5, "d": [42, 41] * 5}])
def test_what_the_verdict_of_ten_seeds_says_is_not_said_again(tmp_path, others):
    found = compare(scenario(tmp_path / "s", {"a": [20, 30] * 5, "b": [30, 21] * 5} | others), 0.9)
    assert found.sentence.startswith("Cannot tell a from b with 10 seeds")
    assert found.ranking == ("10 seeds do not tell c from d." if others else "")


def test_a_winner_among_ten_seeds_has_the_first_place_alone(tmp_path):
    """Its own test, of one policy against all others, asks for less than that of all pairs."""
    rng = np.random.default_rng(0)
    wild = {f"wild-{i}": rng.integers(40, 59, 10).tolist() for i in range(6)}
    own = rng.integers(18, 30, 10)
    reached = {"first": own.tolist(), "second": (own + 2).tolist(), **wild}
    found = compare(scenario(tmp_path / "s", reached), 0.9)
    assert found.contenders == ("first",)
    assert found.place("first") == (1, 1)
    assert found.place("second")[0] == 2


def test_a_target_that_nobody_reached_is_not_ranked(tmp_path):
    assert compare(scenario(tmp_path / "s", {"a": [None, None], "b": [None, None]}), 0.9).ranking == ""


def test_the_terminal_shows_the_places_and_says_what_they_are_worth(tmp_path):
    runs = scenario(tmp_path / "s", {"slow": [56, 58], "a": [10, 11], "b": [11, 11]})
    table, said = ending(runs)
    assert table.columns[0].header == "place"
    assert list(table.columns[0].cells) == ["1-2", "1-2", "3"]
    assert said.endswith("2 seeds do not tell a from b.")
