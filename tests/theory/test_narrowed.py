"""Costs of parts by hand-counted perceptrons; sums over sampled devices and dealt rates by enumeration."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest

from fedsim.delays import Gamma
from fedsim.theory.fleet import reach_share
from fedsim.theory.narrowed import Parts, held_share, step_shares, sum_of_dealt, sum_of_sampled
from tests.theory.narrow import WIDTHS, fleet, kept, multiply_adds, n_bytes, perceptron

RATES = (1.0, 0.5, 0.3, 0.25, 0.125, 0.05)


def test_a_part_costs_the_flops_and_bytes_of_its_own_widths() -> None:
    parts = Parts(fleet([1.0] * len(RATES)), np.array(RATES))
    widths = [kept(WIDTHS, rate) for rate in RATES]
    assert parts.flops.tolist() == [2 * multiply_adds(own) for own in widths]
    assert parts.model_bytes.tolist() == [n_bytes(own) for own in widths]


def test_its_seconds_are_its_share_of_the_flops() -> None:
    parts = Parts(fleet([2.0] * len(RATES)), np.array(RATES))
    expected = [2.0 * multiply_adds(kept(WIDTHS, rate)) / multiply_adds(WIDTHS) for rate in RATES]
    np.testing.assert_allclose(parts.as_fleet.unit_s, expected, rtol=1e-14)
    np.testing.assert_allclose(parts.mean_step_s, expected, rtol=1e-14)


def test_a_flop_of_the_backward_pass_may_count_more() -> None:
    """Widths 12-8-10-3, and 12-4-5-3 at 1/2: forward 206 and 83 multiply-adds, backward 316 and 118."""
    on = replace(fleet([1.0]), reach_share=reach_share(perceptron(), backward_factor=7.0))
    assert sum(step_shares(on, perceptron(kept(WIDTHS, 0.5)))) == pytest.approx((83 + 7 * 118) / (206 + 7 * 316))


def test_stated_seconds_of_a_layer_shrink_like_its_own_backward_flops() -> None:
    """Forward 1 s, layers 4, 2 and 1 s. At 1/2 the layers keep 48/96 (no input gradient), 40/160 and 30/60 of theirs."""
    on = replace(fleet([8.0]), reach_share=np.array([1, 2, 4, 8]) / 8, has_layer_seconds=True)
    assert sum(step_shares(on, perceptron(kept(WIDTHS, 0.5)))) == pytest.approx((83 / 206 + 2 + 0.5 + 0.5) / 8)


def test_without_forward_time_there_is_none_to_shrink() -> None:
    on = replace(fleet([1.0]), reach_share=np.array([0, 1, 2, 4]) / 4, has_layer_seconds=True)
    forward, backward = step_shares(on, perceptron(kept(WIDTHS, 0.5)))
    assert (forward, backward) == (0.0, pytest.approx((2 * 0.5 + 1 * 0.25 + 1 * 0.5) / 4))


def test_a_random_factor_of_layers_is_on_the_backward_pass() -> None:
    on = fleet([2.0], layer_factor=Gamma(shape=2.0, mean=1.5), step_factor=Gamma(shape=2.0, mean=3.0))
    found = Parts(on, np.array([0.5])).mean_step_s
    assert found == pytest.approx([2.0 * 3.0 * (83 + 1.5 * 118) / (206 + 316)])


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_sum_over_sampled_values_has_the_mean_and_variance_of_all_samples(n: int) -> None:
    values = np.array([1.0, 5.0, 2.0, 2.5])
    sums = np.array([sum(some) for some in combinations(values, n)])
    assert sum_of_sampled(values, n) == pytest.approx((sums.mean(), sums.var()), abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_sum_over_dealt_rates_has_the_mean_and_variance_of_all_ways_to_deal(n: int) -> None:
    """Which devices, which rates and in which order: all equally likely."""
    a, b = np.array([1.0, 5.0, 2.0, 2.5]), np.array([1.0, 0.5, 0.5, 0.1])
    sums = np.array([np.dot(some, order) for some in combinations(a, n) for order in permutations(b, n)])
    assert sum_of_dealt(a, b, n) == pytest.approx((sums.mean(), sums.var()), abs=1e-12)


def test_what_is_alike_does_not_vary() -> None:
    alike, b = np.full(4, 3.0), np.array([1.0, 0.5, 0.5, 0.1])
    assert sum_of_dealt(alike, b, 4) == (pytest.approx(3 * 2.1), 0.0)
    assert sum_of_dealt(alike, alike, 2) == (18.0, 0.0)
    assert sum_of_sampled(b, 4) == (pytest.approx(2.1), 0.0)
    assert sum_of_dealt(alike[:1], b[:1], 1) == (3.0, 0.0)


def test_the_share_of_a_layer_that_is_held_is_that_of_its_drawn_elements() -> None:
    """Over all draws of 4 of 8 and 5 of 10 units, an element of layer 0, 1, 2 is held as often as its layer is full."""
    widths = kept(WIDTHS, 0.5)
    weights = [4 / 8, 4 / 8 * 5 / 10, 5 / 10]
    biases = [4 / 8, 5 / 10, 1.0]
    n_weights, n_biases = [96, 80, 30], [8, 10, 3]
    expected = [(w * n + b * m) / (n + m) for w, b, n, m in zip(weights, biases, n_weights, n_biases, strict=True)]
    np.testing.assert_allclose(held_share(perceptron(), perceptron(widths)), expected, rtol=1e-14)
