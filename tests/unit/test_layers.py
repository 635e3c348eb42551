"""Chains of blocks: what is one, what it costs, how it is initialised and loaded."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedsim.facts import BadInput
from fedsim.randomness import Luck
from fedsim.training.flops import FlopCount
from fedsim.training.layers import Chain, build_seeded, load_initial_weights, measure


def linear_chain():
    return nn.Sequential(OrderedDict(a=nn.Linear(6, 5), b=nn.Sequential(nn.ReLU(), nn.Linear(5, 4))))


class OwnModel(nn.Module):
    """A user's model that names its blocks."""

    block_names = ("body", "parts.head")

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)
        self.parts = nn.ModuleDict({"head": nn.Linear(5, 4)})

    def forward(self, x):
        return self.parts["head"](self.body(x))


# ---- what is a chain ------------------------------------------------------------------------------------------------


def test_a_module_of_ones_own_is_a_chain_if_it_names_its_blocks():
    model = OwnModel()
    chain = Chain.of(model, (6,))
    assert chain.names == ("body", "parts.head")
    assert chain.blocks == (model.body, model.parts["head"])
    assert chain.parameters_of(1)[0] is model.parts["head"].weight


class Skips(OwnModel):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.parts["head"] = nn.Linear(6, 6)

    def forward(self, x):
        hidden = self.body(x)
        return self.parts["head"](hidden) + hidden


class SkipsFromZero(Skips):
    """Looks like a chain until its weights move."""

    def __init__(self):
        super().__init__()
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class Homeless(OwnModel):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


class Idle(nn.Linear):
    def __init__(self):
        super().__init__(6, 4)
        self.idle = nn.Parameter(torch.ones(3))


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.rand(())


class NamesNobody(OwnModel):
    block_names = ("body", "tail")


class Unnamed(OwnModel):
    block_names = None


class Frozen(OwnModel):
    def __init__(self):
        super().__init__()
        self.body.bias.requires_grad_(False)


class Tuples(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


def tied():
    first, second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
    second.weight = first.weight
    return nn.Sequential(first, second)


def twice():
    block = nn.Linear(6, 6)
    return nn.Sequential(block, block)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Skips(), "its output is not that of its blocks applied one after another"),
        (SkipsFromZero(), "its output is not that of its blocks applied one after another"),
        (Homeless(), "parameter scale belongs to no block"),
        (nn.Sequential(Idle()), "parameter 0.idle takes no part in the output"),
        (nn.Sequential(nn.Linear(6, 4), nn.ReLU()), "block 1 (ReLU) has no parameters"),
        (tied(), "blocks 0 and 1 share a parameter"),
        (twice(), "blocks 0 and 1 share a parameter"),
        (NamesNobody(), "block_names lists what is not there"),
        (Unnamed(), "Unnamed names no blocks"),
        (nn.Sequential(), "Sequential names no blocks"),
        (nn.Sequential(Tuples(6, 4)), "the model does not give one tensor"),
    ],
)
def test_a_model_that_is_no_chain_is_refused_with_the_reason(model, message):
    with pytest.raises(BadInput) as refusal:
        Chain.of(model, (6,))
    assert str(refusal.value).startswith("the model is not a chain of blocks: " + message)
    assert refusal.value.at == ("model",)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            nn.Sequential(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))),
            "0.1 (BatchNorm1d) keeps running statistics",
        ),
        (nn.Sequential(nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 4))), "0.0 (Dropout) would need luck of its own"),
        (nn.Sequential(Noisy(6, 4)), "the model draws at random"),
        (nn.Sequential(nn.Linear(7, 4)), "the model does not take inputs of shape (6,): mat1 and mat2"),
        (Frozen(), "parameter body.bias cannot be trained"),
        (nn.Sequential(nn.LazyLinear(4)), "parameter 0.weight cannot be trained"),
    ],
)
def test_what_would_tie_devices_together_or_cannot_be_trained_is_refused_by_name(model, message):
    with pytest.raises(BadInput) as refusal:
        Chain.of(model, (6,))
    assert str(refusal.value).startswith(message)


def test_dropout_that_drops_nothing_and_activations_in_place_are_fine():
    first = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.0), nn.Linear(6, 5))
    chain = Chain.of(nn.Sequential(first, nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 4))), (6,))
    np.testing.assert_array_equal(
        measure(chain, (6,)).step_flops, [0, 2 * (30 + 20 + 20), 2 * (30 + 20 + 20 + 20 + 30)]
    )


def test_checking_and_measuring_leave_the_model_and_the_global_generator_alone():
    model = linear_chain()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    measure(Chain.of(model, (6,)), (6,))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# ---- what it costs --------------------------------------------------------------------------------------------------


def test_a_linear_layer_costs_its_multiply_adds_once_forward_and_once_for_each_gradient():
    shape = measure(Chain.of(linear_chain(), (6,)), (6,))
    assert shape.layer_names == ("a", "b")
    for flops in (shape.forward_flops, shape.weight_gradient_flops, shape.input_gradient_flops):
        np.testing.assert_array_equal(flops, [2 * 30, 2 * 20])
    np.testing.assert_array_equal(shape.n_parameters, [35, 24])
    np.testing.assert_array_equal(shape.parameter_bytes, [140, 96])
    np.testing.assert_array_equal(shape.n_activations, [5, 4])


def test_a_convolution_costs_kernel_times_outputs():
    shape = measure(Chain.of(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1)), (2, 5, 4)), (2, 5, 4))
    for flops in (shape.forward_flops, shape.weight_gradient_flops, shape.input_gradient_flops):
        np.testing.assert_array_equal(flops, [2 * (2 * 9) * (3 * 5 * 4)])


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_flops_are_counted_alike_with_and_without_a_graph(mode):
    """Without autograd, torch may hand a composite operation to the counter in one piece."""
    x = torch.ones((2, 7, 6))
    with mode(), FlopCount() as count:
        nn.functional.linear(x, torch.ones((5, 6)))
        torch.matmul(x, torch.ones((6, 5)))
    assert count.flops == 2 * (2 * 14 * 30)


def test_inside_a_block_the_weight_gradient_includes_the_way_through_its_own_layers():
    block = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    shape = measure(Chain.of(nn.Sequential(block), (6,)), (6,))
    assert shape.weight_gradient_flops[0] == 2 * (30 + 20 + 20)
    assert shape.input_gradient_flops[0] == 2 * 30


def test_bytes_are_those_of_float32_and_flops_the_same_when_training_is_in_float64():
    single, double = (
        measure(Chain.of(linear_chain().to(dtype), (6,)), (6,)) for dtype in (torch.float32, torch.float64)
    )
    np.testing.assert_array_equal(single.parameter_bytes, double.parameter_bytes)
    np.testing.assert_array_equal(single.step_flops, double.step_flops)


class ComparesSamples(nn.Linear):
    def forward(self, x):
        out = super().forward(x)
        return (out @ out.T) @ out


def test_a_block_that_compares_samples_with_each_other_has_no_cost_per_sample():
    chain = Chain.of(nn.Sequential(ComparesSamples(6, 4)), (6,))
    with pytest.raises(BadInput, match=r"block 0 costs .* for 2 samples but .* for 3"):
        measure(chain, (6,))


# ---- initial weights ------------------------------------------------------------------------------------------------


def test_built_weights_depend_on_their_luck_and_on_nothing_else():
    torch.manual_seed(1)
    one = build_seeded(linear_chain, Luck(7, "init")).state_dict()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, other = (build_seeded(linear_chain, Luck(seed, "init")).state_dict() for seed in (7, 8))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["a.weight"], other["a.weight"])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_weights_from_a_file_arrive_bit_for_bit(tmp_path, ending):
    weights = build_seeded(linear_chain, Luck(7, "init")).state_dict()
    if ending == "npz":
        np.savez(tmp_path / "w.npz", **{name: tensor.numpy() for name, tensor in weights.items()})
    else:
        save_file(weights, tmp_path / "w.safetensors")
    model = linear_chain()
    load_initial_weights(Chain.of(model, (6,)), tmp_path / f"w.{ending}")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_float64_weights_are_not_rounded_on_the_way_into_a_float64_model(tmp_path):
    model = linear_chain().double()
    exact = {name: np.full(tensor.shape, 1 / 3).astype(">f8") for name, tensor in model.state_dict().items()}
    np.savez(tmp_path / "w.npz", **exact)
    load_initial_weights(Chain.of(model, (6,)), tmp_path / "w.npz")
    assert model[0].weight[0, 0].item() == 1 / 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.bias": None}, "a.bias is missing; give an array of shape (5,)"),
        ({"a.weight": np.zeros((6, 5))}, "a.weight has shape (6, 5) but the model's has (5, 6)"),
        ({"b.1.bias": np.full(4, np.nan)}, "b.1.bias holds a number that is not finite"),
        ({"c.bias": np.zeros(3)}, "the model has no parameter c.bias; it has a.weight, a.bias, b.1.weight, b.1.bias"),
        ({"a.bias": np.array([{}] * 5)}, "cannot be read"),
        ({"a.bias": np.array(list("12345"))}, "a.bias holds str"),
        ({"a.bias": np.full(5, 1j)}, "a.bias holds complex128 values, not real numbers"),
        ({"b.1.bias": np.full(4, 1e300)}, "b.1.bias holds a number that is not finite in torch.float32"),
    ],
)
def test_wrong_weights_are_refused_by_name_and_change_nothing(tmp_path, change, message):
    model = linear_chain()
    arrays = {name: np.zeros(tensor.shape) for name, tensor in model.state_dict().items()} | change
    np.savez(tmp_path / "w.npz", **{name: array for name, array in arrays.items() if array is not None})
    before = model[0].weight.clone()
    with pytest.raises(BadInput) as refusal:
        load_initial_weights(Chain.of(model, (6,)), tmp_path / "w.npz")
    assert message in str(refusal.value)
    assert refusal.value.at == ("model", "initial_weights")
    assert torch.equal(model[0].weight, before)


def test_weights_files_that_are_absent_or_damaged_are_refused_by_name(tmp_path):
    chain = Chain.of(linear_chain(), (6,))
    np.savez(tmp_path / "whole.npz", **{name: tensor.numpy() for name, tensor in chain.module.state_dict().items()})
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-40])
    (tmp_path / "half.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    (tmp_path / "empty.npz").write_bytes(b"")
    with (tmp_path / "single.npz").open("wb") as single:
        np.save(single, np.arange(3))
    for name in ("half.npz", "half.safetensors", "empty.npz", "single.npz", "absent.npz", "absent.safetensors", "w.pt"):
        with pytest.raises(BadInput, match=name):
            load_initial_weights(chain, tmp_path / name)
