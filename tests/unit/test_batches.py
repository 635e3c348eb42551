"""Which samples a step sees: every epoch is a permutation, and it does not matter who asks for what together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.randomness import Luck
from fedsim.training.batches import Batches, plan_of

SAMPLES = [np.array([3, 7, 9]), np.arange(10, 21), np.array([40]), np.arange(100, 116)]


def batches(size=4, how="epochs"):
    return Batches(plan_of(SAMPLES, size, how), SAMPLES, Luck(2, "batches"))


@pytest.mark.parametrize("epoch", [0, 1, 5])
@pytest.mark.parametrize("device", range(4))
def test_the_steps_of_an_epoch_see_every_sample_once(device, epoch):
    at, n = batches(), len(SAMPLES[device])
    n_steps = -(-n // 4)
    seen = [at.rows(device, 3, epoch * n_steps + i) for i in range(n_steps)]
    assert np.array_equal(np.sort(np.concatenate(seen)), SAMPLES[device])
    assert [len(rows) for rows in seen[:-1]] == [4] * (n_steps - 1)


def test_epochs_tasks_and_devices_are_shuffled_apart():
    at = batches(size=16)
    orders = [tuple(at.rows(3, task, epoch)) for task in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


@given(
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=12),
    how=st.sampled_from(["epochs", "with_replacement"]),
    size=st.sampled_from([1, 4, 16, "all"]),
)
def test_asking_together_gives_what_asking_alone_gives(steps, how, size):
    at = batches(size, how)
    device, ordinal, step = (np.array(column) for column in zip(*steps, strict=True))
    rows, n_rows = at.of_steps(device, ordinal, step)
    alone = [at.rows(*one) for one in steps]
    assert n_rows.tolist() == [len(one) for one in alone]
    assert np.array_equal(rows, np.concatenate(alone))
    assert np.array_equal(n_rows, [at.plan.rows(np.array([d]), s, 1)[0, 0] for d, _, s in steps])


def test_draws_with_replacement_are_the_devices_own_samples():
    at = batches(size=50, how="with_replacement")
    rows = at.rows(1, 0, 0)
    assert len(rows) == 50
    assert set(rows.tolist()) <= set(SAMPLES[1].tolist())
    assert len(set(rows.tolist())) > 5
