"""A scenario file in, everything that a comparison needs out; or one line that says what is wrong with it and where.

Numbers, names and parameters are checked here. What needs the fleet's draws, the data or the model's shape is checked
by those who know them; they raise `BadInput` and `LoadedScenario.error` finds its line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from fedsim.facts import BadInput
from fedsim.protocols import Policy
from fedsim.scenario import checks, contenders, shelves, variants
from fedsim.scenario.checked import checked_model
from fedsim.scenario.contenders import Contender
from fedsim.scenario.errors import BadInputs, BadYaml, ScenarioError, each_problem
from fedsim.scenario.files import with_paths
from fedsim.scenario.places import Source
from fedsim.scenario.plain_values import plain_values
from fedsim.scenario.schema import Scenario
from fedsim.scenario.text_file import read_text
from fedsim.scenario.yaml_lines import parse

_SHELF_KEYS: dict[shelves.Shelf, str] = {"models": "model", "datasets": "data"}


@dataclass(frozen=True)
class LoadedScenario:
    """A scenario that can be run. scenario: with absolute paths. source: what was written, and on which lines."""

    scenario: Scenario
    contenders: tuple[Contender, ...]
    source: Source

    @cached_property
    def model(self) -> Any:
        """The model of the shelf, with `build(input_shape, n_outputs)`. Imports torch when first asked for."""
        return self._from_shelf("models", "model")

    @cached_property
    def data(self) -> Any:
        """The data set of the shelf, with `load(data_dir, seed)`. Nothing is loaded yet."""
        return self._from_shelf("datasets", "data")

    def _from_shelf(self, shelf: shelves.Shelf, key: str) -> Any:
        try:
            return _built(self.scenario, shelf, key)
        except BadInput as problem:
            raise self.error(problem) from None

    def error(self, problem: BadInput) -> ScenarioError:
        """A problem with this scenario as the line that the user reads: `file:line: where: what; remedy`."""
        return self.source.error(problem)

    def with_policies(self, policies: Sequence[Policy]) -> LoadedScenario:
        """The same scenario with policy objects made in Python in place of its own; ScenarioError if labels collide."""
        entries = [{"kind": contenders.kind_of(policy)} for policy in policies]
        # What is said about a policy made in Python must not point to the line of another one in the file.
        lines = {at: line for at, line in self.source.lines.items() if at[:1] != ("policies",) or len(at) == 1}
        source = replace(self.source, values={**self.source.values, "policies": entries}, lines=lines)
        try:
            found = contenders.from_policies(policies, self.scenario.training)
        except BadInput as problem:
            raise source.error(problem) from None
        return replace(self, contenders=found, source=source)

    def resolved(self) -> dict[str, Any]:
        """The scenario as JSON-able values with every default filled in; `from_dict` reads it back."""
        values: dict[str, Any] = self.scenario.model_dump(mode="json")
        values["policies"] = [_resolved_entry(each) for each in self.contenders]
        values["seeds"] = [
            {"seed": s.seed, **{purpose: s.of(purpose) for purpose in ("init", "data", "fleet", "clock")}}
            for s in self.scenario.seed_sets
        ]
        if self.scenario.train:  # without training neither is needed, and asking would import torch
            values["model"] |= _parameters(self.model)
            values["data"] |= _parameters(self.data)
        return values


def load(path: str | os.PathLike[str]) -> LoadedScenario:
    """Read a scenario file without variants; ScenarioError if anything is wrong with it.

    Relative paths in it start from its own folder; `kind` paths such as `mylab.nets:build` from the current one.
    """
    found = load_variants(path)
    if len(found) > 1 or found[0][0] is not None:
        raise ScenarioError(os.fspath(path), f"states {len(found)} variants, which are scenarios of their own")
    return found[0][1]


def load_variants(path: str | os.PathLike[str]) -> list[tuple[str | None, LoadedScenario]]:
    """Every scenario of a file, with the variant's name (None if the file states no variants); else as `load`."""
    shown = os.fspath(path)
    try:
        parsed = parse(read_text(Path(path)))
    except BadYaml as problem:
        raise ScenarioError(shown, problem.message, problem.line) from None
    source = Source(shown, parsed.values, parsed.lines)
    try:
        found = variants.expanded(source)
    except BadInput as problem:
        raise source.error(problem) from None
    return [(name, _loaded(each, Path(path).parent)) for name, each in found]


def from_dict(values: dict[str, Any], name: str = "<scenario>") -> LoadedScenario:
    """A scenario from Python values; ScenarioError, without a line, if anything is wrong.

    NumPy numbers and arrays, tuples and paths are taken as what a file would say. Relative paths start from the
    current folder. name: stands where a file's path would in errors.
    """
    try:
        plain = plain_values(values)
    except BadInput as problem:
        raise ScenarioError(name, str(problem)) from None
    if not isinstance(plain, dict):
        raise ScenarioError(name, "a scenario is a dict, as read from a file")
    return _loaded(Source(name, plain), Path())


def _loaded(source: Source, folder: Path) -> LoadedScenario:
    try:
        scenario: Scenario = checked_model(Scenario, source.values)
    except BadInput as problem:
        raise source.error(problem) from None
    problems = checks.problems(scenario)
    with _problems_into(problems):
        scenario = with_paths(scenario, folder)
    found: tuple[Contender, ...] = ()
    with _problems_into(problems):
        found = contenders.from_entries(scenario.policies, scenario.training)
    for shelf, key in _SHELF_KEYS.items():
        with _problems_into(problems):
            _check_item(scenario, shelf, key)
    if problems:
        raise source.error(*problems)
    return LoadedScenario(scenario, found, source)


@contextmanager
def _problems_into(problems: list[BadInput]) -> Iterator[None]:
    """Adds what is refused inside to `problems` and goes on after it, so that all of them can be counted."""
    try:
        yield
    except BadInput as problem:
        problems.extend(each_problem(problem))


def _check_item(scenario: Scenario, shelf: shelves.Shelf, key: str) -> None:
    if scenario.train:
        _built(scenario, shelf, key)
        return
    # A timing-only scenario must not pay for importing torch: its model's parameters are checked when it is asked for.
    with _inside(key):
        shelves.check_known(shelf, getattr(scenario, key).kind)


def _built(scenario: Scenario, shelf: shelves.Shelf, key: str) -> Any:
    entry = getattr(scenario, key)
    with _inside(key):
        return shelves.build(shelf, entry.kind, entry.parameters)


@contextmanager
def _inside(key: str) -> Iterator[None]:
    """Places what is refused inside under `key`."""
    try:
        yield
    except BadInput as problem:
        raise BadInputs([BadInput(str(each), (key, *each.at)) for each in each_problem(problem)]) from None


def _resolved_entry(contender: Contender) -> dict[str, Any]:
    training = asdict(contender.training)
    del training["local_steps"]  # a policy that has them states them itself
    optimizer = contender.server_optimizer
    return {
        "kind": contender.kind,
        "label": contender.label,
        **_parameters(contender.policy),
        "training": training,
        "server_optimizer": None if optimizer is None else asdict(optimizer),
    }


def _parameters(item: Any) -> dict[str, Any]:
    if isinstance(item, shelves.BuiltByFunction):
        return dict(to_jsonable_python(item.parameters))
    return {f.name: to_jsonable_python(getattr(item, f.name)) for f in fields(item) if f.init}
