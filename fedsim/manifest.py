"""What a run says of itself: its settings, what decides about its results, how it came out on this machine."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.facts import Evaluation
from fedsim.records import SCHEMA_VERSION
from fedsim.scenario.contenders import Contender
from fedsim.scenario.read import LoadedScenario
from fedsim.scenario.schema import SeedSet

_MACHINE = {"platform": platform.platform(), "python": platform.python_version()}


def of_run(loaded: LoadedScenario, contender: Contender, seeds: SeedSet) -> dict[str, Any]:
    """What was asked for."""
    position = loaded.contenders.index(contender)
    resolved = loaded.resolved()
    return {
        "schema_version": SCHEMA_VERSION,
        "scenario": resolved,
        "policy": {
            "kind": contender.kind,
            "label": contender.label,
            "summary": _summary(contender),
            "parameters": resolved["policies"][position],
        },
        "position": position,
        "seed": seeds.seed,
        "seeds": {purpose: seeds.of(purpose) for purpose in ("init", "data", "fleet", "clock")},
        "grid_step_s": loaded.scenario.grid_step_s,
        "versions": {name: _version(name) for name in ("fedsim-clock", "torch", "numpy", "scipy", "simpy")},
        "fingerprint": fingerprint(loaded, contender, seeds),
    }


def _summary(contender: Contender) -> str:
    """What the policy does, by the first line of its file, or of its class where the file has none."""
    cls = type(contender.policy)
    module = inspect.getmodule(cls)
    said = (module and module.__doc__) or cls.__doc__ or ""
    return said.strip().split("\n", 1)[0]


def fingerprint(loaded: LoadedScenario, contender: Contender, seeds: SeedSet) -> str:
    """A digest of everything that decides this run: the scenario without the other policies and seeds, the files that it
    names, code that is not fedsim's own, and fedsim's version.
    """
    resolved = loaded.resolved()
    own = resolved["policies"][loaded.contenders.index(contender)]
    purposes = [seeds.of(purpose) for purpose in ("init", "data", "fleet", "clock")]
    decides = {**resolved, "policies": [own], "seeds": purposes, "fedsim": _version("fedsim-clock")}
    decides["files"] = [_digest(file) for file in _deciding_files(loaded, contender)]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _deciding_files(loaded: LoadedScenario, contender: Contender) -> list[str]:
    settings = loaded.scenario.data
    named = [settings.split_file, loaded.scenario.model.initial_weights, getattr(settings.partition, "path", None)]
    items = [contender.policy, *([loaded.model, loaded.data] if loaded.scenario.train else [])]
    for item in items:
        code = getattr(item, "function", type(item))
        if not code.__module__.startswith("fedsim."):
            with suppress(TypeError, OSError):  # made in a notebook: there is no file to look at
                named.append(inspect.getsourcefile(code))
    return [file for file in named if file is not None]


def _digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if Path(file).is_file() else "absent"


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def of_final(final: Evaluation | None) -> dict[str, Any] | None:
    """The last evaluation; numbers that are none are null."""
    if final is None:
        return None
    found: dict[str, Any] = {"accuracy": _or_null(final.accuracy), "loss": _or_null(final.loss)}
    if final.label_accuracy is not None:
        found["label_accuracy"] = [_or_null(value) for value in final.label_accuracy.tolist()]
    return found


def _or_null(value: float) -> float | None:
    return value if np.isfinite(value) else None


def of_learner(learner: Any) -> dict[str, Any]:
    """What a learner tells of its own accord. A note says what departed from the plan: one that begins with "fallback:"
    by a rule that holds on every machine, any other one because of this machine, which then decides about bytes.
    """
    notes = list(getattr(learner, "notes", []))
    return {
        "kernels": getattr(learner, "kernels", {}),
        "machine": _MACHINE | {"torch": getattr(learner, "machine", {})},
        "notes": notes,
        "byte_reproducible": all(note.startswith("fallback:") for note in notes),
    }
