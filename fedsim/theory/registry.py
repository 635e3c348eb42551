"""Which closed forms a policy has: the file of its name beside this one."""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fedsim.protocols import NoClosedForm
from fedsim.theory.fleet import Expectation, Fleet, evened, none
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
    if hasattr(module, "task_steps"):  # tasks that are not always of local_steps
        n_steps = module.task_steps(policy, fleet.n_layers)
    # Unequal numbers of steps, which only the policy's own closed forms know, are evened there.
    if not fleet.has_even_steps and isinstance(n_steps, int) and (fleet.step_factor is None or n_steps == 1):
        unknown = getattr(module, "NEEDS_EVEN_STEPS", frozenset())
        fleet = evened(fleet, n_steps)
    answers: Answers = module.answers(policy, fleet)
    return listed({q: _uneven if q in unknown else answer for q, answer in answers.items() if q in wanted})


def _uneven() -> list[Expectation]:
    raise NoClosedForm("needs local steps of equal numbers of rows; some device's last batch is smaller")
