"""The reference pages that are made from the code: every key of a scenario, and every item of every shelf.

    python -m fedsim.commands.reference docs/reference

writes keys.md and shelves.md. Meanings are the docstrings' own (`name: what it is`), types and bounds are the JSON
Schema's, so neither is written twice. Imports the whole shelves, torch included; runs nothing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from fedsim import delays
from fedsim.commands.catalogue import catalogue
from fedsim.facts import BadInput
from fedsim.scenario import schema, shelves
from fedsim.scenario.checked import schema_of
from fedsim.timing import fleet
from fedsim.training import partition, settings

_MADE_BY = (
    "<!-- Made by `python -m fedsim.commands.reference docs/reference`; change the docstrings, not this page. -->\n"
)
_SHELF_TITLES = {"policies": "Policies", "models": "Models", "datasets": "Data sets"}
_BLOCKS: dict[str, type[Any]] = {
    "the scenario": schema.Scenario,
    "fleet": fleet.Fleet,
    "fleet.compute": fleet.Compute,
    "fleet.uplink and fleet.downlink": fleet.Link,
    "data": schema.DataEntry,
    "model": schema.ModelEntry,
    "training": settings.Training,
    "policies[]": schema.PolicyEntry,
    "policies[].server_optimizer": settings.ServerOptimizer,
    "seeds[]": schema.SeedSet,
    "evaluation": schema.EvaluationSettings,
    "stop": schema.StopRules,
}
_BLOCK_OF = {cls.__name__: title for title, cls in _BLOCKS.items()}


def pages() -> dict[str, str]:
    """File name -> Markdown of each page."""
    return {"keys.md": _keys_page(), "shelves.md": _shelves_page()}


def _keys_page() -> str:
    parts = [
        "# Every key of a scenario\n",
        _MADE_BY,
        "What a scenario file may hold, block by block. [scenario.md](scenario.md) says how to read it; the parameters "
        "of policies, models and data sets are in [shelves.md](shelves.md).\n",
    ]
    parts += [
        _section(f"`{title}`" if title != "the scenario" else "The scenario", cls) for title, cls in _BLOCKS.items()
    ]
    parts.append("## Partitions\n\nUnder `data.partition`, told apart by `kind`.\n")
    parts += [_kind_section(cls) for cls in _members(partition.AnyPartition)]
    parts.append("## Laws\n\nWherever a number may be drawn, told apart by `kind`. A law has the unit of its key.\n")
    parts += [_kind_section(cls) for cls in _members(delays.AnyLaw)]
    parts.append("## Depth laws\n\nUnder `fleet.compute.depth_law`.\n")
    parts.append(_kind_section(fleet.UniformDepth))
    return "\n".join(parts)


def _shelves_page() -> str:
    parts = [
        "# What is on the shelves\n",
        _MADE_BY,
        "Every `kind` that a scenario may name, with the parameters that stand beside it. The name is that of the file.\n",
    ]
    lines = catalogue()
    for shelf in shelves.SHELVES:
        parts.append(f"## {_SHELF_TITLES[shelf]}\n")
        for kind in (kind for kind, line in lines[shelf].items() if line):  # those of other packages have none
            target = shelves.item(shelf, kind)
            parts.append(f"### {kind}\n\n{_escaped(lines[shelf][kind])}\n\nSource: {_escaped(target.source)}.\n")
            parts.append(_table(target))
    return "\n".join(parts)


def _section(title: str, cls: type[Any]) -> str:
    return f"## {title}\n\n{_introduction(cls)}\n\n{_table(cls)}"


def _kind_section(cls: type[Any]) -> str:
    kind = schema_of(cls)["properties"]["kind"]["default"]
    return f"### {kind}\n\n{_introduction(cls)}\n\n{_table(cls)}"


def _members(union: Any) -> tuple[type[Any], ...]:
    return get_args(get_args(union)[0])


# ---- one table ------------------------------------------------------------------------------------------------------


def _table(cls: type[Any]) -> str:
    """Its fields as a Markdown table; without `kind`, which the heading says."""
    described = cls.model_json_schema() if issubclass(cls, BaseModel) else schema_of(cls)
    fields = {name: each for name, each in described.get("properties", {}).items() if name != "kind"}
    if not fields:
        return "No parameters.\n"
    meanings = _meanings(cls, list(fields))
    required = described.get("required", [])
    rows = [
        f"| `{name}` | {_type(each, described)} | {'required' if name in required else _default(each)} "
        f"| {_escaped(meanings.get(name, ''))} |"
        for name, each in fields.items()
    ]
    return "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows, ""])


def _meanings(cls: type[Any], names: list[str]) -> dict[str, str]:
    """What the docstring says after `name:`, for each field that it explains that way."""
    explained = [chunk.partition(": ") for chunk in _chunks(cls) if chunk.partition(": ")[0] in names]
    return {name: text.rstrip(".;") for name, _, text in explained}


def _introduction(cls: type[Any]) -> str:
    """All that the docstring says besides the meanings of single fields."""
    names = _meanings(cls, list(schema_of(cls).get("properties", {})))
    return _escaped(" ".join(chunk for chunk in _chunks(cls) if chunk.partition(": ")[0] not in names))


def _chunks(cls: type[Any]) -> list[str]:
    """The docstring as pieces of one line; a sentence that begins with the name of a field begins a piece."""
    names = "|".join(schema_of(cls).get("properties", {})) or "(?!)"
    paragraphs = [" ".join(text.split()) for text in re.split(r"\n\s*\n", cls.__doc__ or "")]
    return [chunk.strip() for text in paragraphs for chunk in re.split(rf"(?<=[.;:)] )(?=(?:{names})\b)", text)]


def _default(field: Mapping[str, Any]) -> str:
    default = field.get("default")
    if default is None:
        return "left out"
    if isinstance(default, dict):
        return f"`{default['kind']}`" if "kind" in default else "its defaults"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


# ---- types in words -------------------------------------------------------------------------------------------------


def _type(field: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    """A JSON Schema type in plain words."""
    if "$ref" in field:
        return _reference(field["$ref"].rsplit("/", 1)[1], whole)
    if "discriminator" in field:
        return _union(set(field["discriminator"]["mapping"].values()))
    if options := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(_type(option, whole) for option in options if option.get("type") != "null")
    if "enum" in field or "const" in field:
        return " or ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    return _array(field, whole) if field["type"] == "array" else _scalar(field)


def _reference(name: str, whole: Mapping[str, Any]) -> str:
    if name in _BLOCK_OF:
        return f"block [{_BLOCK_OF[name]}](#{slug(_BLOCK_OF[name])})"
    return _union({name}) if "kind" in whole["$defs"][name].get("properties", {}) else name


def _union(references: set[str]) -> str:
    names = {reference.rsplit("/", 1)[-1] for reference in references}
    if names & {cls.__name__ for cls in _members(delays.AnyLaw)}:
        return "a [law](#laws)"
    if names & {cls.__name__ for cls in _members(partition.AnyPartition)}:
        return "a [partition](#partitions)"
    return "a [depth law](#depth-laws)"


def _array(field: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    items = field.get("prefixItems")
    if items:
        return f"{len(items)} of: {_type(items[0], whole)}"
    return f"list of: {_type(field['items'], whole)}"


def _scalar(field: Mapping[str, Any]) -> str:
    words = {
        "integer": "whole number",
        "number": "number",
        "boolean": "`true` or `false`",
        "string": "text",
        "object": "block",
    }
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    # 2^63 is what a seed's 64-bit field can hold; a reader needs no such bound.
    stated = [f"{sign} {field[key]:g}" for key, sign in bounds.items() if key in field and field[key] < 2**62]
    return " ".join([words[field["type"]], ", ".join(stated)]).strip()


def slug(heading: str) -> str:
    """The anchor that Git hosts give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main(arguments: list[str]) -> None:
    """Write the pages into the folder named by the only argument. Raises BadInput if there is no such folder."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        raise BadInput(
            f"{' '.join(arguments) or 'nothing'} is not a folder; name the one to write into: docs/reference"
        )
    for name, text in pages().items():
        (Path(arguments[0]) / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
