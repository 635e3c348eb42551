"""A scenario as a file that a person would write: only what departs from the defaults, in the order of those shipped.

What it says is what was loaded: read back, the text gives the same resolved scenario.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from fedsim.facts import BadInput
from fedsim.scenario import contenders, shelves
from fedsim.scenario.contenders import Contender
from fedsim.scenario.read import LoadedScenario

_ORDER = ("name", "fleet", "data", "model", "training", "policies", "seeds", "evaluation", "stop")
_UNITS = {
    "step_s": "seconds of a local step over all layers, at factor 1",
    "layer_s": "seconds of a layer's backward pass, at factor 1",
    "flops_per_s": "of a device",
    "device_factor": "drawn once per device",
    "task_factor": "drawn anew for each task",
    "step_factor": "drawn anew for each step",
    "layer_factor": "drawn anew for each layer of a step",
    "uplink": "bit/s, seconds",
    "downlink": "bit/s, seconds",
    "memory_bytes": "of each device",
}
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_WORDS_OF_YAML = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}  # to some reader or other
_WIDTH, _COMMENT = 100, 56


# ---- what departs from the defaults ---------------------------------------------------------------------------------


def short(loaded: LoadedScenario) -> dict[str, Any]:
    """The scenario's values without those that are filled in anyway, labels that are made anyway included."""
    scenario = loaded.scenario
    full = scenario.model_dump(mode="json")
    values: dict[str, Any] = _with_kinds(scenario.model_dump(mode="json", exclude_defaults=True), full)
    values["data"] = _without_defaults(values["data"], shelves.item("datasets", scenario.data.kind))
    values["policies"] = _entries(loaded)
    values["seeds"] = [_seed(one.model_dump(exclude_none=True)) for one in scenario.seed_sets]
    return values


def _with_kinds(brief: Any, full: Any) -> Any:
    """Laws are told apart by their `kind`, which is a default of its own."""
    if isinstance(brief, dict):
        kind = {"kind": full["kind"]} if "kind" in full else {}
        return kind | {name: _with_kinds(value, full[name]) for name, value in brief.items()}
    if isinstance(brief, list):
        return [_with_kinds(one, whole) for one, whole in zip(brief, full, strict=True)]
    return brief


def _without_defaults(values: dict[str, Any], target: Any) -> dict[str, Any]:
    """Without the parameters that a class of a shelf fills in itself."""
    if not is_dataclass(target):
        return values
    filled = {f.name: to_jsonable_python(f.default) for f in fields(target) if f.default is not MISSING}
    return {name: value for name, value in values.items() if name not in filled or filled[name] != value}


def _seed(stated: dict[str, int]) -> int | dict[str, int]:
    return stated["seed"] if len(set(stated.values())) == 1 else stated


def _entries(loaded: LoadedScenario) -> list[dict[str, Any]]:
    """The policies' entries."""
    bare = [_entry(loaded, contender) for contender in loaded.contenders]
    plain = [entry.model_copy(update={"label": None}) for entry in loaded.scenario.policies]
    try:
        automatic = [each.label for each in contenders.from_entries(plain, loaded.scenario.training)]
    except BadInput:  # only their labels tell them apart
        automatic = [""] * len(bare)
    return [
        entry if contender.label == label else entry | {"label": contender.label}
        for entry, contender, label in zip(bare, loaded.contenders, automatic, strict=True)
    ]


def _entry(loaded: LoadedScenario, contender: Contender) -> dict[str, Any]:
    """Without label."""
    base = to_jsonable_python(asdict(loaded.scenario.training))
    policy: Any = contender.policy
    parameters = {}
    for f in fields(policy):
        # Where an entry does not state these, a policy that cannot do without them takes them from `training`.
        is_taken = f.name in ("local_steps", "momentum") and f.default is not None
        default = base[f.name] if is_taken else f.default
        value = to_jsonable_python(getattr(policy, f.name))
        if f.init and (default is MISSING or value != to_jsonable_python(default)):
            parameters[f.name] = value
    own = to_jsonable_python(asdict(contender.training))
    departs = {name: own[name] for name in own if own[name] != base[name] and name != "local_steps"}
    if "momentum" in departs and "momentum" in {f.name for f in fields(policy)}:
        parameters["momentum"] = policy.momentum
    optimizer = contender.server_optimizer
    return {
        "kind": contender.kind,
        **parameters,
        **({"training": departs} if departs else {}),
        **({"server_optimizer": to_jsonable_python(asdict(optimizer))} if optimizer else {}),
    }


# ---- as YAML --------------------------------------------------------------------------------------------------------


def as_yaml(values: Mapping[str, Any], heading: str, remarks: Mapping[tuple[str | int, ...], str]) -> str:
    """The text. heading: comment on the first lines. remarks: comments by the place that they stand beside."""
    blocks = ["\n".join(f"# {line}" for line in heading.splitlines())]
    names = [*(name for name in _ORDER if name in values), *(name for name in values if name not in _ORDER)]
    short_ones = [name for name in names if name not in ("fleet", "data", "policies")]
    for name in names:
        lines = list(_block(name, values[name], (name,), remarks, 0))
        joins = name in short_ones and blocks and names.index(name) > names.index("policies") + 1
        blocks.append(("" if joins or name == "name" else "\n") + "\n".join(lines))
    return "\n".join(blocks) + "\n"


def _block(
    name: str, value: Any, at: tuple[str | int, ...], remarks: Mapping[tuple[str | int, ...], str], depth: int
) -> Iterator[str]:
    """A key with what stands under it: on one line where that fits and nothing inside needs a remark of its own."""
    margin = "  " * depth
    if at == ("policies",):
        yield "policies:"
        for i, entry in enumerate(value):
            yield _remarked(f"  - {_flow(entry)}", remarks.get((*at, i)))
        return
    flow = f"{margin}{name}: {_flow(value)}"
    is_open = isinstance(value, dict) and value and (at in (("fleet",), ("fleet", "compute")) or len(flow) > _WIDTH)
    if not is_open:
        own = next((said for place, said in remarks.items() if place[: len(at)] == at), None)
        yield _remarked(flow, own or (_UNITS.get(name) if at[0] == "fleet" else None))
        return
    yield f"{margin}{name}:"
    for key, inner in value.items():
        yield from _block(key, inner, (*at, key), remarks, depth + 1)


def _remarked(line: str, remark: str | None) -> str:
    return line if remark is None else f"{line:<{_COMMENT}}  # {remark}"


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_word(str(key))}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int | float):
        return _number(value)
    return _word(str(value))


def _number(value: float) -> str:
    """The shortest text that is read back as this very number."""
    candidates = [repr(value), f"{value:.0f}" if float(value).is_integer() else repr(value)]
    candidates += [re.sub(r"e\+?(-?)0*(\d)", r"e\1\2", f"{value:.{n}e}") for n in range(4)]
    same = [text for text in candidates if float(text) == float(value)]
    plain = [text for text in same if "e" not in text and len(text) <= 6]
    return min(plain or same, key=len)


def _word(text: str) -> str:
    """Text that YAML reads as this text."""
    is_plain = _PLAIN.fullmatch(text) is not None and text.casefold() not in _WORDS_OF_YAML
    return text if is_plain else json.dumps(text, ensure_ascii=False)
