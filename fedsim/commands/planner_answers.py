"""The closed forms that the planner has asked so far, and in which order it asks: first what is quick.

A question is about one policy on one fleet and a few quantities. Answers are remembered with the fleet, so that turning
one policy's setting asks nothing about the others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsim.commands import plan
from fedsim.expectations import fleet_of
from fedsim.facts import Array
from fedsim.protocols import NoClosedForm
from fedsim.run import World
from fedsim.scenario.contenders import Contender
from fedsim.theory.fleet import Expectation, Fleet
from fedsim.theory.times import RandomTime

_N_TIMES = 80
_ROUND = ("round_s",)
_GROUPS = (_ROUND, plan.DEVICES, plan.WORK)


@dataclass(frozen=True)
class Row:
    """A round of one policy at the numbers on the screen.

    pending: measures of `point` that are not known yet. times: seconds and the share of rounds at most that long; None if
    not known yet or without closed form. moved: each turned setting in words.
    """

    position: int
    label: str
    kind: str
    point: plan.Point
    pending: frozenset[str]
    times: tuple[Array, Array] | None
    moved: tuple[str, ...]


@dataclass(frozen=True)
class Screen:
    """What is known at the numbers on the screen. curves: of one setting; those that are not known yet are left out.
    n_curves: how many there are to be.
    """

    rows: tuple[Row, ...]
    curves: tuple[plan.Curve, ...]
    n_curves: int
    is_whole: bool


@dataclass(frozen=True, eq=False)
class Known:
    """A fleet with the closed forms that were asked on it so far, by policy and quantities."""

    world: World
    fleets: dict[tuple[Any, ...], Fleet | str] = field(default_factory=dict)
    found: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def fleet(self, contender: Contender) -> Fleet | str:
        """As this policy's batches see it; why there is none."""
        key = (contender.training.batch_size, contender.training.batches)
        if key not in self.fleets:
            try:
                self.fleets[key] = fleet_of(self.world.planned_for(contender).weather)
            except NoClosedForm as reason:
                self.fleets[key] = str(reason)
        return self.fleets[key]


@dataclass(frozen=True, eq=False)
class Question:
    """One piece. is_dear: it can take a second, so that nothing should wait behind it for being shown."""

    key: tuple[Any, ...]
    answer: Callable[[], Any]
    is_dear: bool = False


def _key(contender: Contender, policy: Any, wanted: tuple[str, ...]) -> tuple[Any, ...]:
    return (contender.training.batch_size, contender.training.batches, contender.kind, repr(policy), wanted)


def questions(known: Known, contenders: Mapping[int, Contender], setting: str) -> Iterator[Question]:
    """The quick before the dear: round times of all policies, devices, laws, what the work comes to where that is quick,
    curves, and what it comes to where a fleet waits for some of its devices.
    """

    def asked(each: Contender, policy: Any, wanted: tuple[str, ...], fleet: Fleet) -> Question:
        is_dear = wanted == plan.WORK and "k" in plan.settings_of(each)
        return Question(_key(each, policy, wanted), lambda: plan.asked(each.kind, policy, fleet, wanted), is_dear)

    able = [(each, fleet) for each in contenders.values() if isinstance(fleet := known.fleet(each), Fleet)]
    for wanted in (_ROUND, plan.DEVICES):
        yield from (asked(each, each.policy, wanted, fleet) for each, fleet in able)
    for each, _ in able:
        yield Question(_key(each, each.policy, ("times",)), lambda each=each: _times(known, each))  # type: ignore[misc]
    work = [asked(each, each.policy, plan.WORK, fleet) for each, fleet in able]
    yield from (question for question in work if not question.is_dear)
    for each, fleet in able:
        if setting in plan.settings_of(each):
            for _, policy in plan.turns_of(each, setting, fleet):
                yield from (asked(each, policy, wanted, fleet) for wanted in plan.groups_along(setting))
    yield from (question for question in work if question.is_dear)


def _times(known: Known, contender: Contender) -> tuple[Array, Array] | None:
    """The law of the round time: seconds, and the share of rounds at most that long; None if there is none."""
    found: list[Expectation] = known.found[_key(contender, contender.policy, _ROUND)]
    time = next((one.time for one in found if one.quantity == "round_s"), None)
    return None if time is None else _drawn(time)


def _drawn(time: RandomTime) -> tuple[Array, Array]:
    low_s, high_s = time.quantiles_s(np.array([0.001, 0.995]))
    kinks_s = np.array([k for k in time.kinks_s if low_s <= k <= high_s])
    evenly_s = np.geomspace(max(low_s, 1e-4 * high_s), high_s, _N_TIMES)
    # A jump is a vertical line: from a point just before it, as is where the law begins.
    t_s = np.unique(np.concatenate([[0.999 * evenly_s[0]], evenly_s, kinks_s, (1.0 - 1e-9) * kinks_s]))
    return t_s, time.cdf(t_s)


def row(known: Known, i: int, contender: Contender, moved: tuple[str, ...]) -> Row:
    fleet = known.fleet(contender)
    n_devices = known.world.weather.fleet.n_devices
    if isinstance(fleet, str):
        every = [quantity for wanted in _GROUPS for quantity in wanted]
        point = plan.point_of(0.0, [], n_devices, dict.fromkeys(every, fleet))
        return Row(i, contender.label, contender.kind, point, frozenset(), None, moved)
    here = {wanted: known.found.get(_key(contender, contender.policy, wanted)) for wanted in _GROUPS}
    found = [one for answer in here.values() if answer is not None for one in answer]
    unknown = frozenset(quantity for wanted, answer in here.items() if answer is None for quantity in wanted)
    point = plan.point_of(0.0, found, n_devices)
    pending = frozenset(measure for measure, quantity in plan.MEASURES.items() if quantity in unknown)
    times = known.found.get(_key(contender, contender.policy, ("times",)))
    return Row(i, contender.label, contender.kind, point, pending, times, moved)


def curves(known: Known, contenders: Collection[Contender], setting: str) -> Iterator[plan.Curve]:
    """Those that are known."""
    for each in contenders:
        fleet = known.fleet(each)
        if setting not in plan.settings_of(each):
            continue
        if isinstance(fleet, str):
            yield plan.unplanned(each, setting, fleet)
            continue
        turns, groups = plan.turns_of(each, setting, fleet), plan.groups_along(setting)
        if all(_key(each, policy, wanted) in known.found for _, policy in turns for wanted in groups):
            yield plan.curve_of(each, setting, fleet, lambda _, p, __, wanted, e=each: known.found[_key(e, p, wanted)])  # type: ignore[misc]
