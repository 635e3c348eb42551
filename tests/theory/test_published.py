"""Costs of partial work beside the numbers that the papers print, and beside sums written out."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.delays import Classes, Exponential, Uniform
from fedsim.facts import ModelShape
from fedsim.models.resnet20 import Resnet20
from fedsim.theory.published import (
    Memory,
    capacity,
    compute_saved_share,
    mean_capacity,
    reach_share,
    relaxed_share,
    resnet20_memory,
    rounded_half_up,
    stopped_traffic_share,
    suffix_flops,
    traffic_share,
    widths,
)
from fedsim.training.layers import Chain, measure

# ---- a suffix -------------------------------------------------------------------------------------------------------

F = np.array([4.0, 2.0, 1.0])  # from the input
FLOPS = suffix_flops(F, F, F)


def test_a_suffix_costs_all_forwards_its_weight_gradients_and_one_input_gradient_less() -> None:
    """7 forward; then 1, 1 + 1 + 2, 1 + 1 + 2 + 2 + 4. All: 3 F without the input layer's input gradient, 21 - 4."""
    np.testing.assert_array_equal(FLOPS, [0, 8, 11, 17])


@given(st.lists(st.tuples(*[st.floats(0, 1e9)] * 3), min_size=1, max_size=12))
def test_the_model_shape_reckons_the_same(layers: list[tuple[float, float, float]]) -> None:
    forward, weight, inputs = (np.array(column) for column in zip(*layers, strict=True))
    ones = np.ones(len(forward), dtype=np.int64)
    shape = ModelShape(tuple(map(str, range(len(forward)))), ones, ones, forward, weight, inputs, ones, ones)
    np.testing.assert_allclose(suffix_flops(forward, weight, inputs), shape.step_flops, rtol=1e-12)


def test_a_budget_that_is_just_met_is_met() -> None:
    affordable = np.array([7.999, 8.0, 8.0 - 1e-12, 10.9, 11.0, 17.0, 1e9])
    np.testing.assert_array_equal(widths(FLOPS, affordable), [0, 1, 1, 1, 2, 3, 3])


def test_a_sum_of_tenths_is_within_a_budget_of_the_decimal() -> None:
    """0.1 + 0.1 + 0.1 > 0.3 in binary."""
    tenths = suffix_flops(np.zeros(3), np.full(3, 0.1), np.zeros(3))
    assert tenths[3] > 0.3
    assert widths(tenths, np.array([0.3])) == 3


def test_random_speeds_reach_a_depth_if_they_pay_for_it() -> None:
    """P(f >= C_b / budget), b = 0 ... 3; a speed class that pays to the last FLOP is in."""
    np.testing.assert_allclose(
        reach_share(FLOPS, 2.0, Exponential(5.0)), np.exp(-np.array([0, 4, 5.5, 8.5]) / 5.0), rtol=1e-8
    )
    np.testing.assert_allclose(reach_share(FLOPS, 2.0, Classes((4.0, 8.5), (0.3, 0.7))), [1, 1, 0.7, 0.7])


def test_random_widths_have_the_shares_of_random_speeds() -> None:
    """20,000 speeds: 4 standard errors of each share."""
    law, n = Uniform(1.0, 10.0), 20_000
    drawn = widths(FLOPS, law.draw(np.random.default_rng(1).random(n)) * 2.0)
    shares = reach_share(FLOPS, 2.0, law)
    for depth in range(4):
        bound = 4 * np.sqrt(shares[depth] * (1 - shares[depth]) / n)
        assert abs((drawn >= depth).mean() - shares[depth]) <= bound


def test_what_partial_training_saves() -> None:
    assert compute_saved_share(FLOPS, np.array([3, 3])) == 0.0
    assert compute_saved_share(FLOPS, np.array([3, 2, 1, 0])) == pytest.approx(1 - (17 + 11 + 8) / 68, rel=1e-15)


# ---- layers averaged less often ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("printed", "factor", "share"), [(0.6155, 2, 0.7690), (0.4436, 4, 0.7419)])
def test_printed_traffic_tells_how_much_was_averaged_less_often(printed: float, factor: int, share: float) -> None:
    assert relaxed_share(printed, factor) == pytest.approx(share, abs=5e-5)
    assert traffic_share(relaxed_share(printed, factor), factor) == pytest.approx(printed, rel=1e-14)


def test_averaging_everything_less_often_is_the_limit() -> None:
    assert traffic_share(1.0, 4) == 0.25
    assert traffic_share(0.0, 4) == 1.0


def test_traffic_by_counting_what_each_layer_sends() -> None:
    """Second method: kappa_l syncs of dim_l parameters each over 24 intervals, layers 1 and 3 every third."""
    dims, kappas = np.array([10, 50, 5, 35]), np.array([24, 8, 24, 8])
    assert traffic_share((50 + 35) / 100, 3) == pytest.approx(float(dims @ kappas) / (100 * 24), rel=1e-14)


@pytest.mark.parametrize(
    ("printed", "n_steps", "reckoned", "stopped"), [(0.6155, 5160, 0.3221, 0.3201), (0.4436, 4120, 0.1854, 0.1865)]
)
def test_early_stops_are_against_the_baselines_own_stop(
    printed: float, n_steps: int, reckoned: float, stopped: float
) -> None:
    """The baseline stops at 9,860 steps and is printed as 100 %; against 10,000 the columns fit worse."""
    found = stopped_traffic_share(printed, n_steps, 9860)
    assert found == pytest.approx(reckoned, abs=5e-5)
    assert abs(found - stopped) < 0.0021
    assert abs(stopped_traffic_share(printed, n_steps, 10_000) - stopped) > 0.0024


# ---- memory of a network's output side ---------------------------------------------------------------------------------

WHOLE, MODERATE, WEAK = resnet20_memory(), resnet20_memory(3), resnet20_memory(6)
ROUNDED = [rounded_half_up(capacity(tier, WHOLE)) for tier in (WHOLE, MODERATE, WEAK)]

# Devices that are strong, moderate, weak; the printed mean capacity.
CASES = [
    (128, 0, 0, "1.00"),
    (64, 64, 0, "0.71"),
    (32, 96, 0, "0.57"),
    (16, 112, 0, "0.49"),
    (64, 0, 64, "0.58"),
    (32, 0, 96, "0.37"),
    (16, 0, 112, "0.27"),
    (32, 32, 64, "0.44"),
    (16, 32, 80, "0.33"),
    (16, 16, 96, "0.30"),
]


def test_counts_of_the_published_network() -> None:
    assert Memory(272_762, 6_947_136) == WHOLE
    assert Memory(257_994, 2_752_832) == MODERATE
    assert Memory(206_346, 917_824) == WEAK
    assert [tier.total for tier in (WHOLE, MODERATE, WEAK)] == [7_219_898, 3_010_826, 1_124_170]
    assert WHOLE.n_activations == 32 * (8 * 16384 + 7 * 8192 + 7 * 4096 + 10)


def test_tier_capacities_as_printed_need_weights_and_activations_of_a_batch_of_32() -> None:
    assert [Decimal("1.00"), Decimal("0.42"), Decimal("0.16")] == ROUNDED
    assert float(capacity(MODERATE, WHOLE)) == pytest.approx(0.41702, abs=5e-6)
    assert float(capacity(WEAK, WHOLE)) == pytest.approx(0.15570, abs=5e-6)
    weights = [round(tier.n_parameters / WHOLE.n_parameters, 3) for tier in (MODERATE, WEAK)]
    activations = [round(tier.n_activations / WHOLE.n_activations, 3) for tier in (MODERATE, WEAK)]
    assert (weights, activations) == ([0.946, 0.757], [0.396, 0.132])
    one_sample = capacity(resnet20_memory(3, batch_size=1), resnet20_memory(batch_size=1))
    assert rounded_half_up(one_sample) == Decimal("0.70")


@pytest.mark.parametrize(("strong", "moderate", "weak", "printed"), CASES)
def test_printed_mean_capacities_come_from_rounded_tiers(strong: int, moderate: int, weak: int, printed: str) -> None:
    assert str(rounded_half_up(mean_capacity((strong, moderate, weak), ROUNDED))) == printed


def test_unrounded_tiers_miss_four_of_the_ten() -> None:
    exact = [capacity(tier, WHOLE) for tier in (WHOLE, MODERATE, WEAK)]
    missed = {
        i: str(rounded_half_up(mean_capacity(case[:3], exact)))
        for i, case in enumerate(CASES, start=1)
        if str(rounded_half_up(mean_capacity(case[:3], exact))) != case[3]
    }
    assert missed == {3: "0.56", 7: "0.26", 8: "0.43", 10: "0.29"}


def test_ties_go_up_where_binary_rounding_takes_them_down() -> None:
    ties = [Decimal("0.565"), Decimal("0.265"), Decimal("0.435")]
    assert [mean_capacity(CASES[i][:3], ROUNDED) for i in (2, 6, 7)] == ties
    assert [str(rounded_half_up(tie)) for tie in ties] == ["0.57", "0.27", "0.44"]
    assert [round(float(tie), 2) for tie in ties] != [0.57, 0.27, 0.44]


# ---- the same, of the network that is really trained ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet20() -> ModelShape:
    """Measured: the parameters that torch holds, the outputs of the operations that torch carries out."""
    model = Resnet20(shortcut="projection_every_stage", norm="batch")
    return measure(Chain.of(model.build((3, 32, 32), 10), (3, 32, 32)), (3, 32, 32))


def kept(shape: ModelShape, depth: int, batch_size: int = 32) -> Memory:
    first = shape.n_layers - depth
    n_activations = batch_size * int(shape.n_kept_activations[first:].sum())
    return Memory(int(shape.n_parameters[first:].sum()), n_activations)


def measured_tiers(shape: ModelShape) -> list[Memory]:
    """All layers; without the stem and three residual blocks; without the stem and six."""
    return [kept(shape, shape.n_layers - n_removed) for n_removed in (0, 4, 7)]


def test_the_published_counts_are_those_of_the_network_that_is_trained(resnet20: ModelShape) -> None:
    assert resnet20.layer_names[4:8] == ("residual4", "residual5", "residual6", "residual7")
    by_hand = [Memory(272_762, 6_947_136), Memory(257_994, 2_752_832), Memory(206_346, 917_824)]
    assert measured_tiers(resnet20) == by_hand == [WHOLE, MODERATE, WEAK]


@pytest.mark.parametrize(("batch_size", "n_classes"), [(1, 10), (32, 10), (128, 7)])
def test_what_was_counted_by_hand_is_what_was_measured_at_every_depth(batch_size: int, n_classes: int) -> None:
    module = Resnet20(shortcut="projection_every_stage").build((3, 32, 32), n_classes)
    shape = measure(Chain.of(module, (3, 32, 32)), (3, 32, 32))
    assert kept(shape, 11, batch_size) == resnet20_memory(None, batch_size, n_classes)
    for n_blocks_removed in range(10):
        by_hand = resnet20_memory(n_blocks_removed, batch_size, n_classes)
        assert kept(shape, 10 - n_blocks_removed, batch_size) == by_hand
        assert shape.memory_bytes(batch_size)[10 - n_blocks_removed] == 4 * by_hand.total


def test_only_the_variant_with_a_projection_in_every_stage_has_the_published_counts(resnet20: ModelShape) -> None:
    for shortcut, n_parameters in (("padded", 269_722), ("projection", 272_474)):
        shape = measure(Chain.of(Resnet20(shortcut=shortcut).build((3, 32, 32), 10), (3, 32, 32)), (3, 32, 32))
        assert kept(shape, 11).n_parameters == n_parameters
        assert kept(shape, 11).n_activations < kept(resnet20, 11).n_activations


@pytest.mark.parametrize(("strong", "moderate", "weak", "printed"), CASES)
def test_printed_mean_capacities_are_those_of_the_network_that_is_trained(
    resnet20: ModelShape, strong: int, moderate: int, weak: int, printed: str
) -> None:
    """By way of bytes: the share of a float32 count is the share of the count."""
    in_bytes = resnet20.memory_bytes(32)
    tiers = [rounded_half_up(Decimal(int(in_bytes[depth])) / Decimal(int(in_bytes[11]))) for depth in (11, 7, 4)]
    assert str(rounded_half_up(mean_capacity((strong, moderate, weak), tiers))) == printed
