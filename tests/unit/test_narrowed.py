"""Narrower models are the leading part of the whole one: parameter by parameter, and in what they compute."""

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from fedsim.facts import BadInput
from fedsim.models._blocks import n_kept
from fedsim.models.cnn import Cnn
from fedsim.models.cnn_stsyn import CnnStsyn
from fedsim.models.mlp import Mlp
from fedsim.models.quadratic import Quadratic
from fedsim.models.resnet20 import Resnet20
from fedsim.models.vgg11 import Vgg11
from fedsim.randomness import Luck
from fedsim.training.layers import Chain, build_seeded

SMALL_VGG = (4, 8, 12, 12, 16, 16, 16, 16)
MODELS = {
    "mlp": (Mlp(widths=(13, 9)), (7,)),
    "softmax": (Mlp(widths=()), (7,)),
    "cnn": (Cnn(channels=(5, 6), hidden=11), (2, 18, 22)),
    "cnn_stsyn": (CnnStsyn(channels=(5, 6), hidden=(11, 7)), (3, 18, 16)),
    "vgg11": (Vgg11(norm="none", channels=SMALL_VGG), (3, 32, 32)),
    "vgg11, groups": (Vgg11(n_groups=4, channels=SMALL_VGG), (3, 32, 32)),
    "vgg11, batch": (Vgg11(norm="batch", channels=SMALL_VGG), (3, 32, 32)),
    "resnet20": (Resnet20(norm="none", channels=(4, 7, 9)), (3, 8, 8)),
    "resnet20, groups": (Resnet20(n_groups=4, channels=(4, 8, 12)), (3, 8, 8)),
    "resnet20, batch": (Resnet20(norm="batch", channels=(4, 7, 9)), (3, 8, 8)),
    "resnet20, projection": (Resnet20(norm="none", shortcut="projection", channels=(4, 7, 9)), (3, 8, 8)),
    "resnet20, every stage": (Resnet20(n_groups=4, shortcut="projection_every_stage", channels=(4, 8, 12)), (3, 8, 8)),
}
RATES = [1.0, 0.75, 0.5, 0.3, 0.25, 0.1]
WHOLE_GROUPS = [1.0, 0.75, 0.5, 0.25]  # of 4 groups
N_CLASSES = 5
CASES = [
    (name, rate)
    for name, (model, _) in MODELS.items()
    for rate in (WHOLE_GROUPS if "groups" in name or "every" in name else RATES)
]


def built(name, rate, *, convolutions=True):
    model, shape = MODELS[name]
    module = build_seeded(
        lambda: model.narrowed(rate, convolutions=convolutions).build(shape, N_CLASSES), Luck(3, "init")
    )
    return module.double()


def leading(tensor, shape):
    return tensor[tuple(slice(n) for n in shape)]


# ---- how many -------------------------------------------------------------------------------------------------------


def test_a_share_of_units_is_rounded_up_as_if_without_rounding_errors():
    """0.07 * 100 is 7.000000000000001 in binary; it keeps 7."""
    assert math.ceil(0.07 * 100) == 8
    for hundredths in range(1, 101):
        for n in range(1, 600):
            assert n_kept(hundredths / 100, n) == math.ceil(Fraction(hundredths, 100) * n)
    assert n_kept(0.1 + 0.2, 10) == 3
    assert n_kept(1 / 3, 30) == 10
    assert n_kept(1e-12, 30) == 1


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_is_the_narrowed_model_of_rate_1(name):
    model, _ = MODELS[name]
    assert model.narrowed(1.0) == model
    assert model.narrowed(1) == model
    assert model.narrowed(1.0, convolutions=False) == model


def test_every_hidden_width_is_the_share_of_it_rounded_up():
    assert Mlp(widths=(30, 7, 1)).narrowed(0.1) == Mlp(widths=(3, 1, 1))
    assert Cnn(channels=(16, 33), hidden=128).narrowed(0.5) == Cnn(channels=(8, 17), hidden=64)
    assert CnnStsyn().narrowed(1 / 16) == CnnStsyn(channels=(4, 4), hidden=(24, 12))
    assert Vgg11().narrowed(1 / 8) == Vgg11(n_groups=4, channels=(8, 16, 32, 32, 64, 64, 64, 64))
    assert Vgg11(norm="none").narrowed(0.3).channels == (20, 39, 77, 77, 154, 154, 154, 154)
    assert Resnet20(norm="batch").narrowed(0.3) == Resnet20(norm="batch", channels=(5, 10, 20))


def test_fully_connected_layers_can_be_narrowed_alone():
    assert Mlp(widths=(30, 7)).narrowed(0.5, convolutions=False) == Mlp(widths=(15, 4))
    assert Cnn(hidden=128).narrowed(0.5, convolutions=False) == Cnn(hidden=64)
    assert CnnStsyn().narrowed(0.5, convolutions=False) == CnnStsyn(hidden=(192, 96))
    for model in (Vgg11(), Resnet20()):
        assert model.narrowed(0.3, convolutions=False) == model


def test_least_squares_has_no_hidden_units_to_leave_out():
    assert not hasattr(Quadratic(), "narrowed")


# ---- which ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.parametrize(("name", "rate"), CASES)
def test_the_parameters_of_a_narrower_model_are_leading_slices_of_the_whole_ones(name, rate, convolutions):
    whole, part = built(name, 1.0).state_dict(), built(name, rate, convolutions=convolutions).state_dict()
    assert list(whole) == list(part)
    for mine, theirs in zip(part.values(), whole.values(), strict=True):
        assert mine.shape == leading(theirs, mine.shape).shape
    n_parts, n_whole = (sum(t.numel() for t in tensors.values()) for tensors in (part, whole))
    has_flat_layers = name in ("mlp", "cnn", "cnn_stsyn")
    is_cut = rate < 1 and name != "softmax" and (convolutions or has_flat_layers)
    assert (n_parts < n_whole) == is_cut


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("convolutions", [True, False])
@pytest.mark.parametrize(("name", "rate"), CASES)
def test_a_narrower_model_computes_what_the_whole_one_does_with_the_other_units_silenced(
    name, rate, convolutions, mode
):
    """Outputs of all hidden units that were left out are set to zero, after their layer and after its normalisation."""
    whole, part = built(name, 1.0), built(name, rate, convolutions=convolutions)
    randomise(whole)
    with torch.no_grad():
        values = whole.state_dict()
        for key, mine in part.state_dict().items():
            mine.copy_(leading(values[key], mine.shape))
    x = torch.randn((4, *MODELS[name][1]), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    whole.train(mode == "train")
    part.train(mode == "train")
    silence_the_others(whole, part)
    expected = whole(x.clone()).detach()
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(part(x), expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))


def randomise(module):
    """Norms that do something, running statistics included."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.dim() == 1 and tensor.is_floating_point():
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))


def silence_the_others(whole, part):
    kinds = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.BatchNorm2d)
    in_part = dict(part.named_modules())
    for name, module in whole.named_modules():
        if isinstance(module, kinds):
            n = len(in_part[name].weight)

            def silence(module, inputs, output, n=n):
                mask = torch.zeros_like(output)
                mask[:, :n] = 1.0
                return output * mask

            module.register_forward_hook(silence)


@pytest.mark.parametrize(("name", "rate"), CASES)
def test_a_narrower_model_is_a_chain_of_the_same_layers(name, rate):
    shape = MODELS[name][1]
    assert Chain.of(built(name, rate), shape).names == Chain.of(built(name, 1.0), shape).names


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.01, math.nan])
@pytest.mark.parametrize("name", ["mlp", "cnn", "cnn_stsyn", "vgg11", "resnet20"])
def test_a_rate_that_is_no_share_is_refused(name, rate):
    with pytest.raises(BadInput, match=f"narrowed to {rate} of its units; choose a rate above 0 and at most 1"):
        MODELS[name][0].narrowed(rate)


@pytest.mark.parametrize("model", [Resnet20(), Vgg11()])
def test_a_rate_that_would_cut_a_group_of_channels_in_two_is_refused(model):
    kind = type(model).__name__.lower()
    with pytest.raises(BadInput, match=f"{kind}: rate 0.3 keeps .* cuts a group of . in two; choose a rate") as refusal:
        model.narrowed(0.3)
    assert refusal.value.at == ("model",)
    n, n_groups = str(refusal.value).split("such as ")[1].split(",")[0].split("/")
    model.narrowed(int(n) / int(n_groups)).build((3, 32, 32), 10)  # the rate that it names is one


def test_padded_shortcuts_cannot_lose_channels():
    with pytest.raises(BadInput, match=r"padded shortcuts add channels, but those of the stages are \(16, 8, 8\)"):
        Resnet20(channels=(16, 8, 8)).build((3, 8, 8), 10)
    Resnet20(channels=(16, 8, 8), shortcut="projection").build((3, 8, 8), 10)
