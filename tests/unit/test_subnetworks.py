"""Sub-networks beside plain PyTorch: the narrow module is built, filled with slices and stepped by autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsim import weights
from fedsim.facts import BadInput, Subnetwork
from fedsim.randomness import Luck
from fedsim.training.operations import Scaled
from tests.learning import MODELS, bench, relative_error

BOTH = pytest.mark.parametrize("model", ["mlp", "cnn"])
RATES = [1.0, 0.5, 0.25, 0.5]
DEVICES = [0, 1, 2, 3]


def narrow_module(model, rate, *, convolutions=True):
    item, input_shape = MODELS[model]
    return item.narrowed(rate, convolutions=convolutions).build(input_shape, 3).double()


def trained(at, device, module, values, *, n_steps=3, mask=None, scale_of=None):
    """Changes of the module's parameters after local SGD on the device's batches; scale_of: by parameter, a factor."""
    for p, value in zip(module.parameters(), values, strict=True):
        p.data.copy_(value)
    work = at.learner.at
    handles = []
    if scale_of is not None:
        leaves = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        for leaf, factor in zip(leaves, scale_of, strict=True):
            handles.append(leaf.register_forward_hook(lambda _m, _x, out, factor=factor: out * factor))
    for step in range(n_steps):
        x, labels = work.data.gather(work.batches.rows(device, 0, step))
        out = module(x)
        if mask is not None:
            out = torch.where(mask, out, 0.0)
        gradients = torch.autograd.grad(functional.cross_entropy(out, labels), list(module.parameters()))
        for p, g in zip(module.parameters(), gradients, strict=True):
            p.data.sub_(work.training.learning_rate * g)
    for handle in handles:
        handle.remove()
    return [p.data - value for p, value in zip(module.parameters(), values, strict=True)]


def leading(values, module):
    return [v[tuple(slice(0, n) for n in p.shape)].clone() for v, p in zip(values, module.parameters(), strict=True)]


def averaged(start, parts, of_devices):
    """Element by element over those that hold it. parts: `[device]` (index of each parameter, its change)."""
    expected = []
    for i, value in enumerate(start):
        total, n = torch.zeros_like(value), torch.zeros_like(value)
        for (places, change), weight in zip(parts, of_devices, strict=True):
            total[places[i]] += weight * change[i]
            n[places[i]] += weight
        expected.append(value + total / torch.where(n > 0, n, 1.0))
    return expected


@BOTH
@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_each_element_is_averaged_over_the_devices_whose_part_holds_it(model, engine):
    at = bench(model, engine)
    start, parts = at.values, []
    for device, rate in zip(DEVICES, RATES, strict=True):
        module = narrow_module(model, rate)
        change = trained(at, device, module, leading(start, module))
        parts.append(([tuple(slice(0, n) for n in c.shape) for c in change], change))
    work = at.work(DEVICES, n_steps=3, ordinal=0, subnetwork=Subnetwork(), rate=RATES)
    report = at.aggregate(work, weights.mean(work, "n_samples"), is_per_element=True)
    expected = averaged(start, parts, work.n_samples.tolist())
    assert relative_error(at.values, expected, start) < 1e-10
    shapes = {r: at.learner.subnetworks.build(r, True, False)[0].model.shape for r in RATES}
    by_hand = sum(
        rows * shapes[rate].step_flops[-1] for rows, rate in zip(work.rows_trained(at.plan)[0], RATES, strict=True)
    )
    if engine == "reference":
        assert report.computed_flops == by_hand


def test_diluted_parts_are_divided_by_everybody():
    at = bench("mlp")
    start, expected = at.values, at.values
    for device, rate in zip(DEVICES, RATES, strict=True):
        module = narrow_module("mlp", rate)
        for e, c in zip(expected, trained(at, device, module, leading(start, module)), strict=True):
            e[tuple(slice(0, n) for n in c.shape)] += c / 4
    work = at.work(DEVICES, n_steps=3, ordinal=0, subnetwork=Subnetwork(), rate=RATES)
    at.aggregate(work, weights.mean(work))
    assert relative_error(at.values, expected, start) < 1e-10


@BOTH
def test_an_element_that_nobody_holds_keeps_its_value_bit_for_bit(model):
    at = bench(model)
    start = at.values
    work = at.work([1, 3], n_steps=2, ordinal=0, subnetwork=Subnetwork(), rate=[0.5, 0.25])
    at.aggregate(work, weights.mean(work), is_per_element=True)
    for value, before, part in zip(at.values, start, narrow_module(model, 0.5).parameters(), strict=True):
        held = torch.zeros_like(before, dtype=torch.bool)
        held[tuple(slice(0, n) for n in part.shape)] = True
        assert torch.equal(value[~held], before[~held])
        assert not torch.equal(value[held], before[held])


@BOTH
def test_a_scaled_part_divides_what_its_cut_layers_give_by_the_share_that_is_left(model):
    at = bench(model)
    start, module = at.values, narrow_module(model, 0.5)
    whole = [len(m.weight) for m in at.learner.at.model.chain.module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    own = [len(m.weight) for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert own[0] < whole[0]
    assert own[-1] == whole[-1]
    change = trained(at, 1, module, leading(start, module), scale_of=[w / o for w, o in zip(whole, own, strict=True)])
    work = at.work([1], n_steps=3, ordinal=0, subnetwork=Subnetwork(is_scaled=True), rate=0.5)
    at.aggregate(work, weights.mean(work), is_per_element=True)
    expected = averaged(start, [([tuple(slice(0, n) for n in c.shape) for c in change], change)], [1.0])
    assert relative_error(at.values, expected, start) < 1e-10


def test_drawn_units_are_those_of_the_documented_address():
    at = bench("mlp")
    start, luck = at.values, Luck(5, "subnetwork")
    widths, rate, parts = (8, 6), 0.5, []
    for device in (0, 2):
        kept = [
            torch.from_numpy(np.sort(np.argsort(luck.row(n, task=0, step=layer, lane=device), kind="stable")[: n // 2]))
            for layer, n in enumerate(widths)
        ]
        all_in, all_out = torch.arange(12), torch.arange(3)
        units = [all_in, *kept, all_out]
        places = []
        for layer in range(3):
            places += [(units[layer + 1][:, None], units[layer][None, :]), (units[layer + 1],)]
        values = [s[place].clone() for s, place in zip(start, places, strict=True)]
        module = narrow_module("mlp", rate, convolutions=False)
        parts.append((places, trained(at, device, module, values, scale_of=[2.0, 2.0, 1.0])))
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(*(places for places, _ in parts), strict=True)), "alike"
    work = at.work([0, 2], n_steps=3, ordinal=0, subnetwork=Subnetwork("random", is_scaled=True), rate=rate)
    at.aggregate(work, weights.mean(work), is_per_element=True)
    assert relative_error(at.values, averaged(start, parts, [0.5, 0.5]), start) < 1e-10


def test_drawn_units_leave_convolutions_whole():
    at = bench("cnn")
    work = at.work([0, 2], n_steps=1, ordinal=0, subnetwork=Subnetwork("random"), rate=0.5)
    whole = [tuple(value.shape) for value in at.values]
    at.aggregate(work, weights.mean(work), is_per_element=True)
    part = [tuple(p.shape) for p in at.learner.subnetworks.build(0.5, False, False)[0].model.parameters]
    assert part[:4] == whole[:4]
    assert part[4:] == [(4, whole[4][1]), (4,), (3, 4), (3,)], "4 of 7 hidden units"


def test_a_masked_loss_neither_sees_nor_moves_the_classes_that_a_device_lacks():
    at = bench("mlp")
    start, parts = at.values, []
    labels_of = [at.learner.at.data.labels[torch.from_numpy(at.learner.at.batches.samples[d])] for d in DEVICES]
    lacking = [d for d in DEVICES if len(labels_of[d].unique()) < 3]
    assert lacking, "some device must lack a class"
    for device in DEVICES:
        mask = torch.zeros(3, dtype=torch.bool)
        mask[labels_of[device].unique()] = True
        module = narrow_module("mlp", 0.5)
        change = trained(at, device, module, leading(start, module), mask=mask)
        places = [tuple(slice(0, n) for n in c.shape) for c in change]
        rows = torch.flatnonzero(mask) if hasattr(torch, "flatnonzero") else mask.nonzero().flatten()
        places[-2], places[-1] = (rows, places[-2][1]), (rows,)
        change[-2], change[-1] = change[-2][rows], change[-1][rows]
        parts.append((places, change))
    work = at.work(DEVICES, n_steps=3, ordinal=0, subnetwork=Subnetwork(is_masked=True), rate=0.5)
    at.aggregate(work, weights.mean(work), is_per_element=True)
    assert relative_error(at.values, averaged(start, parts, [1.0] * 4), start) < 1e-10
    only = bench("mlp")
    device = lacking[0]
    gone = sorted({0, 1, 2} - set(labels_of[device].tolist()))
    work = only.work([device], n_steps=3, ordinal=0, subnetwork=Subnetwork(is_masked=True), rate=1.0)
    only.aggregate(work, weights.mean(work), is_per_element=True)
    for i in (-2, -1):
        assert torch.equal(only.values[i][gone], start[i][gone])


def test_statistics_are_of_the_parts():
    at = bench("mlp")
    start = at.values
    changes = [trained(at, d, m := narrow_module("mlp", r), leading(start, m)) for d, r in ((0, 0.5), (2, 0.25))]
    work = at.work([0, 2], n_steps=3, ordinal=0, subnetwork=Subnetwork(), rate=[0.5, 0.25])
    wanted = frozenset({"update_norm", "update_distance"})
    report = at.aggregate(work, weights.mean(work), is_per_element=True, wanted=wanted)
    moved = [value - before for value, before in zip(at.values, start, strict=True)]
    for k, change in enumerate(changes):
        norms = [float((c**2).sum()) for c in change]
        apart = [
            float(((c - m[tuple(slice(0, n) for n in c.shape)]) ** 2).sum()) for c, m in zip(change, moved, strict=True)
        ]
        for layer in range(3):
            of_layer = slice(2 * layer, 2 * layer + 2)
            assert report.statistics.squared_norm[k, layer] == pytest.approx(sum(norms[of_layer]), rel=1e-9)
            assert report.statistics.squared_distance[k, layer] == pytest.approx(sum(apart[of_layer]), rel=1e-9)


def test_a_model_that_does_not_say_how_is_not_narrowed():
    class Fixed:
        def build(self, input_shape, n_outputs):
            return nn.Sequential(nn.Linear(*input_shape, n_outputs))

    from fedsim.training.build import narrowed

    with pytest.raises(BadInput, match="Fixed cannot be narrowed"):
        narrowed(Fixed(), 0.5, convolutions=True)


def test_a_scale_multiplies():
    assert torch.equal(Scaled(2.0)(torch.tensor([1.0, -3.0])), torch.tensor([2.0, -6.0]))
