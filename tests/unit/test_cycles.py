"""Rounds that come in cycles are compared by the means of whole cycles, in the report and by `fedsim validate`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fedsim
from fedsim.commands.validate import LEAST_ROUNDS, Tally, comparisons, rounds_needed
from fedsim.statistics.agreement import agreements, in_cycles
from fedsim.statistics.reading import read_run
from fedsim.theory.fleet import Expectation
from tests.run_folders import write_run


def test_a_cycle_that_was_not_finished_is_left_out() -> None:
    assert in_cycles(np.array([1.0, 3.0, 2.0, 6.0, 100.0]), 2).tolist() == [2.0, 4.0]
    assert in_cycles(np.array([1.0, 3.0]), 3).tolist() == []
    assert in_cycles(np.array([1.0, 3.0]), 1).tolist() == [1.0, 3.0]


def played(folder, times, mean, variance, period, name="round_s"):
    entry = {"quantity": name, "unit": "s", "mean": mean, "variance": variance, "period": period}
    return read_run(write_run(folder, "a", 0, [], round_s=times, expected=[entry], simulated_s=None))


def test_rounds_that_alternate_agree_with_the_mean_of_their_cycle(tmp_path) -> None:
    """1, 3, 1, 3 and a first 1 of a third cycle: 2 in every whole one; as rounds of their own they would be off."""
    (row,) = agreements([played(tmp_path / "a", [1.0, 3.0, 1.0, 3.0, 1.0], 2.0, 0.0, 2)])
    assert (row.deviation.n, row.deviation.is_equal, row.agrees) == (2, True, True)
    (other,) = agreements([played(tmp_path / "b", [1.0, 3.0, 1.0, 3.5, 1.0], 2.0, 0.0, 2)])
    assert not other.agrees
    (alone,) = agreements([played(tmp_path / "c", [1.0, 3.0, 1.0, 3.0], 2.0, 0.0, 1)])
    assert not alone.agrees


def test_the_variance_is_the_periods_times_that_of_a_cycles_mean(tmp_path) -> None:
    """Means 2 and 7 of cycles, each with variance 18 / 2: the standard error of their mean is sqrt(9 / 2)."""
    (row,) = agreements([played(tmp_path, [1.0, 3.0, 4.0, 10.0], 3.0, 18.0, 2)])
    assert row.deviation.simulated == 4.5
    assert row.deviation.standard_error == pytest.approx(np.sqrt(9 / 2))


def test_a_layer_that_is_empty_in_every_second_round_is_no_event(tmp_path) -> None:
    entry = {"quantity": "is_layer_empty", "unit": "1", "layer": 0, "mean": 0.5, "variance": 0.0, "period": 2}
    run = read_run(write_run(tmp_path, "a", 0, [], round_s=[1.0] * 8, expected=[entry], simulated_s=None))
    heard = [0, 3, 4, 3] * 4  # rounds of layers 0 and 1
    (row,) = agreements([replace(run, layers=run.layers.assign(n_contributors=heard))])
    assert row.deviation.is_equal
    (once,) = agreements([replace(run, layers=run.layers.assign(n_contributors=[4, 3, 4, 3, *heard[4:]]))])
    assert once.deviation.is_equal is False


@pytest.mark.parametrize("period", [1, 3, 7])
def test_whole_cycles_are_played(period) -> None:
    n = rounds_needed([Expectation("round_s", "s", 1.0, 1e-6, period=period), Expectation("is_empty", "1", 0.0, 0.0)])
    assert n % period == 0
    assert LEAST_ROUNDS <= n < LEAST_ROUNDS + period


def compared(times, one):
    tally = Tally(len(times), 4, 2)
    tally.rounds["round_s"][:] = times
    tally.n_closed = len(times)
    return list(comparisons("a", one, tally))


def test_validate_compares_cycles_and_says_so_where_there_is_none() -> None:
    one = Expectation("round_s", "s", 2.0, 0.0, period=2)
    assert [row.agrees for row in compared([1.0, 3.0, 3.0, 1.0], one)] == [True]
    assert [row.agrees for row in compared([1.0, 3.0, 3.0, 1.1], one)] == [False]
    (none,) = compared([1.0], one)
    assert none.no_closed_form == "needs a whole cycle of 2 rounds; got 1"


def test_the_spread_of_cycles_is_compared_as_the_variance_says() -> None:
    """Cycle means 1.5, 0.5, 1.5, 0.5: each is off by 0.5, so that twice the squares are 0.5, exactly the variance."""
    rows = compared([1.0, 2.0, 1.0, 0.0] * 2, Expectation("round_s", "s", 1.0, 0.5, period=2))
    by_name = {row.quantity: row for row in rows}
    assert by_name["round_s"].standard_error == pytest.approx(np.sqrt(0.25 / 4))
    assert by_name["round_s variance"].simulated == pytest.approx(0.5)
    assert by_name["round_s variance"].expected == 0.5


def test_a_run_of_fedlama_agrees_from_the_clock_to_the_report(tmp_path) -> None:
    """A horizon that cuts a cycle; unequal devices drawn for whole cycles, so that its rounds depend on each other."""
    folder = fedsim.run(
        fedsim.from_dict(
            {
                "name": "cycles",
                "train": False,
                "fleet": {
                    "n_devices": 8,
                    "compute": {
                        "step_s": [0.5, 0.7, 1.0, 1.1, 1.5, 2.0, 3.0, 5.0],
                        "task_factor": {"kind": "gamma", "shape": 3.0},
                    },
                    "uplink": {"rate_bits_per_s": 2000},
                    "downlink": {"rate_bits_per_s": 4000},
                },
                "data": {"kind": "gaussian_blobs", "n_samples": 200, "n_features": 4, "n_classes": 2},
                "model": {"kind": "mlp", "widths": [6, 5]},
                "policies": [
                    {"kind": "fedlama", "interval_factor": 3, "relaxed": [0, 2], "n_sampled": 3, "local_steps": 2}
                ],
                "training": {"batch_size": 16, "batches": "with_replacement"},
                "seeds": [1, 2],
                "stop": {"simulated_s": 20_000},
            }
        ),
        out=tmp_path,
    )
    rows = agreements(fedsim.read(folder))
    compared_ones = {row.quantity for row in rows if row.deviation}
    wanted = {
        "round_s",
        "uploaded_bytes",
        "downloaded_bytes",
        "n_contributors",
        "is_layer_empty",
        "weight_sum",
        "used_flops",
    }
    assert wanted <= compared_ones
    assert [row for row in rows if row.agrees is False] == []
