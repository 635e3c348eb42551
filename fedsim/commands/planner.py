"""What the planner of the dashboard asks: closed forms of a scenario whose numbers are turned, at once.

A start is a scenario, of a finished run or built in. Its fleet's and policies' numbers are turned and checked as a file's
are, and the closed forms are those of `fedsim plan`, asked piece by piece and remembered: first what is quick. Nothing is
simulated or trained, and nothing here imports torch unless a model's shape is not remembered yet.
"""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np
from pydantic_core import to_jsonable_python

from fedsim.commands import plan, scenario_text
from fedsim.commands.planner_answers import Known, Question, Screen, curves, questions, row
from fedsim.commands.planner_controls import AS_STATED, Control, controls, location, put
from fedsim.commands.planner_starts import BUILT_IN, scenarios_in
from fedsim.facts import BadInput
from fedsim.run import World
from fedsim.scenario import checks
from fedsim.scenario.checked import checked
from fedsim.scenario.contenders import Contender
from fedsim.scenario.errors import BadInputs, ScenarioError, each_problem
from fedsim.scenario.places import value_at
from fedsim.scenario.read import LoadedScenario, from_dict
from fedsim.timing import fleet as stated_fleet

Values = Mapping[str, float | str]
"""By the key of a control; what is left out is as stated."""

_LOOKING_UP_S = 0.25
_N_KEPT = 16  # fleets whose closed forms are remembered


@dataclass(frozen=True, eq=False)
class _Start:
    """A scenario to turn; loaded without training, so that nothing needs torch. values: as it was stated."""

    values: dict[str, Any]
    loaded: LoadedScenario

    @cached_property
    def text(self) -> str:
        """Tells it from other starts."""
        return json.dumps(self.values, sort_keys=True)

    @cached_property
    def controls(self) -> list[Control]:
        return controls(self.loaded)

    @cached_property
    def fleet(self) -> dict[str, Any]:
        return dict(self.loaded.scenario.model_dump(mode="json")["fleet"])

    @cached_property
    def short(self) -> dict[str, Any]:
        """As a person would write it, with training where it was."""
        found = scenario_text.short(self.loaded)
        for name in ("train", "record_updates"):
            found.pop(name, None)
            if name in self.values and self.values[name] != type(self.loaded.scenario).model_fields[name].default:
                found[name] = self.values[name]
        return found


class Planner:
    """Scenarios to start from, and what a round of their policies takes at other numbers. Shared by all who look."""

    def __init__(self, look: Callable[[], Mapping[str, dict[str, Any]]]) -> None:
        """look: gives the scenarios there are now, by name, as Python values; at least one."""
        self._look, self._scenarios = look, dict(look())
        self._starts: dict[str, _Start] = {}
        self._known: OrderedDict[str, Known] = OrderedDict()
        # One closed form at a time: a newer question waits for a piece of an older one, not for all of it.
        self._turn, self._dear = Lock(), Lock()

    @classmethod
    def of_folder(cls, folder: Path | str) -> Planner:
        """Starts from the scenarios whose runs lie in the folder; from one that is built in where there are none."""
        return cls(lambda: scenarios_in(Path(folder)) or {BUILT_IN["name"]: BUILT_IN})

    def starts(self) -> list[str]:
        """The scenarios there are now."""
        self._scenarios = dict(self._look())
        return list(self._scenarios)

    def settings(self, name: str) -> list[Control]:
        """What may be turned. Raises BadInput if the scenario cannot be read."""
        return self._start(name).controls

    def policies(self, name: str) -> list[tuple[str, str]]:
        """Label and kind of each."""
        return [(each.label, each.kind) for each in self._start(name).loaded.contenders]

    def turnable(self, name: str) -> list[str]:
        """Settings of policies that have curves, in one order."""
        own = {setting for each in self._start(name).loaded.contenders for setting in plan.settings_of(each)}
        return [setting for setting in plan.SETTINGS if setting in own]

    def screen(
        self,
        name: str,
        values: Values,
        shown: Collection[int] | None = None,
        setting: str = "",
        within_s: float = np.inf,
    ) -> Screen:
        """What a round takes and brings at these values, as far as it is known `within_s` seconds; ask again for the rest.

        shown: positions of the policies asked about. setting: the one whose curves are wanted. Raises BadInput at the
        place of what is wrong.
        """
        start, until = self._start(name), perf_counter() + within_s
        turned = _turned_controls(start, values)
        known, contenders = self._at(start, turned, shown)
        is_whole = self._answer(known, questions(known, contenders, setting), until)
        rows = tuple(row(known, i, each, _moved(turned, i)) for i, each in contenders.items())
        n_curves = sum(setting in plan.settings_of(each) for each in contenders.values())
        return Screen(rows, tuple(curves(known, contenders.values(), setting)), n_curves, is_whole)

    def curves(self, name: str, values: Values, shown: Collection[int] | None = None) -> list[plan.Curve]:
        """Every setting of every policy, as `fedsim plan` has them."""
        start = self._start(name)
        known, contenders = self._at(start, _turned_controls(start, values), shown)
        for setting in plan.SETTINGS:
            self._answer(known, questions(known, contenders, setting), np.inf)
        asked = [(each, setting) for each in contenders.values() for setting in plan.settings_of(each)]
        return [curve for each, setting in asked for curve in curves(known, [each], setting)]

    def scenario_text(self, name: str, values: Values, shown: Collection[int] | None = None) -> str:
        """The scenario file of what is on the screen. Raises BadInput as `screen` does."""
        start = self._start(name)
        turned = _turned_controls(start, values)
        self._at(start, turned, shown)
        return _text(start, turned, shown)

    def _start(self, name: str) -> _Start:
        if name not in self._scenarios:
            raise BadInput(f"no scenario {name!r} to start from; choose one of {', '.join(self._scenarios)}")
        values = self._scenarios[name]
        if name not in self._starts or self._starts[name].values != values:
            try:
                loaded = from_dict({**values, "train": False, "record_updates": False}, name)
            except ScenarioError as problem:
                raise BadInput(str(problem)) from None
            self._starts[name] = _Start(values, loaded)
        return self._starts[name]

    def _at(
        self, start: _Start, turned: Mapping[str, tuple[Control, Any]], shown: Collection[int] | None
    ) -> tuple[Known, dict[int, Contender]]:
        """The fleet and the policies, by position, with what is turned. Raises BadInput at the place of what is wrong."""
        fleet = _put(start.fleet, turned, ("fleet",))
        key = start.text + json.dumps(fleet, sort_keys=True)
        with self._turn:
            if key not in self._known:
                self._known[key] = Known(_world(start.loaded, fleet))
            self._known.move_to_end(key)
            known = self._known[key]
            while len(self._known) > _N_KEPT:
                self._known.popitem(last=False)
        everyone = enumerate(start.loaded.contenders)
        contenders = {i: _contender(i, each, turned) for i, each in everyone if shown is None or i in shown}
        for i, contender in contenders.items():
            with _inside("policies", i):
                known.world.planned_for(contender).refuse_problems(contender, train=True)
        return known, contenders

    def _answer(self, known: Known, asked: Iterable[Question], until: float) -> bool:
        """Ask until the time is up, one at the least; whether everything is known."""
        has_asked, is_patient = False, until == np.inf
        for question in asked:
            if question.key in known.found:
                continue
            if has_asked and not is_patient and (question.is_dear or perf_counter() > until):
                return False
            # What is dear is asked one at a time, and the quick goes on beside it; who waits for it looks up now and then.
            lock = self._dear if question.is_dear else self._turn
            if not lock.acquire(timeout=-1 if is_patient or not question.is_dear else _LOOKING_UP_S):
                return False
            try:
                if question.key not in known.found:
                    known.found[question.key] = question.answer()
            finally:
                lock.release()
            has_asked = True
        return True


# ---- turning --------------------------------------------------------------------------------------------------------


def _turned_controls(start: _Start, values: Values) -> dict[str, tuple[Control, Any]]:
    """Those whose value is not the stated one, by key, with what it stands for. Raises BadInput for what is none."""
    known = {control.key: control for control in start.controls}
    turned = {}
    for key, value in values.items():
        if key not in known:
            raise BadInput(f"{key} cannot be turned here; choose one of {', '.join(known)}")
        choices = known[key].choices
        if choices and value not in choices:
            raise BadInput(f"{value!r} is no choice; choose {' or '.join(choices)}", location(key))
        if value != known[key].stated:
            turned[key] = known[key], choices[str(value)] if choices else value
    return turned


def _put(values: Any, turned: Mapping[str, tuple[Control, Any]], below: tuple[str | int, ...] = ()) -> Any:
    """A copy of what stands at `below` in a scenario, with what is turned in it."""
    stated, values = values, copy.deepcopy(values)
    for key, (_, value) in turned.items():
        at = location(key)
        if at[: len(below)] == below:
            block: Any = values
            for part in at[len(below) : -1]:
                block = block.setdefault(part, {}) if isinstance(part, str) else block[part]
            put(block, at[-1], value, value_at(stated, at[len(below) : -1]))
    return values


def _world(loaded: LoadedScenario, fleet: dict[str, Any]) -> World:
    with _inside("fleet"):
        found = checked(stated_fleet.Fleet, fleet)
    scenario = loaded.scenario.model_copy(update={"fleet": found})
    if problems := checks.problems(scenario):
        raise BadInputs(problems)
    return World.of(replace(loaded, scenario=scenario), scenario.seed_sets[0])


def _contender(i: int, contender: Contender, turned: Mapping[str, tuple[Control, Any]]) -> Contender:
    if not any(control.policy == i for control, _ in turned.values()):
        return contender
    policy: Any = contender.policy
    stated = {f.name: to_jsonable_python(getattr(policy, f.name)) for f in fields(policy) if f.init}
    parameters = _put(stated, turned, ("policies", i))
    with _inside("policies", i):
        return replace(contender, policy=checked(type(policy), parameters), parameters=parameters)


@contextmanager
def _inside(*at: str | int) -> Iterator[None]:
    """Places what is refused inside under `at`."""
    try:
        yield
    except BadInput as problem:
        raise BadInputs([BadInput(str(each), (*at, *each.at)) for each in each_problem(problem)]) from None


def _moved(turned: Mapping[str, tuple[Control, Any]], i: int) -> tuple[str, ...]:
    """What was turned of this policy, in words."""
    return tuple(f"{_called(key)} = {value:.4g}" for key, (control, value) in turned.items() if control.policy == i)


def _called(key: str) -> str:
    """A policy's setting: `k`, `rates 0.5`."""
    return " ".join(str(part).removeprefix("=") for part in location(key)[2:])


# ---- as a file ------------------------------------------------------------------------------------------------------


def _text(start: _Start, turned: Mapping[str, tuple[Control, Any]], shown: Collection[int] | None) -> str:
    values = _put(start.short, turned)
    stated = start.loaded.scenario.name
    remarks = {location(key): f"turned; {_was(control)} in {stated}" for key, (control, _) in turned.items()}
    for control, _ in turned.values():
        if control.policy is not None:  # a label may name what is not so any more
            values["policies"][control.policy].pop("label", None)
    kept = [i for i in range(len(values["policies"])) if shown is None or i in shown]
    values["policies"] = [values["policies"][i] for i in kept]
    entries = {("policies", kept.index(i)): said for i in kept if (said := _entry_remark(turned, i, stated))}
    is_as_stated = not turned and len(kept) == len(start.loaded.contenders)
    values["name"] = stated if is_as_stated else f"{stated}-what-if"
    return scenario_text.as_yaml(values, _HEADING if is_as_stated else f"{_HEADING}\n{_SEE}", remarks | entries)


_HEADING = "Question: which of these policies, at these numbers? Written by the planner of fedsim."
_SEE = "What was turned there is marked; `fedsim plan` has its closed forms, `fedsim run` plays it."


def _entry_remark(turned: Mapping[str, tuple[Control, Any]], i: int, stated: str) -> str:
    own = [f"{_called(key)} {_was(control)}" for key, (control, _) in turned.items() if control.policy == i]
    return f"turned; in {stated} {', '.join(own)}" if own else ""


def _was(control: Control) -> str:
    stated = control.stated
    return f"was {stated:g}" if isinstance(stated, int | float) else f"was {stated.removesuffix(AS_STATED)}"
