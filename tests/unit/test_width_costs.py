"""What the clock charges for narrower models against torch's own counter on models of those widths, and the pages' tables."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fedsim.facts import BadInput, BatchPlan, LabelledData, ModelShape, Subnetwork, Task
from fedsim.models.cnn import Cnn
from fedsim.models.cnn_stsyn import CnnStsyn
from fedsim.models.mlp import Mlp
from fedsim.models.resnet20 import Resnet20
from fedsim.models.vgg11 import Vgg11
from fedsim.policies.feddrop import FedDrop
from fedsim.policies.heterofl import HeteroFL
from fedsim.records import RunBook
from fedsim.timing.fleet import Compute, Fleet, Link
from fedsim.timing.foresight import Foresight
from fedsim.timing.server import SimServer
from fedsim.timing.untrained import Untrained
from fedsim.timing.weather import Weather
from fedsim.training.shape_cache import shape_of

ROOT = Path(__file__).parents[2]
N_ROWS = 6
RATES = (1.0, 0.6, 0.5, 0.25, 0.1)
LINK = Link(rate_bits_per_s=1e4, latency_s=0.5)
BACKWARD_FACTOR = 3.0


def units(rate, n):
    return math.ceil(rate * n - 1e-9)


def mlp(rate, cut_all):
    """Every hidden layer of it is fully connected."""
    return Mlp(widths=(units(rate, 9), units(rate, 7)))


def cnn(rate, cut_all):
    first, second = (units(rate, 6), units(rate, 8)) if cut_all else (6, 8)
    return Cnn(channels=(first, second), hidden=units(rate, 10))


MODELS = {"mlp": (mlp, (12,)), "cnn": (cnn, (2, 16, 16))}


def noise(input_shape, n_classes=3):
    rows = np.random.default_rng(1).normal(size=(N_ROWS, *input_shape)).astype(np.float32)
    return LabelledData(rows, np.arange(N_ROWS) % n_classes, rows, np.arange(N_ROWS) % n_classes, n_classes)


def counted(model, input_shape):
    """FLOPs of the forward and of the backward pass of one step on all rows, and bytes of the state, by torch."""
    data = noise(input_shape)
    module = model.build(data.input_shape, data.n_classes)
    x, labels = torch.from_numpy(data.train_inputs), torch.from_numpy(data.train_labels)
    with FlopCounterMode(display=False) as forward:
        loss = functional.cross_entropy(module(x), labels)
    with FlopCounterMode(display=False) as backward:
        loss.backward()  # the rows need no gradient
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    return forward.get_total_flops(), backward.get_total_flops(), n_bytes


def weather_of(kind, fleet):
    build, input_shape = MODELS[kind]
    model, data = build(1.0, cut_all=True), noise(input_shape)
    shape = shape_of(kind, asdict(model), lambda: model, data)
    plan = BatchPlan(np.full(fleet.n_devices, N_ROWS), None)
    return Weather(fleet, shape, plan, fleet_seed=1, clock_seed=1)


def jobs_of(weather, policy):
    """The first round's jobs, a row per device."""
    assert policy.problems(Foresight(weather)) == []
    learner = Untrained(weather.shape)
    book = RunBook(learner=learner, grid=None, n_rounds=1)
    SimServer(weather, learner, book).play(policy)
    return pd.DataFrame(book.tables()["tasks"]).sort_values("device")


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("policy", [HeteroFL(rates=RATES, local_steps=3), FedDrop(kept_shares=RATES, local_steps=3)])
def test_a_task_is_charged_what_torch_counts_on_a_model_of_its_width(kind, policy):
    fleet = Fleet(
        n_devices=len(RATES),
        compute=Compute(flops_per_s=1000.0, backward_factor=BACKWARD_FACTOR),
        uplink=LINK,
        downlink=LINK,
    )
    jobs = jobs_of(weather_of(kind, fleet), policy)
    build, input_shape = MODELS[kind]
    found = [counted(build(rate, isinstance(policy, HeteroFL)), input_shape) for rate in RATES]
    forward, backward, n_bytes = (np.array(column) for column in zip(*found, strict=True))
    assert len(set(n_bytes)) == len(RATES)
    assert jobs["device_flops"].tolist() == (3 * (forward + backward)).tolist()
    assert jobs["uploaded_bytes"].tolist() == jobs["downloaded_bytes"].tolist() == n_bytes.tolist()
    step_s = (forward + BACKWARD_FACTOR * backward) / 1000.0
    np.testing.assert_allclose(jobs["computed_s"] - jobs["downloaded_s"], 3 * step_s, rtol=1e-12)
    np.testing.assert_allclose(jobs["arrived_s"] - jobs["computed_s"], 0.5 + 8 * n_bytes / 1e4, rtol=1e-12)
    np.testing.assert_allclose(jobs["downloaded_s"], 0.5 + 8 * n_bytes / 1e4, rtol=1e-12)


def test_stated_seconds_of_layers_shrink_with_their_own_flops():
    """Layers of 12 x 9, 9 x 7 and 7 x 3; at 1/2 of 12 x 5, 5 x 4 and 4 x 3. The input layer hands no gradient on."""
    compute = Compute(layer_s=(4.0, 2.0, 1.0), forward_s=0.5)
    jobs = jobs_of(weather_of("mlp", Fleet(n_devices=2, compute=compute)), HeteroFL(rates=(1.0, 0.5), local_steps=1))
    forward_s = 0.5 * (60 + 20 + 12) / (108 + 63 + 21)
    half_s = forward_s + 4 * 60 / 108 + 2 * 20 / 63 + 1 * 12 / 21
    np.testing.assert_allclose(jobs["computed_s"], [7.5, half_s], rtol=1e-14)


def test_a_layer_without_counted_flops_keeps_its_stated_seconds():
    """A block of nothing but a normalisation, say; the others halve."""
    one = np.ones(3, dtype=np.int64)

    def shape(scale, narrower=None):
        flops = np.array([100.0, 0.0, 50.0]) * scale
        return ModelShape(("a", "b", "c"), one, 4 * one, flops, flops, 0 * flops, one, one, narrower)

    whole = shape(1.0, lambda rate, _: shape(rate))
    fleet = Fleet(n_devices=1, compute=Compute(layer_s=(4.0, 2.0, 1.0)))
    weather = Weather(fleet, whole, BatchPlan(one[:1], None), 1, 1)
    assert jobs_of(weather, HeteroFL(rates=(0.5,), local_steps=1))["computed_s"].tolist() == [2.0 + 2.0 + 0.5]


def test_a_level_that_meets_the_budget_exactly_is_taken():
    """Three steps of 0.1 s at 1/2, which sum up to 0.30000000000000004 s; device 1 is a millionth short of it."""
    half = sum(counted(mlp(0.5, cut_all=True), (12,))[:2]) / sum(counted(mlp(1.0, cut_all=True), (12,))[:2])
    setting = Foresight(weather_of("mlp", Fleet(n_devices=2, compute=Compute(step_s=(0.1 / half, 0.1000001 / half)))))
    half_steps = Task(n_steps=3, subnetwork=Subnetwork(), rate=0.5)
    assert setting.expected_compute_s(half_steps, np.arange(1))[0] > 0.3
    assert HeteroFL(budget_s=0.3, local_steps=3).rates_of(setting).tolist() == [0.5, 0.25]
    assert FedDrop(deadline_s=0.3, local_steps=3).shares_of(setting).tolist() == [0.55, 0.4]


def test_a_level_that_fills_the_memory_exactly_is_taken():
    """At 1/2 of 9 and 7 units: 12 x 5 + 5 + 5 x 4 + 4 + 4 x 3 + 3 parameters, 5 + 4 + 3 activations of each of 6 rows."""
    least = 4 * (104 + 6 * 12)
    fleet = Fleet(n_devices=3, memory_bytes=(1e6, float(least), least - 1.0))
    policy = HeteroFL(within_memory=True)
    assert policy.rates_of(Foresight(weather_of("mlp", fleet))).tolist() == [1.0, 0.5, 0.25]


# ---- who gets which rate --------------------------------------------------------------------------------------------


def test_rates_that_change_hands_keep_their_numbers_and_reach_everybody():
    """Ten devices, five of the rate 1, three of 1/2, two of 1/4: in every round as many, by their upload."""
    rates = (1.0,) * 5 + (0.5,) * 3 + (0.25,) * 2
    weather = weather_of("mlp", Fleet(n_devices=10))
    learner = Untrained(weather.shape)
    book = RunBook(learner=learner, grid=None, n_rounds=200)
    SimServer(weather, learner, book).play(HeteroFL(rates=rates, assignment="dynamic"))
    tasks = pd.DataFrame(book.tables()["tasks"])
    sizes = [weather.shape.sliced(rate).parameter_bytes.sum() for rate in (1.0, 0.5, 0.25)]
    per_round = pd.crosstab(tasks["round"], tasks["uploaded_bytes"])[sizes]
    assert (per_round == [5, 3, 2]).all(axis=None)
    # Each device has a rate in a share of the rounds: 5/10, 3/10 and 2/10, with the standard error of 200 draws.
    shares = pd.crosstab(tasks["device"], tasks["uploaded_bytes"], normalize="index")[sizes]
    expected = np.array([0.5, 0.3, 0.2])
    assert (np.abs(shares - expected) < 4.5 * np.sqrt(expected * (1 - expected) / 200)).all(axis=None)


def test_fixed_rates_stay_with_their_devices():
    weather = weather_of("mlp", Fleet(n_devices=3))
    learner = Untrained(weather.shape)
    book = RunBook(learner=learner, grid=None, n_rounds=20)
    SimServer(weather, learner, book).play(HeteroFL(rates=(0.25, 1.0, 0.5), n_sampled=2))
    tasks = pd.DataFrame(book.tables()["tasks"])
    sizes = [weather.shape.sliced(rate).parameter_bytes.sum() for rate in (0.25, 1.0, 0.5)]
    assert tasks.groupby("device")["uploaded_bytes"].unique().map(list).tolist() == [[size] for size in sizes]
    assert (tasks.groupby("round").size() == 2).all()


# ---- models that have no parts --------------------------------------------------------------------------------------


def setting_with(kind, model, input_shape):
    data = noise(input_shape)
    shape = shape_of(kind, asdict(model), lambda: model, data)
    return Foresight(Weather(Fleet(n_devices=2), shape, BatchPlan(np.full(2, N_ROWS), None), 1, 1))


def test_a_model_without_a_fully_connected_hidden_layer_has_nothing_to_drop():
    setting = setting_with("vgg11", Vgg11(norm="none"), (3, 32, 32))
    with pytest.raises(BadInput, match="no fully connected hidden layer"):
        FedDrop(kept_shares=(0.5, 0.5)).problems(setting)
    assert HeteroFL(rates=(0.5, 0.5)).problems(setting) == []


def test_a_rate_that_cuts_a_group_of_the_normalisation_in_two_is_refused():
    setting = setting_with("resnet20", Resnet20(), (3, 8, 8))  # groups of 2, 4 and 8 channels
    assert HeteroFL(rates=(1.0, 0.5)).problems(setting) == []
    with pytest.raises(BadInput, match="cuts a group"):
        HeteroFL(rates=(1.0, 1 / 16)).problems(setting)


# ---- the pages ------------------------------------------------------------------------------------------------------

SHOWN = {
    "mlp": (Mlp(), (64,)),
    "cnn": (Cnn(), (1, 28, 28)),
    "cnn_stsyn": (CnnStsyn(), (3, 32, 32)),
    "vgg11": (Vgg11(norm="batch"), (3, 32, 32)),
    "resnet20": (Resnet20(norm="batch"), (3, 32, 32)),
}


@pytest.mark.parametrize("page", ["heterofl", "feddrop"])
def test_the_pages_shares_of_compute_and_bytes_are_those_of_the_shapes(page):
    text = (ROOT / "docs" / "explanation" / "policies" / f"{page}.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| ([\d.]+ / [\d. /|]+) \|$", text, re.MULTILINE)
    assert {kind for kind, _ in rows} == (set(SHOWN) if page == "heterofl" else {"mlp", "cnn", "cnn_stsyn"})
    for kind, cells in rows:
        model, input_shape = SHOWN[kind]
        whole = shape_of(kind, asdict(model), lambda model=model: model, noise(input_shape, n_classes=10))
        parts = [whole.sliced(rate, convolutions=page == "heterofl") for rate in (1 / 2, 1 / 4, 1 / 8, 1 / 16)]
        compute = [part.step_flops[-1] / whole.step_flops[-1] for part in parts]
        sizes = [part.parameter_bytes.sum() / whole.parameter_bytes.sum() for part in parts]
        assert cells == " | ".join(f"{100 * c:.2f} / {100 * b:.2f}" for c, b in zip(compute, sizes, strict=True)), kind
