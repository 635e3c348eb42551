"""What is finished when: whole steps, then layers from the output; exact at ties, monotone in time.

The fleets cover every way in which a step's length comes about: fixed, with a smaller last batch of an epoch, drawn per
step, drawn per layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedsim
from fedsim import weights
from fedsim.delays import Exponential, Pareto
from fedsim.facts import BatchPlan, ModelShape, Task
from fedsim.protocols import Server, Setting, arrivals, elapsed
from fedsim.run import simulate
from fedsim.timing.fleet import Compute, Fleet, Link, UniformDepth
from fedsim.timing.milestones import Work
from fedsim.timing.weather import Weather

# Forward FLOPs 448, 320 and 896 as in a perceptron whose full step costs 4096: depths take 31/64, 43/64 and all of it.
F = np.array([896.0, 448.0, 320.0])
SHAPE = ModelShape(("a", "b", "c"), np.array([8, 4, 2]), np.array([32, 16, 8]), F, F, F, *[np.array([1, 1, 1])] * 2)
N = 6

DOWNLINK = Link(rate_bits_per_s=1e3, latency_s=0.1)
COMPUTES = {
    "fixed": Compute(step_s=(0.3, 0.7, 1.0, 1.1, 2.3, 0.9)),
    "per task": Compute(step_s=0.7, task_factor=Pareto(shape=1.5)),
    "per step": Compute(step_s=0.7, step_factor=Exponential()),
    "per layer": Compute(step_s=0.7, layer_factor=Exponential()),
    "per step and layer": Compute(step_s=0.7, step_factor=Exponential(), layer_factor=Exponential()),
    "depth law": Compute(step_s=0.7, depth_law=UniformDepth()),
}
PLANS = {"even": BatchPlan(np.full(N, 10), None), "last batch smaller": BatchPlan(np.array([10, 9, 8, 5, 3, 1]), 4)}
fleets = pytest.mark.parametrize("compute", COMPUTES)
timed_fleets = pytest.mark.parametrize("compute", [name for name in COMPUTES if name != "depth law"])
plans = pytest.mark.parametrize("plan", PLANS)
EVERYONE = np.arange(N)


def work(compute="fixed", plan="even", task=None, ordinal=0):
    weather = Weather(Fleet(N, COMPUTES[compute], downlink=DOWNLINK), SHAPE, PLANS[plan], fleet_seed=1, clock_seed=2)
    return Work.start(weather, task or Task(n_steps=None, unit="layer"), EVERYONE, np.full(N, ordinal))


def done_at(of, elapsed_s):
    """Steps and layers of the next, `[job]` each, after the same time for all."""
    found = of.progress(EVERYONE, np.broadcast_to(np.float64(elapsed_s), N).copy())
    return found.n_steps, found.partial_depth


# ---- more time never means less -------------------------------------------------------------------------------------


@fleets
@plans
@given(
    times=st.tuples(st.floats(0.0, 30.0), st.floats(0.0, 30.0)),
    ordinal=st.integers(0, 50),
    depth=st.sampled_from([None, 1, 2, 3]),
    n_steps=st.sampled_from([None, 1, 4]),
    unit=st.sampled_from(["step", "layer"]),
)
def test_more_time_never_means_less_progress(compute, plan, times, ordinal, depth, n_steps, unit):
    of = work(compute, plan, Task(n_steps=n_steps, depth=depth, unit=unit), ordinal)
    earlier, later = (done_at(of, each) for each in sorted(times))
    # Layers of the next step count less than a step: compare as steps and quarters.
    assert (4 * later[0] + later[1] >= 4 * earlier[0] + earlier[1]).all()
    assert (later[1] < (depth or 3)).all()  # all layers of a step are a step
    assert n_steps is None or (later[0] <= n_steps).all()


@timed_fleets
@plans
@given(elapsed_s=st.floats(0.0, 20.0), ordinal=st.integers(0, 50))
def test_the_share_of_a_step_grows_with_time_within_zero_and_one(compute, plan, elapsed_s, ordinal):
    of = work(compute, plan, ordinal=ordinal)
    shares = [of.progress(EVERYONE, np.full(N, t)) for t in (elapsed_s, elapsed_s + 0.01)]
    now, later = (p.n_steps + p.step_share for p in shares)
    assert (later >= now).all()
    assert all(((p.step_share >= 0) & (p.step_share <= 1)).all() for p in shares)


# ---- exact ties -----------------------------------------------------------------------------------------------------


@timed_fleets
@plans
@given(n_steps=st.integers(1, 80), ordinal=st.integers(0, 20))
def test_a_step_that_ends_exactly_now_counts_and_a_moment_earlier_does_not(compute, plan, n_steps, ordinal):
    of = work(compute, plan, ordinal=ordinal)
    ends_s = of.step_end_s(n_steps)
    np.testing.assert_array_equal(of.progress(EVERYONE, ends_s).n_steps, n_steps)
    np.testing.assert_array_equal(of.progress(EVERYONE, np.nextafter(ends_s, 0)).n_steps, n_steps - 1)


def test_a_layer_that_is_done_exactly_now_counts_and_a_moment_earlier_does_not():
    """Depth d of the first step is done at download + step x (31, 43 or 64) / 64."""
    of = work()
    ready_s = 0.1 + 8 * 56 / 1e3
    np.testing.assert_allclose(of.ready_s, ready_s)
    for depth, share in ((1, 31 / 64), (2, 43 / 64)):
        at_s = of.ready_s + np.array(COMPUTES["fixed"].step_s) * share
        np.testing.assert_array_equal(of.progress(EVERYONE, at_s).partial_depth, depth)
        np.testing.assert_array_equal(of.progress(EVERYONE, np.nextafter(at_s, 0)).partial_depth, depth - 1)


def test_nothing_is_done_before_the_forward_pass_is_over():
    """26/64 of a step are the forward pass, 31/64 are needed for the output layer."""
    of = work()
    for share in (0.0, 26 / 64, 30.9 / 64):
        assert not done_at(of, of.ready_s + np.array(COMPUTES["fixed"].step_s) * share)[1].any()
    assert not any(column.any() for column in done_at(of, 0.0))


@dataclass(frozen=True)
class TiesAtAnyHour:
    """From 100,000.1 s on, deadlines that one of the devices meets to the bit. counts: (deadline, who was in time)."""

    deadlines_s: tuple[float, ...]
    on_arrival: bool
    counts: list[tuple[float, list[int]]] = field(default_factory=list, init=False, compare=False)

    source: ClassVar[str] = "this test"

    def problems(self, setting: Setting) -> list[str]:
        return []

    def rounds(self, server: Server) -> Iterator[Any]:
        jobs = server.send(server.sample(), Task(n_steps=None))
        yield from server.wait(jobs, elapsed(100_000.1))
        server.cancel(jobs)
        for deadline_s in self.deadlines_s:
            jobs = server.send(server.sample(), Task(n_steps=1 if self.on_arrival else None))
            yield from server.wait(jobs, elapsed(deadline_s))
            if self.on_arrival:
                arrived = server.take(jobs)
                server.cancel(jobs)
            else:
                server.stop(jobs)
                arrived = yield from server.collect(jobs)
            self.counts.append((deadline_s, arrived.device.tolist()))
            server.aggregate(arrived, weights.layer_mean(arrived))


@pytest.mark.parametrize("on_arrival", [False, True])
def test_ties_are_exact_at_any_hour(on_arrival):
    """(start + deadline) - start misses a good part of these at 1e5 s."""
    steps_s = [0.1 * i for i in range(1, 31)]
    latency_s = 0.07 if on_arrival else 0.0
    policy = TiesAtAnyHour(tuple(step_s + latency_s for step_s in steps_s), on_arrival)
    loaded = fedsim.from_dict(
        {
            "name": "ties",
            "fleet": {
                "n_devices": 30,
                "compute": {"step_s": steps_s},
                "uplink": {"rate_bits_per_s": 1e300, "latency_s": latency_s},
            },
            "model": {"kind": "mlp", "widths": []},
            "data": {"kind": "gaussian_blobs", "n_samples": 300},
            "training": {"batch_size": "all"},
            "policies": [{"kind": "fedavg"}],
            "stop": {"n_rounds": 30},
            "train": False,
        }
    ).with_policies([policy])
    result = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])
    assert result.tables["rounds"]["start_s"][1] > 100_000
    for i, (_, in_time) in enumerate(policy.counts):
        assert in_time == list(range(i + 1))
    assert len(policy.counts) == 30


def test_first_come_conditions_are_exact_at_any_hour_too():
    """Waiting for the k-th arrival at 1e5 s takes those k, not k - 1 for a lost bit."""

    @dataclass(frozen=True)
    class FirstK:
        counts: list[int] = field(default_factory=list, init=False, compare=False)
        source: ClassVar[str] = "this test"

        def problems(self, setting: Setting) -> list[str]:
            return []

        def rounds(self, server: Server) -> Iterator[Any]:
            jobs = server.send(server.sample(), Task(n_steps=None))
            yield from server.wait(jobs, elapsed(100_000.1))
            server.cancel(jobs)
            for k in range(1, 31):
                jobs = server.send(server.sample(), Task(n_steps=1))
                yield from server.wait(jobs, arrivals(k))
                arrived = server.take(jobs)
                server.cancel(jobs)
                self.counts.append(len(arrived))
                server.aggregate(arrived, weights.mean(arrived))

    policy = FirstK()
    loaded = fedsim.from_dict(
        {
            "name": "first",
            "fleet": {"n_devices": 30, "compute": {"step_s": [0.1 * i for i in range(1, 31)]}},
            "model": {"kind": "mlp", "widths": []},
            "data": {"kind": "gaussian_blobs", "n_samples": 300},
            "training": {"batch_size": "all"},
            "policies": [{"kind": "fedavg"}],
            "stop": {"n_rounds": 30},
            "train": False,
        }
    ).with_policies([policy])
    simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])
    assert policy.counts == list(range(1, 31))


# ---- asked in one block or in many ----------------------------------------------------------------------------------


@timed_fleets
@plans
def test_a_step_ends_at_the_same_bit_however_it_is_asked(compute, plan):
    """In order, backwards, alone, or in the course of a job that runs long: blocks must not change the sums."""
    in_order, backwards = work(compute, plan), work(compute, plan)
    counts = [*range(1, 12), 31, 32, 33, 64, 65, 70]
    forward = np.stack([in_order.step_end_s(n) for n in counts])
    backward = np.stack([backwards.step_end_s(n) for n in reversed(counts)])[::-1]
    alone = np.stack([work(compute, plan).step_end_s(n) for n in counts])
    np.testing.assert_array_equal(forward, backward)
    np.testing.assert_array_equal(forward, alone)
    few = np.array([1, 4])
    for n, ends_s in zip(counts, forward, strict=True):
        np.testing.assert_array_equal(work(compute, plan).progress(EVERYONE, ends_s).n_steps, n)
        np.testing.assert_array_equal(work(compute, plan).progress(few, ends_s[few]).n_steps, n)


@timed_fleets
@plans
@pytest.mark.parametrize("n", [1, 5, 6, 7, 40, 333])
def test_the_nth_step_of_all_together_is_when_n_are_done(compute, plan, n):
    of = work(compute, plan)
    at_s = of.nth_step_s(n)
    assert done_at(of, at_s)[0].sum() >= n
    assert done_at(of, np.nextafter(at_s, 0))[0].sum() < n


def test_steps_beyond_the_cap_never_end():
    of = work(task=Task(n_steps=3))
    assert np.isfinite(of.step_end_s(3)).all()
    assert np.isinf(of.step_end_s(4)).all()
    assert np.isfinite(of.nth_step_s(3 * N))
    assert np.isinf(of.nth_step_s(3 * N + 1))
    np.testing.assert_array_equal(of.finished_s(), of.step_end_s(3))
    assert np.isinf(work().finished_s()).all()


# ---- charged by what is computed ------------------------------------------------------------------------------------


def test_a_partial_last_batch_is_charged_by_its_rows():
    """Ten samples in batches of four: 4, 4, 2, then the next epoch; one sample: a quarter of a step each time."""
    of = work(plan="last batch smaller")
    step_s = np.array(COMPUTES["fixed"].step_s)
    rows = {0: [4, 4, 2, 4, 4, 2], 1: [4, 4, 1] * 2, 2: [4, 4] * 3, 3: [4, 1] * 3, 4: [3] * 6, 5: [1] * 6}
    for n in range(1, 7):
        done = np.array([sum(rows[device][:n]) for device in range(N)])
        np.testing.assert_allclose(of.step_end_s(n), of.ready_s + step_s * done / 4, rtol=1e-14)


def test_a_partial_last_batch_reaches_its_layers_sooner():
    """The third step of device 0 has 2 of 4 rows: half as long."""
    of = work(plan="last batch smaller")
    at_s = of.step_end_s(2)[0] + 0.3 * 0.5 * (31.5 / 64)
    found = of.progress(np.array([0]), np.array([at_s]))
    assert (found.n_steps[0], found.partial_depth[0]) == (2, 1)
    assert found.step_share[0] == pytest.approx(31.5 / 64)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_fewer_layers_take_their_share_of_every_step(depth):
    of, full = work(task=Task(n_steps=4, depth=depth)), work(task=Task(n_steps=4))
    share = {1: 31 / 64, 2: 43 / 64, 3: 1.0}[depth]
    np.testing.assert_allclose(of.step_end_s(4) - of.ready_s, share * (full.step_end_s(4) - full.ready_s), rtol=1e-14)


def test_every_device_may_have_a_depth_of_its_own():
    depths = np.array([1, 2, 3, 1, 2, 3])
    of = work(task=Task(n_steps=2, depth=depths))
    shares = np.array([31, 43, 64, 31, 43, 64]) / 64
    expected_s = of.ready_s + 2 * np.array(COMPUTES["fixed"].step_s) * shares
    np.testing.assert_allclose(of.step_end_s(2), expected_s, rtol=1e-14)


def test_a_drawn_depth_does_not_depend_on_the_time():
    early, late = (done_at(work("depth law"), t) for t in (0.01, 100.0))
    capped = work("depth law", task=Task(n_steps=1, unit="layer"))
    np.testing.assert_array_equal(early[1] + 3 * early[0], late[1] + 3 * late[0])
    drawn = np.concatenate([np.add(3 * a, b) for a, b in (done_at(capped, t) for t in (0.01, 100.0))])
    assert set(drawn) <= {0, 1, 2, 3}


def test_the_latest_depth_that_still_arrives_counts_its_own_upload():
    """Suffixes of 8, 24 and 56 bytes at 100 bit/s: 0.64, 1.92 and 4.48 s; the deadline hits depth 2 of device 2 exactly."""
    uplink = Link(rate_bits_per_s=100.0)
    fleet = Fleet(N, COMPUTES["fixed"], uplink=uplink)
    weather = Weather(fleet, SHAPE, PLANS["even"], fleet_seed=1, clock_seed=2)
    deadline_s = 1.0 * (43 / 64) + 1.92
    of = Work.start(weather, Task(unit="layer", arrive_within_s=deadline_s), EVERYONE, np.zeros(N, dtype=np.int64))
    progress, _, arrived_s = of.latest_in_time(EVERYONE, deadline_s)
    np.testing.assert_array_equal(progress.n_steps, 0)
    np.testing.assert_array_equal(progress.partial_depth, [2, 2, 2, 1, 1, 2])
    reached_s = np.array([0.3, 0.7, 1.0, 1.1, 2.3, 0.9]) * np.array([43, 43, 43, 31, 31, 43]) / 64
    np.testing.assert_allclose(arrived_s, reached_s + np.array([1.92, 1.92, 1.92, 0.64, 0.64, 1.92]), rtol=1e-14)
    assert arrived_s[2] == deadline_s
