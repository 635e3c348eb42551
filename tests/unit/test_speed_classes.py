"""Which devices are slow and which fast, and what labels they hold: cases by hand, and laws that hold for every fleet."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedsim
from fedsim.run import World
from fedsim.speed_classes import SpeedClasses, mix_accuracy

STEP_S = st.lists(st.sampled_from([0.4, 0.7, 1.0, 1.5, 2.0, 3.0, 4.5, 8.0]), min_size=1, max_size=40).map(np.array)


def classes(*step_s):
    found = SpeedClasses.of(np.array(step_s, dtype=float))
    return found.names, found.of_device.tolist()


def test_devices_that_are_all_alike_are_one_class():
    assert classes(2.0, 2.0, 2.0) == (("all",), [0, 0, 0])


def test_up_to_five_speeds_are_a_class_each_from_the_fastest():
    assert classes(5.0, 1.0, 2.0, 1.0) == (("fastest", "middle", "slowest"), [2, 0, 1, 0])
    names, of_device = classes(5.0, 4.0, 3.0, 2.0, 1.0, 1.0)
    assert names == ("fastest", "second", "third", "fourth", "slowest")
    assert of_device == [4, 3, 2, 1, 0, 0]


def test_six_speeds_are_cut_into_thirds():
    assert classes(6.0, 1.0, 5.0, 2.0, 4.0, 3.0) == (("fastest", "middle", "slowest"), [2, 0, 2, 0, 1, 1])


def test_a_fleet_that_three_does_not_divide_has_its_odd_devices_in_or_around_the_middle():
    assert SpeedClasses.of(np.arange(1.0, 8.0)).n_devices.tolist() == [2, 3, 2]
    assert SpeedClasses.of(np.arange(1.0, 9.0)).n_devices.tolist() == [3, 2, 3]


def test_equally_fast_devices_stay_in_the_third_of_their_middle_rank():
    """Nine of fourteen: their middle is 4.5 of 14, in the first third; the next device's is 9.5, in the last."""
    names, of_device = classes(*[1.0] * 9, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert names == ("fastest", "slowest")
    assert of_device == [0] * 9 + [1] * 5
    assert classes(*[6.0] * 9, 1.0, 2.0, 3.0, 4.0, 5.0)[1] == [1] * 9 + [0] * 5


def test_a_speed_multiplied_in_another_order_is_the_same_speed():
    assert 3 * 0.1 != 0.3
    assert classes(3 * 0.1, 0.3, 0.6) == (("fastest", "slowest"), [0, 0, 1])


@given(STEP_S)
def test_no_device_is_slower_than_one_of_a_slower_class_and_no_class_is_empty(step_s):
    found = SpeedClasses.of(step_s)
    assert (found.n_devices > 0).all()
    assert len(found) == len(found.names) == found.of_device.max() + 1
    assert (len(found) > 1) == (len(set(step_s)) > 1)
    for one, other in zip(range(len(found)), range(1, len(found)), strict=False):
        assert step_s[found.of_device == one].max() < step_s[found.of_device == other].min()


@given(st.integers(6, 200), st.integers(0, 100))
def test_thirds_of_devices_of_different_speeds_are_equal_to_within_one(n, seed):
    found = SpeedClasses.of(np.random.default_rng(seed).permutation(np.arange(1.0, n + 1)))
    assert np.ptp(found.n_devices) <= 1


def test_luck_that_is_drawn_anew_makes_no_classes(tiny):
    compute = {"step_s": 1.0, "task_factor": {"kind": "exponential"}, "step_factor": {"kind": "exponential"}}
    loaded = fedsim.from_dict(tiny(fleet={"n_devices": 5, "compute": compute}))
    assert World.of(loaded, loaded.scenario.seed_sets[0]).speed.names == ("all",)


def test_a_device_is_not_slow_because_its_data_are_many(tiny):
    """Steps over all of a device's rows last longer where there are more; the rate of the device is the same."""
    loaded = fedsim.from_dict(
        tiny(
            fleet={"n_devices": 5, "compute": {"flops_per_s": [1e6, 1e6, 1e6, 2e6, 2e6]}},
            data={"kind": "gaussian_blobs", "n_samples": 100, "partition": {"kind": "iid", "size_sigma": 1.0}},
            training={"local_steps": 1, "batch_size": "all"},
        )
    )
    world = World.of(loaded, loaded.scenario.seed_sets[0]).planned_for(loaded.contenders[0])
    assert len(set(world.weather.unit_s)) == 5
    assert world.speed.of_device.tolist() == [1, 1, 1, 0, 0]
    table = world.devices()
    assert np.array_equal(table["unit_s"], world.weather.unit_s)
    assert table["n_samples"].tolist() == [len(rows) for rows in world.dealt.samples]


# ---- labels ---------------------------------------------------------------------------------------------------------


def test_the_label_mix_of_a_class_counts_every_sample_of_its_devices_once():
    """The fast device holds labels 0, 0, 1; the slow ones 1 and 2, 2, 2, which is a quarter and three quarters."""
    labels = np.array([0, 1, 2, 0, 2, 1, 2])
    samples = [np.array([5]), np.array([0, 1, 3]), np.array([2, 4, 6])]
    shares = SpeedClasses.of(np.array([9.0, 1.0, 9.0])).label_shares(samples, labels, 4)
    assert shares == pytest.approx(np.array([[2 / 3, 1 / 3, 0, 0], [0, 1 / 4, 3 / 4, 0]]))


@given(st.integers(0, 1000), st.integers(1, 6))
def test_the_label_mixes_are_those_counted_one_by_one(seed, n_devices):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 60)
    samples = np.split(rng.permutation(60), np.sort(rng.choice(np.arange(1, 60), n_devices - 1, replace=False)))
    found = SpeedClasses.of(rng.choice([1.0, 2.0, 3.0], n_devices))
    shares = found.label_shares(samples, labels, 5)
    for one in range(len(found)):
        mine = [labels[row] for device, rows in enumerate(samples) if found.of_device[device] == one for row in rows]
        assert shares[one] == pytest.approx([Counter(mine)[label] / len(mine) for label in range(5)])


def test_accuracy_on_a_mix_weighs_each_label_by_its_share():
    assert mix_accuracy(np.array([0.25, 0.75]), np.array([0.8, 0.4])) == pytest.approx(0.5)


def test_accuracy_on_a_mix_is_unknown_where_a_label_of_it_was_never_evaluated():
    accuracy = np.array([0.8, np.nan])
    assert np.isnan(mix_accuracy(np.array([0.99, 0.01]), accuracy))
    assert mix_accuracy(np.array([1.0, 0.0]), accuracy) == 0.8


@given(st.integers(0, 1000))
def test_on_the_mix_of_the_evaluation_rows_themselves_it_is_their_accuracy(seed):
    rng = np.random.default_rng(seed)
    labels, is_right = rng.integers(0, 4, 50), rng.random(50) < 0.7
    held = np.unique(labels)
    by_label = np.full(4, np.nan)
    by_label[held] = [is_right[labels == label].mean() for label in held]
    assert mix_accuracy(np.bincount(labels, minlength=4) / 50, by_label) == pytest.approx(is_right.mean())
