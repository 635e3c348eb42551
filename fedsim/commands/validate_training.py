"""The other half of `fedsim validate`: what the finished work does to the model, on problems where that is known exactly.

A scenario that trains the quadratic model on the quadratic data is played many times, each time with luck of its own for
times and batches, on the same problem and fleet. The mean loss after some rounds, and at some moments of the clock, stands
beside the expected loss (`fedsim.theory.learning`). Replicas are independent, so the standard error is over them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from fedsim.commands.comparing import Compared, compared, short
from fedsim.expectations import fleet_of, problem_of
from fedsim.facts import Array, IntArray
from fedsim.protocols import HasFlatWeights, Learner, NoClosedForm
from fedsim.run import World
from fedsim.scenario.contenders import Contender
from fedsim.scenario.read import LoadedScenario
from fedsim.scenario.schema import SeedSet
from fedsim.theory import learning, registry
from fedsim.theory.fleet import Fleet
from fedsim.theory.quadratic import Quadratic
from fedsim.timing.book import ClosedJobs, ClosedRound
from fedsim.timing.server import SimServer

N_REPLICAS = 200
_SHARES = (0.1, 0.3, 0.6)  # of the mean time of all rounds, so that hardly a run ends before
_SPARE = 4  # times as many rounds in theory, so that fast runs are covered at every moment


@dataclass
class Course:
    """The loss after some rounds and at some moments; implements `fedsim.timing.book.Book`.

    rounds: numbers of rounds, ascending. times_s: moments, ascending. by_round, by_time: losses there.
    """

    learner: Learner
    rounds: IntArray
    times_s: Array
    by_round: list[float] = field(default_factory=list)
    by_time: list[float] = field(default_factory=list)
    n_closed: int = 0

    def before_change(self, now_s: float) -> None:
        """A moment that the clock has passed finds the model of before; a change at that very instant counts."""
        while len(self.by_time) < len(self.times_s) and self.times_s[len(self.by_time)] < now_s:
            self.by_time.append(self._loss())

    def jobs_closed(self, jobs: ClosedJobs) -> None: ...

    def round_closed(self, closed: ClosedRound) -> str | None:  # noqa: ARG002  the role has it
        self.n_closed += 1
        if self.n_closed in self.rounds:
            self.by_round.append(self._loss())
        is_over = self.n_closed >= self.rounds[-1] and len(self.by_time) == len(self.times_s)
        return "enough rounds and time" if is_over else None

    def _loss(self) -> float:
        found = self.learner.evaluate()
        assert found is not None  # a learner that trains evaluates
        return found.loss


def compare_training(
    loaded: LoadedScenario, contender: Contender, seeds: SeedSet, world: World, n_replicas: int
) -> Iterator[Compared]:
    """The loss after some rounds and at some moments, beside its expectation."""
    row = Compared(contender.label, "loss", "1", n=n_replicas)
    n_rounds = loaded.scenario.stop.n_rounds or 20
    rounds = np.unique(np.minimum([1, 2, 5, 10, n_rounds], n_rounds))
    try:
        problem, fleet = _problem(loaded, contender, seeds, world), fleet_of(world.weather)
        curve = learning.after_rounds(contender.kind, contender.policy, fleet, problem, _SPARE * n_rounds)
    except NoClosedForm as reason:
        yield replace(row, quantity="loss after rounds", no_closed_form=str(reason))
        return
    times_s = _moments_s(contender, fleet, n_rounds)
    at_s: Array | str
    try:
        at_s = learning.at_times(contender.kind, contender.policy, fleet, problem, curve.loss, times_s)
    except NoClosedForm as reason:
        at_s, times_s = str(reason), np.empty(0)
    courses = [_play(loaded, contender, seeds, world, rounds, times_s, r) for r in range(n_replicas)]
    if any(course.n_closed < rounds[-1] or len(course.by_time) < len(times_s) for course in courses):
        yield short(contender.label, int(rounds[-1]), min(course.n_closed for course in courses))
        return
    for i, n in enumerate(rounds.tolist()):
        values = np.array([course.by_round[i] for course in courses])
        yield compared(replace(row, quantity=f"loss after {n} rounds"), values, float(curve.loss[n]))
    if isinstance(at_s, str):
        yield replace(row, quantity="loss at a time", no_closed_form=at_s)
        return
    for i, t in enumerate(times_s.tolist()):
        values = np.array([course.by_time[i] for course in courses])
        yield compared(replace(row, quantity=f"loss at {t:.4g} s"), values, float(at_s[i]))


def _problem(loaded: LoadedScenario, contender: Contender, seeds: SeedSet, world: World) -> Quadratic:
    trainer = world.learner(loaded, contender, seeds)
    assert isinstance(trainer, HasFlatWeights)  # the one that trains is
    return problem_of(contender, world.dealt, *trainer.flat_weights())


def _moments_s(contender: Contender, fleet: Fleet, n_rounds: int) -> Array:
    """Off the ends of rounds that last a fixed time, where the clock's rounding would decide."""
    found = registry.expected(contender.kind, contender.policy, fleet)
    mean_s = next((one.mean for one in found if one.quantity == "round_s"), None)
    return np.empty(0) if mean_s is None else (np.round(np.array(_SHARES) * n_rounds) + 0.5) * mean_s


def _play(
    loaded: LoadedScenario,
    contender: Contender,
    seeds: SeedSet,
    world: World,
    rounds: IntArray,
    times_s: Array,
    replica: int,
) -> Course:
    """One run with luck of its own: times and batches differ, the problem and the fleet do not."""
    own = seeds.model_copy(update={"clock": seeds.of("clock") + replica + 1, "data": seeds.of("data") + replica + 1})
    weather = replace(world.weather, clock_seed=own.of("clock"))
    learner = world.learner(loaded, contender, own.model_copy(update={"init": seeds.of("init")}))
    course = Course(learner, rounds, times_s)
    SimServer(weather, learner, course).play(contender.policy)
    return course
