"""What a task asks of a device, by hand: which bytes travel, what a narrower model and loading from storage take.

Three layers with 120, 80 and 40 bytes; forward FLOPs 4, 2, 1 and as many for each gradient: a full step costs 17,
depth 1 costs 8, depth 2 costs 11. Half as wide, layers have 60, 20 and 20 bytes and 2, 1/2, 1/2 FLOPs: a step costs 7.
"""

from dataclasses import replace

import numpy as np
import pytest

from fedsim import weights
from fedsim.delays import Exponential
from fedsim.facts import BadInput, BatchPlan, ModelShape, Subnetwork, Task
from fedsim.protocols import arrivals, elapsed
from fedsim.records import RunBook
from fedsim.timing.fleet import Compute, Fleet, Link
from fedsim.timing.foresight import Foresight
from fedsim.timing.server import SimServer
from fedsim.timing.untrained import Untrained
from fedsim.timing.weather import Weather


def shape_of(flops, n_bytes, narrower=None):
    flops, n_bytes = np.array(flops, dtype=float), np.array(n_bytes)
    ones = np.ones(3, dtype=np.int64)
    return ModelShape(("a", "b", "c"), n_bytes // 4, n_bytes, flops, flops, flops, ones, ones, narrower)


HALF = shape_of([2.0, 0.5, 0.5], [60, 20, 20])
WHOLE = shape_of([4.0, 2.0, 1.0], [120, 80, 40], lambda rate, _: {0.5: HALF}[rate])
LINK = Link(rate_bits_per_s=80.0, latency_s=1.0)  # 10 bytes a second
N_ROWS = 10


def weather_of(compute=None, *, n=2, **parts):
    fleet = Fleet(n_devices=n, compute=compute or Compute(step_s=1.7), **parts)
    return Weather(fleet, WHOLE, BatchPlan(np.full(n, N_ROWS), None), fleet_seed=1, clock_seed=2)


def played(story, weather, *, n_rounds=1):
    """The tables of a run whose policy is one function, and how it ended."""

    class Told:
        def rounds(self, server):
            return story(server)

    book = RunBook(learner=Untrained(WHOLE), grid=None, n_rounds=n_rounds)
    over = SimServer(weather, book.learner, book).play(Told())
    return book.tables(), over


def once(task, devices=(0, 1)):
    """Send once, take everything, aggregate."""

    def story(server):
        jobs = server.send(np.array(devices), task)
        arrived = yield from server.collect(jobs)
        server.aggregate(arrived, weights.layer_mean(arrived))

    return story


def test_only_the_layers_that_are_pulled_and_pushed_travel():
    """First everything down (1 + 24 s), 1.7 s, layer c up (1 + 4 s); then layer c down, 1.7 s and everything up."""

    def story(server):
        jobs = server.send(server.sample(), Task(pushes=(False, False, True)))
        arrived = yield from server.collect(jobs)
        assert arrived.holds_layer.tolist() == [[False, False, True]] * 2
        server.aggregate(arrived, weights.layer_mean(arrived))
        jobs = server.send(server.sample(), Task(pulls=(False, False, True)))
        arrived = yield from server.collect(jobs)
        assert arrived.holds_layer.all()
        server.aggregate(arrived, weights.layer_mean(arrived))

    tables, _ = played(story, weather_of(uplink=LINK, downlink=LINK), n_rounds=2)
    np.testing.assert_allclose(tables["rounds"]["end_s"], [25 + 1.7 + 5, 31.7 + 5 + 1.7 + 25])
    assert tables["rounds"]["downloaded_bytes"].tolist() == [480, 80]
    assert tables["rounds"]["uploaded_bytes"].tolist() == [80, 480]
    assert (tables["rounds"]["used_flops"] == 2 * N_ROWS * 17).all()


def test_a_device_without_a_model_must_pull_all_of_it():
    def story(server):
        with pytest.raises(ValueError, match="device 0 has no model yet"):
            server.send(server.sample(), Task(pulls=(True, False, False)))
        yield from ()

    assert played(story, weather_of())[1].kind == "finished"


@pytest.mark.parametrize(
    ("compute", "step_s"),
    [
        (Compute(step_s=1.7), 0.7),  # 7 of 17 FLOPs
        (Compute(step_s=1.7, backward_factor=3.0), 1.7 * (3 + 3 * 4) / (7 + 3 * 10)),
        (Compute(flops_per_s=100.0), 70 / 100),
        # Layers' seconds shrink like their backward FLOPs (4, 4, 2 to 2, 1, 1), the forward pass's from 7 FLOPs to 3.
        (Compute(layer_s=(4.0, 2.0, 1.0), forward_s=7.0), 2 + 0.5 + 0.5 + 3),
    ],
)
def test_a_narrower_model_costs_its_own_flops_and_bytes(compute, step_s):
    task = Task(n_steps=3, subnetwork=Subnetwork(), rate=np.array([0.5, 1.0]))
    weather = weather_of(compute, uplink=LINK, downlink=LINK)
    tables, _ = played(once(task), weather)
    tasks = tables["tasks"]
    full_s = 1 + 24 + 3 * weather.unit_s[1]
    np.testing.assert_allclose(tasks["computed_s"], [1 + 10 + 3 * step_s, full_s])
    np.testing.assert_allclose(tasks["arrived_s"], [11 + 3 * step_s + 11, full_s + 25])
    assert tasks["device_flops"].tolist() == [3 * N_ROWS * 7, 3 * N_ROWS * 17]
    assert tasks["uploaded_bytes"].tolist() == tasks["downloaded_bytes"].tolist() == [100, 240]
    assert tables["rounds"]["used_flops"].tolist() == [3 * N_ROWS * 24]
    expected_s = Foresight(weather).expected_s(task, np.array([0, 1]))
    np.testing.assert_allclose(expected_s, tasks["arrived_s"])


def test_a_narrower_model_that_is_stopped_has_spent_its_share_of_a_step():
    def story(server):
        jobs = server.send(server.sample(), Task(n_steps=None, subnetwork=Subnetwork(), rate=0.5))
        yield from server.wait(jobs, elapsed(0.7 * 2.5))
        server.stop(jobs)
        arrived = yield from server.collect(jobs)
        server.aggregate(arrived, weights.mean(arrived))

    tables, _ = played(story, weather_of())
    np.testing.assert_allclose(tables["tasks"]["device_flops"], 2.5 * N_ROWS * 7)
    assert tables["tasks"]["n_steps"].tolist() == [2, 2]


def test_a_model_that_cannot_be_narrowed_is_refused():
    weather = replace(weather_of(), shape=replace(WHOLE, narrower=None))
    with pytest.raises(BadInput, match="cannot be narrowed"):
        Foresight(weather).expected_s(Task(subnetwork=Subnetwork(), rate=0.5), np.array([0]))


def test_layers_that_do_not_train_are_loaded_in_every_step_where_memory_is_short():
    """Depths 1, 2 and 3: loading layers a and b takes 0.3 + 0.2 s, a alone 0.3 s, nothing; a step 0.8, 1.1 and 1.7 s."""
    weather = weather_of(Compute(step_s=1.7, block_io_s=(0.3, 0.2, 9.0)), n=3)
    task = Task(n_steps=2, depth=np.array([1, 2, 3]), is_block_by_block=True)
    tables, _ = played(once(task, (0, 1, 2)), weather)
    np.testing.assert_allclose(tables["tasks"]["computed_s"], [2 * 1.3, 2 * 1.4, 2 * 1.7])
    assert tables["tasks"]["device_flops"].tolist() == [2 * N_ROWS * f for f in (8, 11, 17)]
    np.testing.assert_allclose(Foresight(weather).expected_compute_s(task, np.arange(3)), [2.6, 2.8, 3.4])
    without, _ = played(once(replace(task, is_block_by_block=False), (0, 1, 2)), weather)
    np.testing.assert_allclose(without["tasks"]["computed_s"], [1.6, 2.2, 3.4])


def test_a_device_that_is_stopped_while_it_loads_has_computed_nothing_of_the_step():
    """A step at depth 1: 0.5 s of loading, then 0.8 s for 8 FLOPs of 10 rows; 0.4, 0.5 and 0.9 s into the second."""
    for into_s, flops in ((0.4, 0.0), (0.5, 0.0), (0.5 + 0.4, 4.0)):

        def story(server, into_s=into_s):
            jobs = server.send(server.sample(), Task(n_steps=None, depth=1, is_block_by_block=True))
            yield from server.wait(jobs, elapsed(1.3 + into_s))
            server.stop(jobs)
            arrived = yield from server.collect(jobs)
            server.aggregate(arrived, weights.layer_mean(arrived))

        tables, _ = played(story, weather_of(Compute(step_s=1.7, block_io_s=0.25)))
        np.testing.assert_allclose(tables["tasks"]["device_flops"], N_ROWS * (8 + flops), atol=1e-9)


@pytest.mark.parametrize("step_factor", [None, Exponential()])
def test_devices_may_have_numbers_of_steps_of_their_own(step_factor):
    weather = weather_of(Compute(step_s=1.7, step_factor=step_factor), n=3)
    n_steps = np.array([3, 1, 2])
    tables, _ = played(once(Task(n_steps=n_steps), (0, 1, 2)), weather)
    assert tables["tasks"]["n_steps"].tolist() == n_steps.tolist()
    factors = np.ones((3, 3)) if step_factor is None else weather.step_factors(np.arange(3), np.zeros(3, int), 0, 3)
    by_hand = [1.7 * factors[d, : n_steps[d]].sum() for d in range(3)]
    np.testing.assert_allclose(tables["tasks"]["computed_s"], by_hand)
    if step_factor is None:
        np.testing.assert_allclose(Foresight(weather).expected_compute_s(Task(n_steps=n_steps), np.arange(3)), by_hand)


def test_jobs_that_were_asked_for_different_things_are_not_taken_together():
    def story(server):
        whole, part = Task(), Task(subnetwork=Subnetwork(), rate=0.5)
        jobs = [server.send(np.array([0]), whole), server.send(np.array([1]), part)]
        both = type(jobs[0]).concatenate(jobs)
        yield from server.wait(both, arrivals(2))
        with pytest.raises(ValueError, match="cannot be taken together"):
            server.take(both)

    assert played(story, weather_of())[1].kind == "finished"


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"n_steps": np.array([2, 0])}, "at least one local step; got n_steps=0"),
        ({"subnetwork": Subnetwork(), "unit": "layer"}, "whole steps"),
        ({"subnetwork": Subnetwork(), "depth": 2}, "all of its layers"),
        ({"subnetwork": Subnetwork(), "pushes": (True, False)}, "pulls, pushes"),
        ({"rate": 0.5}, "rate belongs to a subnetwork"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(task, words):
    with pytest.raises(ValueError, match=words):
        Task(**task)


def test_memory_and_batch_are_known_before_the_first_event():
    setting = Foresight(weather_of(memory_bytes=(100.0, 200.0)))
    assert setting.memory_bytes.tolist() == [100.0, 200.0]
    assert setting.batch_size.tolist() == [N_ROWS] * 2
    assert Foresight(weather_of()).memory_bytes is None


@pytest.mark.parametrize("key", ["layer_s", "block_io_s"])
def test_a_list_per_layer_of_another_length_is_refused_at_its_place(key):
    base = {} if key == "layer_s" else {"step_s": 1.0}
    with pytest.raises(
        BadInput, match=f"{key} lists 2 numbers but the model has 3 layers; give one per layer"
    ) as refused:
        weather_of(Compute(**base, **{key: (1.0, 2.0)}))
    assert refused.value.at == ("fleet", "compute", key)
