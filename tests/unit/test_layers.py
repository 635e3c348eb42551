"""Chains of blocks: what is one, what it costs, how it is initialised and loaded."""

import json
from collections import OrderedDict
from dataclasses import fields

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fedsim.facts import BadInput, LabelledData
from fedsim.models.resnet20 import Resnet20
from fedsim.randomness import Luck
from fedsim.training import shape_cache
from fedsim.training.flops import FlopCount
from fedsim.training.layers import (
    Chain,
    build_seeded,
    input_dims,
    load_initial_weights,
    measure,
    mixes_rows,
    needs_two_rows,
)


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
            nn.Sequential(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, momentum=None))),
            "0.1 (BatchNorm1d) without a momentum averages over all batches that it has ever seen",
        ),
        (
            nn.Sequential(nn.Sequential(nn.InstanceNorm1d(6, track_running_stats=True), nn.Linear(6, 4))),
            "0.0 (InstanceNorm1d) keeps running statistics, which devices can only share of BatchNorm1d",
        ),
        (
            nn.Sequential(nn.Sequential(nn.Linear(6, 4), nn.SyncBatchNorm(4))),
            "0.1 (SyncBatchNorm) keeps running statistics",
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
    np.testing.assert_array_equal(shape.n_kept_activations, [5, 4])


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


def branching():
    """A block of two convolutions beside each other, pooled and added; and two linear layers in one block."""

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.main = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.ReLU(), nn.MaxPool2d(2))
            self.shortcut = nn.Conv2d(2, 3, 1, stride=2)

        def forward(self, x):
            return self.main(x) + self.shortcut(x)

    tail = nn.Sequential(nn.Flatten(), nn.Linear(3 * 3 * 2, 5), nn.ReLU(), nn.Linear(5, 4))
    return Chain.of(nn.Sequential(Branches(), tail), (2, 6, 4))


def test_kept_are_the_outputs_of_all_convolutions_and_products_and_nothing_else():
    """Of 6 x 4 pixels, 3 channels at full and at half size; not what pooling, norms, ReLU and the sum put out."""
    shape = measure(branching(), (2, 6, 4))
    np.testing.assert_array_equal(shape.n_kept_activations, [3 * 24 + 3 * 6, 5 + 4])
    np.testing.assert_array_equal(shape.n_activations, [3 * 6, 4])


class Attends(nn.Module):
    """One head over rows of four numbers; fused by torch into one operation, which knows no matrix products."""

    def __init__(self):
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        heads = [part(x)[:, None] for part in (self.queries, self.keys, self.values)]
        return nn.functional.scaled_dot_product_attention(*heads)[:, 0]


def test_attention_costs_its_two_products_forward_and_five_backward():
    """Backward: the scores once more, and the gradients of scores, queries, keys and values."""
    shape = measure(Chain.of(nn.Sequential(Attends()), (7, 4)), (7, 4))
    projection, product = 2 * 7 * 4 * 4, 2 * 7 * 7 * 4
    assert shape.forward_flops[0] == 3 * projection + 2 * product
    assert shape.weight_gradient_flops[0] == 3 * projection + 5 * product
    assert shape.input_gradient_flops[0] == 3 * projection


def test_attention_keeps_its_projections_and_its_output():
    shape = measure(Chain.of(nn.Sequential(Attends()), (7, 4)), (7, 4))
    assert shape.n_kept_activations[0] == 3 * 7 * 4 + 7 * 4


def test_memory_is_that_of_the_parameters_once_and_of_the_kept_activations_of_every_sample():
    shape = measure(branching(), (2, 6, 4))
    n_parameters = [2 * 3 * 9 + 3 + 6 + 2 * 3 + 3, 18 * 5 + 5 + 5 * 4 + 4]
    tail = 4 * (n_parameters[1] + 32 * 9)
    np.testing.assert_array_equal(shape.memory_bytes(32), [0, tail, tail + 4 * (n_parameters[0] + 32 * 90)])
    np.testing.assert_array_equal(shape.memory_bytes(0), 4 * np.array([0, n_parameters[1], sum(n_parameters)]))


# ---- running statistics ---------------------------------------------------------------------------------------------


def normed_chain():
    first = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU())
    return nn.Sequential(OrderedDict(a=first, b=nn.Sequential(nn.BatchNorm1d(5, affine=False), nn.Linear(5, 4))))


def test_running_statistics_travel_but_are_no_parameters():
    chain = Chain.of(normed_chain(), (6,))
    shape = measure(chain, (6,))
    np.testing.assert_array_equal(shape.n_parameters, [35 + 10, 24])
    np.testing.assert_array_equal(shape.parameter_bytes, [4 * (45 + 10), 4 * (24 + 10)])
    assert [len(chain.statistics_of(layer)) for layer in range(2)] == [2, 2]
    assert chain.statistics_of(0)[1] is chain.module.a[1].running_var


def test_batch_normalisation_costs_no_flops_and_keeps_no_activations_of_its_own():
    plain = measure(Chain.of(linear_chain(), (6,)), (6,))
    normed = measure(Chain.of(normed_chain(), (6,)), (6,))
    np.testing.assert_array_equal(normed.step_flops, plain.step_flops)
    np.testing.assert_array_equal(normed.n_kept_activations, plain.n_kept_activations)


def test_looking_at_a_model_leaves_its_running_statistics_alone():
    model = normed_chain()
    chain = Chain.of(model, (6,))
    measure(chain, (6,))
    input_dims(chain, (6,))
    assert mixes_rows(chain, (6,))
    assert needs_two_rows(chain, (6,))
    for norm in (model.a[1], model.b[0]):
        assert torch.equal(norm.running_mean, torch.zeros(5))
        assert torch.equal(norm.running_var, torch.ones(5))
        assert int(norm.num_batches_tracked) == 0
        assert norm.training


def test_a_model_that_its_author_put_into_evaluation_mixes_rows_in_training_all_the_same():
    chain = Chain.of(normed_chain().eval(), (6,))
    assert mixes_rows(chain, (6,))
    assert needs_two_rows(chain, (6,))
    assert not chain.module.training


def test_images_can_be_normalised_over_their_pixels_one_image_at_a_time():
    images = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 4, 3)))
    assert not needs_two_rows(Chain.of(images, (1, 4, 4)), (1, 4, 4))


def test_two_blocks_cannot_share_running_statistics():
    norm = nn.BatchNorm1d(6, affine=False)
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 6), norm), nn.Sequential(nn.Linear(6, 6), norm))
    with pytest.raises(BadInput, match="blocks 0 and 1 share a parameter"):
        Chain.of(model, (6,))


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


# ---- remembered -----------------------------------------------------------------------------------------------------


def columns(shape):
    return {f.name: np.asarray(getattr(shape, f.name)).tolist() for f in fields(shape) if f.name != "narrower"}


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fedsim" / "shapes"


IMAGES = LabelledData(*[np.zeros((1, 3, 32, 32), np.float32), np.zeros(1, np.int64)] * 2, n_classes=10)
NORMED = Resnet20(norm="batch", channels=(2, 4, 6))
PARAMETERS = {"norm": "batch", "channels": [2, 4, 6]}


def test_a_remembered_shape_is_the_measured_one_to_the_last_number(empty_cache):
    measured = shape_cache.shape_of("resnet20", PARAMETERS, lambda: NORMED, IMAGES)
    assert len(list(empty_cache.iterdir())) == 1
    remembered = shape_cache.shape_of("resnet20", PARAMETERS, lambda: pytest.fail("was measured again"), IMAGES)
    assert columns(remembered) == columns(measured)
    assert remembered.n_kept_activations.dtype == np.int64
    np.testing.assert_array_equal(remembered.memory_bytes(32), measured.memory_bytes(32))


def test_a_shape_remembered_without_a_column_of_today_is_measured_again(empty_cache):
    shape = shape_cache.shape_of("resnet20", PARAMETERS, lambda: NORMED, IMAGES)
    (file,) = empty_cache.iterdir()
    values = json.loads(file.read_text())
    del values["n_kept_activations"]
    file.write_text(json.dumps(values))
    assert columns(shape_cache.shape_of("resnet20", PARAMETERS, lambda: NORMED, IMAGES)) == columns(shape)


def test_a_sliced_shape_is_that_of_the_narrowed_model(empty_cache):
    shape = shape_cache.shape_of("resnet20", PARAMETERS, lambda: NORMED, IMAGES)
    module = NORMED.narrowed(0.5).build((3, 32, 32), 10)
    assert columns(shape.sliced(0.5)) == columns(measure(Chain.of(module, (3, 32, 32)), (3, 32, 32)))
    assert columns(shape.sliced(0.5, convolutions=False)) == columns(shape)


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
