"""YAML text into plain Python values, and the line on which each of them stands.

Scalars are resolved by the core schema of YAML 1.2 (yaml.org/spec/1.2.2, section 10.3.2) and not by PyYAML's YAML 1.1,
where `20e6` is text, `on` is true, `010` is eight and `12:30` is 750. Only what JSON can say is read: no tags, no dates, no
merge keys, no keys but text. Aliases are read, within limits.

Whatever the bytes, the outcome is a mapping or a `BadYaml` that names the line. This file knows nothing of scenarios.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from fedsim.scenario.errors import BadYaml

Location = tuple[str | int, ...]
"""A place in the file: keys and list positions from the top, e.g. ("policies", 2, "k")."""

MAX_DEPTH = 50
MAX_VALUES = 100_000

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WHOLE_POWER = re.compile(r"[-+]?[0-9]+[eE]\+?[0-9]{1,2}")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((f"{sign}.{word}" for sign in ("", "+") for word in ("inf", "Inf", "INF")), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

# PyYAML's words for what goes wrong most often, and ours.
_PLAIN_WORDS = (
    ("mapping values are not allowed", "a ':' where none can stand; indent with care, and quote text that holds ': '"),
    ("found character '\\t'", "a tab; indent with spaces"),
    ("expected <block end>", "this does not fit the lines above; check its indentation"),
    ("expected ',' or ']'", "this '[' is not closed, or a comma is missing in it"),
    ("expected ',' or '}'", "this '{' is not closed, or a comma is missing in it"),
    ("found unexpected end of stream", "this quote is not closed"),
    ("could not find expected ':'", "a key without its ':'; write 'key: value'"),
    ("cannot start any token", "a character that no value may begin with; put the text in quotes"),
)


@dataclass(frozen=True)
class Parsed:
    """The values of a file and the line (from 1) of each; a key's line is where the key stands."""

    values: dict[str, Any]
    lines: dict[Location, int]


@dataclass(frozen=True)
class _Node:
    line: int
    value: Any  # a plain scalar, list[_Node], or dict[str, _Node] whose key lines are in key_lines
    key_lines: dict[str, int]


def parse(text: str) -> Parsed:
    """The values of a YAML text whose top level is a mapping; BadYaml for anything else."""
    try:
        root = _document(_Events(text))
    except yaml.MarkedYAMLError as problem:
        raise _in_plain_words(problem) from None
    except yaml.reader.ReaderError as problem:
        line = text.count("\n", 0, problem.position) + 1
        raise BadYaml(f"holds the control character U+{problem.character:04X}; delete it", line) from None
    except (yaml.YAMLError, ArithmeticError) as problem:  # "\UFFFFFFFF" overflows inside PyYAML
        raise BadYaml(f"cannot be read as YAML: {problem}") from None
    if not isinstance(root.value, dict):
        raise BadYaml("must hold 'key: value' lines at the top level, such as 'name: quickstart'", root.line)
    lines: dict[Location, int] = {(): root.line}
    return Parsed(_expanded(root, (), lines), lines)


def _in_plain_words(problem: yaml.MarkedYAMLError) -> BadYaml:
    words = problem.problem or "this cannot be read"
    is_unclosed = words.startswith(("expected ',' or", "found unexpected end"))
    mark = (
        problem.context_mark if is_unclosed and problem.context_mark else problem.problem_mark or problem.context_mark
    )
    plain = next((ours for theirs, ours in _PLAIN_WORDS if theirs in words), words)
    return BadYaml(f"bad YAML: {plain}", None if mark is None else mark.line + 1)


class _Events:
    """PyYAML's events with one event of lookahead, and the anchors seen so far."""

    def __init__(self, text: str) -> None:
        self._rest: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
        self.anchors: dict[str, _Node] = {}
        self.n_values = 0

    def next(self) -> Any:
        return next(self._rest)


def _document(events: _Events) -> _Node:
    events.next()  # the stream's start
    start = events.next()
    if isinstance(start, yaml.StreamEndEvent):
        raise BadYaml("is empty; 'fedsim new scenario NAME' writes one to start from", 1)
    root = _node(events, events.next(), depth=0)
    events.next()  # the document's end
    after = events.next()
    if isinstance(after, yaml.DocumentStartEvent):
        _refuse("a second document begins here; keep one scenario per file", after)
    return root


def _refuse(message: str, event: Any) -> NoReturn:
    raise BadYaml(message, event.start_mark.line + 1)


def _node(events: _Events, event: Any, depth: int) -> _Node:
    if depth > MAX_DEPTH:
        _refuse(f"nested more than {MAX_DEPTH} deep; a scenario needs fewer than ten levels", event)
    if isinstance(event, yaml.AliasEvent):
        if event.anchor not in events.anchors:
            _refuse(f"*{event.anchor} refers to nothing above it; write &{event.anchor} before the value meant", event)
        return events.anchors[event.anchor]
    if event.tag is not None:
        _refuse(f"the tag {event.tag!r} is not read here; write the plain value", event)
    events.n_values += 1
    if events.n_values > MAX_VALUES:
        _refuse(f"more than {MAX_VALUES:,} values; a scenario needs far fewer", event)
    node = _filled(events, event, depth)
    if event.anchor is not None:
        events.anchors[event.anchor] = node
    return node


def _filled(events: _Events, event: Any, depth: int) -> _Node:
    line = event.start_mark.line + 1
    if isinstance(event, yaml.ScalarEvent):
        return _Node(line, _scalar(event), {})
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[_Node] = []
        while not isinstance(inner := events.next(), yaml.SequenceEndEvent):
            items.append(_node(events, inner, depth + 1))
        return _Node(line, items, {})
    children: dict[str, _Node] = {}
    key_lines: dict[str, int] = {}
    while not isinstance(inner := events.next(), yaml.MappingEndEvent):
        key = _key(inner, key_lines)
        key_lines[key] = inner.start_mark.line + 1
        children[key] = _node(events, events.next(), depth + 1)
    return _Node(line, children, key_lines)


def _key(event: Any, key_lines: dict[str, int]) -> str:
    if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
        _refuse("a key must be plain text, as in 'name: value'", event)
    key = _scalar(event)
    if key == "<<" and event.style is None:
        _refuse("merge keys (<<) are not read; write the keys out", event)
    if not isinstance(key, str):
        _refuse(f"the key {event.value or 'before this colon'} must be text; put it in quotes", event)
    if key in key_lines:
        _refuse(f"{key} is given twice, first on line {key_lines[key]}; keep one", event)
    return key


def _scalar(event: yaml.ScalarEvent) -> Any:
    text: str = event.value
    if _CONTROL.search(text):
        _refuse("text with a control character; delete it", event)
    if event.style is not None:  # quoted or a block of text
        return text
    try:
        return resolved(text)
    except ValueError as problem:
        _refuse(str(problem), event)


def resolved(text: str) -> Any:
    """The value of an unquoted scalar: None, bool, int, float or the text itself.

    A whole number may be written as a power of ten: `20e6` is the integer 20000000, so that it can also be a count.
    Raises ValueError for integers that 64 bits cannot hold.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        value = _integer(text) if len(text) <= 66 else 2**64
        if not -(2**63) <= value < 2**63:
            raise ValueError(
                f"{text[:20]}{'...' * (len(text) > 20)} is too large for a whole number; write it like 1e20"
            )
        return value
    if _FLOAT.fullmatch(text):
        number = float(text)
        return int(number) if _WHOLE_POWER.fullmatch(text) and abs(number) < 2**53 else number
    return text


def _integer(text: str) -> int:
    bases = {"0o": 8, "0x": 16}
    return int(text[2:], bases[text[:2]]) if text[:2] in bases else int(text)


def _expanded(node: _Node, at: Location, lines: dict[Location, int]) -> Any:
    """Plain values, aliases written out; fills `lines`."""
    # The file's own values were counted when they were read: what grows here are aliases of aliases.
    if len(lines) > MAX_VALUES or len(at) > MAX_DEPTH:
        raise BadYaml(
            f"aliases expand to more than {MAX_VALUES:,} values or {MAX_DEPTH} levels; write them out", node.line
        )
    if isinstance(node.value, list):
        return [_child(item, (*at, i), item.line, lines) for i, item in enumerate(node.value)]
    if isinstance(node.value, dict):
        return {key: _child(child, (*at, key), node.key_lines[key], lines) for key, child in node.value.items()}
    return node.value


def _child(node: _Node, at: Location, line: int, lines: dict[Location, int]) -> Any:
    lines[at] = line
    return _expanded(node, at, lines)
