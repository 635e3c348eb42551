"""Devices that keep layers between tasks, beside a plain PyTorch loop that keeps a whole model per device."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedsim import weights
from tests.learning import bench, relative_error

KERNELS = pytest.mark.parametrize(
    ("model", "engine", "tuning", "kernel"),
    [
        ("mlp", "auto", {}, "stacked"),
        ("mlp", "auto", {"written_out": False}, "loop"),
        ("mlp", "reference", {}, "reference"),
        ("cnn", "auto", {}, "stacked"),
    ],
)


class Devices:
    """One whole model per device, stepped by autograd on the batches of the bench."""

    def __init__(self, at, devices):
        self.at, self.rate = at, at.learner.at.training.learning_rate
        self.module = at.learner.at.model.chain.module
        self.models = {d: self.load(at.values) for d in devices}

    def load(self, values):
        twin = copy.deepcopy(self.module)
        for parameter, value in zip(twin.parameters(), values, strict=True):
            parameter.data.copy_(value)
        return twin

    def values(self, device):
        return [p.detach().clone() for p in self.models[device].parameters()]

    def step(self, device, ordinal, n_steps, *, proximal=0.0):
        module, work = self.models[device], self.at.learner.at
        start = self.values(device)
        for step in range(n_steps):
            x, labels = work.data.gather(work.batches.rows(device, ordinal, step))
            loss = functional.cross_entropy(module(x), labels)
            for p, g, s in zip(
                module.parameters(), torch.autograd.grad(loss, list(module.parameters())), start, strict=True
            ):
                p.data.sub_(self.rate * (g + proximal * (p.data - s)))

    def pull(self, device, values, layers):
        layer_of = self.at.learner.at.model.layer_of
        for p, value, layer in zip(self.models[device].parameters(), values, layer_of, strict=True):
            if layers[layer]:
                p.data.copy_(value)


def mask(n_layers, *layers):
    return tuple(layer in layers for layer in range(n_layers))


@KERNELS
def test_layers_that_are_not_pushed_go_on_where_the_last_task_left_them(model, engine, tuning, kernel):
    """Two tasks of 3 steps: the output layer is averaged after each, the others only after the second."""
    at = bench(model, engine, tuning=tuning)
    n, devices = at.n_layers, [0, 2, 3]
    last = mask(n, n - 1)
    by_hand, start = Devices(at, devices), at.values
    layer_of = at.learner.at.model.layer_of
    for d in devices:
        by_hand.step(d, 0, 3)
    at.aggregate(at.work(devices, n_steps=3, ordinal=0, pushes=last))
    mean = [torch.stack(each).mean(0) for each in zip(*map(by_hand.values, devices), strict=True)]
    expected = [m if layer == n - 1 else s for m, s, layer in zip(mean, start, layer_of, strict=True)]
    assert relative_error(at.values, expected, [s + 1 for s in start]) < 1e-10
    for d in devices:
        by_hand.pull(d, at.values, last)
        by_hand.step(d, 1, 3)
    at.aggregate(at.work(devices, n_steps=3, ordinal=1, version=1, pulls=last), version=1)
    expected = [torch.stack(each).mean(0) for each in zip(*map(by_hand.values, devices), strict=True)]
    assert relative_error(at.values, expected, start) < 1e-10
    assert at.learner.own_layers.n_bytes == 0, "everything was pushed"
    assert set(at.learner.kernels) == {kernel}


def test_only_the_layers_that_were_not_pushed_are_kept():
    at = bench()
    layer_of, sizes = at.learner.at.model.layer_of, [w.numel() * 8 for w in at.values]
    n = at.n_layers
    at.aggregate(at.work([0, 1, 3], n_steps=2, ordinal=0, pushes=mask(n, n - 1)))
    relaxed = sum(size for size, layer in zip(sizes, layer_of, strict=True) if layer < n - 1)
    assert at.learner.own_layers.n_bytes == 3 * relaxed


def test_statistics_are_of_the_change_since_the_layer_was_pulled():
    at = bench()
    n = at.n_layers
    last, wanted = mask(n, n - 1), frozenset({"update_norm", "update_distance"})
    by_hand, start = Devices(at, [0, 1]), at.values
    for ordinal, pulls, pushes in ((0, None, last), (1, last, None)):
        for d in (0, 1):
            by_hand.pull(d, at.values, pulls or mask(n, *range(n)))
            by_hand.step(d, ordinal, 2)
        work = at.work([0, 1], n_steps=2, ordinal=ordinal, version=ordinal, pulls=pulls, pushes=pushes)
        report = at.aggregate(work, version=ordinal, wanted=wanted)
    layer_of = at.learner.at.model.layer_of
    of_input = [i for i, layer in enumerate(layer_of) if layer == 0]
    mean = [torch.stack(each).mean(0) for each in zip(*map(by_hand.values, (0, 1)), strict=True)]
    for k in (0, 1):
        own = by_hand.values(k)
        norm = sum(float((own[i] - start[i]).square().sum()) for i in of_input)
        distance = sum(float((own[i] - mean[i]).square().sum()) for i in of_input)
        assert report.statistics.squared_norm[k, 0] == pytest.approx(norm, rel=1e-9)
        assert report.statistics.squared_distance[k, 0] == pytest.approx(distance, rel=1e-9)


def test_flops_computed_are_those_of_the_devices():
    at = bench()
    n = at.n_layers
    work = at.work([0, 1, 3], n_steps=[2, 3, 1], ordinal=0, pushes=mask(n, n - 1))
    assert at.aggregate(work).computed_flops == work.used_flops(at.learner.shape, at.plan).sum()


def test_a_device_that_goes_on_from_work_that_was_never_aggregated_is_refused():
    at = bench()
    last = mask(at.n_layers, at.n_layers - 1)
    with pytest.raises(ValueError, match="device 1 goes on from its own layers, but its task before was never"):
        at.aggregate(at.work([1], n_steps=1, ordinal=1, pulls=last))


def test_a_layer_that_was_pushed_must_be_pulled_again():
    at = bench()
    n = at.n_layers
    at.aggregate(at.work([1], n_steps=1, ordinal=0, pushes=mask(n, n - 1)))
    with pytest.raises(ValueError, match=f"has pushed layer {n - 1}; let it pull"):
        at.aggregate(at.work([1], n_steps=1, ordinal=1, version=1, pulls=mask(n, 0)), version=1)


def test_a_layer_that_changed_meanwhile_must_be_pulled_again():
    at = bench()
    n = at.n_layers
    last = mask(n, n - 1)
    at.aggregate(at.work([1], n_steps=1, ordinal=0, pushes=last))
    at.aggregate(at.work([2], n_steps=1, ordinal=0, version=1), version=1)
    with pytest.raises(ValueError, match="layer 0 has changed since device 1 pulled it"):
        at.aggregate(at.work([1], n_steps=1, ordinal=1, version=2, pulls=last), version=2)


@pytest.mark.parametrize(
    ("engine", "tuning", "kernel"),
    [("auto", {}, "stacked"), ("auto", {"written_out": False}, "loop"), ("reference", {}, "reference")],
)
def test_a_proximal_term_draws_every_step_back_to_the_model_that_was_pulled(engine, tuning, kernel):
    at = bench("mlp", engine, proximal=0.7, tuning=tuning)
    by_hand, start = Devices(at, [0, 2]), at.values
    for d in (0, 2):
        by_hand.step(d, 0, 4, proximal=0.7)
    work = at.work([0, 2], n_steps=4, ordinal=0)
    at.aggregate(work, weights.mean(work))
    expected = [torch.stack(each).mean(0) for each in zip(*map(by_hand.values, (0, 2)), strict=True)]
    assert relative_error(at.values, expected, start) < 1e-10
    assert set(at.learner.kernels) == {kernel}


def test_a_proximal_term_is_not_lost_where_few_rows_would_be_trained_in_low_rank():
    plain, drawn_back = (bench("mlp", batch_size=1, proximal=proximal) for proximal in (0.0, 0.7))
    by_hand, start = Devices(drawn_back, [0, 2]), drawn_back.values
    for d in (0, 2):
        by_hand.step(d, 0, 2, proximal=0.7)
    for at in (plain, drawn_back):
        work = at.work([0, 2], n_steps=2, ordinal=0)
        at.aggregate(work, weights.mean(work))
    assert set(plain.learner.kernels) == {"low_rank"}
    expected = [torch.stack(each).mean(0) for each in zip(*map(by_hand.values, (0, 2)), strict=True)]
    assert relative_error(drawn_back.values, expected, start) < 1e-10


def test_mixing_with_the_model_of_now_is_refused_for_layers_that_are_kept():
    at = bench()
    with pytest.raises(ValueError, match="from_now"):
        at.aggregate(at.work([0], n_steps=1, pushes=mask(at.n_layers, 0)), np.ones((1, at.n_layers)), base="from_now")
