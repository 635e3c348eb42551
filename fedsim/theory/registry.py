"""Which closed forms a policy has: the file of its name beside this one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fedsim.protocols import NoClosedForm
from fedsim.theory.fleet import Expectation, Fleet, none
from fedsim.theory.rounds import UNITS, Answers, listed


def expected(kind: str, policy: Any, fleet: Fleet, *, wanted: Collection[str] = frozenset(UNITS)) -> list[Expectation]:
    """What a round of this policy should have on average, or why there is no closed form.

    kind: the policy's name on the shelf. policy: anything with its parameters as attributes. wanted: these quantities.
    """
    name = f"fedsim.theory.{kind}"
    module = import_module(name) if kind.isidentifier() and find_spec(name) is not None else None
    if module is None or not hasattr(module, "answers"):
        return [none("round_s", "s", f"needs a policy with closed forms; {kind} has none here")]
    unknown, n_steps = frozenset[str](), getattr(policy, "local_steps", 1)
    if not fleet.has_even_steps and (fleet.step_factor is None or n_steps == 1):
        unknown = getattr(module, "NEEDS_EVEN_STEPS", frozenset())
        fleet = evened(fleet, n_steps)
    answers: Answers = module.answers(policy, fleet)
    return listed({q: _uneven if q in unknown else answer for q, answer in answers.items() if q in wanted})


def evened(fleet: Fleet, n_steps: int) -> Fleet:
    """The fleet as its first n_steps steps see it: each of them as long as their mean, and with its rows.

    Their end is the same to the last bit if nothing is drawn per step; where single steps end is another matter.
    """
    n_rows = fleet.rows_before(n_steps) / n_steps
    return replace(fleet, unit_s=fleet.unit_s * n_rows / fleet.n_rows, n_rows=n_rows, has_even_steps=True)


def _uneven() -> list[Expectation]:
    raise NoClosedForm("needs local steps of equal numbers of rows; some device's last batch is smaller")
