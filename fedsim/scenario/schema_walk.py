"""Which keys and kinds a JSON Schema knows at a place; for "did you mean".

Walks `$ref`, `anyOf` and `oneOf`; where a block states its kind, only the schema of that kind counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedsim.scenario.places import value_at
from fedsim.scenario.yaml_lines import Location

Schema = dict[str, Any]


def known_keys(schema: Schema, values: Any, at: Location) -> list[str]:
    """The keys that the block at `at` may have."""
    return list(dict.fromkeys(key for node in _nodes_at(schema, values, at) for key in node.get("properties", {})))


def known_kinds(schema: Schema, values: Any, at: Location) -> list[str]:
    """The kinds that the block at `at` may be of."""
    return [kind for node in _nodes_at(schema, values, at, any_kind=True) if (kind := _kind(node)) is not None]


def _nodes_at(schema: Schema, values: Any, at: Location, *, any_kind: bool = False) -> list[Schema]:
    nodes = list(_members(schema, schema, None if any_kind and not at else values))
    for n, part in enumerate(at, start=1):
        inner = None if any_kind and n == len(at) else value_at(values, at[:n])
        nodes = [
            node for parent in nodes for child in _children(parent, part) for node in _members(schema, child, inner)
        ]
    return nodes


def _children(node: Schema, part: str | int) -> Iterator[Schema]:
    if isinstance(part, str):
        if part in node.get("properties", {}):
            yield node["properties"][part]
    elif isinstance(node.get("items"), dict):
        yield node["items"]
    elif part < len(node.get("prefixItems", ())):
        yield node["prefixItems"][part]


def _members(schema: Schema, node: Schema, value: Any) -> Iterator[Schema]:
    """The plain schemas behind a node; those of another kind than `value` states are left out."""
    if "$ref" in node:
        yield from _members(schema, schema["$defs"][node["$ref"].removeprefix("#/$defs/")], value)
        return
    inner = [*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())]
    for member in inner:
        yield from _members(schema, member, value)
    stated = value.get("kind") if isinstance(value, dict) else None
    if not inner and (stated is None or _kind(node) in (None, stated)):
        yield node


def _kind(node: Schema) -> str | None:
    kind = node.get("properties", {}).get("kind", {}).get("const")
    return kind if isinstance(kind, str) else None
