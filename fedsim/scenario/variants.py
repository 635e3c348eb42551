"""One file, several scenarios: the same comparison on other fleets, data or settings.

    variants:
      - name: unequal
        fleet: {compute: {step_s: 1.0, device_factor: {kind: lognormal, sigma: 0.5}}}

A variant states keys of a section anew (here `fleet.compute`); each replaces what the file says as a whole, and keys
that it leaves alone stay. Every variant is a scenario of its own, called <name>-<variant>.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedsim.facts import BadInput
from fedsim.scenario.places import Source
from fedsim.scenario.yaml_lines import Location

KEY = "variants"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def expanded(source: Source) -> list[tuple[str | None, Source]]:
    """Each variant's name and text; the file itself, without a name, if it states none. Raises BadInput."""
    stated = source.values.get(KEY)
    if stated is None:
        return [(None, source)]
    if not isinstance(stated, list) or not stated:
        raise BadInput("variants is not a list of blocks; give each variant a name and what it changes", (KEY,))
    names = [_name(one, i) for i, one in enumerate(stated)]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise BadInput(f"name is {name!r} again; give each variant its own", (KEY, i, "name"))
    return [(name, _variant(source, i, name)) for i, name in enumerate(names)]


def _name(variant: Any, i: int) -> str:
    if not isinstance(variant, dict):
        raise BadInput("is not a block; write name: and what this variant changes", (KEY, i))
    name = variant.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadInput("needs a name of letters, digits, '.', '_' and '-', such as name: unequal", (KEY, i))
    return name


def _variant(source: Source, i: int, name: str) -> Source:
    values = {key: value for key, value in source.values.items() if key != KEY}
    lines = {at: line for at, line in source.lines.items() if at[:1] != (KEY,)}
    for key, value in source.values[KEY][i].items():
        if key == "name":
            continue
        own = {(key, inner): v for inner, v in value.items()} if isinstance(value, dict) else {(key,): value}
        kept = values.get(key)
        if isinstance(value, dict) and not isinstance(kept, dict):
            own = {(key,): value}
        for at, new in own.items():
            values = _with(values, at, new)
            lines = _moved(lines, source.lines, at, (KEY, i))
    values["name"] = f"{values.get('name', '')}-{name}"
    return replace(source, values=values, lines=lines)


def _with(values: dict[str, Any], at: tuple[str, ...], new: Any) -> dict[str, Any]:
    if len(at) == 1:
        return {**values, at[0]: new}
    return {**values, at[0]: {**values[at[0]], at[1]: new}}


def _moved(
    lines: dict[Location, int], all_lines: Mapping[Location, int], at: Location, under: Location
) -> dict[Location, int]:
    """Lines of what stands at `at`, taken from what the variant says there."""
    n = len(under)
    kept = {there: line for there, line in lines.items() if there[: len(at)] != at}
    own = {there[n:]: line for there, line in all_lines.items() if there[: n + len(at)] == (*under, *at)}
    return kept | own
