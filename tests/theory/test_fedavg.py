"""Round times of FedAvg with sampling and over-selection, against enumeration and plain NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest

from fedsim.delays import Classes, Exponential, Gamma
from fedsim.protocols import NoClosedForm
from fedsim.theory import fedavg, k_sync
from fedsim.theory.counts import rank_pmf
from fedsim.theory.fleet import Expectation
from tests.theory.stories import assert_agree, fleet, whole_tasks


@dataclass(frozen=True)
class Policy:
    local_steps: int = 5
    n_sampled: int | None = None
    over_selected: int = 0


def test_the_slowest_of_twenty_takes_ten_steps_in_1678_percent() -> None:
    """M = K = 20, U = 10: 16.776 mean steps."""
    assert fedavg.round_time(20, 10, Exponential()).mean_s == pytest.approx(16.776, abs=5e-4)


def test_the_level_of_the_luck_decides() -> None:
    """Slow tasks: U H_M. Slow steps: far less, for the same law of one step."""
    by_task = fedavg.round_time(15, 4, 1.0, task_factor=Exponential())
    assert by_task.mean_s == pytest.approx(4 * k_sync.harmonic(15, 15)[0], rel=1e-11)
    assert by_task.mean_s > 1.5 * fedavg.round_time(15, 4, Exponential()).mean_s


def test_over_selection_is_an_order_statistic_of_those_asked() -> None:
    found = fedavg.round_time(25, 1, Exponential(), n_sampled=8, over_selected=2)
    assert found.mean_s == pytest.approx(k_sync.harmonic(10, 8)[0], rel=1e-12)
    assert fedavg.n_to_ask(8, 0.25) == 10
    assert fedavg.n_to_ask(10, 0.1) == 11  # 11.000000000000002 in binary
    assert fedavg.n_to_ask(7, 0.3) == 10


@pytest.mark.parametrize(("n", "k"), [(1, 1), (4, 2), (4, 4), (7, 3)])
def test_fixed_times_make_the_rank_hypergeometric(n: int, k: int) -> None:
    """All subsets, enumerated; and the same through the round time."""
    times = np.array([0.5, 1.0, 1.5, 2.0, 4.0, 4.5, 8.0])
    ranks = [sorted(s)[k - 1] for s in combinations(range(7), n)]
    expected = np.bincount(ranks, minlength=7) / len(ranks)
    np.testing.assert_allclose(rank_pmf(7, n, k), expected, atol=1e-14)
    found = fedavg.round_time(7, 1, 1.0, n_sampled=k, over_selected=n - k, device_factor=times.tolist())
    assert found.mean_s == pytest.approx(float(expected @ times), rel=1e-12)
    assert found.variance_s2 == pytest.approx(float(expected @ times**2 - (expected @ times) ** 2), rel=1e-10)


def test_ten_thousand_fixed_devices_are_no_trouble() -> None:
    times = np.linspace(1.0, 5.0, 10_000)
    found = fedavg.round_time(10_000, 1, 1.0, n_sampled=100, device_factor=times.tolist())
    # The largest of 100 of 1 ... 10,000: 100 x 10,001 / 101.
    expected = 1.0 + 4.0 * (100 * 10_001 / 101 - 1) / 9_999
    assert found.mean_s == pytest.approx(expected, rel=1e-9)


def test_sampling_a_fixed_fleet_is_not_drawing_new_speeds() -> None:
    """Six devices, five asked: the law of a mixture over six-device subsets, not of five independent draws."""
    factors = [0.5, 0.5, 0.5, 0.5, 0.5, 5.0]
    fixed = fedavg.round_time(6, 2, Exponential(), n_sampled=5, device_factor=factors)
    redrawn = fedavg.round_time(5, 2, Exponential(), task_factor=Classes(values=(0.5, 5.0), shares=(5 / 6, 1 / 6)))
    slow = [fedavg.round_time(5, 2, Exponential(), device_factor=[0.5] * 4 + [f]).mean_s for f in (0.5, 5.0)]
    assert fixed.mean_s == pytest.approx(slow[0] / 6 + slow[1] * 5 / 6, rel=1e-9)
    assert abs(redrawn.mean_s / fixed.mean_s - 1) > 0.1


@pytest.mark.parametrize(("k", "over"), [(4, 0), (2, 2), (4, 1)])
def test_rounds_of_unequal_devices_and_links(k: int, over: int) -> None:
    on = fleet(
        [0.5, 0.8, 1.0, 2.0, 3.0],
        download_s=[0.1, 0.4, 0.2, 0.3, 0.1],
        latency_s=[0.3, 0.1, 0.2, 0.5, 0.4],
        n_rows=[16, 16, 8, 16, 32],
        step_factor=Gamma(shape=2.0),
    )
    found = fedavg.expected(Policy(3, k, over), on)
    assert_agree(found, whole_tasks(on, 3, k + over, k, 60_000, seed=10 * k + over))


def test_rounds_in_which_everybody_is_asked() -> None:
    on = fleet([0.5, 1.0, 1.0, 2.0], latency_s=0.2, task_factor=Gamma(shape=2.0), step_factor=Exponential())
    assert_agree(fedavg.expected(Policy(2), on), whole_tasks(on, 2, 4, 4, 60_000, seed=5))


def test_rounds_of_constant_devices_that_are_sampled() -> None:
    on = fleet([0.5, 1.0, 1.5, 2.0], latency_s=[0.9, 0.1, 0.2, 0.3])
    assert_agree(fedavg.expected(Policy(2, 2, 1), on), whole_tasks(on, 2, 3, 2, 60_000, seed=6))


def test_a_large_sample_of_many_unequal_devices_is_refused() -> None:
    on = fleet(np.linspace(1, 2, 400).tolist(), step_factor=Exponential())
    found: dict[str, Expectation] = {one.quantity: one for one in fedavg.expected(Policy(1, 150, 150), on)}
    assert "are drawn from 400 unequal ones" in (found["round_s"].reason or "")
    assert found["n_contributions"].mean == 150.0
    with pytest.raises(NoClosedForm):
        _ = fedavg.round_time(
            400, 1, Exponential(), n_sampled=150, over_selected=150, device_factor=np.linspace(1, 2, 400).tolist()
        ).mean_s


def test_more_than_the_fleet_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match="ask at most 4"):
        fedavg.round_time(4, 1, 1.0, n_sampled=3, over_selected=2)
