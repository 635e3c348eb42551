"""Which layers Algorithm 2 relaxes, and who is asked for how long."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedsim
from fedsim.facts import IntArray
from fedsim.policies.fedlama import FedLAMA, relaxed_layers
from fedsim.run import simulate

# By ascending discrepancy: layers 2, 0, 3, 1 with 10, 20, 30, 40 of 100 parameters and d x size 1, 4, 15, 80 of 100.
DISCREPANCY, SIZES = np.array([0.2, 2.0, 0.1, 0.5]), np.array([20, 40, 10, 30])


def chosen(**switches: Any) -> list[int]:
    return np.flatnonzero(relaxed_layers(DISCREPANCY, SIZES, **switches)).tolist()


def test_layers_are_relaxed_from_the_least_discrepancy_while_more_traffic_falls_than_discrepancy_grows() -> None:
    """delta .01, .05, .20, 1.00 against 1 - lambda .90, .70, .40, .00."""
    assert chosen() == [0, 2, 3]


def test_the_published_code_relaxes_the_crossing_layer_too() -> None:
    assert chosen(crossing="included") == [0, 1, 2, 3]
    steep = np.array([1.0, 1.0, 8.0])  # delta .1, .2, 1.0; 1 - lambda .6, .2, .0: the second is met and so not beyond
    sizes = np.array([40, 40, 20])
    assert relaxed_layers(steep / sizes, sizes).tolist() == [True, False, False]
    assert relaxed_layers(steep / sizes, sizes, crossing="included").tolist() == [True, True, True]


def test_the_example_of_a_fifth_of_the_discrepancy_for_four_fifths_of_the_traffic() -> None:
    """Ten equal layers, of which the eight lowest hold a little less than 20 % of the discrepancy."""
    assert relaxed_layers(np.array([0.024] * 8 + [0.4, 0.4]), np.full(10, 7)).tolist() == [True] * 8 + [False] * 2


def test_where_nothing_differs_all_but_the_last_layer_are_relaxed() -> None:
    assert relaxed_layers(np.zeros(3), np.array([5, 1, 1])).tolist() == [True, True, False]


LAYERS = st.lists(st.tuples(st.floats(1e-6, 1e3), st.integers(1, 10**6)), min_size=1, max_size=30)


@given(LAYERS)
def test_the_printed_rule_relaxes_every_layer_but_one(layers: list[tuple[float, int]]) -> None:
    """Sorted by d, the share of discrepancy is a Lorenz curve: below the share of parameters until both are 1.

    So line 9 of Algorithm 2 as printed is FedAvg with phi tau' local steps, but for one layer.
    """
    discrepancy, sizes = (np.array(column) for column in zip(*layers, strict=True))
    if np.ptp(discrepancy) < 1e-6 * discrepancy.max():
        return  # the curve is the diagonal itself, and rounding decides
    assert relaxed_layers(discrepancy, sizes, rule="literal").sum() == len(layers) - 1
    assert relaxed_layers(discrepancy, sizes, rule="literal", crossing="included").all()


def by_trying_every_cut(discrepancy: list[float], sizes: list[int], *, included: bool) -> int:
    """How many of the lowest are relaxed, by the definition, in exact integers of the sorted columns."""
    order = sorted(range(len(sizes)), key=lambda layer: discrepancy[layer])
    whole, all_ = sum(d * n for d, n in zip(discrepancy, sizes, strict=True)), sum(sizes)
    for cut in range(1, len(sizes) + 1):
        delta = sum(discrepancy[o] * sizes[o] for o in order[:cut]) * all_
        left = sum(sizes[o] for o in order[cut:]) * whole
        if (delta > left) if included else (delta >= left):
            return cut if included else cut - 1
    return len(sizes)


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=12))
def test_the_cut_is_where_the_curves_cross(layers: list[tuple[int, int]]) -> None:
    discrepancy, sizes = ([layer[i] for layer in layers] for i in (0, 1))
    for included in (False, True):
        found = relaxed_layers(
            np.array(discrepancy) * 1.0, np.array(sizes), crossing="included" if included else "excluded"
        )
        cut = by_trying_every_cut(discrepancy, sizes, included=included)  # type: ignore[arg-type]
        assert int(found.sum()) == cut
        assert max(np.array(discrepancy)[found], default=0) <= min(np.array(discrepancy)[~found], default=np.inf)


# ---- who is asked ---------------------------------------------------------------------------------------------------


def asked(**policy: Any) -> list[IntArray]:
    """Devices of each round, of twelve rounds on the clock alone."""
    loaded = fedsim.from_dict(
        {
            "name": "asked",
            "train": False,
            "fleet": {"n_devices": 10, "compute": {"step_s": 1.0}},
            "data": {"kind": "gaussian_blobs", "n_samples": 200, "n_features": 4, "n_classes": 2},
            "model": {"kind": "mlp", "widths": [6, 5]},
            "policies": [{"kind": "fedlama", "n_sampled": 4, **policy}],
            "stop": {"n_rounds": 12},
        }
    )
    tasks = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0]).tables["tasks"]
    return [np.sort(tasks["device"][tasks["round"] == i]) for i in range(12)]


@pytest.mark.parametrize(("relaxed", "factor", "n_same"), [([0], 3, 3), ([], 4, 4), ([0, 1, 2], 4, 1), ([0], 1, 1)])
def test_devices_are_asked_anew_only_when_the_whole_model_has_been_averaged(
    relaxed: list[int], factor: int, n_same: int
) -> None:
    rounds = asked(relaxed=relaxed, interval_factor=factor)
    cycles = [rounds[i : i + n_same] for i in range(0, 12, n_same)]
    assert all((each == cycle[0]).all() for cycle in cycles for each in cycle)
    assert any((one[0] != other[0]).any() for one, other in pairwise(cycles))


def test_only_a_policy_that_chooses_layers_asks_training_for_anything() -> None:
    assert FedLAMA().feedback == {"update_distance"}
    assert FedLAMA(relaxed=(0,)).feedback == FedLAMA(relaxed=()).feedback == frozenset()
    assert FedLAMA(interval_factor=1).feedback == frozenset()
