"""Policies of narrower models: who holds an element changes it, nobody else does; and names of devices mean nothing.

With weight decay an element that is held always moves, whatever its gradient, so that what changed is what was held.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fedsim import from_dict
from fedsim.records import RunBook
from fedsim.run import World
from fedsim.timing.server import SimServer
from tests.laws.playing import learned, tables

EXAMPLES = (Phase.explicit, Phase.generate)  # a failing example is a whole run: shown as it is, not shrunk for minutes
WIDTHS = (4, 6, 5, 4, 3)  # of the tiny scenario: inputs, hidden units, classes
RATES = st.lists(st.floats(0.05, 1.0), min_size=5, max_size=5)


def scenario(tiny, policy, n_rounds=1, **changes):
    training = {"local_steps": 2, "batch_size": 8, "dtype": "float64", "weight_decay": 0.01}
    values = tiny(policies=[policy], training=training, stop={"n_rounds": n_rounds})
    return {**values, **changes}


def before_and_after(values):
    """Weights and biases of each layer from the input, before and after the run; and the samples of each device."""
    loaded = from_dict(values)
    contender, seeds = loaded.contenders[0], loaded.scenario.seed_sets[0]
    world = World.of(loaded, seeds).planned_for(contender)
    learner = world.learner(loaded, contender, seeds)
    before = [weight.numpy().copy() for weight in learner.weights]
    book = RunBook(learner=learner, grid=None, n_rounds=loaded.scenario.stop.n_rounds)
    SimServer(world.weather, learner, book).play(contender.policy)
    labels = [set(world.dealt.data.train_labels[rows].tolist()) for rows in world.dealt.samples]
    return before, [weight.numpy().copy() for weight in learner.weights], labels


def leading_block(rate):
    """Which elements of each parameter a device of this rate holds."""
    n = [WIDTHS[0], *[math.ceil(rate * width - 1e-9) for width in WIDTHS[1:-1]], WIDTHS[-1]]
    found = []
    for layer in range(4):
        weight, bias = np.zeros((WIDTHS[layer + 1], WIDTHS[layer]), dtype=bool), np.zeros(WIDTHS[layer + 1], dtype=bool)
        weight[: n[layer + 1], : n[layer]] = True
        bias[: n[layer + 1]] = True
        found += [weight, bias]
    return found


def assert_only(before, after, held):
    """Bit for bit outside what is held, and a change in every element of it."""
    for was, now, mine in zip(before, after, held, strict=True):
        np.testing.assert_array_equal(now == was, ~mine)


@pytest.mark.parametrize("dilute", [False, True])
@settings(max_examples=10, phases=EXAMPLES)
@given(rates=RATES)
def test_what_changes_is_the_leading_block_of_the_widest_device(tiny, dilute, rates):
    policy = {"kind": "heterofl", "rates": rates, "masked_loss": False, "dilute": dilute}
    before, after, _ = before_and_after(scenario(tiny, policy))
    assert_only(before, after, leading_block(max(rates)))


@settings(max_examples=10, phases=EXAMPLES)
@given(narrow=st.floats(0.05, 1.0), wide=st.floats(0.05, 1.0))
def test_a_wider_part_contains_every_narrower_one(tiny, narrow, wide):
    def held(rate):
        before, after, _ = before_and_after(
            scenario(tiny, {"kind": "heterofl", "rates": [rate] * 5, "masked_loss": False})
        )
        return [now != was for was, now in zip(before, after, strict=True)]

    narrow, wide = sorted([narrow, wide])
    for small, large in zip(held(narrow), held(wide), strict=True):
        assert (large >= small).all()
        assert small.any()


@settings(max_examples=10, phases=EXAMPLES)
@given(rates=RATES, seed=st.integers(0, 1000))
def test_rows_of_classes_are_held_by_the_widest_device_that_has_the_class(tiny, rates, seed):
    """Labels are dealt out so unevenly that devices lack classes."""
    data = {"kind": "gaussian_blobs", "n_samples": 100, "n_features": 4, "n_classes": 3}
    data["partition"] = {"kind": "dirichlet", "alpha": 0.1}
    before, after, labels = before_and_after(
        scenario(tiny, {"kind": "heterofl", "rates": rates}, data=data, seeds=[seed])
    )
    held = leading_block(max(rates))
    held[-2][:], held[-1][:] = False, False
    for rate, mine in zip(rates, labels, strict=True):
        for label in mine:
            held[-2][label] |= leading_block(rate)[-2][label]
            held[-1][label] = True
    assert_only(before, after, held)


@pytest.mark.parametrize("fill", ["global", "contributors"])
@settings(max_examples=10, phases=EXAMPLES)
@given(shares=RATES, seed=st.integers(0, 1000))
def test_a_task_changes_as_many_units_as_its_share_says_and_their_rows_and_columns_only(tiny, fill, shares, seed):
    """Of one device; the other four hold no more than one unit each, by which the number may exceed its own."""
    share, others = shares[0], 1e-6
    policy = {"kind": "feddrop", "kept_shares": [share, *[others] * 4], "fill": fill}
    before, after, _ = before_and_after(scenario(tiny, policy, seeds=[seed]))
    for layer in range(3):
        moved = [now != was for was, now in zip(before, after, strict=True)]
        units = moved[2 * layer + 1]  # a unit that was held has its bias moved
        own = math.ceil(share * WIDTHS[layer + 1] - 1e-9)
        assert own <= units.sum() <= min(own + 4, WIDTHS[layer + 1])
        assert not moved[2 * layer][~units].any()
        assert not moved[2 * layer + 2][:, ~units].any()


@settings(max_examples=8, phases=EXAMPLES)
@given(new_name=st.permutations(range(5)), rates=RATES, seed=st.integers(0, 1000))
def test_renaming_devices_with_their_rates_and_data_changes_names_only(tiny, tmp_path_factory, new_name, rates, seed):
    """Whole data sets as batches, so that nothing else hangs on a name. Sums over devices may differ in their last bits."""
    shards = np.split(np.random.default_rng(seed).permutation(80), [7, 20, 40, 68])
    folder = tmp_path_factory.mktemp("renamed")

    def played(order, name):
        """order: which of the devices stands in each place."""
        np.savez(folder / f"{name}.npz", *[shards[d] for d in order])
        step_s = [[1.0, 1.25, 2.0, 2.5, 4.0][d] for d in order]
        data = {"kind": "gaussian_blobs", "n_samples": 100, "n_features": 4, "n_classes": 3}
        data["partition"] = {"kind": "file", "path": str(folder / f"{name}.npz")}
        values = scenario(
            tiny,
            {"kind": "heterofl", "rates": [rates[d] for d in order], "weighting": "n_samples"},
            n_rounds=4,
            data=data,
            fleet={"n_devices": 5, "compute": {"step_s": step_s}},
        )
        values["training"]["batch_size"] = "all"
        return learned(values)[0], tables(values)["rounds"]["end_s"]

    weights, ends_s = played(range(5), "before")
    renamed, renamed_ends_s = played(new_name, "after")
    np.testing.assert_allclose(renamed, weights, rtol=1e-12, atol=1e-13)
    assert renamed_ends_s.tolist() == ends_s.tolist()
