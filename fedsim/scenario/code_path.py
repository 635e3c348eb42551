"""Code that a scenario names by its path: `mylab.policies.foo`, `mylab.nets:build`.

It is imported from the current folder or from an installed package. Whatever goes wrong in it becomes one line.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from fedsim.facts import BadInput
from fedsim.scenario.plain_words import nearest


def is_path(kind: str) -> bool:
    """Whether a kind points to code outside the shelves."""
    return "." in kind or ":" in kind


def attempt(name: str, load: Callable[[], Any]) -> Any:
    """What `load` returns; whatever the imported code raises becomes one line."""
    try:
        return load()
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())
        raise BadInput(
            f"kind names {name}, which fails when imported: {type(error).__name__}: {reason}", at=("kind",)
        ) from error


def imported(name: str) -> ModuleType:
    """The module of that name; BadInput if importing it fails."""
    module = attempt(name, lambda: importlib.import_module(name))
    assert isinstance(module, ModuleType)
    return module


def follow(kind: str) -> Any:
    """The module, class or function at a path such as `mylab.nets:build`, `mylab.nets.build` or `mylab.policies.foo`.

    BadInput if nothing is there. Adds the current folder to the places that modules are looked for in.
    """
    if not all(part.isidentifier() for part in kind.replace(":", ".", 1).split(".")):
        raise BadInput(
            f"kind is {kind!r} but must be a path such as mylab.policies.foo or mylab.nets:build", at=("kind",)
        )
    # Last, so that a file of the user's called random.py does not stand in for Python's own.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    importlib.invalidate_caches()  # the file may have been written a moment ago
    module_name, colon, attribute = kind.partition(":")
    if not colon and not _exists(module_name):
        module_name, _, attribute = kind.rpartition(".")
    if not _exists(module_name):
        raise BadInput(
            f"kind is {kind!r} but there is no module {module_name}; looked in {os.getcwd()} and among installed packages",
            at=("kind",),
        )
    module = imported(module_name)
    return _attribute(module, attribute) if attribute else module


def _exists(name: str) -> bool:
    """Whether there is such a module. Its parents are imported; what they raise is reported."""
    parent, _, _ = name.rpartition(".")
    if parent and not _exists(parent):
        return False
    if parent and not hasattr(imported(parent), "__path__"):
        return False
    return name in sys.modules or attempt(name, lambda: importlib.util.find_spec(name)) is not None


def _attribute(module: ModuleType, name: str) -> Any:
    if not hasattr(module, name):
        public = [known for known in vars(module) if not known.startswith("_")]
        raise BadInput(
            f"kind names {name}, but {module.__name__} holds no such name{nearest(name, public)}", at=("kind",)
        )
    return getattr(module, name)


def public_class(module: ModuleType) -> type[Any]:
    """The one class that the module defines and does not hide; BadInput if there are more or none."""
    found = [
        value
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_")
    ]
    if len(found) != 1:
        listed = ", ".join(cls.__name__ for cls in found) or "none"
        raise BadInput(
            f"kind names {module.__name__}, which must define one public class but defines {listed}; "
            f"start the names of helpers with '_', or name one: {module.__name__}:NAME",
            at=("kind",),
        )
    return found[0]
