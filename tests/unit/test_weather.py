"""Durations by address: the same for every policy, untouched by who else takes part."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.delays import Exponential, Gamma, Lognormal, Pareto
from fedsim.facts import BatchPlan, ModelShape, Task
from fedsim.timing.fleet import Compute, Fleet, Link, UniformDepth
from fedsim.timing.foresight import Foresight
from fedsim.timing.weather import Weather

# Three layers with forward FLOPs 4, 2, 1 and as many for each gradient: a full step costs 3 x 7 - 4 = 17,
# depth 1 costs 7 + 1 = 8, depth 2 costs 7 + 1 + 1 + 2 = 11 of it.
F = np.array([4.0, 2.0, 1.0])
SHAPE = ModelShape(
    ("a", "b", "c"), np.array([30, 20, 10]), np.array([120, 80, 40]), F, F, F, *[np.array([1, 1, 1])] * 2
)
LUCKY = Compute(
    step_s=Lognormal(sigma=0.5),
    device_factor=Gamma(shape=2.0),
    task_factor=Pareto(shape=1.5),
    step_factor=Exponential(),
    layer_factor=Exponential(),
    depth_law=UniformDepth(),
)
LINK = Link(rate_bits_per_s=Lognormal(sigma=1.0, median=1e3), latency_s=Exponential(mean=0.1), redrawn="task")


def weather(fleet, plan=None, clock_seed=2):
    plan = plan or BatchPlan(np.full(fleet.n_devices, 10), None)
    return Weather(fleet, SHAPE, plan, fleet_seed=1, clock_seed=clock_seed)


def durations(of, devices, ordinals):
    """Everything that is drawn, one row per job."""
    columns = [
        of.unit_s[devices],
        of.task_unit_s(devices, ordinals),
        *of.step_factors(devices, ordinals, 0, 5).T,
        *of.layer_costs(devices, ordinals, 3, of.reach_cost[None]).T,
        of.download_s(devices, ordinals, of.shape.suffix_bytes[-1]),
        of.upload_s(devices, ordinals, np.full(len(devices), 2), of.shape.suffix_bytes[2]),
        of.drawn_depth(devices, ordinals),
    ]
    return np.stack(columns, axis=1)


def test_the_same_address_has_the_same_durations_in_any_company():
    of = weather(Fleet(50, LUCKY, LINK, LINK))
    devices, ordinals = np.arange(50), np.arange(50) % 3
    together = durations(of, devices, ordinals)
    np.testing.assert_array_equal(durations(of, devices[7:9], ordinals[7:9]), together[7:9])
    np.testing.assert_array_equal(durations(of, devices[[4, 40]], ordinals[[4, 40]]), together[[4, 40]])


def test_another_device_changes_nobody_elses_draws():
    few, more = (weather(Fleet(n, LUCKY, LINK, LINK)) for n in (20, 21))
    devices, ordinals = np.arange(20), np.full(20, 4)
    np.testing.assert_array_equal(durations(few, devices, ordinals), durations(more, devices, ordinals))


def test_tasks_steps_and_layers_are_drawn_anew_and_devices_once():
    of = weather(Fleet(20, LUCKY, LINK, LINK))
    devices = np.arange(20)
    first, second = (durations(of, devices, np.full(20, ordinal)) for ordinal in (0, 1))
    np.testing.assert_array_equal(first[:, 0], second[:, 0])
    assert (first[:, 1:-1] != second[:, 1:-1]).all()
    assert len(np.unique(first[:, 2:7])) == 100  # one step factor per device and step
    assert (np.diff(of.layer_costs(devices, devices * 0, 0, of.reach_cost[None]), axis=1) > 0).all()


def test_the_clock_seed_draws_tasks_and_the_fleet_seed_devices():
    one, other = (weather(Fleet(20, LUCKY, LINK, LINK), clock_seed=seed) for seed in (2, 3))
    devices, ordinals = np.arange(20), np.zeros(20, dtype=int)
    np.testing.assert_array_equal(one.unit_s, other.unit_s)
    assert (one.task_unit_s(devices, ordinals) != other.task_unit_s(devices, ordinals)).all()


@given(step_s=st.floats(1e-3, 1e3), factor=st.sampled_from([0.25, 2.0, 1024.0]))
def test_doubling_the_base_doubles_every_compute_time(step_s, factor):
    """A power of two, so that it holds to the last bit."""
    plain = replace(LUCKY, step_s=step_s)
    one, other = weather(Fleet(9, plain)), weather(Fleet(9, replace(plain, step_s=factor * step_s)))
    devices, ordinals = np.arange(9), np.arange(9)
    task = Task(n_steps=3, depth=2)
    np.testing.assert_array_equal(other.task_unit_s(devices, ordinals), factor * one.task_unit_s(devices, ordinals))
    np.testing.assert_array_equal(
        other.layer_costs(devices, ordinals, 0, other.reach_cost[None]),
        one.layer_costs(devices, ordinals, 0, one.reach_cost[None]),
    )
    one, other = (weather(Fleet(9, replace(w.fleet.compute, task_factor=None))) for w in (one, other))
    np.testing.assert_array_equal(
        Foresight(other).expected_compute_s(task, devices),
        factor * Foresight(one).expected_compute_s(task, devices),
    )


def test_a_step_is_shared_by_flops_forward_first():
    np.testing.assert_allclose(weather(Fleet(1)).reach_cost, np.array([7, 8, 11, 17]) / 17, rtol=1e-15)


def test_a_backward_factor_stretches_the_backward_pass_only():
    """Forward 7, backward 1, 4, 10 times 3."""
    of = weather(Fleet(1, Compute(step_s=1.0, backward_factor=3.0)))
    np.testing.assert_allclose(of.reach_cost, np.array([7, 10, 19, 37]) / 37, rtol=1e-15)
    flops = weather(Fleet(1, Compute(flops_per_s=2.0, backward_factor=3.0)))
    assert flops.unit_s == pytest.approx([37 * 10 / 2.0])


def test_stated_layer_times_count_from_the_output_after_the_forward_pass():
    of = weather(Fleet(2, Compute(layer_s=(4.0, 2.0, 1.0), forward_s=3.0, device_factor=(1.0, 2.0))))
    np.testing.assert_allclose(of.unit_s[:, None] * of.reach_cost, [[3, 4, 6, 10], [6, 8, 12, 20]], rtol=1e-15)


def test_layer_factors_stretch_the_backward_pass_of_their_own_layer():
    """Without luck in the forward pass nothing can be reached before it: 7/17 of a step."""
    of = weather(Fleet(500, Compute(step_s=1.0, layer_factor=Exponential())))
    costs = of.layer_costs(np.arange(500), np.zeros(500, dtype=int), 0, of.reach_cost[None])
    own = np.diff(np.concatenate([np.full((500, 1), 7 / 17), costs], axis=1), axis=1) / (np.array([1, 3, 6]) / 17)
    assert own.min() > 0
    assert len(np.unique(own)) == own.size  # every layer its own draw
    assert (abs(own.mean(axis=0) - 1) < 4 / np.sqrt(500)).all()  # exponentials of mean and deviation 1


def test_transfers_take_latency_and_bits_over_rate_and_a_suffix_only_its_own():
    link = Link(rate_bits_per_s=(80.0, 160.0), latency_s=0.5)
    of = weather(Fleet(2, uplink=link, downlink=link))
    devices, ordinals = np.arange(2), np.zeros(2, dtype=int)
    np.testing.assert_allclose(
        of.download_s(devices, ordinals, of.shape.suffix_bytes[-1]), [0.5 + 8 * 240 / 80, 0.5 + 8 * 240 / 160]
    )
    np.testing.assert_allclose(
        of.upload_s(devices, ordinals, np.array([1, 2]), of.shape.suffix_bytes[[1, 2]]),
        [0.5 + 8 * 40 / 80, 0.5 + 8 * 120 / 160],
    )
    np.testing.assert_array_equal(of.upload_s(devices, ordinals, np.array([0, 0]), np.array([0, 0])), 0.0)


def test_a_link_drawn_per_device_keeps_its_rate():
    of = weather(Fleet(5, uplink=replace(LINK, redrawn="device")))
    devices, depth = np.arange(5), np.full(5, 3)
    one, other = (of.upload_s(devices, np.full(5, ordinal), depth, of.shape.suffix_bytes[depth]) for ordinal in (0, 1))
    np.testing.assert_array_equal(one, other)
    assert len(np.unique(one)) == 5


def test_a_smaller_last_batch_takes_its_share_of_a_step():
    """10 samples in batches of 4: steps of 4, 4 and 2 rows, over and over."""
    of = weather(Fleet(1), BatchPlan(np.array([10]), 4))
    np.testing.assert_allclose(of.step_factors(np.array([0]), np.array([0]), 0, 6), [[1, 1, 0.5, 1, 1, 0.5]])
    assert Foresight(of).expected_compute_s(Task(n_steps=3), np.array([0])) == pytest.approx([2.5])
