"""What every file of the models shelf must pass; and the numbers that are known for some of them."""

import importlib
import pkgutil
from dataclasses import FrozenInstanceError, fields, is_dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fedsim.models
from fedsim.facts import BadInput
from fedsim.models.cnn import Cnn
from fedsim.models.cnn_stsyn import CnnStsyn
from fedsim.models.mlp import Mlp
from fedsim.models.quadratic import Quadratic
from fedsim.models.resnet20 import Resnet20
from fedsim.models.vgg11 import Vgg11
from fedsim.randomness import Luck
from fedsim.training.layers import Chain, build_seeded, measure
from fedsim.training.loss import loss_of

SHELF = sorted(m.name for m in pkgutil.iter_modules(fedsim.models.__path__) if not m.name.startswith("_"))
SHAPES = [(12,), (1, 16, 16), (3, 32, 32), (56,)]  # a model is examined on the first of these that it takes
N_OUTPUTS = 7


def public_classes(kind):
    module = importlib.import_module(f"fedsim.models.{kind}")
    return [
        c
        for c in vars(module).values()
        if isinstance(c, type) and c.__module__ == module.__name__ and c.__name__[0] != "_"
    ]


def examined(kind):
    """The model with its default parameters, built in float64, and the input shape it is examined on."""
    model = public_classes(kind)[0]()
    for shape in SHAPES:
        try:
            return build_seeded(lambda shape=shape: model.build(shape, N_OUTPUTS), Luck(3, "init")).double(), shape
        except BadInput:  # too small, or not an image
            continue
    raise AssertionError(f"{kind} takes none of {SHAPES}")


def suffix_gradients(chain, x, depth):
    """Gradients of the `depth` output-most blocks: the prefix without a graph, the backward pass over the suffix only."""
    first = chain.n_layers - depth
    with torch.no_grad():
        for block in chain.blocks[:first]:
            x = block(x)
    for block in chain.blocks[first:]:
        x = block(x)
    labels = torch.arange(len(x)) % N_OUTPUTS
    parameters = [p for layer in range(first, chain.n_layers) for p in chain.parameters_of(layer)]
    return torch.autograd.grad(nn.functional.cross_entropy(x, labels), parameters)


def batch(shape, n_samples=2):
    return torch.randn((n_samples, *shape), generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("kind", SHELF)
def test_a_model_file_holds_one_frozen_class_that_cites_its_source(kind):
    (model,) = public_classes(kind)
    assert is_dataclass(model)
    assert len(model.source) > 20
    assert model.__doc__
    assert importlib.import_module(model.__module__).__doc__
    with pytest.raises(FrozenInstanceError):
        model().anything = 1
    assert "source" not in {field.name for field in fields(model)}


@pytest.mark.parametrize("kind", SHELF)
def test_a_model_is_a_chain_of_named_blocks_with_the_outputs_asked_for(kind):
    module, shape = examined(kind)
    chain = Chain.of(module, shape)
    assert isinstance(module, nn.Sequential)
    assert chain.names == tuple(name for name, _ in module.named_children())
    assert module(batch(shape)).shape == (2, N_OUTPUTS)


@pytest.mark.parametrize("kind", SHELF)
def test_a_model_suits_the_loss_that_it_names(kind):
    """Cross-entropy where it names none; the gradient is that of the mean, written out."""
    module, shape = examined(kind)
    loss = loss_of(public_classes(kind)[0]())
    loss.check((N_OUTPUTS,), N_OUTPUTS)
    out = module(batch(shape, n_samples=3))
    labels = torch.arange(3)
    (expected,) = torch.autograd.grad(loss.mean(out, labels), out)
    torch.testing.assert_close(loss.gradient(out.detach(), labels, out.new_full((1, 1), 1 / 3)), expected)


@pytest.mark.parametrize("kind", SHELF)
def test_the_flops_of_every_depth_are_those_of_really_training_that_suffix(kind):
    module, shape = examined(kind)
    chain = Chain.of(module, shape)
    counted = [0.0]
    for depth in range(1, chain.n_layers + 1):
        with FlopCounterMode(display=False) as counter:  # torch's own, not ours
            suffix_gradients(chain, batch(shape), depth)
        counted.append(counter.get_total_flops() / 2)
    np.testing.assert_array_equal(measure(chain, shape).step_flops, counted)


@pytest.mark.parametrize("kind", SHELF)
def test_suffix_gradients_are_the_same_slice_of_the_full_gradient(kind):
    module, shape = examined(kind)
    chain = Chain.of(module, shape)
    full = suffix_gradients(chain, batch(shape), chain.n_layers)
    for depth in range(1, chain.n_layers):
        suffix = suffix_gradients(chain, batch(shape), depth)
        for ours, theirs in zip(suffix, full[-len(suffix) :], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", SHELF)
def test_a_model_counts_every_parameter_once_and_sends_four_bytes_for_each(kind):
    module, shape = examined(kind)
    costs = measure(Chain.of(module, shape), shape)
    assert costs.n_parameters.sum() == sum(p.numel() for p in module.parameters())
    np.testing.assert_array_equal(costs.parameter_bytes, 4 * costs.n_parameters)
    assert costs.n_activations[-1] == N_OUTPUTS


@pytest.mark.parametrize(
    ("model", "shape", "n_parameters", "n_blocks"),
    [
        (Mlp(), (64,), 3 * (64 * 64 + 64) + 650, 4),
        (Mlp(widths=()), (1, 8, 8), 650, 1),
        (Cnn(), (1, 28, 28), (25 + 1) * 16 + (25 * 16 + 1) * 32 + (32 * 16 + 1) * 128 + 1290, 4),
        (CnnStsyn(), (3, 32, 32), 76 * 64 + 1601 * 64 + 1601 * 384 + 385 * 192 + 1930, 5),
        (Vgg11(norm="none"), (3, 32, 32), 9_220_480 + 5130, 9),
        (Vgg11(), (3, 32, 32), 9_220_480 + 2 * 2752 + 5130, 9),
        (Resnet20(), (3, 32, 32), 269_722, 11),
        (Quadratic(), (56,), 7, 3),
        (Resnet20(shortcut="projection"), (3, 32, 32), 269_722 + 16 * 32 + 64 + 32 * 64 + 128, 11),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "build") else None,
)
def test_a_model_has_the_parameters_of_its_paper(model, shape, n_parameters, n_blocks):
    """0.27 million is the ResNet paper's table 6 (BatchNorm and GroupNorm have equally many); the others by hand."""
    module = model.build(shape, 10)
    assert sum(p.numel() for p in module.parameters()) == n_parameters
    assert len(module) == n_blocks


def test_the_cost_of_the_64_64_64_64_10_perceptron_is_spread_over_its_layers():
    """By hand: forwards 3 * 4096 + 640, then a weight gradient per layer and an input gradient for all but the shallowest."""
    module = Mlp(widths=(64, 64, 64)).build((64,), 10)
    forward = 3 * 4096 + 640
    by_hand = [0, forward + 640, forward + 1280 + 4096, forward + 1280 + 3 * 4096, forward + 1280 + 5 * 4096]
    np.testing.assert_array_equal(measure(Chain.of(module, (64,)), (64,)).step_flops, 2 * np.array(by_hand))


@pytest.mark.parametrize("model", [Resnet20(norm="none"), Resnet20(shortcut="projection"), Vgg11(norm="none")])
def test_the_variants_of_a_model_are_chains_too(model):
    assert Chain.of(model.build((3, 32, 32), 10), (3, 32, 32)).n_layers == len(model.build((3, 32, 32), 10))


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (Cnn(), (64,), "cnn needs images (channels, height, width); got (64,)"),
        (Cnn(), (1, 8, 8), "cnn needs images of at least 16 x 16 pixels; got 8 x 8"),
        (CnnStsyn(), (3, 15, 32), "cnn_stsyn needs images of at least 16 x 16 pixels; got 15 x 32"),
        (Vgg11(), (1, 28, 28), "vgg11 needs images of at least 32 x 32 pixels; got 28 x 28"),
        (Resnet20(), (64,), "resnet20 needs images (channels, height, width); got (64,)"),
        (Quadratic((1, 1)), (7,), "quadratic with layer_sizes that add up to 2 needs inputs of 6 numbers"),
        (Resnet20(n_groups=5), (3, 32, 32), "resnet20: 16 channels do not fall into 5 equal groups"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_words(model, shape, message):
    with pytest.raises(BadInput) as refusal:
        model.build(shape, 10)
    assert str(refusal.value).startswith(message)
    assert refusal.value.at == ("model",)
