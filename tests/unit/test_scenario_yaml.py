"""YAML text in, plain values and lines out; whatever else comes in, one line goes out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.scenario import yaml_lines
from fedsim.scenario.errors import BadYaml
from fedsim.scenario.text_file import decode, read_text
from fedsim.scenario.yaml_lines import parse


def value(text):
    return parse(f"x: {text}\n").values["x"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20e6", 20_000_000),
        ("5E+6", 5_000_000),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("-2.", -2.0),
        ("1.5e3", 1500.0),
        ("1e300", 1e300),
        ("010", 10),
        ("0o17", 15),
        ("0xff", 255),
        ("-7", -7),
        ("+7", 7),
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("2026-01-31", "2026-01-31"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("=", "="),
        ("'20e6'", "20e6"),
        ('"true"', "true"),
        ("~", None),
        ("", None),
        ("null", None),
        ("[1, {a: 2}]", [1, {"a": 2}]),
    ],
)
def test_scalars_are_read_by_the_core_schema_of_yaml_1_2(text, expected):
    assert value(text) == expected
    assert type(value(text)) is type(expected)


def test_infinities_and_nan_are_numbers_for_the_schema_to_refuse():
    assert value(".inf") == math.inf
    assert value("-.INF") == -math.inf
    assert math.isnan(value(".nan"))


def test_a_power_of_ten_can_be_a_count_up_to_what_a_float_holds_exactly():
    assert type(value("1e6")) is int
    assert type(value("1e15")) is int
    assert type(value("1e16")) is float


def test_each_value_has_the_line_of_its_key_or_list_item():
    lines = parse("a: 1\nlist:\n  - x: 1\n    y: [1,\n      2]\n  - z:\n      2\n").lines
    assert lines == {
        (): 1,
        ("a",): 1,
        ("list",): 2,
        ("list", 0): 3,
        ("list", 0, "x"): 3,
        ("list", 0, "y"): 4,
        ("list", 0, "y", 0): 4,
        ("list", 0, "y", 1): 5,
        ("list", 1): 6,
        ("list", 1, "z"): 6,
    }


def test_an_alias_has_the_value_of_its_anchor_and_a_copy_of_its_own():
    values = parse("a: &law {kind: pareto}\nb: *law\n").values
    assert values["b"] == {"kind": "pareto"}
    assert values["a"] is not values["b"]


def bomb():
    levels = ["l0: &l0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join(levels)


def nested_aliases():
    return "\n".join(["l0: &l0 1", *(f"l{i}: &l{i} [*l{i - 1}]" for i in range(1, 2000))])


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "is empty"),
        ("# only a comment\n", 1, "is empty"),
        ("- a\n- b\n", 1, "must hold 'key: value' lines at the top level"),
        ("just text", 1, "must hold 'key: value' lines at the top level"),
        ("a: 1\nb: 2\na: 3\n", 3, "a is given twice, first on line 1; keep one"),
        ("a: {b: 1,\n  b: 2}\n", 2, "b is given twice, first on line 1"),
        ("a: 1\n2: x\n", 2, "the key 2 must be text; put it in quotes"),
        ("true: x\n", 1, "the key true must be text"),
        ("? [a]\n: x\n", 1, "a key must be plain text"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n", 3, "merge keys (<<) are not read; write the keys out"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", 2, "python/object/apply:os.system' is not read here"),
        ("a: !!float 1\n", 1, "is not read here; write the plain value"),
        ("a: 1\n---\nb: 2\n", 2, "a second document begins here"),
        ("a: 1\nb: *nobody\n", 2, "*nobody refers to nothing above it"),
        ("a: &a [*a]\n", 1, "*a refers to nothing above it"),
        (bomb(), None, "aliases expand to more than 100,000 values"),
        (nested_aliases(), None, "or 50 levels"),
        ("[" * 100_000, 1, "nested more than 50 deep"),
        ("{a: " * 100_000, 1, "nested more than 50 deep"),
        ("- " * 100_000, 1, "nested more than 50 deep"),
        ("a: 1\nb: [1, 2\nc: 3\n", 2, "this '[' is not closed, or a comma is missing in it"),
        ("a: 1\nb: 'x\n", 2, "this quote is not closed"),
        ("a: 1\nb: c: d\n", 2, "a ':' where none can stand"),
        ("a:\n\t- 1\n", 2, "a tab; indent with spaces"),
        ("a: 1\n  b: 2\n", 2, "a ':' where none can stand"),
        ("a:\n  - 1\n b: 2\n", 3, "check its indentation"),
        ("a: @x\n", 1, "put the text in quotes"),
        ("a: 1\nb: \x00\n", 2, "holds the control character U+0000"),
        ("a: 1\nb: '\x1b[31m'\n", 2, "holds the control character U+001B"),
        ('a: "\\0"\n', 1, "text with a control character"),
        ('a: 1\n"\\e": 1\n', 2, "text with a control character"),
        ('a: "\\ud800"\n', 1, "text with a control character"),
        ('a: "\\UFFFFFFFF"\n', None, "cannot be read as YAML"),
        ("a: 9223372036854775808\n", 1, "too large for a whole number"),
        (f"a: {'9' * 5000}\n", 1, "is too large for a whole number; write it like 1e20"),
    ],
)
def test_what_is_not_a_plain_mapping_is_refused_on_its_line(text, line, said):
    with pytest.raises(BadYaml) as refused:
        parse(text)
    assert said in str(refused.value)
    assert line is None or refused.value.line == line


def test_many_values_are_refused_before_they_are_all_read(monkeypatch):
    monkeypatch.setattr(yaml_lines, "MAX_VALUES", 1_000)
    with pytest.raises(BadYaml, match=r"more than 1,000 values") as refused:
        parse("a: [\n" + "1,\n" * 5_000 + "]")
    assert refused.value.line == 1_000  # the mapping, the list and 998 numbers came before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: 1\nb: \xff\n", "is not UTF-8 text"),
        (b"#" * 10_000_000, "holds 10.0 MB, but a scenario has at most 1 MB"),
    ],
    ids=["bytes", "10 MB"],
)
def test_a_file_that_is_no_short_text_is_refused(tmp_path, content, said):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(BadYaml) as refused:
        read_text(path)
    assert said in str(refused.value)


def test_bytes_that_are_not_utf8_are_found_on_their_line():
    with pytest.raises(BadYaml) as refused:
        decode(b"a: 1\nb: \xff\n")
    assert refused.value.line == 2


def test_a_byte_order_mark_is_no_part_of_the_text():
    assert decode(b"\xef\xbb\xbfa: 1") == "a: 1"


def read_or_refuse(content):
    """The outcome of any bytes; any other exception fails the test."""
    try:
        return parse(decode(content)).values
    except BadYaml as refused:
        return str(refused)


def is_mapping_or_one_line(outcome):
    return isinstance(outcome, dict) or len(outcome.splitlines()) == 1


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_bytes_are_a_mapping_or_one_error(content):
    assert is_mapping_or_one_line(read_or_refuse(content))


@given(st.lists(st.sampled_from("ab:-?[]{},&*!|>'\"%@`#<~ \n\t\\U0x1e.\u2028\ud7ff"), max_size=60).map("".join))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_any_text_made_of_yaml_signs_is_a_mapping_or_one_error(text):
    assert is_mapping_or_one_line(read_or_refuse(text.encode()))
