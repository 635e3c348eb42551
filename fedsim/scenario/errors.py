"""How a scenario is refused: one line that says where, what is wrong and how to mend it.

Three shapes of the same bad news: `BadYaml` knows a line but no file, `BadInput` (in `facts.py`) knows a place in the
scenario but neither, `ScenarioError` is what the user reads. What the user reads never holds a line break.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.facts import BadInput


class BadYaml(ValueError):
    """Text that is not the YAML we read. line: from 1; None if it is about the file as a whole."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message, line)
        self.message = " ".join(message.split())
        self.line = line

    def __str__(self) -> str:
        return self.message


class BadInputs(BadInput):
    """Several problems found together; it reads like the first of them. problems: at least one."""

    def __init__(self, problems: Sequence[BadInput]) -> None:
        super().__init__(str(problems[0]), problems[0].at)
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type[BadInputs], tuple[tuple[BadInput, ...]]]:
        return BadInputs, (self.problems,)


def each_problem(problem: BadInput) -> tuple[BadInput, ...]:
    """The single problems behind one that was raised."""
    return problem.problems if isinstance(problem, BadInputs) else (problem,)


class ScenarioError(ValueError):
    """A scenario that cannot be used; `str()` is one line: `file:line: where: what is wrong; how to mend it`.

    path: as the user gave it. line: from 1; None where there is no file to point into. n_more: further problems found.
    """

    def __init__(self, path: str, message: str, line: int | None = None, n_more: int = 0) -> None:
        super().__init__(path, message, line, n_more)
        self.path = path
        self.message = message
        self.line = line
        self.n_more = n_more

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}:{self.line}"
        more = f" (and {self.n_more} more)" if self.n_more else ""
        return " ".join(f"{place}: {self.message}{more}".split())
