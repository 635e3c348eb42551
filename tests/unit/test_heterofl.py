"""One round of HeteroFL on a perceptron 2-3-2 small enough for a sheet of paper, and whose rows of the output layer are whose.

Device 0 trains all three hidden units on x = (1, 2) with label 0, device 1 the first of them on (1, 5) with label 1; one
step at learning rate 1. The weights make both logits equal, with all units (5) and with the first alone (3), so that
every probability is 1/2 and all numbers are exact:
    hidden h = (1, 2, 2), output rows (1, 0, 1) and (3, 1, 0), biases 2 and 0
    device 0: error (-1/2, 1/2); output gradients error x h, hidden error (1, 1/2, -1/2), hidden gradients that x (1, 2)
    device 1: error (1/2, -1/2); output gradients error x 1, hidden error -1, hidden gradients -1 x (1, 5)
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from fedsim.facts import LabelledData
from fedsim.models.mlp import Mlp
from fedsim.policies.heterofl import HeteroFL
from fedsim.records import RunBook
from fedsim.timing.fleet import Fleet
from fedsim.timing.server import SimServer
from fedsim.timing.weather import Weather
from fedsim.training import build
from fedsim.training.batches import plan_of
from fedsim.training.dealing import Dealt
from fedsim.training.settings import Training
from fedsim.training.shape_cache import shape_of

START = [
    [[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]],  # hidden weights [unit, input]
    [0.0, 0.0, 0.0],
    [[1.0, 0.0, 1.0], [3.0, 1.0, 0.0]],  # output weights [class, unit]
    [2.0, 0.0],
]


def after_a_round(policy, *, n_copies=1, start=START, clock_seed=1):
    """Weights after it; device 0 holds n_copies of its sample."""
    inputs = np.array([[1, 2]] * n_copies + [[1, 5]], dtype=np.float32)
    labels = np.array([0] * n_copies + [1])
    data = LabelledData(inputs, labels, inputs, labels, n_classes=len(start[-1]))
    model, samples = Mlp(widths=(3,)), [np.arange(n_copies), np.array([n_copies])]
    shape = shape_of("mlp", asdict(model), lambda: model, data)
    settings = Training(batch_size="all", dtype="float64", learning_rate=1.0)
    plan = plan_of(samples, settings.batch_size, settings.batches)
    chain = build.chain_of(model, data, init_seed=1)
    learner = build.learner_of(chain, shape, Dealt(data, samples), plan, settings, None, data_seed=1, model=model)
    for weight, values in zip(learner.weights, start, strict=True):
        weight.copy_(torch.tensor(values, dtype=torch.float64))
    book = RunBook(learner=learner, grid=None, n_rounds=1)
    SimServer(Weather(Fleet(n_devices=2), shape, plan, 1, clock_seed), learner, book).play(policy)
    return [weight.tolist() for weight in learner.weights]


def minus(gradients):
    return [(np.array(value) - np.array(gradient)).tolist() for value, gradient in zip(START, gradients, strict=True)]


def policy(**changes):
    return HeteroFL(rates=(1.0, 1 / 3), local_steps=1, scaler=False, masked_loss=False, **changes)


def test_the_first_unit_is_averaged_over_both_and_the_others_are_the_wide_devices():
    """(1, 2) and (-1, -5) have the mean (0, -3/2); the output's errors cancel in the first column and the biases."""
    expected = [[[0, -1.5], [0.5, 1], [-0.5, -1]], [0, 0.5, -0.5], [[0, -1, -1], [0, 1, 1]], [0, 0]]
    assert after_a_round(policy()) == minus(expected)


def test_averages_by_samples_weigh_only_among_holders():
    """Device 0 counts three times: (3 (1, 2) + (-1, -5)) / 4, and (3 (-1/2) + 1/2) / 4 = -1/4."""
    expected = [[[0.5, 0.25], [0.5, 1], [-0.5, -1]], [0.5, 0.5, -0.5], [[-0.25, -1, -1], [0.25, 1, 1]], [-0.25, 0.25]]
    assert after_a_round(policy(weighting="n_samples"), n_copies=3) == minus(expected)


def test_diluted_elements_are_divided_by_all_who_were_asked():
    """What device 0 alone holds moves half as far."""
    expected = [[[0, -1.5], [0.25, 0.5], [-0.25, -0.5]], [0, 0.25, -0.25], [[0, -0.5, -0.5], [0, 0.5, 0.5]], [0, 0]]
    assert after_a_round(policy(dilute=True)) == minus(expected)


def test_a_scaled_part_sees_its_one_unit_three_times_as_large():
    """Device 1 alone, whom the clock seed samples: logits 2 + 3 and 3 x 3 = 9, p = 1 / (1 + e^4) of label 0; what reaches the unit is tripled too."""
    p = 1 / (1 + np.exp(4.0))
    alone = HeteroFL(rates=(1.0, 1 / 3), n_sampled=1, local_steps=1, masked_loss=False)
    found = after_a_round(alone, clock_seed=3)
    assert found[0][1:] == START[0][1:], "device 0 was sampled"
    # error (p, -p); of the unit's activation -2 p, of its output before scaling -6 p
    np.testing.assert_allclose(found[0][0], [1 + 6 * p, 0 + 30 * p], rtol=0, atol=1e-14)
    np.testing.assert_allclose([found[2][0][0], found[2][1][0]], [1 - 3 * p, 3 + 3 * p], rtol=0, atol=1e-14)
    np.testing.assert_allclose(found[3], [2 - p, p], rtol=0, atol=1e-14)


@pytest.mark.parametrize("rates", [(1.0, 1 / 3), (1.0, 1.0)])
def test_a_device_leaves_the_rows_of_classes_that_it_lacks_bit_for_bit(rates):
    """Three classes, of which device 0 has the first, device 1 the second and nobody the third.

    With its own class alone a device counts the other logits as 0: p = e^z / (e^z + 2), and only its own row moves.
    """
    start = [*START[:2], [*START[2], [0.1, 0.7, -0.3]], [*START[3], 0.9]]
    found = after_a_round(HeteroFL(rates=rates, local_steps=1, scaler=False), start=start)
    assert found[2][2] == start[2][2]
    assert found[3][2] == start[3][2]
    p = np.exp(5.0) / (np.exp(5.0) + 2)  # logit 5 of class 0 on device 0
    np.testing.assert_allclose(
        found[2][0], np.array([1.0, 0.0, 1.0]) + (1 - p) * np.array([1, 2, 2]), rtol=0, atol=1e-14
    )
    np.testing.assert_allclose(found[3][0], 2 + (1 - p), rtol=0, atol=1e-14)
    h = np.array([1.0, 5.0, 2.0]) * (np.arange(3) < 3 * rates[1])
    z = np.dot([3.0, 1.0, 0.0], h)
    q = np.exp(z) / (np.exp(z) + 2)
    np.testing.assert_allclose(found[2][1], np.array([3.0, 1.0, 0.0]) + (1 - q) * h, rtol=0, atol=1e-14)
    np.testing.assert_allclose(found[3][1], 1 - q, rtol=0, atol=1e-14)
