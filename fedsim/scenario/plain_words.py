"""pydantic's findings in plain words: what is wrong, where it was written, and how to mend it.

Each finding becomes a `BadInput` whose message begins with the name of the key that it is about. Findings about the
members of a union are put together: a value that is neither a number nor a list is one mistake, not two.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fedsim.facts import BadInput
from fedsim.scenario.places import own_name, written_location
from fedsim.scenario.schema_walk import known_keys, known_kinds
from fedsim.scenario.yaml_lines import Location, resolved

_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "none_required": "empty",
    **dict.fromkeys(
        ("dict_type", "dataclass_type", "model_type", "model_attributes_type"), "a block of 'key: value' lines"
    ),
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "multiple_of": ("a multiple of", "multiple_of"),
}
_LENGTHS = {
    "too_short": ("at least", "min_length"),
    "string_too_short": ("at least", "min_length"),
    "too_long": ("at most", "max_length"),
    "string_too_long": ("at most", "max_length"),
}
_SWITCHES = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def problems(error: ValidationError, values: Any, schema: dict[str, Any], *, root: str | None = None) -> list[BadInput]:
    """One problem per mistake, at locations within `values`.

    schema: the JSON Schema of what was expected, for the names of known keys. root: a first part of every pydantic
    location that is not in `values`.
    """
    found: dict[Location, list[ErrorDetails]] = defaultdict(list)
    for detail in error.errors():
        loc = detail["loc"][1:] if root is not None and detail["loc"][:1] == (root,) else detail["loc"]
        at = written_location(values, loc)
        found[(*at, loc[-1]) if detail["type"] == "missing" else at].append(detail)
    deeper = {at[:n] for at in found for n in range(len(at))}
    for at in deeper & found.keys():  # a list counts as too short when one of its entries is wrong
        found[at] = [detail for detail in found[at] if detail["type"] != "too_short"]
    for at in _misspelt(found, values, schema):
        del found[at]
    return [
        problem
        for at, details in found.items()
        if details
        for problem in _about(at, _telling(details, is_explained_deeper=at in deeper), values, schema)
    ]


def _misspelt(found: dict[Location, list[ErrorDetails]], values: Any, schema: dict[str, Any]) -> set[Location]:
    """Keys that are missing only because they were written wrongly: one mistake, not two."""
    unknown = [at for at, details in found.items() if details[0]["type"] in _UNKNOWN]
    meant = {(*at[:-1], *_closest(own_name(at), known_keys(schema, values, at[:-1]))) for at in unknown}
    return {at for at in meant if at in found and found[at][0]["type"] == "missing"}


def _telling(details: list[ErrorDetails], *, is_explained_deeper: bool) -> list[ErrorDetails]:
    """Without the findings of those union members that the value was not meant for."""
    apt = [d for d in details if not _wanted(d)]
    return apt if apt or is_explained_deeper else details


def _about(at: Location, details: list[ErrorDetails], values: Any, schema: dict[str, Any]) -> list[BadInput]:
    mismatched = [d for d in details if _wanted(d)]
    rest = [_other(at, d, values, schema) for d in details if not _wanted(d)]
    return [_mismatch(at, mismatched), *rest] if mismatched else rest


def _wanted(detail: ErrorDetails) -> str | None:
    """What the value should have been, if the finding is that it is something else altogether."""
    if detail["type"] == "literal_error":
        return str(detail["ctx"]["expected"])
    if detail["type"] == "dict_type" and detail["loc"][-1:] == ("law",):
        return "a number, a list with a number per device, or a law such as {kind: exponential, mean: 1.0}"
    return _WANTED.get(detail["type"])


def _mismatch(at: Location, details: list[ErrorDetails]) -> BadInput:
    value = details[0]["input"]
    wanted = list(dict.fromkeys(_wanted(d) or "" for d in details))
    remedy = _remedy(value, wanted, own_name(at), details)
    return BadInput(f"{own_name(at) or 'it'} is {in_words(value)} but must be {' or '.join(wanted)}{remedy}", at)


def _remedy(value: Any, wanted: list[str], name: str, details: list[ErrorDetails]) -> str:
    if value is None:
        return f"; give it a value, or delete {name}"
    if "true or false" in wanted and value in _SWITCHES:
        return f"; write {_SWITCHES[value]}"
    if any("number" in want for want in wanted) and (remedy := _number_remedy(value)):
        return remedy
    choices = [choice for d in details if d["type"] == "literal_error" for choice in _quoted(d["ctx"]["expected"])]
    close = _closest(str(value), choices)
    return f"; did you mean {close[0]!r}?" if close else ""


def _number_remedy(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if not isinstance(value, str):
        return ""
    if _is_number(value):
        return "; take away the quotes"
    bare = re.sub(r"[_, ']", "", value)
    return f"; write {bare}" if _is_number(bare) else ""


def _is_number(text: str) -> bool:
    try:
        return isinstance(resolved(text), int | float) and not isinstance(resolved(text), bool)
    except ValueError:
        return False


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _other(at: Location, detail: ErrorDetails, values: Any, schema: dict[str, Any]) -> BadInput:
    kind, name, context = detail["type"], own_name(at), detail.get("ctx", {})
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return BadInput(f"{name} is {in_words(detail['input'])} but must be {words} {context[key]:g}", at)
    if kind in _UNKNOWN:
        return BadInput(f"{name} is not a known key{nearest(name, known_keys(schema, values, at[:-1]))}", at)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _bad_kind(at, detail, known_kinds(schema, values, at))
    if kind == "value_error":
        reason = context["error"]
        return BadInput(str(reason), (*at, *getattr(reason, "at", ())))
    return BadInput(_simple(kind, name, detail), at)


def _bad_kind(at: Location, detail: ErrorDetails, kinds: list[str]) -> BadInput:
    given = detail["input"].get("kind") if isinstance(detail["input"], dict) else None
    if given is None:
        return BadInput(f"kind is missing; add one of: {', '.join(kinds)}", (*at, "kind"))
    return BadInput(f"kind is {given!r}, which is not known here{nearest(str(given), kinds)}", (*at, "kind"))


def _simple(kind: str, name: str, detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    if kind == "missing":
        return f"{name} is missing; add '{name}: ...'" + (" ('fedsim list' shows the kinds)" if name == "kind" else "")
    if kind == "finite_number":
        return f"{name} is {in_words(detail['input'])} but must be finite"
    if kind in _LENGTHS:
        words, key = _LENGTHS[kind]
        unit = "characters" if isinstance(detail["input"], str) else "entries"
        return f"{name} has {len(detail['input'])} {unit}; give {words} {context[key]}"
    if kind == "string_pattern_mismatch":
        return f"{name} is {in_words(detail['input'])} but must be made of letters, digits, '.', '_' and '-', a letter or digit first"
    return f"{name} is {in_words(detail['input'])}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"


def _closest(name: str, known: list[str]) -> list[str]:
    return get_close_matches(name, known, n=1)


def nearest(name: str, known: list[str]) -> str:
    """How to mend a name that is not known: "; did you mean 'x'?", or the list of what is known."""
    close = _closest(name, known)
    if close:
        return f"; did you mean {close[0]!r}?"
    listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return f"; known here: {listed}" if known else "; delete it"


def in_words(value: Any) -> str:
    """A value as an error shows it: short, and telling text from numbers."""
    if isinstance(value, str):
        return f"{value if len(value) <= 40 else value[:37] + '...'!r} (text)"
    if isinstance(value, dict | list | tuple):
        return "a block of 'key: value' lines" if isinstance(value, dict) else "a list"
    if isinstance(value, float) and not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    return "empty" if value is None else str(value).lower()  # true, false, 12
