"""What is read from run folders, against cases computed by hand and laws that hold for every curve."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsim.commands.ending import notes, real_time
from fedsim.dashboard.report import report
from fedsim.statistics.agreement import Sample, agreements, compared, rounds_that_count, threshold
from fedsim.statistics.best import may_be_best
from fedsim.statistics.comparison import compare, compare_targets, headline
from fedsim.statistics.reading import BrokenRunError, broken_folders, read_run, read_scenario
from fedsim.statistics.speed_up import speed_up
from fedsim.statistics.summary import summarise, summary, write_summary
from fedsim.statistics.survival import median_s, restricted_s
from fedsim.statistics.time_to_accuracy import first_crossing_s, sustained_s
from fedsim.statistics.words import format_bytes, format_count, format_ratio, format_s, format_share
from tests.run_folders import climb, write_run

accuracies = st.lists(st.sampled_from([0.1, 0.5, 0.8, 0.9, 0.95, math.nan]), min_size=1, max_size=30)
targets = st.sampled_from([0.2, 0.5, 0.85, 0.9, 0.99])
spans_s = st.sampled_from([0.0, 1.5, 3.0, 10.0])


def curve(values: list[float], step_s: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(len(values)) * step_s, np.array(values)


# ---- time to accuracy -----------------------------------------------------------------------------------------------


def test_a_target_that_is_lost_again_was_crossed_but_not_sustained():
    time_s, accuracy = curve([0.1, 0.9, 0.5, 0.9, 0.95, 0.9, 0.9])
    assert first_crossing_s(time_s, accuracy, 0.9) == 1.0
    assert sustained_s(time_s, accuracy, 0.9, sustain_s=2.0) == 3.0


def test_a_target_reached_too_near_the_end_to_be_held_is_not_sustained():
    time_s, accuracy = curve([0.1, 0.1, 0.1, 0.9, 0.9])
    assert sustained_s(time_s, accuracy, 0.9, sustain_s=1.0) == 3.0
    assert sustained_s(time_s, accuracy, 0.9, sustain_s=2.0) is None


def test_a_window_includes_the_evaluation_at_its_end():
    time_s, accuracy = curve([0.9, 0.9, 0.5, 0.9, 0.9, 0.9])
    assert sustained_s(time_s, accuracy, 0.9, sustain_s=2.0) == 3.0
    assert sustained_s(time_s, accuracy, 0.9, sustain_s=1.9) == 0.0


def test_a_window_that_ends_with_the_grid_is_whole_whatever_the_last_bits_say():
    """0.1 * 3 > 0.3 in floating point, and 0.1 + 0.2 > 0.3 too."""
    time_s = np.array([0.0, 0.1, 0.2, 0.3])
    assert sustained_s(time_s, np.array([0.5, 0.9, 0.9, 0.9]), 0.9, sustain_s=0.2) == 0.1
    assert 0.1 + 0.2 > 0.3


def test_an_accuracy_that_is_not_a_number_is_below_every_target():
    time_s, accuracy = curve([0.9, math.nan, 0.9, 0.9])
    assert sustained_s(time_s, accuracy, 0.9, sustain_s=1.0) == 2.0


def test_a_run_without_evaluations_reaches_nothing():
    empty = np.array([])
    assert first_crossing_s(empty, empty, 0.5) is None
    assert sustained_s(empty, empty, 0.5, sustain_s=1.0) is None


@given(accuracies, targets, spans_s)
def test_no_target_is_sustained_before_it_is_first_crossed(values, target, sustain_s):
    first, sustained = first_crossing_s(*curve(values), target), sustained_s(*curve(values), target, sustain_s)
    assert sustained is None or (first is not None and first <= sustained)


@given(accuracies, targets, targets, spans_s)
def test_a_higher_target_is_never_reached_sooner(values, one, other, sustain_s):
    low = sustained_s(*curve(values), min(one, other), sustain_s)
    high = sustained_s(*curve(values), max(one, other), sustain_s)
    assert high is None or (low is not None and low <= high)


@given(accuracies, targets, spans_s, spans_s)
def test_holding_a_target_for_longer_is_never_sooner(values, target, one, other):
    brief = sustained_s(*curve(values), target, min(one, other))
    long = sustained_s(*curve(values), target, max(one, other))
    assert long is None or (brief is not None and brief <= long)


@given(accuracies, targets, spans_s)
def test_a_stricter_reading_of_the_definition_finds_the_same_time(values, target, sustain_s):
    """The definition word for word: for each start, look at every evaluation of its window."""
    time_s, accuracy = curve(values)
    windows = [
        start_s
        for start_s in time_s
        if start_s + sustain_s <= time_s[-1]
        and all(a >= target for t, a in zip(time_s, accuracy, strict=True) if start_s <= t <= start_s + sustain_s)
    ]
    assert sustained_s(time_s, accuracy, target, sustain_s) == (windows[0] if windows else None)


# ---- censoring ------------------------------------------------------------------------------------------------------


def test_with_one_horizon_the_median_is_the_median_with_infinity_for_those_that_never_reached():
    assert median_s([10.0, 30.0, None], [60.0] * 3) == 30.0
    assert median_s([10.0, 30.0, 50.0, None], [60.0] * 4) == 40.0
    assert median_s([10.0, 30.0, None, None], [60.0] * 4) is None
    assert median_s([10.0, None, None], [60.0] * 3) is None


def test_a_run_censored_early_counts_only_while_it_was_followed():
    """By hand: 5 runs, S(10) = 4/5, censored at 20, S(30) = 4/5 * 2/3 = 8/15, S(40) = 8/15 * 1/2 = 4/15."""
    assert median_s([10.0, None, 30.0, 40.0, 50.0], [60.0, 20.0, 60.0, 60.0, 60.0]) == 40.0


@given(st.lists(st.one_of(st.none(), st.integers(1, 59).map(float)), min_size=1, max_size=12))
def test_the_median_agrees_with_numpy_wherever_all_were_followed_equally_long(reached_s):
    expected = float(np.median([math.inf if s is None else s for s in reached_s]))
    assert median_s(reached_s, [60.0] * len(reached_s)) == (expected if math.isfinite(expected) else None)


def test_the_restricted_times_keep_the_runs_that_never_reached():
    assert restricted_s([10.0, None, 70.0], horizon_s=60.0) == [10.0, 60.0, 60.0]


# ---- ratios and winners ---------------------------------------------------------------------------------------------


def test_the_speed_up_is_the_geometric_mean_of_the_paired_ratios():
    found = speed_up([10.0, 20.0], [20.0, 160.0], [600.0] * 2, [600.0] * 2)
    assert found.bound == "exact"
    assert found.factor == pytest.approx(4.0)  # sqrt(2 * 8)
    assert (found.low, found.high) == (None, None)  # two pairs bear no interval


def test_the_interval_of_a_speed_up_lies_within_the_ratios_and_around_their_mean():
    found = speed_up([10.0] * 5, [18.0, 20.0, 22.0, 25.0, 21.0], [600.0] * 5, [600.0] * 5)
    assert 1.8 < found.low < found.factor < found.high < 2.5
    assert found == speed_up([10.0] * 5, [18.0, 20.0, 22.0, 25.0, 21.0], [600.0] * 5, [600.0] * 5)


def test_ratios_that_all_agree_have_an_interval_of_no_width():
    found = speed_up([10.0, 20.0, 30.0], [20.0, 40.0, 60.0], [600.0] * 3, [600.0] * 3)
    assert (found.low, found.high) == pytest.approx((2.0, 2.0))


def test_a_speed_up_over_a_censored_policy_is_a_bound():
    assert speed_up([100.0], [None], [600.0], [600.0]).bound == "at_least"
    assert speed_up([100.0], [None], [600.0], [600.0]).factor == pytest.approx(6.0)
    assert speed_up([None], [300.0], [600.0], [600.0]).bound == "at_most"
    assert speed_up([None], [300.0], [600.0], [600.0]).factor == pytest.approx(0.5)
    assert speed_up([None], [None], [600.0], [600.0]).factor is None
    assert speed_up([0.0], [10.0], [600.0], [600.0]).factor is None


@given(st.lists(st.tuples(st.floats(1, 500), st.floats(1, 500)), min_size=1, max_size=2))
def test_the_speed_up_of_a_over_b_is_the_inverse_of_b_over_a(pairs):
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    horizon_s = [600.0] * len(pairs)
    forth, back = speed_up(a, b, horizon_s, horizon_s), speed_up(b, a, horizon_s, horizon_s)
    assert forth.factor * back.factor == pytest.approx(1.0)


def test_a_policy_that_is_better_under_every_seed_is_alone_the_best():
    luck = np.random.default_rng(3).normal(size=12)
    assert may_be_best(np.stack([luck + 1.0, luck, luck + 2.0])).tolist() == [False, True, False]


def test_policies_that_differ_only_by_luck_may_all_be_the_best():
    assert may_be_best(np.random.default_rng(4).normal(size=(3, 12))).all()


def test_nearly_always_censored_policies_do_not_blur_the_verdict():
    """Two policies tie at the horizon under 10 of 12 seeds: their difference has no spread in many resamples."""
    fast = np.random.default_rng(5).normal(5.0, 0.1, size=12)
    never, hardly = np.full(12, 6.4), np.r_[np.full(10, 6.4), 6.39, 6.38]
    assert may_be_best(np.stack([fast, never, hardly])).tolist() == [True, False, False]


def test_the_truly_best_policy_is_ruled_out_in_about_one_comparison_of_twenty():
    """No policy is better here: each of 200 verdicts errs with 5 %; 10 expected, 4 standard errors (3.1) allowed."""
    luck = np.random.default_rng(6).normal(size=(200, 4, 10))
    n_errors = sum(not may_be_best(costs)[0] for costs in luck)
    assert n_errors <= 10 + 4 * 3.1


# ---- whole comparisons ----------------------------------------------------------------------------------------------


def scenario(folder: Path, reached_at: dict[str, list[int | None]], **options) -> list:
    """Runs whose accuracy reaches 0.9 at these evaluations (10 s apart, horizon 600 s), one per seed."""
    for position, (label, per_seed) in enumerate(reached_at.items()):
        for seed, at in enumerate(per_seed):
            write_run(folder, label, seed, climb(at), kind=label, position=position, **options)
    return read_scenario(folder)


def test_three_seeds_make_no_claim(tmp_path):
    runs = scenario(tmp_path / "s", {"fedavg": [40, 44, 50], "stsyn(k=15)": [20, 22, 25]})
    assert compare(runs, 0.9).sentence == (
        "3 seeds: no claim. In these runs stsyn(k=15) reached 90 % first, after 220 s (median), "
        "2.00 times sooner than fedavg (2.00-2.00)."
    )


def test_one_seed_has_neither_a_median_nor_an_interval(tmp_path):
    runs = scenario(tmp_path / "s", {"fedavg": [40], "stsyn": [20]})
    assert compare(runs, 0.9).sentence == (
        "1 seed: no claim. In these runs stsyn reached 90 % first, after 200 s, 2 times sooner than fedavg."
    )


def test_a_slower_policy_that_is_censored_gives_a_bound(tmp_path):
    runs = scenario(tmp_path / "s", {"fedavg": [None, None, 50], "stsyn": [20, 20, 20]})
    sentence = compare(runs, 0.9).sentence
    assert "at least 2.82 times sooner than fedavg, not within 600 s (2 of 3 seeds)" in sentence  # (3 * 3 * 2.5)^(1/3)


def test_ten_seeds_and_a_clear_difference_name_a_winner(tmp_path):
    runs = scenario(tmp_path / "s", {"fedavg": [40, 44] * 5, "stsyn": [20, 21] * 5})
    comparison = compare(runs, 0.9)
    assert comparison.contenders == ("stsyn",)
    assert comparison.sentence.startswith(
        "stsyn reaches 90 % after 205 s (median of 10 seeds), 2.05 times sooner than "
    )


def test_a_winner_is_compared_with_the_next_as_well_as_with_the_slowest(tmp_path):
    """200 s under every seed; the next takes 250 s, the slowest 400 s."""
    runs = scenario(tmp_path / "s", {"slow": [40] * 10, "next": [25] * 10, "best": [20] * 10})
    comparison = compare(runs, 0.9)
    assert comparison.lead is not None
    assert (comparison.lead.factor, comparison.reference) == (pytest.approx(1.25), "slow")
    assert comparison.sentence == (
        "best reaches 90 % after 200 s (median of 10 seeds), 1.25 times sooner than next, the next (1.25-1.25), "
        "and 2.00 times sooner than slow (2.00-2.00)."
    )
    two = compare([run for run in runs if run.label != "next"], 0.9)
    assert "the next" not in two.sentence


def test_ten_seeds_without_a_clear_difference_name_none(tmp_path):
    runs = scenario(tmp_path / "s", {"a": [20, 30] * 5, "b": [30, 21] * 5, "slow": [55, 58] * 5})
    assert compare(runs, 0.9).sentence == (
        "Cannot tell a from b with 10 seeds: their medians to 90 % are 250 s and 255 s."
    )


def test_nine_seeds_are_too_few_for_a_winner(tmp_path):
    runs = scenario(tmp_path / "s", {"fedavg": [40] * 9, "stsyn": [20] * 9})
    assert compare(runs, 0.9).sentence.startswith("9 seeds: no claim.")


def test_policies_equally_soon_share_the_sentence(tmp_path):
    runs = scenario(tmp_path / "s", {"a": [20, 30, 40], "b": [30, 40, 20]})
    assert "In these runs a and b reached 90 % after 300 s (median), equally soon." in compare(runs, 0.9).sentence


def test_a_target_that_no_run_reaches_says_what_to_do(tmp_path):
    runs = scenario(tmp_path / "s", {"a": [None], "b": [None]})
    assert compare(runs, 0.9).sentence == (
        "No run reached 90 % within 600 s. Lower the target or extend stop.simulated_s."
    )


def test_speed_ups_refer_to_the_slowest_policy_that_always_gets_there(tmp_path):
    runs = scenario(tmp_path / "s", {"never": [None] * 3, "slow": [50] * 3, "fast": [20] * 3, "middle": [40] * 3})
    comparison = compare(runs, 0.9)
    assert [result.label for result in comparison.results] == ["fast", "middle", "slow", "never"]
    assert comparison.reference == "slow"
    assert comparison.of("middle").speed_up.factor == pytest.approx(1.25)
    assert comparison.of("never").speed_up.bound == "at_most"
    assert comparison.of("never").reached_share == 0


def test_only_seeds_that_every_policy_has_run_are_compared(tmp_path):
    runs = scenario(tmp_path / "s", {"a": [20, 20, 50], "b": [30, 30]})
    comparison = compare(runs, 0.9)
    assert comparison.seeds == (0, 1)
    assert comparison.of("a").reached_s == (200.0, 200.0)


def test_a_diverged_run_counts_as_followed_to_the_horizon(tmp_path):
    folder = tmp_path / "s"
    write_run(folder, "a", 0, climb(10))
    write_run(folder, "b", 0, climb(None, n_points=3), position=1, outcome="diverged")
    comparison = compare(read_scenario(folder), 0.9)
    assert comparison.of("b").followed_s == (600.0,)
    assert comparison.of("a").speed_up.factor == pytest.approx(6.0)


def test_runs_with_different_grids_are_not_compared(tmp_path):
    folder = tmp_path / "s"
    write_run(folder, "a", 0, climb(10), grid_step_s=3.0)
    write_run(folder, "b", 0, climb(10), grid_step_s=6.0, position=1)
    comparison = compare(read_scenario(folder), 0.9)
    assert comparison.results == ()
    assert "every 3 s and 6 s" in comparison.sentence


def test_runs_without_a_grid_are_not_compared(tmp_path):
    write_run(tmp_path / "s", "a", 0, climb(10), grid_step_s=None, sustain_s=None)
    assert "Set stop.simulated_s" in compare(read_scenario(tmp_path / "s"), 0.9).sentence


def by_rounds(folder, every_n_rounds, times_s, ends_s):
    """A run of `write_run` as one that was evaluated by rounds: at these times, in a run that ended then."""
    table = pd.read_parquet(folder / "evaluations.parquet")
    table.assign(time_s=times_s).to_parquet(folder / "evaluations.parquet")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["grid_step_s"], manifest["outcome"]["simulated_s"] = None, ends_s
    manifest["scenario"]["evaluation"] |= {"every_s": None, "every_n_rounds": every_n_rounds}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_evaluated_by_rounds_policies_are_compared_at_moments_of_their_own(tmp_path):
    """Windows of 20 s. a is below again at 19 s; b's one evaluation at 30 s is all that its window holds."""
    folder = tmp_path / "s"
    by_rounds(write_run(folder, "a", 0, [0.1, 0.9, 0.5, 0.9, 0.9]), 5, [0.0, 3.0, 19.0, 22.0, 41.0], 60.0)
    by_rounds(write_run(folder, "b", 0, [0.1, 0.9, 0.2], position=1), 5, [0.0, 30.0, 50.5], 60.0)
    comparison = compare(read_scenario(folder), 0.9)
    assert comparison.of("a").reached_s == (22.0,)
    assert comparison.of("a").first_s == (3.0,)
    assert comparison.of("b").reached_s == (30.0,)


@pytest.mark.parametrize(("ends_s", "reached_s"), [(69.9, None), (70.0, 50.0)])
def test_evaluated_by_rounds_a_target_must_be_held_to_the_runs_end_not_to_its_last_evaluation(
    tmp_path, ends_s, reached_s
):
    folder = by_rounds(write_run(tmp_path / "s", "a", 0, [0.1, 0.9]), 2, [0.0, 50.0], ends_s)
    run = read_run(folder)
    assert summarise(run)["time_to_accuracy_s"] == {"0.9": reached_s}
    assert run.followed_s == ends_s
    assert compare([run], 0.9).of("a").reached_s == (reached_s,)
    assert compare([run], 0.9).of("a").followed_s == (ends_s,)


def test_on_a_grid_of_time_a_run_is_followed_to_its_last_evaluation(tmp_path):
    write_run(tmp_path / "s", "a", 0, climb(10))
    (run,) = read_scenario(tmp_path / "s")
    run.manifest["outcome"]["simulated_s"] = 609.0
    assert run.followed_s == 600.0


def test_runs_evaluated_by_seconds_and_by_rounds_are_not_compared(tmp_path):
    folder = tmp_path / "s"
    write_run(folder, "a", 0, climb(10))
    by_rounds(write_run(folder, "b", 0, climb(10, n_points=3), position=1), 5, [0.0, 3.0, 4.0], 60.0)
    comparison = compare(read_scenario(folder), 0.9)
    assert comparison.results == ()
    assert "every 10 s and 5 rounds" in comparison.sentence


def test_by_rounds_too_nothing_is_compared_until_it_is_said_how_long_a_target_must_be_held(tmp_path):
    by_rounds(write_run(tmp_path / "s", "a", 0, [0.1, 0.9], sustain_s=None), 5, [0.0, 3.0], 60.0)
    assert "evaluation.sustain_s" in compare(read_scenario(tmp_path / "s"), 0.9).sentence


def test_the_report_warns_that_policies_with_shorter_rounds_were_evaluated_more_often(tmp_path):
    by_rounds(write_run(tmp_path / "s", "a", 0, [0.1, 0.9, 0.9]), 5, [0.0, 3.0, 30.0], 60.0)
    assert "evaluated after every 5 rounds, not at moments common to all" in report("s", read_scenario(tmp_path / "s"))
    write_run(tmp_path / "t", "a", 0, climb(10))
    assert "not at moments common to all" not in report("t", read_scenario(tmp_path / "t"))


def test_the_headline_is_the_highest_target_that_a_run_reached(tmp_path):
    runs = scenario(tmp_path / "s", {"a": [20]}, targets=(0.5, 0.99, 0.8))
    comparisons = compare_targets(runs)
    assert [comparison.target for comparison in comparisons] == [0.5, 0.99, 0.8]
    assert headline(comparisons).target == 0.8
    assert headline([comparisons[1]]).target == 0.99
    assert headline([]) is None


# ---- reading and summary --------------------------------------------------------------------------------------------


def test_runs_come_in_the_order_of_the_scenario_then_by_seed(tmp_path):
    for label, position, seed in [("a", 1, 10), ("a", 1, 9), ("z", 0, 2)]:
        write_run(tmp_path / "s", label, seed, climb(3), position=position)
    assert [(run.label, run.seed) for run in read_scenario(tmp_path / "s")] == [("z", 2), ("a", 9), ("a", 10)]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda run: (run / "manifest.json").unlink(), "no manifest.json"),
        (lambda run: (run / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda run: (run / "manifest.json").write_text("[]"), "written in format None"),
        (lambda run: (run / "manifest.json").write_text('{"schema_version": 2}'), "written in format 2"),
        (lambda run: (run / "manifest.json").write_text('{"schema_version": 1}'), "lacks or garbles 'policy'"),
        (lambda run: (run / "rounds.parquet").unlink(), "no rounds.parquet"),
        (lambda run: (run / "rounds.parquet").write_bytes(b"PAR1"), "rounds.parquet cannot be read"),
        (lambda run: (run / "expected.json").write_text("["), "expected.json cannot be read"),
        (lambda run: (run / "expected.json").write_text("{}"), "expected.json is not a list of quantities"),
        (lambda run: (run / "expected.json").write_text('[{"mean": 1}]'), "expected.json is not a list of quantities"),
        (
            lambda run: (run / "layers.parquet").replace(run / "evaluations.parquet"),
            "no layers.parquet",
        ),
    ],
)
def test_a_broken_run_is_left_out_and_named(tmp_path, damage, reason):
    whole = write_run(tmp_path / "s", "a", 0, climb(3))
    broken = write_run(tmp_path / "s", "a", 1, climb(3))
    damage(broken)
    assert [run.folder for run in read_scenario(tmp_path / "s")] == [whole]
    (named,) = broken_folders(tmp_path / "s")
    assert reason in named
    assert str(broken) in named
    with pytest.raises(BrokenRunError):
        read_run(broken)


def test_a_table_without_its_columns_is_named(tmp_path):
    folder = write_run(tmp_path / "s", "a", 0, climb(3))
    (folder / "layers.parquet").write_bytes((folder / "rounds.parquet").read_bytes())
    with pytest.raises(BrokenRunError, match=r"layers\.parquet lacks the columns layer, n_contributors, weight_sum"):
        read_run(folder)


def test_the_summary_of_a_run_adds_up_its_rounds(tmp_path):
    write_run(tmp_path / "s", "a", 7, [0.1, 0.9, 0.5, 0.9, 0.95, 0.92], targets=(0.9, 0.99), sustain_s=20.0)
    (run,) = read_scenario(tmp_path / "s")
    assert summarise(run) == {
        "policy": "a",
        "seed": 7,
        "time_to_accuracy_s": {"0.9": 30.0, "0.99": None},
        "first_crossing_s": {"0.9": 10.0, "0.99": None},
        "final_accuracy": 0.92,
        "n_rounds": 3,
        "simulated_s": 50.0,
        "uploaded_bytes": 300,
        "downloaded_bytes": 900,
        "device_flops": 3000.0,
        "used_flops_share": 0.75,
        "wasted_flops": 750.0,
        "wasted_uploaded_bytes": None,
        "wasted_downloaded_bytes": None,
        "staleness_mean": None,
        "staleness_max": None,
        **{key: {} for key in ("device_share", "update_share", "step_share", "weight_share", "mix_accuracy")},
        "effective_step": {"input": None, "output": None},
        "outcome": "finished",
    }


def test_a_run_of_the_clock_alone_has_a_summary_without_accuracy(tmp_path):
    write_run(tmp_path / "s", "a", 0, [], round_s=())
    row = summarise(read_scenario(tmp_path / "s")[0])
    assert row["final_accuracy"] is None
    assert row["used_flops_share"] is None
    assert row["time_to_accuracy_s"] == {"0.9": None}


def test_a_run_from_before_there_were_closed_forms_has_none(tmp_path):
    assert read_run(write_run(tmp_path / "s", "old", 0, climb(3))).expected == []
    entry = {"quantity": "round_s", "unit": "s", "mean": 2.0, "variance": 1.0}
    assert read_run(write_run(tmp_path / "s", "new", 1, climb(3), expected=[entry])).expected == [entry]


# ---- agreement with closed forms ------------------------------------------------------------------------------------


def round_s(mean: float, variance: float | None) -> dict:
    return {"quantity": "round_s", "unit": "s", "mean": mean, "variance": variance}


def played(folder: Path, times: list[float], entries: list[dict], *, seed: int = 0, **settings):
    """A run of the clock alone that ends by rounds, unless `simulated_s` says otherwise."""
    settings = {"simulated_s": None} | settings
    return read_run(write_run(folder, "a", seed, [], round_s=times, expected=entries, **settings))


def test_deviations_are_pooled_over_seeds_each_from_its_own_fleet(tmp_path):
    """(1 - 2) + (3 - 2) + (5 - 2) + (4 - 4) = 3 over the root of 3 * 1 + 1 * 9; evenly spread, so hardly skewed."""
    runs = [
        played(tmp_path, [1.0, 3.0, 5.0], [round_s(2.0, 1.0)], seed=0),
        played(tmp_path, [4.0], [round_s(4.0, 9.0)], seed=1),
    ]
    (row,) = agreements(runs)
    assert (row.deviation.n, row.deviation.expected, row.deviation.simulated) == (4, 10 / 4, 13 / 4)
    assert row.deviation.standard_error == pytest.approx(math.sqrt(12) / 4)
    assert 0 < row.deviation.z < 3 / math.sqrt(12)  # skewed to the right: less unlikely than its distance says
    assert row.agrees


def test_deviations_that_are_not_skewed_keep_their_distance_in_standard_errors():
    """8 - 8 * 1 = 0 is the sum of cubes, -6 the sum; 9 rounds of variance 4."""
    assert compared([Sample(np.array([2.0] + [-1.0] * 8), 0.0, 4.0)]).z == pytest.approx(-1.0)


def test_a_sum_of_exponential_rounds_is_judged_by_its_own_law():
    """The sum of 10 is Gamma(10). Each value here is off by the cube root of 2: the law's third moment."""
    z = compared([Sample(np.full(10, 1 + 2 ** (1 / 3)), 1.0, 1.0)]).z
    assert stats.norm.sf(z) == pytest.approx(stats.gamma.sf(10 * (1 + 2 ** (1 / 3)), 10))


@pytest.mark.parametrize(
    ("draw", "mean", "variance"),
    [
        (lambda rng: rng.exponential(size=20), 1.0, 1.0),
        (lambda rng: 30.0 - rng.poisson(0.01, size=200), 29.99, 0.01),
        (lambda rng: np.maximum(1.0, rng.exponential(3.0, size=50)), None, None),
        (lambda rng: (rng.uniform(size=300) < 0.004).astype(float), 0.004, None),
    ],
    ids=["exponential", "rare exceptions", "variance unknown", "rare events"],
)
def test_where_theory_is_right_few_comparisons_look_unlikely(draw, mean, variance):
    """1 % beyond 2.576 if z is right, fewer if cautious; among 1,500 then at most 15 + 4 standard errors of 3.9."""
    rng = np.random.default_rng(11)
    mean = 1.0 + 3.0 * math.exp(-1 / 3) if mean is None else mean
    found = [compared([Sample(draw(rng), mean, variance)]) for _ in range(1_500)]
    assert sum(abs(one.z) > 2.576 for one in found if one.z is not None) <= 15 + 4 * 3.9
    assert all(one.z is not None for one in found)


@pytest.mark.parametrize("variance", [1.0, None])
def test_a_mean_that_is_off_by_a_fifth_is_found_in_a_thousand_rounds(variance):
    rng = np.random.default_rng(12)
    assert compared([Sample(1.2 * rng.exponential(size=1_000), 1.0, variance)]).z > 4


def test_what_does_not_vary_must_be_equal(tmp_path):
    bytes_ = {"quantity": "uploaded_bytes", "unit": "bytes", "variance": 0.0}
    (same,) = agreements([played(tmp_path / "s", [1.0, 2.0], [bytes_ | {"mean": 100.0}])])
    (other,) = agreements([played(tmp_path / "t", [1.0, 2.0], [bytes_ | {"mean": 100.001}])])
    assert (same.deviation.z, same.deviation.is_equal, same.agrees) == (None, True, True)
    assert (other.deviation.z, other.deviation.is_equal, other.agrees) == (None, False, False)


def test_rounds_of_one_length_are_equal_although_clock_readings_are_rounded(tmp_path):
    """Rounds of 0.1 s after 1e7 s: the difference of two readings is off by more than nine digits."""
    run = played(tmp_path, [0.1, 0.1, 0.1], [round_s(0.1, 0.0)])
    run = replace(run, rounds=run.rounds.assign(start_s=run.rounds["start_s"] + 1e7, end_s=run.rounds["end_s"] + 1e7))
    run.manifest["outcome"]["simulated_s"] = 1e7 + 0.3
    assert np.abs(run.rounds["end_s"] - run.rounds["start_s"] - 0.1).max() > 1e-9 * 0.1
    assert agreements([run])[0].agrees


def test_an_event_is_judged_by_its_binomial_tail(tmp_path):
    """Nobody contributed in 2 of 3 rounds where that has probability 0.1: P(at least 2) = 3 * 0.01 * 0.9 + 0.001."""
    run = played(tmp_path, [1.0] * 3, [{"quantity": "is_empty", "unit": "1", "mean": 0.1}])
    run = replace(run, rounds=run.rounds.assign(n_contributions=[0, 0, 3]))
    (row,) = agreements([run])
    assert stats.norm.sf(row.deviation.z) == pytest.approx(0.028)


def test_an_impossible_event_refutes_at_once(tmp_path):
    run = played(tmp_path, [1.0] * 3, [{"quantity": "is_empty", "unit": "1", "mean": 0.0, "variance": None}])
    assert agreements([run])[0].agrees
    run = replace(run, rounds=run.rounds.assign(n_contributions=[4, 0, 4]))
    assert not agreements([run])[0].agrees


def test_an_exception_too_rare_to_have_been_seen_is_no_disagreement():
    """All rounds alike at 2 where 1.999 is expected, of unknown variance: 0.9995^n for "no exception"."""
    few, many = (compared([Sample(np.full(n, 2.0), 1.999)]) for n in (100, 20_000))
    assert stats.norm.sf(few.z) == pytest.approx(0.5)  # more likely than not, so no sign of anything
    assert stats.norm.sf(many.z) == pytest.approx(0.9995**20_000)
    assert compared([Sample(np.full(3, 2.0), 2.0)]).is_equal


def test_rounds_that_count_are_fixed_by_the_law_of_the_round_and_the_horizon(tmp_path):
    """m + 5 * 0.2 * sqrt(m) <= 100: 90 + 9.49 fits, 91 + 9.54 does not."""
    times = [1.0] * 95
    assert rounds_that_count(played(tmp_path / "a", times, [round_s(1.0, 0.04)], simulated_s=100.0)) == 90
    assert rounds_that_count(played(tmp_path / "b", times, [round_s(1.0, 0.0)], simulated_s=95.0)) == 95
    assert rounds_that_count(played(tmp_path / "c", times, [round_s(1.0, 0.04)])) == 95
    assert rounds_that_count(played(tmp_path / "d", times[:10], [round_s(1.0, 0.04)], simulated_s=100.0)) == 10


def test_a_run_cut_off_by_time_without_a_law_of_the_round_says_so(tmp_path):
    """Unless nothing varies. The run of the second folder ended with a round, so nothing was cut off."""
    used = {"quantity": "used_flops", "unit": "FLOPs", "mean": 750.0, "variance": 4.0}
    exact = {"quantity": "uploaded_bytes", "unit": "bytes", "mean": 100.0, "variance": 0.0}
    cut = played(tmp_path / "s", [1.0] * 9, [used, exact], simulated_s=9.5)
    cut.manifest["outcome"]["simulated_s"] = 9.5
    flops, uploaded = agreements([cut])
    assert flops.reason.startswith("needs a number of rounds fixed beforehand: the run ended in the middle of a round")
    assert uploaded.agrees
    (whole, _) = agreements([played(tmp_path / "t", [1.0] * 9, [used, exact], simulated_s=9.5)])
    assert whole.deviation.n == 9


def test_the_round_that_time_cuts_off_would_bias_the_mean_and_is_not_missed(tmp_path):
    """1,000 runs of exponential rounds of 1 s, stopped after 60 s: their closed rounds add up to 59 s and not to 60."""
    rng = np.random.default_rng(13)
    run = played(tmp_path, [1.0], [round_s(1.0, 1.0)], simulated_s=60.0)
    naive, fixed = [], []
    for _ in range(1_000):
        end_s = rng.exponential(size=120).cumsum()
        end_s = end_s[end_s <= 60.0]
        rounds = pd.DataFrame({"start_s": np.r_[0.0, end_s[:-1]], "end_s": end_s})
        one = np.diff(end_s, prepend=0.0)
        naive.append(Sample(one, 1.0, 1.0))
        fixed.append(Sample(one[: rounds_that_count(replace(run, rounds=rounds))], 1.0, 1.0))
    assert compared(naive).z < -3.5
    assert abs(compared(fixed).z) < 3.5
    assert {len(one.x) for one in fixed} == {31}  # 31 + 5 * sqrt(31) <= 60


def test_what_cannot_be_compared_keeps_its_reason(tmp_path):
    reason = "needs exponential step times; got Pareto"
    entries = [
        round_s(2.0, None),
        {"quantity": "n_contributions", "unit": "devices", "no_closed_form": reason},
        {"quantity": "participation", "unit": "1", "device": 0, "mean": 0.5},
        {"quantity": "loss", "unit": "1", "rounds": [0], "mean": [1.0]},
    ]
    rows = agreements([played(tmp_path, [1.0, 3.0], entries)])
    assert [(row.quantity, row.reason) for row in rows] == [
        ("round_s", "needs a finite variance; a mean over rounds would not settle"),
        ("n_contributions", reason),
    ]


def test_few_rounds_with_a_variance_of_their_own_are_not_judged(tmp_path):
    """29 skewed values would look unlikely several times too often."""
    used = {"quantity": "inverse_n_contributions", "unit": "1", "mean": 0.2, "variance": None}
    few, enough = (played(tmp_path / str(n), [1.0] * n, [used]) for n in (29, 30))
    few, enough = (
        replace(run, rounds=run.rounds.assign(n_contributions=[4] + [5] * (len(run.rounds) - 1)))
        for run in (few, enough)
    )
    assert agreements([few])[0].reason.startswith("needs 30 rounds")
    assert agreements([enough])[0].deviation.z is not None


def test_a_stalled_run_is_not_compared(tmp_path):
    assert agreements([played(tmp_path, [1.0, 3.0], [round_s(2.0, 1.0)], outcome="stalled")]) == []


def test_layers_are_compared_one_by_one_and_empty_rounds_count(tmp_path):
    entries = [
        {"quantity": "n_contributors", "unit": "devices", "layer": layer, "mean": mean, "variance": 1.0}
        for layer, mean in enumerate([1.0, 4.0])
    ]
    run = played(tmp_path, [1.0, 1.0], entries)  # 2 and 4 contributors, in both rounds
    run = replace(run, layers=run.layers[run.layers["round"] == 0])
    assert [row.deviation.simulated for row in agreements([run])] == [1.0, 2.0]


def test_the_threshold_shares_one_chance_of_a_false_alarm(tmp_path):
    entries = [round_s(2.0, 1.0), {"quantity": "uploaded_bytes", "unit": "bytes", "mean": 100.0, "variance": 0.0}]
    entries += [{"quantity": "used_flops", "unit": "FLOPs", "mean": 750.0, "variance": 4.0}]
    rows = agreements([played(tmp_path, [1.0, 3.0], entries)])
    assert threshold(rows) == pytest.approx(stats.norm.isf(0.01 / 2 / 2))  # two that vary
    (off,) = agreements([played(tmp_path / "t", [2.0] * 40, [round_s(0.1, 1.0)])])
    assert (off.deviation.z > threshold([off]), off.agrees) == (True, False)


# ---- what a command says at its end ---------------------------------------------------------------------------------


def with_manifest(folder, **changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return read_run(folder)


def test_the_real_time_of_runs_is_summed_and_runs_that_do_not_tell_are_left_out(tmp_path):
    told = [
        {"setup": 1.0, "training": 35.0, "evaluation": 2.5, "total": 38.0},
        {"setup": 2.0, "training": 1.9, "evaluation": 0.0, "total": 3.0},
    ]
    runs = [
        with_manifest(write_run(tmp_path / "s", "a", seed, climb(3)), real_s=each) for seed, each in enumerate(told)
    ]
    silent = read_run(write_run(tmp_path / "s", "a", 9, climb(3)))
    assert real_time([*runs, silent]) == (
        "Real time: 41 s for 2 runs, of which 90 % training, 6.1 % evaluation, 3.9 % all else; 3 s of setup before."
    )
    assert real_time([silent]) is None


def test_a_note_is_told_once_with_its_run_and_with_what_it_costs(tmp_path):
    halved, fallback = "out of memory: chunks were halved to 32 rows", "fallback: dropout goes through the loop"
    run = with_manifest(write_run(tmp_path / "s", "salf", 0, climb(3)), notes=[halved, fallback, halved])
    assert notes(run) == [
        f"salf, seed 0: {halved}; this run is not byte-reproducible",
        f"salf, seed 0: {fallback}",
    ]
    assert notes(read_run(write_run(tmp_path / "s", "old", 1, climb(3)))) == []


def test_the_summary_files_hold_the_same_and_are_the_same_every_time(tmp_path):
    runs = scenario(tmp_path / "s", {"a,b": [20, None]})
    written = [[path.read_bytes() for path in write_summary(tmp_path / "s", summary(runs))] for _ in range(2)]
    assert written[0] == written[1]
    rows = json.loads((tmp_path / "s" / "summary.json").read_text())
    table = list(csv.DictReader((tmp_path / "s" / "summary.csv").read_text().splitlines()))
    assert [row["time_to_accuracy_s"]["0.9"] for row in rows] == [200.0, None]
    assert [row["time_to_accuracy_s@0.9"] for row in table] == ["200.0", ""]
    assert [row["policy"] for row in table] == ["a,b", "a,b"]
    assert sorted(p.name for p in (tmp_path / "s").iterdir() if p.is_file()) == ["summary.csv", "summary.json"]


# ---- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (212.4, "212 s"),
        (0.012345, "0.0123 s"),
        (599.6, "600 s"),
        (606, "10.1 min"),
        (36_000, "600 min"),
        (43_200, "12 h"),
    ],
)
def test_durations_have_three_digits_and_the_nearest_unit(seconds, words):
    assert format_s(seconds) == words


def test_amounts_have_three_digits_and_a_prefix():
    assert [format_bytes(n) for n in (0, 950, 12_345, 999_999, 7e9)] == ["0 B", "950 B", "12.3 kB", "1 MB", "7 GB"]
    assert [format_count(n) for n in (3, 1_234, 4.56e6, 1e12)] == ["3", "1.23k", "4.56M", "1T"]
    assert [format_share(s) for s in (0.9, 0.8974, 1.0)] == ["90 %", "89.7 %", "100 %"]


def test_a_ratio_shows_no_more_digits_than_its_interval_allows():
    assert format_ratio(2.6123, 2.2, 3.1) == "2.6 (2.2-3.1)"
    assert format_ratio(2.6123, 2.55, 2.68) == "2.61 (2.55-2.68)"
    assert format_ratio(26.123, 12.0, 61.0) == "26 (12-61)"
    assert format_ratio(2.6123) == "2.61"
