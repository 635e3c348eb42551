"""Where something stands in a scenario: from a location to its line and to the words of an error.

A location is the keys and list positions from the top, ("policies", 2, "k"); shown, it is `policies[2] (stsyn).k`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedsim.facts import BadInput
from fedsim.scenario.errors import ScenarioError, each_problem
from fedsim.scenario.yaml_lines import Location


def descend(values: Any, at: Iterable[str | int]) -> Iterator[tuple[str | int, Any]]:
    """The parts of `at` that exist in `values`, each with what stands there; parts that do not exist are passed over.

    pydantic's locations also hold the names of union members ("law", "exponential"), which nobody wrote.
    """
    for part in at:
        is_key = isinstance(values, dict) and isinstance(part, str) and part in values
        if not is_key and not (isinstance(values, list) and isinstance(part, int) and 0 <= part < len(values)):
            continue
        values = values[part]
        yield part, values


def value_at(values: Any, at: Iterable[str | int]) -> Any:
    """What stands at `at`; None if nothing does."""
    parts = tuple(at)
    found = [values, *(value for _, value in descend(values, parts))]
    return found[-1] if len(found) == len(parts) + 1 else None


def written_location(values: Any, at: Iterable[str | int]) -> Location:
    """`at` without the parts that do not exist in `values`."""
    return tuple(part for part, _ in descend(values, at))


def own_name(at: Location) -> str:
    """What stands at `at`, as one would point to it in its own block: `k`, `targets[1]`; "" at the top."""
    name = ""
    for part in reversed(at):
        if isinstance(part, str):
            return f"{part}{name}"
        name = f"[{part}]{name}"
    return name


def shown(values: Any, at: Location) -> str:
    """The location in words: `policies[2] (stsyn).training`; a block that states its kind shows it."""
    text = ""
    for i, part in enumerate(at):
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
        inner = value_at(values, at[: i + 1])
        if isinstance(inner, dict) and isinstance(inner.get("kind"), str):
            text += f" ({inner['kind']})"
    return text


@dataclass(frozen=True)
class Source:
    """A scenario as it was written. path: as given; lines: empty if it did not come from a file."""

    path: str
    values: dict[str, Any]
    lines: Mapping[Location, int] = field(default_factory=dict)

    def line(self, at: Location) -> int | None:
        """The line of `at`, or of the nearest block around it that exists."""
        return next((self.lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in self.lines), None)

    def error(self, problem: BadInput, *others: BadInput) -> ScenarioError:
        """The first of the problems by line, as one line that counts the others."""
        problems = [single for bad in (problem, *others) for single in each_problem(bad)]
        placed = [(self._pointed(bad), bad) for bad in problems]
        at, first = min(placed, key=lambda each: self.line(each[0]) or math.inf)
        return ScenarioError(self.path, self._worded(at, str(first)), self.line(at), len(problems) - 1)

    def _pointed(self, problem: BadInput) -> Location:
        # "k is 60 but ..." about ("policies", 2) is about its key k, which may have a line of its own.
        block = value_at(self.values, problem.at)
        word = str(problem).split(" ", 1)[0]
        return (*problem.at, word) if isinstance(block, dict) and word in block else problem.at

    def _worded(self, at: Location, message: str) -> str:
        name = own_name(at)
        if name and message.startswith(f"{name} "):
            n_own = 1 + name.count("[")
            at = at[:-n_own]
        where = shown(self.values, at)
        return f"{where}: {message}" if where else message
