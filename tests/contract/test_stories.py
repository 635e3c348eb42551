"""One story, two servers: the fake one of a few plain loops and the one on SimPy tell it to the same end.

Each story is a policy in ten lines of the server's verbs. All durations are multiples of 1/8 s and a step has four equal
layers, so clock readings are exact and equality is asked for bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim import weights
from fedsim.facts import Contributions, Jobs, Task
from fedsim.policies.drop_stragglers import DropStragglers
from fedsim.policies.embracingfl import EmbracingFL
from fedsim.policies.fedasync import FedAsync
from fedsim.policies.fedavg import FedAvg
from fedsim.policies.fedbuff import FedBuff
from fedsim.policies.feddrop import FedDrop
from fedsim.policies.fedlama import FedLAMA
from fedsim.policies.fednova import FedNova
from fedsim.policies.fedpmt import FedPMT
from fedsim.policies.flanp import Flanp
from fedsim.policies.heterofl import HeteroFL
from fedsim.policies.k_sync import KSync
from fedsim.policies.salf import Salf
from fedsim.policies.stsyn import STSyn
from fedsim.protocols import arrivals, elapsed, steps, total_steps
from tests.fakes import FakeLearner, FakeServer, RealServer

BOTH = pytest.mark.parametrize("kind_of_server", [FakeServer, RealServer])


@dataclass(frozen=True)
class Story:
    """A policy that is only its story."""

    tell: Callable

    def rounds(self, server):
        return self.tell(server)


def k_sync(server, k=2):
    while True:
        jobs = server.send(server.sample(), Task(n_steps=1, update="accumulate"))
        yield from server.wait(jobs, arrivals(k))
        arrived = server.take(jobs)
        server.cancel(jobs)
        server.aggregate(arrived, weights.mean(arrived))


def k_batch_sync(server, k=4):
    while True:
        jobs = server.send(server.sample(), Task(n_steps=None, update="accumulate"))
        yield from server.wait(jobs, total_steps(k))
        server.stop(jobs)
        arrived = yield from server.collect(jobs)
        per_gradient = np.full((len(arrived), server.n_layers), 1 / arrived.n_steps.sum())
        server.aggregate(arrived, per_gradient)


def stsyn(server, k=2, local_steps=2):
    while True:
        jobs = server.send(server.sample(), Task(n_steps=None))
        yield from server.wait(jobs, steps(n_jobs=k, n_steps=local_steps))
        server.stop(jobs)
        arrived = yield from server.collect(jobs)
        arrived = arrived.with_steps(at_least=1)
        server.aggregate(arrived, weights.mean(arrived))


def salf(server, deadline_s=1.25):
    while True:
        jobs = server.send(server.sample(), Task(n_steps=1, unit="layer"))
        yield from server.wait(jobs, elapsed(deadline_s))
        server.stop(jobs)
        reached = yield from server.collect(jobs)
        server.aggregate(reached, weights.layer_mean(reached))


def over_selection(server, n_wanted=2):
    while True:
        jobs = server.send(server.sample(), Task(n_steps=2))
        yield from server.wait(jobs, arrivals(n_wanted))
        arrived = server.take(jobs)
        server.cancel(jobs)
        server.aggregate(arrived, weights.mean(arrived, "n_samples"))


def replaced(jobs, arrived, sent):
    """The jobs that are still under way, and those just sent."""
    return Jobs.concatenate([jobs.where(~np.isin(jobs.device, arrived.device)), sent])


def one_by_one(server):
    """Of several that have arrived by one instant, one is taken at a time."""
    task = Task(n_steps=1)
    jobs = server.send(server.sample(), task)
    while True:
        yield from server.wait(jobs, arrivals(2))
        arrived = server.take(jobs, at_most=1)
        server.aggregate(arrived, weights.mean(arrived))
        jobs = replaced(jobs, arrived, server.send(arrived.device, task))


def fedasync(server, mixing=0.5):
    task = Task(n_steps=2)
    jobs = server.send(server.sample(), task)
    while True:
        yield from server.wait(jobs, arrivals(1))
        arrived = server.take(jobs)
        server.aggregate(arrived, mixing * weights.mean(arrived), base="from_now")
        jobs = replaced(jobs, arrived, server.send(arrived.device, task))


def fedbuff(server, buffer_size=2):
    task, buffer = Task(n_steps=1), []
    jobs = server.send(server.sample(), task)
    while True:
        yield from server.wait(jobs, arrivals(1))
        arrived = server.take(jobs)
        buffer.append(arrived)
        if sum(len(each) for each in buffer) >= buffer_size:
            full, buffer = Contributions.concatenate(buffer), []
            staleness = server.version - full.version
            server.aggregate(full, weights.mean(full) / np.sqrt(1 + staleness)[:, None])
        jobs = replaced(jobs, arrived, server.send(arrived.device, task))


STORIES = [k_sync, k_batch_sync, stsyn, salf, over_selection, fedasync, fedbuff, one_by_one]
SHIPPED = [
    FedAvg(local_steps=2),
    FedAvg(local_steps=1, n_sampled=2, over_selected=1),
    DropStragglers(deadline_s=2.0, local_steps=1),
    DropStragglers(deadline_s=2.0, local_steps=1, dilute=True, wait_out=True),
    KSync(k=2),
    STSyn(k=2, local_steps=2),
    STSyn(k=1, local_steps=2, cap_factor=1.5, drop_most_updated=True),
    Salf(deadline_s=1.25),
    Salf(deadline_s=1.25, deadline_on="arrival", p_l="estimated"),
    Salf(deadline_s=1.25, rule="inverse_probability", wait_out=True),
    FedPMT(budget_s=2.0, local_steps=2),
    FedPMT(depths=(3, 0, 1), local_steps=1, dilute=True),
    FedAsync(local_steps=2),
    FedAsync(local_steps=1, mixing_share=1.0, staleness_weighting="hinge", hinge_start=1),
    FedBuff(buffer_size=2, local_steps=1),
    FedBuff(buffer_size=3, local_steps=2, staleness_exponent=1.0, normalise_at=1.0, server_learning_rate=0.7),
    HeteroFL(rates=(1.0, 0.5, 0.25), local_steps=2),
    HeteroFL(budget_s=1.75, local_steps=2, weighting="n_samples", dilute=True),
    FedDrop(kept_shares=(0.25, 1.0, 0.5), local_steps=1),
    FedNova(local_steps=(3, 2, 1)),
    FedNova(budget_s=3.25, weighting="uniform", momentum=0.5),
    Flanp(n_first=1, norm_below=1.0),
    Flanp(n_first=1, stages=(2, 1), local_steps=2, weighting="n_samples"),
    EmbracingFL(depths=(4, 1, 2), local_steps=2),
    EmbracingFL(capacity_shares=(1.0, 0.5, 0.75), local_steps=1, weighting="n_samples"),
    FedLAMA(local_steps=1),
    FedLAMA(local_steps=2, interval_factor=3, relaxed=(0, 2), weighting="uniform"),
    FedLAMA(local_steps=1, relaxed=(0, 1, 2, 3)),
]


def told(kind_of_server, policy, step_s, *, slope=None, curvature=0.5, **settings):
    """All that a story leaves behind: its end, the rounds' ends, what the learner was asked, what became of each job."""
    slope = list(range(1, len(step_s) + 1)) if slope is None else slope
    learner = FakeLearner(slope, n_layers=4, learning_rate=0.5, curvature=curvature)
    server = kind_of_server(learner, step_s, **settings)
    kind = server.play(policy)
    return kind, server.now_s, server.ends_s, learner.requests, sorted(server.outcomes)


def name_of(policy):
    return policy.tell.__name__ if isinstance(policy, Story) else str(policy)


@pytest.mark.parametrize("upload_s", [0.0, 0.25])
@pytest.mark.parametrize("policy", [*map(Story, STORIES), *SHIPPED], ids=name_of)
def test_both_servers_tell_the_same_story(policy, upload_s):
    fleet = {
        "step_s": [1.0, 1.5, 3.25],
        "n_samples": [10, 20, 30],
        "upload_s": upload_s,
        "n_rounds": 8,
        "horizon_s": 40.0,
    }
    real, fake = told(RealServer, policy, **fleet), told(FakeServer, policy, **fleet)
    assert real == fake
    assert len(real[3]) > 2, "the story closed too few rounds to say anything"


@settings(max_examples=40, deadline=None)
@given(
    story=st.sampled_from(STORIES),
    eighths=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    upload_eighths=st.integers(0, 8),
    horizon_eighths=st.integers(1, 100),
)
def test_both_servers_tell_the_same_story_for_any_fleet(story, eighths, upload_eighths, horizon_eighths):
    """Small multiples of 1/8 s make devices tie all the time."""
    fleet = {
        "step_s": [e / 8 for e in eighths],
        "upload_s": upload_eighths / 8,
        "horizon_s": horizon_eighths / 8,
        "n_rounds": 12,
    }
    assert told(RealServer, Story(story), **fleet) == told(FakeServer, Story(story), **fleet)


TASKS = st.one_of(
    st.builds(
        Task, n_steps=st.sampled_from([1, 2, 3, None]), unit=st.sampled_from(["step", "layer"]), depth=st.integers(1, 4)
    ),
    st.builds(
        Task, unit=st.just("layer"), depth=st.integers(1, 4), arrive_within_s=st.integers(1, 40).map(lambda e: e / 8)
    ),
)
SIMPLE = st.one_of(
    st.builds(arrivals, st.integers(0, 3)),
    st.builds(steps, n_jobs=st.integers(1, 3), n_steps=st.integers(1, 3)),
    st.integers(0, 40).map(lambda eighths: elapsed(eighths / 8)),
)
CONDITIONS = st.one_of(SIMPLE, *[st.builds(lambda a, e: a | elapsed(e / 8), SIMPLE, st.integers(0, 60))] * 4)
ACTIONS = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 15), TASKS),  # the bits say to whom
    st.tuples(st.just("wait"), st.integers(0, 3), CONDITIONS),  # the number says for which of the sends
    st.tuples(st.sampled_from(["stop", "cancel", "collect"]), st.integers(0, 3), st.none()),
    st.tuples(st.just("aggregate"), st.integers(0, 3), st.sampled_from(["from_start", "from_now"])),
)


def improvised(server, actions):
    """Any verbs in any order. Of what has arrived by an aggregate, every fourth is left out."""
    sent, taken = [server.send(server.sample()[:2], Task(n_steps=2))], []
    for verb, number, what in actions:
        jobs = sent[-1 - number % len(sent)]
        match verb:
            case "send":
                sent.append(
                    server.send(np.array([d for d in server.sample() if number >> d & 1], dtype=np.int64), what)
                )
            case "wait":
                yield from server.wait(jobs, what)
            case "stop":
                server.stop(jobs)
            case "cancel":
                server.cancel(jobs)
            case "collect":
                taken.append((yield from server.collect(jobs)))
            case "aggregate":
                full = Contributions.concatenate([*taken, *map(server.take, sent)])
                full = full.where(np.arange(len(full)) % 4 != number)
                taken.clear()
                server.aggregate(full, 0.5 * weights.layer_mean(full), base=what)


@settings(max_examples=200, deadline=None)
@given(
    actions=st.lists(ACTIONS, min_size=8, max_size=25),
    eighths=st.lists(st.integers(1, 24), min_size=4, max_size=4),
    upload_eighths=st.integers(0, 8),
)
def test_both_servers_follow_any_verbs_in_any_order(actions, eighths, upload_eighths):
    fleet = {"step_s": [e / 8 for e in eighths], "upload_s": upload_eighths / 8, "horizon_s": 60.0}
    story = Story(partial(improvised, actions=actions))
    assert told(RealServer, story, **fleet) == told(FakeServer, story, **fleet)


# ---- by hand --------------------------------------------------------------------------------------------------------


def rounds_of(kind_of_server, story, step_s, **settings):
    """(end, devices, steps, versions, model) of each round; all layers are alike, so one number is the model."""
    _, _, ends_s, requests, _ = told(kind_of_server, Story(story), step_s, curvature=0.0, **settings)
    return [
        (end_s, devices, n_steps, versions, model[0])
        for end_s, (devices, n_steps, _, versions, _, _, model) in zip(ends_s, requests, strict=True)
    ]


@BOTH
def test_k_sync_averages_one_gradient_of_each_of_the_two_fastest(kind_of_server):
    """Gradients 1, 2, 6 and learning rate 0.5: each round lasts 1.5 s and moves the model by -0.5 (1 + 2) / 2."""
    found = rounds_of(kind_of_server, k_sync, [1.0, 1.5, 4.0], slope=[1, 2, 6], n_rounds=2)
    assert found == [(1.5, [0, 1], [1, 1], [0, 0], -0.75), (3.0, [0, 1], [1, 1], [1, 1], -1.5)]


@BOTH
def test_k_batch_sync_takes_the_first_four_gradients_whoever_computes_them(kind_of_server):
    """Steps end at 1, 1.5, 2, 3, 3 (a tie), ...: four are there at 3 s, and then five. Gradients 3 x 1 + 2 x 2."""
    found = rounds_of(kind_of_server, k_batch_sync, [1.0, 1.5, 4.0], slope=[1, 2, 6], n_rounds=1)
    assert found == [(3.0, [0, 1], [3, 2], [0, 0], pytest.approx(-0.5 * 7 / 5, rel=1e-15))]


@BOTH
def test_stsyn_lets_the_fastest_run_on_until_the_second_has_two_steps(kind_of_server):
    """Device 1 has two steps at 3 s; by then device 0 has three and device 2 none: -0.5 (3 x 1 + 2 x 2) / 2."""
    found = rounds_of(kind_of_server, stsyn, [1.0, 1.5, 4.0], slope=[1, 2, 6], n_rounds=2)
    assert found == [(3.0, [0, 1], [3, 2], [0, 0], -1.75), (6.0, [0, 1], [3, 2], [1, 1], -3.5)]


@BOTH
def test_salf_averages_each_layer_over_those_who_reached_it(kind_of_server):
    """A third of a step per layer. By 1.5 s device 0 is through, 1 has two layers, 2 has one (ends 0.5, 1.0 and 1.5 s).

    Output layer: -0.5 (1 + 2 + 6) / 3; middle: -0.5 (1 + 2) / 2; input: -0.5 x 1.
    """
    learner = FakeLearner([1, 2, 6], learning_rate=0.5)
    server = kind_of_server(learner, [1.5, 2.25, 4.5], n_rounds=1)
    server.play(Story(partial(salf, deadline_s=1.5)))
    devices, _, depths, *_, model = learner.requests[0]
    assert (devices, depths) == ([0, 1, 2], [3, 2, 1])
    assert model == pytest.approx([-0.5, -0.75, -1.5], rel=1e-15)


@BOTH
def test_salf_with_a_deadline_on_arrival_hears_every_upload_that_is_in_time(kind_of_server):
    """Uploads take 0.5 s. By 2 s device 0 arrives whole at 1.5 s, device 1 with two of four layers of its 3 s: 2.0 s.

    With 4 s everybody is whole: device 1 arrives at 3.5 s, and that is when the round ends.
    """
    for deadline_s, end_s, depths in [(2.0, 2.0, [4, 2]), (4.0, 3.5, [4, 4])]:
        policy = Salf(deadline_s=deadline_s, deadline_on="arrival", p_l="none")
        _, _, ends_s, requests, _ = told(kind_of_server, policy, [1.0, 3.0], upload_s=0.5, n_rounds=1)
        assert (ends_s, requests[0][0], requests[0][2]) == ([end_s], [0, 1], depths)


@BOTH
def test_fedasync_mixes_the_arrivals_model_into_the_model_of_now(kind_of_server):
    """Two steps, rate 0.5, mixing 0.5. At 2 s device 0 brings -1: the model is -0.5, and device 0 pulls it.

    At 3 s device 1 brings 0 - 2 = -2, from version 0: -0.5 + 0.5 (-2 + 0.5) = -1.25. At 4 s device 0 brings -0.5 - 1 =
    -1.5, from version 1: -1.25 + 0.5 (-1.5 + 1.25) = -1.375.
    """
    found = rounds_of(kind_of_server, fedasync, [1.0, 1.5], slope=[1, 2], n_rounds=3)
    assert found == [(2.0, [0], [2], [0], -0.5), (3.0, [1], [2], [0], -1.25), (4.0, [0], [2], [1], -1.375)]


@BOTH
def test_fedbuff_waits_for_two_and_halves_what_is_three_versions_stale(kind_of_server):
    """Device 0 takes 1 s, device 1 takes 7.5 s, steps of -0.5 x 1 and -0.5 x 8.

    Device 0 fills the buffer alone at 2, 4 and 6 s, each time with two changes from one version. At 7 s it brings one
    from version 3; at 7.5 s device 1 joins, 3 versions old: it counts 1 / sqrt(1 + 3). The model is then
    -1.5 + (-0.5 + 0.5 x -4) / 2.
    """
    found = rounds_of(kind_of_server, fedbuff, [1.0, 7.5], slope=[1, 8], n_rounds=4)
    assert [(end_s, devices, versions) for end_s, devices, _, versions, _ in found] == [
        (2.0, [0, 0], [0, 0]),
        (4.0, [0, 0], [1, 1]),
        (6.0, [0, 0], [2, 2]),
        (7.5, [0, 1], [3, 0]),
    ]
    assert found[-1][-1] == -2.75


# ---- what a server refuses, and how a story ends ---------------------------------------------------------------------


@BOTH
def test_a_busy_device_refuses_a_second_task(kind_of_server):
    def impatient(server):
        server.send(np.array([1]), Task())
        with pytest.raises(ValueError, match="device 1 is busy"):
            server.send(server.sample(idle_only=False), Task())
        assert server.sample().tolist() == [0, 2]
        yield from ()

    assert told(kind_of_server, Story(impatient), [1.0, 1.0, 1.0])[0] == "finished"


@BOTH
def test_a_device_that_is_named_twice_in_one_send_refuses_the_second_task(kind_of_server):
    def stutter(server):
        with pytest.raises(ValueError, match="device 1"):
            server.send(np.array([1, 0, 1]), Task())
        assert server.sample().tolist() == [0, 1, 2], "nobody was sent to"
        yield from ()

    assert told(kind_of_server, Story(stutter), [1.0, 1.0, 1.0])[0] == "finished"


@BOTH
def test_a_cancelled_device_is_idle_at_once(kind_of_server):
    def fickle(server):
        jobs = server.send(server.sample(), Task())
        server.cancel(jobs)
        assert server.sample().tolist() == [0, 1]
        server.send(server.sample(), Task())
        yield from ()

    *_, outcomes = told(kind_of_server, Story(fickle), [1.0, 2.0])
    assert outcomes == [(0, 0, 0, "cancelled"), (0, 1, 0, "open"), (1, 0, 0, "cancelled"), (1, 1, 0, "open")]


def waits_for(condition, task=Task()):  # noqa: B008  a task is frozen
    def story(server):
        jobs = server.send(server.sample(), task)
        yield from server.wait(jobs, condition)

    return Story(story)


@BOTH
@pytest.mark.parametrize(
    "condition",
    [arrivals(3), steps(n_jobs=3, n_steps=1), steps(n_jobs=1, n_steps=2), total_steps(3), arrivals(3) | total_steps(9)],
)
def test_a_wait_that_nothing_under_way_can_satisfy_stalls(kind_of_server, condition):
    """Two devices, one step each."""
    assert told(kind_of_server, waits_for(condition), [1.0, 2.0])[:2] == ("stalled", 0.0)


@BOTH
def test_waiting_for_arrivals_of_devices_that_nobody_stops_stalls(kind_of_server):
    assert told(kind_of_server, waits_for(arrivals(1), Task(n_steps=None)), [1.0])[0] == "stalled"


@BOTH
def test_collecting_from_a_device_that_was_never_told_to_stop_stalls(kind_of_server):
    def story(server):
        jobs = server.send(server.sample(), Task(n_steps=None))
        yield from server.wait(jobs, elapsed(5.0))
        yield from server.collect(jobs)

    assert told(kind_of_server, Story(story), [1.0])[:2] == ("stalled", 5.0)


@BOTH
def test_a_loop_in_which_no_time_passes_stalls(kind_of_server):
    def restless(server):
        while True:
            server.cancel(server.send(server.sample(), Task()))
            yield from ()

    assert told(kind_of_server, Story(restless), [1.0])[:2] == ("stalled", 0.0)


@BOTH
def test_the_horizon_ends_a_wait_that_would_outlast_it_and_nothing_else(kind_of_server):
    kind, now_s, ends_s, *_ = told(kind_of_server, Story(partial(k_sync, k=1)), [1.0, 5.0], horizon_s=3.0)
    assert (kind, now_s, ends_s) == ("finished", 3.0, [1.0, 2.0, 3.0])
    kind, now_s, ends_s, *_ = told(kind_of_server, Story(partial(k_sync, k=2)), [1.0, 5.0], horizon_s=7.0)
    assert (kind, now_s, ends_s) == ("finished", 7.0, [5.0])


@BOTH
def test_the_run_ends_with_its_last_round(kind_of_server):
    kind, now_s, ends_s, requests, _ = told(kind_of_server, Story(k_sync), [1.0, 2.0], n_rounds=3)
    assert (kind, now_s, len(ends_s), len(requests)) == ("finished", 6.0, 3, 3)


@BOTH
def test_a_model_that_is_no_longer_finite_ends_the_run(kind_of_server):
    kind, _, ends_s, *_ = told(kind_of_server, Story(k_sync), [1.0, 2.0], slope=[1.0, 1e400])
    assert (kind, ends_s) == ("diverged", [2.0])


@BOTH
def test_what_was_taken_and_not_aggregated_is_dropped(kind_of_server):
    """Everybody is taken; device 1 is left out, device 2 gets only zero weights."""

    def story(server):
        jobs = server.send(server.sample(), Task())
        arrived = yield from server.collect(jobs)
        some = arrived.where(arrived.device != 1)
        server.aggregate(some, weights.mean(some) * (some.device != 2)[:, None])
        yield from server.collect(server.send(server.sample(), Task()))  # and never aggregated

    *_, outcomes = told(kind_of_server, Story(story), [1.0, 1.0, 2.0])
    assert outcomes == [
        (0, 0, 0, "used"), (0, 1, 1, "dropped"),
        (1, 0, 0, "dropped"), (1, 1, 1, "dropped"),
        (2, 0, 0, "dropped"), (2, 1, 1, "dropped"),
    ]  # fmt: skip


@BOTH
def test_an_empty_round_closes_and_leaves_the_version(kind_of_server):
    def story(server):
        jobs = server.send(server.sample(), Task())
        yield from server.wait(jobs, elapsed(0.5))
        nobody = server.take(jobs)
        assert len(nobody) == 0
        report = server.aggregate(nobody, weights.layer_mean(nobody))
        assert (report.version, server.version) == (0, 0)

    _, _, ends_s, requests, outcomes = told(kind_of_server, Story(story), [1.0])
    assert ends_s == [0.5]
    assert requests[0][-1] == [0.0] * 4
    assert outcomes == [(0, 0, 1, "open")]


@BOTH
@pytest.mark.parametrize("shape", [(1, 4), (2, 3), (4, 2), (8,)])
def test_a_weight_table_of_another_shape_is_refused(kind_of_server, shape):
    """Two contributions and four layers need [2, 4]."""

    def story(server):
        arrived = yield from server.collect(server.send(server.sample(), Task()))
        with pytest.raises(ValueError, match="weights are"):
            server.aggregate(arrived, np.ones(shape))

    assert told(kind_of_server, Story(story), [1.0, 1.0])[0] == "finished"


@BOTH
def test_devices_may_be_sent_to_in_any_order_each_with_its_own_depth(kind_of_server):
    """Depth 1 of 4 on device 2 (a quarter of its 4 s), depth 3 on device 0; contributions come in the order of devices."""

    def story(server):
        jobs = server.send(np.array([2, 0]), Task(depth=np.array([1, 3])))
        arrived = yield from server.collect(jobs)
        server.aggregate(arrived, weights.layer_mean(arrived))

    _, now_s, _, (request,), _ = told(kind_of_server, Story(story), [1.0, 9.0, 4.0])
    devices, _, depths, _, arrived_s, *_ = request
    assert (devices, depths, arrived_s, now_s) == ([0, 2], [3, 1], [0.75, 1.0], 1.0)
