"""What may be known beforehand agrees with what the clock then does."""

import numpy as np
import pytest

from fedsim.delays import Classes, Exponential, Gamma, Lognormal
from fedsim.facts import BatchPlan, ModelShape, Task
from fedsim.protocols import NoClosedForm
from fedsim.timing.fleet import Compute, Fleet, Link, UniformDepth
from fedsim.timing.foresight import Foresight
from fedsim.timing.weather import Weather

# Three layers with forward FLOPs 4, 2, 1 and as many for each gradient: a full step costs 3 x 7 - 4 = 17,
# depth 1 costs 7 + 1 = 8, depth 2 costs 7 + 1 + 1 + 2 = 11 of it.
F = np.array([4.0, 2.0, 1.0])
SHAPE = ModelShape(
    ("a", "b", "c"), np.array([30, 20, 10]), np.array([120, 80, 40]), F, F, F, *[np.array([1, 1, 1])] * 2
)
LINK = Link(rate_bits_per_s=Lognormal(sigma=1.0, median=1e3), latency_s=Exponential(mean=0.1), redrawn="task")


def weather(fleet, plan=None, clock_seed=2):
    plan = plan or BatchPlan(np.full(fleet.n_devices, 10), None)
    return Weather(fleet, SHAPE, plan, fleet_seed=1, clock_seed=clock_seed)


def test_expected_seconds_are_means_over_the_tasks_luck_for_the_device_at_hand():
    """4 standard errors over 4,000 tasks of each of 3 devices."""
    compute = Compute(step_s=(1.0, 2.0, 5.0), task_factor=Gamma(shape=2.0), step_factor=Exponential(mean=0.7))
    of = weather(Fleet(3, compute, LINK, LINK))
    ahead = Foresight(of)
    task, n = Task(n_steps=2, depth=2), 4000
    for device in range(3):
        devices, ordinals = np.full(n, device), np.arange(n)
        steps = of.task_unit_s(devices, ordinals) * of.step_factors(devices, ordinals, 0, 2).sum(axis=1) * 11 / 17
        total = of.download_s(devices, ordinals, of.shape.suffix_bytes[-1]) + steps
        total = total + of.upload_s(devices, ordinals, np.full(n, 2), of.shape.suffix_bytes[2])
        for seen, expected in ((steps, ahead.expected_compute_s), (total, ahead.expected_s)):
            standard_error = seen.std() / np.sqrt(n)
            assert abs(seen.mean() - expected(task, np.array([device]))[0]) < 4 * standard_error


def test_unknown_transfer_times_leave_no_reach_probability():
    of = weather(Fleet(2, downlink=LINK))
    ahead = Foresight(of)
    with pytest.raises(NoClosedForm, match="redrawn for each task"):
        ahead.reach_probability(np.arange(2), 1.0)
    uplink_only = weather(Fleet(2, uplink=LINK))
    assert Foresight(uplink_only).reach_probability(np.arange(2), 1.0).shape == (2, 3)
    with pytest.raises(NoClosedForm, match="redrawn for each task"):
        Foresight(uplink_only).reach_probability(np.arange(2), 1.0, deadline_on="arrival")


def test_a_depth_that_is_reached_exactly_at_the_deadline_is_certain():
    """Download 0.5 s and 11/17 of a step for two layers; on arrival their 120 bytes at 960 bit/s besides."""
    down, up = Link(rate_bits_per_s=3840.0), Link(rate_bits_per_s=960.0)
    of = weather(Fleet(1, Compute(step_s=1.0), uplink=up, downlink=down))
    ahead = Foresight(of)
    reached_s = 0.5 + 11 / 17
    np.testing.assert_array_equal(ahead.reach_probability(np.array([0]), reached_s), [[0.0, 1.0, 1.0]])
    earlier_s = np.nextafter(reached_s, 0)
    np.testing.assert_array_equal(ahead.reach_probability(np.array([0]), earlier_s), [[0.0, 0.0, 1.0]])
    on_arrival = ahead.reach_probability(np.array([0]), reached_s + 1.0, deadline_on="arrival")
    np.testing.assert_array_equal(on_arrival, [[0.0, 1.0, 1.0]])


def test_two_random_factors_reach_a_depth_with_the_probability_that_their_product_allows():
    """task x step factor, both exponential, against 20,000 drawn tasks."""
    of = weather(Fleet(1, Compute(step_s=1.0, task_factor=Exponential(), step_factor=Exponential())))
    ahead = Foresight(of)
    n = 20_000
    devices, ordinals = np.zeros(n, dtype=int), np.arange(n)
    step_s = of.task_unit_s(devices, ordinals) * of.step_factors(devices, ordinals, 0, 1)[:, 0]
    reached = step_s[:, None] * (np.array([17, 11, 8]) / 17) <= 0.8  # from the input
    q = ahead.reach_probability(np.array([0]), 0.8)[0]
    assert (abs(reached.mean(axis=0) - q) < 4 * np.sqrt(q * (1 - q) / n)).all()


@pytest.mark.parametrize("law", [Exponential(mean=1e6), Gamma(shape=0.8, mean=1e6)])
def test_a_rate_that_comes_too_close_to_zero_has_no_mean_transfer_time(law):
    """E[1 / rate] is infinite: a simulated mean would settle nowhere."""
    ahead = Foresight(weather(Fleet(2, uplink=Link(rate_bits_per_s=law, redrawn="task"))))
    with pytest.raises(NoClosedForm, match="infinite mean"):
        ahead.expected_s(Task(), np.arange(2))


def test_a_drawn_depth_arrives_only_if_its_upload_fits_before_the_deadline():
    """Uploads of 40, 120 and 240 bytes at 960 bit/s take 1/3, 1 and 2 s: within 1.5 s two layers at most arrive."""
    compute = Compute(step_s=1.0, depth_law=UniformDepth(lowest=0))
    ahead = Foresight(weather(Fleet(1, compute, uplink=Link(rate_bits_per_s=960.0))))
    np.testing.assert_array_equal(ahead.reach_probability(np.array([0]), 1.5), [[0.25, 0.5, 0.75]])
    on_arrival = ahead.reach_probability(np.array([0]), 1.5, deadline_on="arrival")
    np.testing.assert_array_equal(on_arrival, [[0.0, 0.5, 0.75]])


@pytest.mark.parametrize("is_first", [True, False])
def test_two_factors_of_which_one_is_discrete_are_summed_over_its_values(is_first):
    """P(C E <= x) = sum_i share_i (1 - exp(-x / value_i)), exactly."""
    discrete, values, shares = Classes((0.5, 2.0), (0.25, 0.75)), np.array([0.5, 2.0]), np.array([0.25, 0.75])
    factors = (discrete, Exponential()) if is_first else (Exponential(), discrete)
    compute = Compute(step_s=1.0, task_factor=factors[0], step_factor=factors[1])
    q = Foresight(weather(Fleet(1, compute))).reach_probability(np.array([0]), 0.8)[0]
    x = 0.8 / (np.array([17, 11, 8]) / 17)
    np.testing.assert_allclose(q, -np.expm1(-x[:, None] / values) @ shares, rtol=1e-13)
