"""Names of runs and their folders."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.scenario.labels import automatic_labels, folder_name


def test_a_policy_that_is_the_only_one_of_its_kind_is_called_by_its_kind():
    assert automatic_labels(["fedavg", "stsyn"], [{"n": 1}, {"k": 5}]) == ["fedavg", "stsyn"]


def test_policies_of_one_kind_are_told_apart_by_what_differs_and_nothing_else():
    settings = [{"k": 5, "cap": 1.5, "u": 3}, {"k": 10, "cap": 1.5, "u": 3}, {"k": 10, "cap": None, "u": 3}]
    assert automatic_labels(["stsyn"] * 3, settings) == [
        "stsyn(k=5,cap=1.5)",
        "stsyn(k=10,cap=1.5)",
        "stsyn(k=10,cap=none)",
    ]


def test_equal_policies_get_equal_labels():
    assert automatic_labels(["stsyn", "stsyn"], [{"k": 5}, {"k": 5}]) == ["stsyn", "stsyn"]


@dataclass(frozen=True)
class Polynomial:
    exponent: float = 0.5
    kind: str = "polynomial"


def test_a_label_shows_numbers_as_short_as_they_are_exact():
    values = [5.0, 0.1234567890123, (0, 2), Polynomial()]
    labels = automatic_labels(["p"] * 4, [{"a": value} for value in values])
    assert labels == ["p(a=5)", "p(a=0.1234567890123)", "p(a=[0,2])", "p(a=polynomial(exponent=0.5))"]


@pytest.mark.parametrize("label", ["stsyn(k=5)", "salf", "a.b", "K=5,lr=0.1", "x" * 100])
def test_a_plain_label_is_its_own_folder(label):
    assert folder_name(label) == label


OUTSIDE = ["../x", "..", ".", "", "/etc/passwd", "a\\b", "C:x", "~", "-rf", "*", "a b", "ends.", "a\nb", "\0"]
STRANGE = ["<script>alert(1)</script>", "con", "NUL.txt", "wäre", "\ud800", "x" * 5000]


@pytest.mark.parametrize("label", [*OUTSIDE, *STRANGE])
def test_any_other_label_becomes_one_harmless_folder(label, tmp_path):
    name = folder_name(label)
    assert re.fullmatch(r"[A-Za-z0-9_=()+-]{1,60}~[0-9a-f]{10}", name)
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()


@given(st.lists(st.text(max_size=8) | st.sampled_from(["a b", "a-b", "a/b", "a b ", "a\tb"]), unique=True, max_size=20))
def test_different_labels_have_different_folders(labels):
    assert len({folder_name(label) for label in labels}) == len(labels)
