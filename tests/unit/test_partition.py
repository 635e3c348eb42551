"""Partitions: what holds for all of them, what each promises, and what is refused."""

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from fedsim.facts import BadInput
from fedsim.randomness import Luck
from fedsim.training.partition import (
    AnyPartition,
    BySpeed,
    ClassesPerDevice,
    Dirichlet,
    FromFile,
    Iid,
    OneClass,
    deal,
)

LUCK = Luck(11, "partition")


def balanced_labels(n_rows, n_classes=10):
    return np.random.default_rng(2).permutation(np.arange(n_rows) % n_classes)


def sizes(dealt):
    return np.array([len(rows) for rows in dealt])


# ---- laws -----------------------------------------------------------------------------------------------------------

rules = st.one_of(
    st.builds(Iid, size_sigma=st.floats(0, 100)),
    st.builds(Dirichlet, alpha=st.floats(min_value=0, exclude_min=True, allow_infinity=False)),
    st.builds(ClassesPerDevice, n_classes=st.integers(1, 5)),
    st.just(OneClass()),
    st.just(BySpeed()),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    rule=rules,
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    n_devices=st.integers(1, 25),
    seed=st.integers(0, 99),
)
def test_every_row_is_dealt_once_and_nobody_is_left_without(rule, labels, n_devices, seed):
    labels, slowness = np.array(labels), np.random.default_rng(seed).random(n_devices)
    try:
        dealt = deal(rule, labels, n_devices, luck=Luck(seed, "partition"), slowness=slowness)
    except BadInput:
        # Only rules that promise classes to a device may refuse when there are rows enough.
        assert len(labels) < n_devices or isinstance(rule, ClassesPerDevice | OneClass)
        assume(False)
    assert len(dealt) == n_devices
    assert sizes(dealt).min() >= 1
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(labels)))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(rule=rules, seed=st.integers(0, 2**63 - 1))
def test_the_same_luck_deals_the_same_rows(rule, seed):
    labels, slowness = balanced_labels(200, n_classes=5), np.arange(20)[::-1] / 20
    first, again = (deal(rule, labels, 20, luck=Luck(seed, "partition"), slowness=slowness) for _ in range(2))
    assert all((a == b).all() and a.dtype == np.int64 for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("rule", [Iid(), Dirichlet(0.5), ClassesPerDevice(2), OneClass(), BySpeed()])
def test_another_seed_deals_other_rows(rule):
    labels, slowness = balanced_labels(200), np.arange(20.0)
    one, two = (deal(rule, labels, 20, luck=Luck(seed, "partition"), slowness=slowness) for seed in (1, 2))
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(one, two, strict=True))


# ---- what each rule promises ----------------------------------------------------------------------------------------


def test_iid_sizes_differ_by_at_most_one():
    assert set(sizes(deal(Iid(), balanced_labels(1000), 7, luck=LUCK))) == {142, 143}


def test_the_logarithm_of_iid_sizes_spreads_by_size_sigma():
    """Rounding 1,000 rows or so shifts a logarithm by 1e-3; a sample deviation of 300 has a relative error of 4.1 %."""
    spread = np.log(sizes(deal(Iid(size_sigma=0.5), balanced_labels(300_000), 300, luck=LUCK))).std()
    assert abs(spread - 0.5) < 4 * 0.5 / np.sqrt(2 * 300)


def test_dirichlet_shares_have_the_variance_of_their_law():
    """Var = p (1 - p) / (N alpha + 1) with p = 1/N; pooled over 10 classes and 100 devices within 4 standard errors."""
    n_devices, alpha = 100, 0.5
    labels = balanced_labels(1_000_000)
    dealt = deal(Dirichlet(alpha), labels, n_devices, luck=LUCK)
    shares = np.array([np.bincount(labels[rows], minlength=10) for rows in dealt]) / 100_000
    squares = (shares - 1 / n_devices) ** 2
    expected = (1 / n_devices) * (1 - 1 / n_devices) / (n_devices * alpha + 1)
    assert abs(squares.mean() - expected) < 4 * squares.std() / np.sqrt(squares.size)


def test_with_tiny_alpha_a_class_goes_to_one_device_but_for_the_mending():
    labels = balanced_labels(10_000)
    largest = np.sort(sizes(deal(Dirichlet(1e-6), labels, 50, luck=LUCK)))[::-1]
    assert largest[:10].sum() >= 10_000 - 50


def test_every_device_holds_exactly_n_classes_and_every_class_has_equally_many_holders():
    labels = balanced_labels(5000)
    held = np.array(
        [np.bincount(labels[rows], minlength=10) > 0 for rows in deal(ClassesPerDevice(3), labels, 45, luck=LUCK)]
    )
    assert set(held.sum(axis=1)) == {3}
    assert set(held.sum(axis=0)) == {13, 14}


def test_one_class_cuts_sorted_labels_into_contiguous_blocks():
    labels = balanced_labels(1000)
    dealt = deal(OneClass(), labels, 20, luck=LUCK)
    assert [set(labels[rows]) for rows in dealt] == [{device // 2} for device in range(20)]
    assert set(sizes(dealt)) == {50}


def test_slow_devices_hold_the_last_classes():
    labels, slowness = balanced_labels(1000), np.array([3.0, 1.0, 5.0, 2.0, 4.0])
    dealt = deal(BySpeed(), labels, 5, luck=LUCK, slowness=slowness)
    assert [set(labels[rows]) for rows in dealt] == [{4, 5}, {0, 1}, {8, 9}, {2, 3}, {6, 7}]


def test_a_partition_in_a_scenario_is_told_by_its_kind():
    read = TypeAdapter(AnyPartition).validate_python
    assert read({"kind": "dirichlet", "alpha": 0.3}) == Dirichlet(alpha=0.3)
    assert read({"kind": "file", "path": "dealt.npz"}) == FromFile(path="dealt.npz")
    with pytest.raises(ValueError, match="greater than 0"):
        read({"kind": "dirichlet", "alpha": 0.0})


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "labels", "n_devices", "message"),
    [
        (Iid(), balanced_labels(9), 10, "9 training rows cannot give 10 devices a row each"),
        (ClassesPerDevice(11), balanced_labels(100), 10, "n_classes is 11 but the data have 10; choose 1..10"),
        (
            ClassesPerDevice(2),
            balanced_labels(100),
            4,
            "4 devices with 2 of 10 classes each leave classes with nobody; use at least 5",
        ),
        (OneClass(), balanced_labels(100), 7, "one class per device leaves 3 of 10 classes with nobody"),
        (OneClass(), np.array([0] * 30 + [1]), 4, "class 1 has 1 training rows for the 2 devices that should hold it"),
        (BySpeed(), balanced_labels(100), 10, "by_speed needs devices of persistent speed"),
    ],
)
def test_a_rule_that_cannot_be_kept_is_refused_with_the_remedy(rule, labels, n_devices, message):
    with pytest.raises(BadInput) as refusal:
        deal(rule, labels, n_devices, luck=LUCK)
    assert str(refusal.value).startswith(message)
    assert refusal.value.at == ("data", "partition")


# ---- from a file ----------------------------------------------------------------------------------------------------


def from_file(path, n_devices=3, n_rows=10):
    return deal(FromFile(str(path)), np.zeros(n_rows, dtype=np.int64), n_devices, luck=LUCK)


def test_a_file_deals_its_rows_in_its_own_order_and_may_leave_some_out(tmp_path):
    wanted = [[9, 0], [4], [3, 2, 1]]
    np.savez(tmp_path / "a.npz", *[np.array(rows, dtype=np.uint16) for rows in wanted])
    np.savez(tmp_path / "b.npz", **{f"device_{i}": np.array(rows) for i, rows in reversed(list(enumerate(wanted)))})
    (tmp_path / "c.json").write_text(json.dumps(wanted), encoding="utf-8")
    for name in ("a.npz", "b.npz", "c.json"):
        assert [rows.tolist() for rows in from_file(tmp_path / name)] == wanted


def test_more_than_ten_devices_in_a_file_are_ordered_by_number_and_not_by_letter(tmp_path):
    np.savez(tmp_path / "a.npz", *[np.array([i]) for i in range(12)])
    assert [rows.tolist() for rows in from_file(tmp_path / "a.npz", n_devices=12, n_rows=12)] == [
        [i] for i in range(12)
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[0], [], [1]]", "device 1 is left without data"),
        ("[[0], [1], [10]]", "device 2 holds row 10 but the training rows are 0..9"),
        ("[[0], [-1], [2]]", "device 1 holds row -1 but"),
        ("[[0], [1, 2], [2]]", "device 2 holds row 2, device 1 holds it too"),
        ("[[0], [1], [2, 2]]", "device 2 holds row 2, twice on this device"),
        ("[[0], [1]]", "deals to 2 devices but the fleet has 3"),
        ("[[0], [true], [2]]", "device 1 has no plain list of whole row numbers"),
        ("[[0], [1.0], [2]]", "device 1 has no plain list of whole row numbers"),
        ("[[0], [1], [99999999999999999999]]", "device 2 has no plain list of whole row numbers"),
        ('{"a": [0]}', "is not a list of lists"),
        ("[[0], [1]", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_wrong_partition_file_is_refused_by_device(tmp_path, content, message):
    path = tmp_path / "dealt.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadInput) as refusal:
        from_file(path)
    assert message in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert refusal.value.at == ("data", "partition")


def test_damaged_archives_are_refused_and_pickles_are_not_opened(tmp_path):
    whole = tmp_path / "whole.npz"
    np.savez(whole, *[np.arange(3) + 3 * i for i in range(3)])
    (tmp_path / "half.npz").write_bytes(whole.read_bytes()[:-30])
    (tmp_path / "flipped.npz").write_bytes(whole.read_bytes().replace(b"\x04\x00\x00\x00\x00\x00\x00\x00", b"\x07" * 8))
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "pickled.npz", *np.array([[{}], [1], [2]], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "named.npz", a=np.array([0]), b=np.array([1]), c=np.array([2]))
    np.savez(tmp_path / "floats.npz", *[np.array([float(i)]) for i in range(3)])
    with (tmp_path / "single.npz").open("wb") as single:
        np.save(single, np.arange(3))
    for name in ("half", "flipped", "empty", "pickled", "named", "floats", "single", "absent"):
        with pytest.raises(BadInput, match=name):
            from_file(tmp_path / f"{name}.npz")
    with pytest.raises(BadInput, match=r"neither \.npz nor \.json"):
        from_file(tmp_path / "dealt.pkl")
