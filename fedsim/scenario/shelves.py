"""The open shelves: `kind: salf` is `fedsim/policies/salf.py`. The file name is the registry.

A kind is looked for among the files of the shelf, then among the entry points of the group `fedsim.policies` (`fedsim.models`,
`fedsim.datasets`) of installed packages, then among the shelf's `ALIASES`, other names of its files. A kind with a dot or a colon in it is a path to code of your own, imported from the
current folder or from an installed package: `mylab.policies.foo` is a module with one public class,
`mylab.nets:build` (or `mylab.nets.build`) a class, or for models also a function.

Only what is asked for is imported: naming a policy does not import torch. Whoever can write a scenario can, by such a
path, have any importable code run.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel

from fedsim.facts import BadInput
from fedsim.scenario.checked import checked
from fedsim.scenario.code_path import attempt, follow, imported, is_path, public_class
from fedsim.scenario.plain_words import nearest
from fedsim.scenario.schema import DataEntry, ModelEntry, PolicyEntry

Shelf = Literal["policies", "models", "datasets"]
SHELVES: tuple[Shelf, ...] = ("policies", "models", "datasets")

ENTRIES: dict[Shelf, type[BaseModel]] = {"policies": PolicyEntry, "models": ModelEntry, "datasets": DataEntry}
"""What stands in a scenario for an item of each shelf: its own keys beside the item's parameters."""

_NOUN = {"policies": "policy", "models": "model", "datasets": "data set"}
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_METHODS = {"policies": ("problems", "rounds"), "models": ("build",), "datasets": ("load",)}


@dataclass(frozen=True)
class BuiltByFunction:
    """A model whose chain of layers a plain function builds: `function(input_shape, n_outputs, **parameters)`."""

    function: Callable[..., Any]
    parameters: dict[str, Any] = field(default_factory=dict)

    def build(self, input_shape: tuple[int, ...], n_outputs: int) -> Any:
        """What the function returns: a torch `nn.Module`. input_shape: of one sample."""
        return self.function(input_shape, n_outputs, **self.parameters)


def names(shelf: Shelf) -> list[str]:
    """The kinds on a shelf, shipped or installed, in alphabetical order; nothing is imported for it."""
    return sorted({*_files(shelf), *(entry.name for entry in entry_points(group=f"fedsim.{shelf}"))})


def aliases(shelf: Shelf) -> dict[str, str]:
    """Other names under which kinds on a shelf are known, and the kinds; a file of that name comes first."""
    return dict(getattr(importlib.import_module(f"fedsim.{shelf}"), "ALIASES", {}))


def kind_named(shelf: Shelf, name: str) -> str:
    """The kind that a name stands for; any other name as it is."""
    return name if name in names(shelf) else aliases(shelf).get(name, name)


def check_known(shelf: Shelf, kind: str) -> None:
    """Nothing, or BadInput with the nearest known name. A path is not followed: that would import it."""
    known = [*names(shelf), *aliases(shelf)]
    if not is_path(kind) and kind not in known:
        raise BadInput(f"kind is {kind!r}, which is no {_NOUN[shelf]} known here{nearest(kind, known)}", at=("kind",))


def item(shelf: Shelf, kind: str) -> Any:
    """The class (for a model possibly a function) that `kind` names; BadInput if there is none or it cannot be used."""
    check_known(shelf, kind)
    kind = kind_named(shelf, kind)
    if is_path(kind):
        found = follow(kind)
    elif kind in _files(shelf):
        found = imported(f"fedsim.{shelf}.{kind}")
    else:
        found = _loaded_entry_point(shelf, kind)
    return _usable(shelf, kind, public_class(found) if isinstance(found, ModuleType) else found)


def build(shelf: Shelf, kind: str, parameters: dict[str, Any]) -> Any:
    """An instance with these parameters (JSON-able); BadInput at ("kind",) or at the parameter that does not fit."""
    target = item(shelf, kind)
    if _is_class_of(shelf, target):
        return checked(target, parameters, beside=_reserved(shelf))
    accepts_any = any(p.kind is p.VAR_KEYWORD for p in _signature(target))
    known = parameters_class(shelf, target)
    named = {name: value for name, value in parameters.items() if not accepts_any or name in known.__dataclass_fields__}
    checked_values = checked(known, named, beside=_reserved(shelf))
    own = {name: getattr(checked_values, name) for name in known.__dataclass_fields__}
    return BuiltByFunction(target, {**parameters, **own})


def parameters_class(shelf: Shelf, target: Any) -> Any:
    """The dataclass whose fields are the parameters of a shelf's item: the item itself, or one made for a function."""
    if _is_class_of(shelf, target):
        return target
    function = inspect.getattr_static(target, "__init__") if isinstance(target, type) else target
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as error:  # names in annotations can fail in any way
        raise BadInput(f"the parameter types of {target.__qualname__} cannot be read: {error}", at=("kind",)) from None
    return make_dataclass(
        f"{target.__name__} parameters",
        [(p.name, hints.get(p.name, Any), _field(p)) for p in _signature(target)[2:] if p.kind in _NAMED],
        kw_only=True,
    )


def _field(parameter: inspect.Parameter) -> Any:
    default = parameter.default
    # A factory, because a dataclass refuses a list as a default and a function does not.
    return field() if default is parameter.empty else field(default_factory=lambda: default)


def _reserved(shelf: Shelf) -> list[str]:
    return [name for name in ENTRIES[shelf].model_fields if name != "kind"]


def _signature(function: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


def _files(shelf: Shelf) -> list[str]:
    package = importlib.import_module(f"fedsim.{shelf}")
    found = pkgutil.iter_modules(package.__path__)
    return [module.name for module in found if not module.ispkg and not module.name.startswith("_")]


def _loaded_entry_point(shelf: Shelf, kind: str) -> Any:
    entry = next(iter(entry_points(group=f"fedsim.{shelf}", name=kind)))
    return attempt(entry.value, entry.load)


def _is_class_of(shelf: Shelf, target: Any) -> bool:
    return isinstance(target, type) and all(callable(getattr(target, name, None)) for name in _METHODS[shelf])


def _usable(shelf: Shelf, kind: str, target: Any) -> Any:
    """The target itself, or BadInput if it cannot play its role."""
    if not _is_class_of(shelf, target):
        if shelf == "models" and _takes_two(target):
            return target
        methods = " and ".join(f"{name}(...)" for name in _METHODS[shelf])
        function = ", or a function (input_shape, n_outputs, ...)" if shelf == "models" else ""
        wanted = f"a frozen dataclass with {methods}{function}"
        raise BadInput(f"kind names {kind}, which is no {_NOUN[shelf]}; that is {wanted}", at=("kind",))
    if not is_dataclass(target) or not inspect.getattr_static(target, "__dataclass_params__").frozen:
        remedy = "put @dataclass(frozen=True) above it"
        raise BadInput(f"kind names {kind}, which must be a frozen dataclass; {remedy}", at=("kind",))
    if taken := {"kind", *_reserved(shelf)} & {f.name for f in fields(target)}:
        name = min(taken)
        raise BadInput(f"kind names {kind}, whose parameter {name} is a key of every entry; rename it", at=("kind",))
    return target


def _takes_two(target: Any) -> bool:
    try:
        return len(_signature(target)) >= 2
    except (TypeError, ValueError):  # not callable, or written in C without a signature
        return False
