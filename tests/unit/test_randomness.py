"""Addressed luck: one number per (seed, purpose, device, task, step, lane), whoever asks, whenever."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsim.randomness import Luck, drawn, permuted


@given(
    devices=st.lists(st.integers(0, 3000), min_size=1, max_size=40, unique=True),
    task=st.integers(0, 10**6),
    step=st.integers(0, 10**6),
    lane=st.integers(0, 50),
)
def test_a_pair_looked_up_alone_is_its_entry_in_the_row(devices, task, step, lane):
    luck = Luck(5, "steps")
    row = luck.row(3001, task=task, step=step, lane=lane)
    found = luck.at(np.array(devices), np.full(len(devices), task), step=step, lane=lane)
    np.testing.assert_array_equal(found, row[devices])


def test_pairs_of_different_tasks_are_looked_up_each_in_its_own_row():
    luck = Luck(5, "steps")
    tasks = np.array([3, 0, 3, 7])
    devices = np.array([2, 9, 0, 9])
    rows = {task: luck.row(10, task=task, step=4) for task in (0, 3, 7)}
    expected = [rows[task][device] for device, task in zip(devices.tolist(), tasks.tolist(), strict=True)]
    np.testing.assert_array_equal(luck.at(devices, tasks, step=4), expected)


def test_a_few_devices_of_a_huge_fleet_have_the_draws_of_the_row():
    """They are looked up one by one instead of through the row between them."""
    luck = Luck(1, "steps")
    devices = np.array([1, 70_001, 200_002, 299_999])
    np.testing.assert_array_equal(luck.at(devices, np.full(4, 2)), luck.row(300_000, task=2)[devices])


def test_more_devices_do_not_change_the_draws_of_the_others():
    luck = Luck(8, "device_factor")
    np.testing.assert_array_equal(luck.row(1000)[:37], luck.row(37))


def test_what_was_asked_before_does_not_matter():
    asked_before, fresh = Luck(8, "steps"), Luck(8, "steps")
    asked_before.row(13, task=1)
    asked_before.generator(4).random(3)
    np.testing.assert_array_equal(asked_before.row(50, task=2), fresh.row(50, task=2))
    np.testing.assert_array_equal(asked_before.generator(4).random(3), fresh.generator(4).random(3))


@pytest.mark.parametrize(
    ("other", "address"),
    [
        (Luck(4, "steps"), {}),
        (Luck(3, "tasks"), {}),
        (Luck(3, "steps"), {"task": 1}),
        (Luck(3, "steps"), {"step": 1}),
        (Luck(3, "steps"), {"lane": 1}),
    ],
    ids=["seed", "purpose", "task", "step", "lane"],
)
def test_every_part_of_an_address_matters(other, address):
    """Independent rows: the correlation of n pairs has standard deviation 1 / sqrt(n)."""
    n = 40_000
    one, two = Luck(3, "steps").row(n), other.row(n, **address)
    assert not np.isin(one, two).any()
    assert abs(np.corrcoef(one, two)[0, 1]) < 4 / np.sqrt(n)


def test_neighbouring_steps_and_devices_are_uncorrelated():
    luck = Luck(11, "steps")
    table = np.stack([luck.row(500, step=step) for step in range(200)])
    for one, two in ((table[1:], table[:-1]), (table[:, 1:], table[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 4 / np.sqrt(one.size)


def test_draws_are_uniform():
    """Kolmogorov's distance of n draws exceeds 2.28 / sqrt(n) with probability 2 exp(-2 2.28^2) = 6e-5."""
    n = 100_000
    assert stats.kstest(Luck(2, "steps").row(n), "uniform").statistic < 2.28 / np.sqrt(n)


def test_draws_lie_strictly_between_zero_and_one(monkeypatch):
    """Zero, which an inverse cdf may turn into infinity, comes once in 2^53 draws: so it is forced here."""

    class Zeros:
        def random(self, n):
            return np.zeros(n)

    monkeypatch.setattr(Luck, "_at", lambda self, *counter: Zeros())
    luck = Luck(0, "steps")
    assert (luck.row(3) > 0).all()
    assert (luck.at(np.array([0, 10**9]), np.array([0, 0])) > 0).all()
    monkeypatch.undo()
    assert Luck(0, "steps").row(10**6).max() < 1


def test_nobody_draws_nothing():
    assert Luck(0, "steps").at(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)).shape == (0,)
    assert Luck(0, "steps").row(0).shape == (0,)


def test_generators_differ_by_address_and_from_the_rows():
    luck = Luck(6, "batches")
    streams = [luck.generator(*address).random(1000) for address in ((), (1,), (0, 1), (0, 0, 1))]
    streams += [luck.row(1000), luck.row(1000, step=1), luck.row(1000, task=1), luck.row(1000, lane=1)]
    assert len(np.unique(np.concatenate(streams))) == 8000


def test_an_address_has_at_most_three_numbers():
    with pytest.raises(ValueError, match="at most three numbers"):
        Luck(0, "batches").generator(1, 2, 3, 4)


# ---- permutations ---------------------------------------------------------------------------------------------------


def keys(n, task=0):
    return Luck(11, "batches").keys(np.arange(n), np.full(n, task))


@given(n=st.integers(1, 700), key=st.integers(0, 2**53 - 1))
def test_a_keyed_permutation_visits_every_position_once(n, key):
    found = permuted(np.arange(n), np.full(n, n), np.full(n, key, dtype=np.uint64))
    assert np.array_equal(np.sort(found), np.arange(n))


def test_any_positions_of_any_permutations_may_be_asked_for_in_any_order():
    n, key = np.array([5, 600, 17, 600, 1]), keys(5)
    whole = [permuted(np.arange(m), np.full(m, m), np.full(m, k)) for m, k in zip(n, key, strict=True)]
    positions = np.array([4, 599, 0, 3, 0])
    order = np.array([3, 0, 4, 1, 2])
    found = permuted(positions[order], n[order], key[order])
    assert found.tolist() == [int(whole[i][positions[i]]) for i in order]


@pytest.mark.parametrize("n", [3, 4])
def test_every_permutation_of_a_few_is_equally_likely(n):
    n_keys = 24_000
    found = permuted(np.tile(np.arange(n), n_keys), np.full(n * n_keys, n), np.repeat(keys(n_keys), n))
    _, counts = np.unique(found.reshape(n_keys, n), axis=0, return_counts=True)
    assert len(counts) == {3: 6, 4: 24}[n]
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("n", [5, 9, 16, 30, 60])
@pytest.mark.parametrize(("i", "j"), [(0, 1), (0, 4), (2, 3)])
def test_every_pair_of_samples_is_equally_likely_at_two_positions(n, i, j):
    n_keys = 30 * n * n
    at = np.tile([i, j], n_keys)
    found = permuted(at, np.full(2 * n_keys, n), np.repeat(keys(n_keys, task=1), 2)).reshape(n_keys, 2)
    counts = np.bincount(found[:, 0] * n + found[:, 1], minlength=n * n).reshape(n, n)
    assert not counts.diagonal().any()
    assert stats.chisquare(counts[~np.eye(n, dtype=bool)]).pvalue > 1e-4


def test_draws_with_replacement_are_uniform_and_independent_between_positions():
    n, n_keys = 12, 20_000
    found = drawn(np.tile([0, 1], n_keys), np.full(2 * n_keys, n), np.repeat(keys(n_keys), 2)).reshape(n_keys, 2)
    counts = np.bincount(found[:, 0] * n + found[:, 1], minlength=n * n)
    assert stats.chisquare(counts).pvalue > 1e-4


def test_permutations_of_different_devices_tasks_and_epochs_differ():
    luck, devices = Luck(11, "batches"), np.arange(50)
    found = [luck.keys(devices, np.full(50, task), step=epoch) for task in (0, 1) for epoch in (0, 1)]
    assert len(np.unique(np.concatenate(found))) == 200
