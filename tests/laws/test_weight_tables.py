"""What holds for every weight table `[contribution, layer]`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim import weights
from fedsim.facts import Contributions

EXACT = {"rtol": 1e-14, "atol": 1e-14}  # a sum of at most 8 shares


@st.composite
def contributions(draw):
    """Up to eight, each with whole steps over some depth, or part of one, or nothing."""
    n_layers = draw(st.integers(1, 5))
    rows = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, n_layers), st.integers(1, 99)), max_size=8))
    n_steps, depths, n_samples = (np.array([row[i] for row in rows], dtype=np.int64) for i in range(3))
    n = np.arange(len(rows))
    return Contributions(n, n, n, n_steps, np.where(n_steps > 0, 0, depths), depths, n_samples, n * 1.0, n_layers)


BY = st.sampled_from(["uniform", "n_samples"])


@given(contributions(), BY)
def test_columns_of_a_layer_mean_add_up_to_one_and_to_zero_only_where_nobody_holds_the_layer(found, by):
    np.testing.assert_allclose(weights.layer_mean(found, by).sum(axis=0), found.holds_layer.any(axis=0), **EXACT)


@given(contributions(), BY, st.integers(8, 20))
def test_a_weight_is_zero_exactly_where_the_contribution_lacks_the_layer(found, by, total):
    tables = [weights.layer_mean(found, by), weights.diluted(found, total, by)]
    for table in [*tables, weights.mean(found, by)] if len(found) else tables:
        assert table.shape == (len(found), found.n_layers)
        np.testing.assert_array_equal(table > 0, found.holds_layer)


@given(contributions(), BY)
def test_where_everyone_holds_every_layer_the_mean_and_the_layer_mean_agree(found, by):
    found = found.where(found.holds_layer.all(axis=1))
    if len(found):
        np.testing.assert_allclose(weights.mean(found, by), weights.layer_mean(found, by), **EXACT)
        np.testing.assert_allclose(weights.mean(found, by).sum(axis=0), 1.0, **EXACT)


@given(contributions())
def test_diluting_by_those_who_are_there_is_the_mean(found):
    if len(found):
        np.testing.assert_allclose(weights.diluted(found, len(found)), weights.mean(found), **EXACT)


@given(contributions(), BY)
def test_the_layers_that_a_contribution_holds_are_a_suffix(found, by):
    assert (np.diff(found.holds_layer.astype(int), axis=1) >= 0).all()
    np.testing.assert_array_equal(found.holds_layer.sum(axis=1), found.depth)


@pytest.mark.filterwarnings("error")
def test_tables_of_nobody_are_empty_and_warn_of_nothing():
    none = np.empty(0, dtype=np.int64)
    nobody = Contributions(none, none, none, none, none, none, none, none * 1.0, n_layers=3)
    assert weights.mean(nobody).shape == weights.layer_mean(nobody).shape == weights.diluted(nobody, 4).shape == (0, 3)
