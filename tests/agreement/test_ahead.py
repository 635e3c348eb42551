"""Contributions trained ahead of time, with others that pulled the same model, change no result."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from fedsim import from_dict, weights
from fedsim.facts import BadInput, Jobs, Task
from fedsim.protocols import arrivals
from fedsim.records import RunBook
from fedsim.run import World
from fedsim.timing.ahead import requests_ahead
from fedsim.timing.book import RunOver
from fedsim.timing.server import SimServer
from fedsim.timing.weather import Weather
from tests.laws.playing import learned


class Buffered:
    """FedBuff in a few lines: every device always busy, an aggregate after every `size` arrivals."""

    source = "Nguyen et al., arXiv 2106.06639"

    def __init__(self, size, base="from_start", n_steps=3):
        self.size, self.base, self.task = size, base, Task(n_steps=n_steps)

    def problems(self, setting):
        return []

    def rounds(self, server):
        jobs = server.send(server.sample(), self.task)
        while True:
            yield from server.wait(jobs, arrivals(self.size))
            arrived = server.take(jobs)
            share = 1.0 / (1.0 + server.version - arrived.version)
            server.aggregate(arrived, weights.mean(arrived) * share[:, None], base=self.base)
            left = jobs.where(~np.isin(jobs.device, arrived.device))
            jobs = Jobs.concatenate([left, server.send(arrived.device, self.task)])


class Told(Buffered):
    feedback = frozenset({"update_norm"})


FLEET = {
    "n_devices": 7,
    "compute": {
        "step_s": 1.0,
        "device_factor": {"kind": "uniform", "low": 0.5, "high": 3.0},
        "step_factor": {"kind": "exponential", "mean": 1.0},
    },
}
TRAINING = {"local_steps": 3, "batch_size": 8, "dtype": "float64", "learning_rate": 0.2, "momentum": 0.5}


def scenario(tiny, n_rounds=24, **training):
    return tiny(fleet=FLEET, training=TRAINING | training, stop={"n_rounds": n_rounds})


def world_of(values):
    loaded = from_dict(values)
    return World.of(loaded, loaded.scenario.seed_sets[0]).planned_for(loaded.contenders[0])


def knowing(values, policy):
    """Puts what is to come before the learner."""
    ahead = requests_ahead(world_of(values).weather, policy, horizon_s=np.inf, n_rounds=values["stop"]["n_rounds"])

    def tell(learner):
        learner.ahead = ahead
        return learner

    return ahead, tell


@pytest.mark.parametrize("base", ["from_start", "from_now"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_an_asynchronous_run_ends_with_the_same_model(tiny, size, base, engine):
    values, policy = scenario(tiny, engine=engine), Buffered(size, base)
    ahead, tell = knowing(values, policy)
    assert len(ahead) == 24
    alone, loss = learned(values, policy)
    together, its_loss = learned(values, policy, wrapped=tell)
    assert np.abs(together - alone).max() <= 1e-10 * np.abs(alone).max()
    assert abs(loss - its_loss) <= 1e-10


def test_work_is_counted_in_the_round_that_uses_it(tiny):
    values, policy = scenario(tiny), Buffered(2)
    world = world_of(values)
    rows = []
    for tell in (lambda learner: learner, knowing(values, policy)[1]):
        loaded = from_dict(values)
        learner = tell(world.learner(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0]))
        book = RunBook(learner=learner, grid=None, n_rounds=24)
        SimServer(world.weather, learner, book).play(policy)
        rounds = book.tables()["rounds"]
        assert np.array_equal(rounds["used_flops"], rounds["computed_flops"])
        rows.append(rounds["end_s"])
    assert np.array_equal(*rows)


def test_contributions_that_pulled_the_same_model_are_trained_together(tiny, monkeypatch):
    from fedsim.training import kernels as module

    values, policy = scenario(tiny), Buffered(1)
    sizes = []
    kernels = dict(module._KERNELS)
    for name, kernel in kernels.items():
        monkeypatch.setitem(
            module._KERNELS,
            name,
            lambda c, cohort, at, kernel=kernel: (sizes.append(len(cohort)), kernel(c, cohort, at)),
        )
    learned(values, policy)
    assert set(sizes) == {1}
    sizes.clear()
    learned(values, policy, wrapped=knowing(values, policy)[1])
    assert sizes[0] == 7  # every device starts from the first model
    assert sum(sizes) >= 24


def test_a_policy_that_asks_for_feedback_or_is_synchronous_is_not_played_ahead(tiny):
    values = scenario(tiny)
    weather = world_of(values).weather
    assert isinstance(weather, Weather)
    told, fedavg = Told(1), from_dict(values).contenders[0].policy
    for policy in (told, fedavg):
        assert requests_ahead(weather, policy, horizon_s=np.inf, n_rounds=24) == []


@pytest.mark.parametrize(
    ("feedback", "train", "said"),
    [
        ({"train_loss"}, True, "feedback names 'train_loss'"),
        ({"update_norm"}, False, "asks for feedback from training"),
    ],
)
def test_feedback_that_nobody_can_give_is_refused(tiny, feedback, train, said):
    values = scenario(tiny) | {"train": train}
    loaded = from_dict(values)
    policy = Buffered(1)
    policy.feedback = frozenset(feedback)
    world = World.of(loaded, loaded.scenario.seed_sets[0]).planned_for(loaded.contenders[0])
    with pytest.raises(BadInput, match=said):
        world.refuse_problems(replace(loaded.contenders[0], policy=policy), train=train)


def test_a_run_gives_its_learner_what_is_to_come(tiny, monkeypatch):
    run, asked = import_module("fedsim.run"), []  # the package's own `run` is a function
    monkeypatch.setattr(run, "requests_ahead", lambda *_, **how: asked.append(how) or ["known"])
    loaded, given = from_dict(scenario(tiny, n_rounds=2)), []
    monkeypatch.setattr(run.SimServer, "play", lambda server, _: given.append(server._learner.ahead) or over)
    over = RunOver("finished", "at once")
    run.simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])
    assert asked == [{"horizon_s": np.inf, "n_rounds": 2}]
    assert given == [["known"]]
