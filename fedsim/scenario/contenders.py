"""The policies of a comparison: each entry of a scenario with its instance, its label and its own training settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, cast

from fedsim.facts import BadInput
from fedsim.protocols import Policy
from fedsim.scenario import shelves
from fedsim.scenario.checked import checked
from fedsim.scenario.errors import BadInputs, each_problem
from fedsim.scenario.labels import automatic_labels, folder_name
from fedsim.scenario.schema import PolicyEntry
from fedsim.training.settings import ServerOptimizer, Training


@dataclass(frozen=True)
class Contender:
    """One policy that takes part.

    label: its name in results, unique. kind: the file on the shelf or the path. parameters: as the scenario states them;
    `policy` has them all. training: the scenario's settings with this entry's overrides.
    """

    label: str
    kind: str
    policy: Policy
    parameters: dict[str, Any]
    training: Training
    server_optimizer: ServerOptimizer | None = None

    @property
    def folder(self) -> str:
        """The name of the folder that holds this contender's runs."""
        return folder_name(self.label)


def from_entries(entries: Sequence[PolicyEntry], training: Training) -> tuple[Contender, ...]:
    """A contender for each entry, in their order; BadInputs at ("policies", i, ...) with everything found wrong."""
    found: list[Contender] = []
    bad: list[BadInput] = []
    for i, entry in enumerate(entries):
        try:
            found.append(_contender(entry, training))
        except BadInput as problem:
            bad += [BadInput(str(each), ("policies", i, *each.at)) for each in each_problem(problem)]
    if bad:
        raise BadInputs(bad)
    return _labelled(found)


def from_policies(policies: Sequence[Policy], training: Training) -> tuple[Contender, ...]:
    """A contender for each policy object made in Python; kind: its file on the shelf, or the name of its class."""
    return _labelled([Contender("", kind_of(policy), policy, _parameters(policy), training) for policy in policies])


def kind_of(policy: Policy) -> str:
    """The file that a policy stands in on the shelf, or the name of its class."""
    package, _, name = type(policy).__module__.rpartition(".")
    return name if package == "fedsim.policies" else type(policy).__name__


def _parameters(policy: Policy) -> dict[str, Any]:
    return {f.name: getattr(policy, f.name) for f in fields(policy)} if is_dataclass(policy) else {}


def _contender(entry: PolicyEntry, base: Training) -> Contender:
    training = _merged(base, entry.training)
    given = entry.parameters
    # A policy that can do without local_steps (its default is None) has another way to state its work.
    own = {f.name for f in fields(shelves.item("policies", entry.kind)) if f.default is not None}
    has_steps = "local_steps" in own
    if "local_steps" in entry.training:
        _check_local_steps(entry, has_steps)
    filled: dict[str, Any] = {name: getattr(training, name) for name in ("local_steps", "momentum") if name in own}
    policy = cast(Policy, shelves.build("policies", entry.kind, {**filled, **given}))
    if has_steps:
        training = replace(training, local_steps=getattr(policy, "local_steps") or training.local_steps)  # noqa: B009
    kind = shelves.kind_named("policies", entry.kind)
    return Contender(entry.label or "", kind, policy, given, training, entry.server_optimizer)


def _merged(base: Training, overrides: dict[str, Any]) -> Training:
    try:
        return checked(Training, {**asdict(base), **overrides})
    except BadInput as problem:
        raise BadInputs([BadInput(str(each), ("training", *each.at)) for each in each_problem(problem)]) from None


def _check_local_steps(entry: PolicyEntry, has_steps: bool) -> None:
    at = ("training", "local_steps")
    if not has_steps:
        raise BadInput(f"local_steps has no effect on {entry.kind}, which decides that itself; delete it", at)
    if "local_steps" in entry.parameters:
        raise BadInput("local_steps is given twice, here and in the entry itself; keep one", at)


def _labelled(contenders: Sequence[Contender]) -> tuple[Contender, ...]:
    automatic = automatic_labels([each.kind for each in contenders], [_settings(each) for each in contenders])
    labels = [each.label or label for each, label in zip(contenders, automatic, strict=True)]
    if bad := [problem for i in range(len(labels)) if (problem := _label_problem(i, labels)) is not None]:
        raise BadInputs(bad)
    return tuple(replace(each, label=label) for each, label in zip(contenders, labels, strict=True))


def _settings(contender: Contender) -> dict[str, Any]:
    """All that may tell two contenders of one kind apart, by name."""
    own = {**_parameters(contender.policy), **asdict(contender.training)}
    return {**own, **_parameters(contender.policy), "server_optimizer": contender.server_optimizer}


def _label_problem(i: int, labels: Sequence[str]) -> BadInput | None:
    label, at = labels[i], ("policies", i, "label")
    if not label.isprintable() or not label.strip() or len(label) > 200:
        return BadInput("label must be one line of at most 200 printable characters; choose a plainer one", at)
    # Compared as folders on a disk that does not tell capitals from small letters.
    earlier = [folder_name(other).casefold() for other in labels[:i]]
    if folder_name(label).casefold() in earlier:
        j = earlier.index(folder_name(label).casefold())
        return BadInput(f"label is {label!r}, like that of policies[{j}]; give them different labels or parameters", at)
    return None
