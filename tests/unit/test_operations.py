"""What is written out is what autograd finds, for the rows that train and no others, alone and in a stack."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim.models.resnet20 import Resnet20
from fedsim.training import passes
from fedsim.training.flops import FlopCount
from fedsim.training.group_norm import group_norm, group_norm_backward
from fedsim.training.layers import Chain, measure
from fedsim.training.operations import ALL, Free, Residual, Series
from fedsim.training.written_out import written_out

CHAIN = nn.Sequential


class Summed(nn.Module):
    sum_of = ("main", "shortcut")

    def __init__(self, main, shortcut):
        super().__init__()
        self.main, self.shortcut = main, shortcut

    def forward(self, x):
        return torch.relu(self.main(x) + self.shortcut(x))


class Gram(nn.Module):
    """Products of a row with itself: free of parameters, but not of FLOPs."""

    def forward(self, x):
        return x @ x.transpose(1, 2)


class Total(nn.Module):
    """The sum of a row: autograd's gradient of its input is an expanded tensor."""

    def forward(self, x):
        return x.sum((1, 2, 3))[:, None]


def main(n_in, n_out, stride=1):
    first = CHAIN(nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.GroupNorm(2, n_out))
    return CHAIN(first, nn.ReLU(), CHAIN(nn.Conv2d(n_out, n_out, 3, padding=1), nn.GroupNorm(1, n_out)))


def padded():
    """The shortcut of the shelf's ResNet: every second pixel, and zeros for further channels."""
    return Resnet20(shortcut="padded").build((3, 8, 8), 10).residual4.shortcut


IMAGES, FLAT = (4, 6, 6), (6,)
STACKABLE = {
    "linear": (nn.Linear(6, 5), FLAT),
    "linear without bias": (nn.Linear(6, 5, bias=False), FLAT),
    "convolution": (nn.Conv2d(4, 6, 3), IMAGES),
    "convolution with stride and padding": (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), IMAGES),
    "convolution in groups, dilated": (nn.Conv2d(4, 6, (3, 2), (1, 2), (2, 0), dilation=2, groups=2), IMAGES),
    "group norm": (nn.GroupNorm(2, 4), IMAGES),
    "group norm, not affine": (nn.GroupNorm(4, 4, affine=False), IMAGES),
    "group norm of flat rows": (nn.GroupNorm(3, 6), FLAT),
    "group norm, many pixels": (nn.GroupNorm(8, 8), (8, 18, 18)),
    "group norm, many pixels, not affine": (nn.GroupNorm(8, 16, affine=False), (16, 18, 18)),
    "group norm, large images": (nn.GroupNorm(8, 8), (8, 32, 32)),
    "relu": (nn.ReLU(), IMAGES),
    "max pool": (nn.MaxPool2d(2), IMAGES),
    "max pool, overlapping, padded": (nn.MaxPool2d(3, 2, 1), IMAGES),
    "max pool, ceiled": (nn.MaxPool2d((4, 2), stride=(3, 1), ceil_mode=True), IMAGES),
    "mean pool": (nn.AdaptiveAvgPool2d(1), IMAGES),
    "flatten": (nn.Flatten(), IMAGES),
    "chain": (CHAIN(nn.Flatten(), nn.Linear(144, 6), nn.ReLU(), nn.Linear(6, 4), nn.GroupNorm(2, 4)), IMAGES),
    "residual": (Summed(main(4, 4), nn.Identity()), IMAGES),
    "residual with projection": (Summed(main(4, 6, 2), CHAIN(nn.Conv2d(4, 6, 1, 2), nn.GroupNorm(2, 6))), IMAGES),
    "residual of a relu": (Summed(CHAIN(nn.Conv2d(4, 4, 1), nn.ReLU()), nn.Identity()), IMAGES),
    "residual of nothing": (Summed(nn.Identity(), nn.Identity()), IMAGES),
}
OTHERS = {
    "linear over sequences": (nn.Linear(6, 5), (3, 6)),
    "tanh": (nn.Tanh(), IMAGES),
    "mean pool of squares": (nn.AvgPool2d(2), IMAGES),
    "expanded gradient": (Total(), IMAGES),
    "free after a convolution": (CHAIN(nn.Conv2d(4, 6, 3), nn.Tanh(), nn.ReLU()), IMAGES),
    "free before a convolution": (CHAIN(nn.GELU(), nn.LeakyReLU(inplace=True), nn.Conv2d(4, 6, 3)), IMAGES),
    "residual with padding": (Summed(main(16, 32, 2), padded()), (16, 6, 6)),
    "residual inside a chain": (CHAIN(nn.Conv2d(4, 4, 3), Summed(main(4, 4), nn.Tanh()), nn.ReLU()), IMAGES),
}
N_ROWS = 20
SPLITS = [(N_ROWS, N_ROWS), (N_ROWS, 0), (18, 11)]


def randomised(module, seed):
    """A copy in float64 whose parameters are all drawn, so that no norm has weights of one."""
    module, generator = copy.deepcopy(module).double(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module


def drawn(*shape, seed=0, layout=torch.contiguous_format):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.contiguous(memory_format=layout) if len(shape) == 4 else x


def by_autograd(module, x, gradient, n, n_on):
    x = x.clone().requires_grad_()
    out = module(x.clone())
    wanted = [*module.parameters(), x]
    *own, on = torch.autograd.grad(out[:n], wanted, gradient[:n])
    return out.detach(), own, on[:n_on]


def by_hand(module, x, gradient, n, n_on, n_stacked=1, own=None):
    series = Series(written_out(module))
    own = [p.detach() for p in module.parameters()] if own is None else own
    with torch.no_grad():
        out, tape = series.forward(x, own, n, n_on, n_stacked)
        found, on = series.backward(tape, own, gradient[:n], n_on)
    assert len(found) == len(own)
    return out, found, on


def assert_close(found, expected):
    """Relative to the largest element: rounding of sums of a few thousand terms stays below 1e-12."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 1e-12 * float(expected.abs().max())


# ---- against autograd -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("case", STACKABLE | OTHERS)
def test_an_operation_finds_the_gradients_that_autograd_finds(case, layout, split):
    module, shape = (STACKABLE | OTHERS)[case]
    module, x = randomised(module, 1), drawn(N_ROWS, *shape, layout=layout)
    before = x.clone()
    gradient = drawn(*module(x.clone()).shape, seed=2)
    out, own, on = by_hand(module, x, gradient, *split)
    expected = by_autograd(module, x, gradient, *split)
    assert_close(out, expected[0])
    for a, b in zip(own, expected[1], strict=True):
        assert_close(a, b)
    if split[1]:
        assert_close(on, expected[2])
        on.mul_(2.0)  # whoever receives it may scale it in place
    else:
        assert on is None
    assert torch.equal(x, before)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    n=st.integers(1, 4),
    data=st.data(),
)
def test_any_convolution_trains_the_rows_that_train(kernel, stride, padding, groups, bias, n, data):
    n_on = data.draw(st.integers(0, n))
    module = randomised(nn.Conv2d(2, 4, kernel, stride, padding, groups=groups, bias=bias), 3)
    x = drawn(4, 2, 5, 5)
    gradient = drawn(*module(x).shape, seed=4)
    _, own, on = by_hand(module, x, gradient, n, n_on)
    _, own_expected, on_expected = by_autograd(module, x, gradient, n, n_on)
    for a, b in zip(own, own_expected, strict=True):
        assert_close(a, b)
    if n_on:
        assert_close(on, on_expected)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    size=st.integers(1, 4),
    n_groups=st.integers(1, 3),
    side=st.tuples(st.integers(1, 6), st.integers(2, 5)),
    n=st.integers(1, 4),
    affine=st.booleans(),
    data=st.data(),
)
def test_group_norm_on_lines_of_pixels_is_that_of_torch(size, n_groups, side, n, affine, data):
    n_on = data.draw(st.integers(0, n))
    module = randomised(nn.GroupNorm(n_groups, n_groups * size, affine=affine), 5)
    x = drawn(n, n_groups * size, *side, layout=torch.channels_last)
    gradient = drawn(*x.shape, seed=6, layout=torch.channels_last)
    with torch.no_grad():
        y, mean, rstd = group_norm(x, module.weight, module.bias, n_groups, module.eps)
        on, *own = group_norm_backward(gradient, x, mean, rstd, module.weight, n_on)
    expected, own_expected, on_expected = by_autograd(module, x, gradient, n, n_on)
    assert float((y - expected).abs().max()) <= 1e-12 * max(1.0, float(expected.abs().max()))
    for a, b in zip(own[: len(own_expected)], own_expected, strict=True):
        # A sum of few terms may cancel: rounding is relative to the terms, of order one.
        assert float((a - b).abs().max()) <= 1e-12 * max(1.0, float(b.abs().max()))
    assert (on is None) == (n_on == 0)
    if n_on:
        # Values that hardly differ are blown up by 1 / standard deviation, and rounding with them.
        scale = max(1.0, float(on_expected.abs().max()), float(rstd.max()))
        assert float((on - on_expected).abs().max()) <= 1e-12 * scale


def test_group_norm_loses_nothing_where_the_mean_is_large():
    """E[x^2] - mean^2 would be off by 1e8 x 1e-7 at a variance of 1; centred values by the rounding of the mean."""
    x = (drawn(4, 8, 16, 16) + 1e4).float().contiguous(memory_format=torch.channels_last)
    y, _, rstd = group_norm(x, None, None, 8, 1e-5)
    expected = nn.functional.group_norm(x.double(), 8)
    roundings = 4 * torch.finfo(torch.float32).eps * 1e4
    assert float((y - expected).abs().max()) < roundings
    assert float((rstd - 1).abs().max()) < 0.2


class Names(TorchDispatchMode):
    """The torch operations inside."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("n_rows", "shape", "n_groups", "layout", "by_torch"),
    [
        (64, (32, 16, 16), 8, torch.channels_last, set()),
        (64, (16, 32, 32), 8, torch.channels_last, {"native_group_norm"}),
        (64, (64, 8, 8), 8, torch.channels_last, {"native_group_norm", "native_group_norm_backward"}),
        (4, (32, 16, 16), 8, torch.channels_last, {"native_group_norm", "native_group_norm_backward"}),
        (64, (32, 16, 16), 8, torch.contiguous_format, {"native_group_norm", "native_group_norm_backward"}),
    ],
)
def test_torch_normalises_where_it_is_fast(n_rows, shape, n_groups, layout, by_torch):
    module, x = nn.GroupNorm(n_groups, shape[0]).double(), drawn(n_rows, *shape, layout=layout)
    with Names() as seen:
        by_hand(module, x, drawn(n_rows, *shape, layout=layout), ALL, ALL)
    assert {name for name in seen.names if "group_norm" in name} == by_torch


# ---- stacks ---------------------------------------------------------------------------------------------------------


def stacked_rows(xs):
    """`[device][row, ...]` as a stack's inputs."""
    if xs[0].dim() == 2:
        return torch.stack(xs)
    return passes.side_by_side(torch.stack(xs).permute(0, 1, 3, 4, 2))


def apart(stack, n):
    return list(stack.chunk(n, dim=1)) if stack.dim() == 4 else list(stack)


@pytest.mark.parametrize("case", STACKABLE)
def test_a_stack_of_devices_is_each_of_them_alone(case):
    module, shape = STACKABLE[case]
    modules = [randomised(module, seed) for seed in range(3)]
    xs = [drawn(N_ROWS, *shape, seed=10 + d) for d in range(3)]
    gradients = [drawn(*modules[0](xs[0]).shape, seed=20 + d) for d in range(3)]
    expected = [by_autograd(m, x, g, N_ROWS, N_ROWS) for m, x, g in zip(modules, xs, gradients, strict=True)]
    own = [torch.cat([p.detach() for p in ps]) for ps in zip(*(m.parameters() for m in modules), strict=True)]
    out, found, on = by_hand(modules[0], stacked_rows(xs), stacked_rows(gradients), ALL, ALL, 3, own)
    for d, (out_expected, own_expected, on_expected) in enumerate(expected):
        assert_close(apart(out, 3)[d], out_expected)
        assert_close(apart(on, 3)[d], on_expected)
        for stack, alone in zip(found, own_expected, strict=True):
            assert_close(stack.chunk(3)[d], alone)


def test_a_block_stacks_if_all_its_operations_do():
    def can_stack(*parts):
        return passes.can_stack(passes.blocks_of([CHAIN(*parts)])[0])

    assert can_stack(nn.Conv2d(1, 4, 3), nn.ReLU())  # one that is folded, too
    assert can_stack(nn.Conv2d(4, 4, 3), Summed(main(4, 4), nn.Identity()))
    assert not can_stack(nn.Linear(4, 4), nn.Tanh())
    assert not can_stack(Summed(main(4, 4), nn.Tanh()))
    assert not can_stack(nn.LSTMCell(4, 4))


# ---- what becomes an operation --------------------------------------------------------------------------------------


def test_a_module_without_parameters_becomes_free():
    (linear, tanh, pool) = written_out(CHAIN(nn.Linear(4, 4), nn.Tanh(), nn.AvgPool2d(2)))
    assert isinstance(tanh, Free)
    assert isinstance(pool, Free)
    assert not isinstance(linear, Free)


@pytest.mark.parametrize(
    "part",
    [
        nn.Dropout(0.5),
        nn.Sequential(nn.Tanh(), nn.Dropout2d(0.5)),
        nn.BatchNorm2d(4, affine=False, track_running_stats=False),
        nn.BatchNorm2d(4, affine=False),
        nn.Bilinear(4, 4, 4),
        nn.PReLU(),
    ],
    ids=lambda part: type(part).__name__,
)
def test_luck_state_parameters_and_ties_between_rows_are_not_free(part):
    assert written_out(CHAIN(nn.Linear(4, 4), part)) is None


def test_a_module_that_stands_twice_in_a_block_is_left_to_autograd():
    twice = nn.Linear(4, 4)
    assert written_out(CHAIN(twice, nn.ReLU(), twice)) is None


def test_a_sum_is_believed_only_of_the_class_that_declares_it_and_in_the_order_of_its_parameters():
    class Heir(Summed):
        def forward(self, x):
            return self.main(x)

    class Reversed(Summed):
        sum_of = ("shortcut", "main")

    class More(Summed):
        sum_of = ("main", "shortcut")

        def __init__(self, *parts):
            super().__init__(*parts)
            self.scale = nn.Parameter(torch.ones(()))

    (operation,) = written_out(Summed(main(4, 4), nn.Conv2d(4, 4, 1)))
    assert isinstance(operation, Residual)
    for other in (Heir, Reversed, More):
        assert written_out(other(main(4, 4), nn.Conv2d(4, 4, 1))) is None


def test_a_sum_of_unequal_shapes_says_so():
    module = randomised(Summed(main(4, 4), nn.AdaptiveAvgPool2d(1)), 1)
    with pytest.raises(ValueError, match=r"main gives \(2, 4, 6, 6\) but shortcut \(2, 4, 1, 1\)"):
        by_hand(module, drawn(2, *IMAGES), drawn(2, *IMAGES), 2, 2)


# ---- rows, in place work, ties --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_on", [0, 3, 5])
@pytest.mark.parametrize(
    "head",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.LeakyReLU(inplace=True),
        CHAIN(nn.Flatten(), nn.Unflatten(1, IMAGES), nn.ReLU(inplace=True)),
        CHAIN(nn.Tanh(), nn.ReLU(), nn.ReLU()),
        Summed(nn.Identity(), nn.Identity()),
        Summed(CHAIN(nn.ReLU(), nn.Conv2d(4, 4, 1)), nn.ReLU()),
        Summed(nn.Flatten(2), nn.Flatten(2)),
    ],
    ids=lambda head: str(head).replace("\n", ""),
)
def test_a_block_never_changes_its_own_input(head, n_on):
    module = randomised(CHAIN(head, nn.Flatten(), nn.Linear(144, 3)), 1)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = drawn(5, *IMAGES, layout=layout)
        before, gradient = x.clone(), drawn(5, 3, seed=1)
        _, own, on = by_hand(module, x, gradient, 5, n_on)
        assert torch.equal(x, before)
        _, own_expected, on_expected = by_autograd(module, x, gradient, 5, n_on)
        for a, b in zip(own, own_expected, strict=True):
            assert_close(a, b)
        if n_on:
            assert_close(on, on_expected)
        with torch.no_grad():
            passes.outputs(passes.blocks_of([module]), [list(module.parameters())], x)
        assert torch.equal(x, before)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1)], ids=str)
def test_pooling_before_a_relu_changes_no_bit_even_where_values_tie(pool):
    """Small whole numbers: windows are full of ties, at zero and above it."""
    module = randomised(CHAIN(nn.Conv2d(2, 3, 3), nn.ReLU(), pool), 1)
    rng = np.random.default_rng(7)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.from_numpy(rng.integers(-1, 2, p.shape)))
    x = torch.from_numpy(rng.integers(-1, 2, (6, 2, 8, 8))).double()
    own = [p.detach() for p in module.parameters()]
    gradient = drawn(*module(x).shape, seed=2)
    found = []
    for swap in (True, False):
        operations = written_out(module, pool_before_relu=swap)
        series = Series(operations)
        with torch.no_grad():
            out, tape = series.forward(x, own, 6, 6, 1)
            parts, on = series.backward(tape, own, gradient, 6)
        found.append([out, *parts, on])
    assert len(found[0]) == 4
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    _, ties = nn.functional.max_pool2d(module[0](x), 2, return_indices=True)
    assert len(ties.unique()) > 1


# ---- FLOPs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shortcut", ["padded", "projection"])
def test_a_residual_block_costs_its_rows_and_those_that_go_on_their_input_gradients(shortcut):
    shape = (3, 8, 8)
    module = Resnet20(shortcut=shortcut).build(shape, 10)
    costs = measure(Chain.of(module, shape), shape)
    blocks, x = passes.blocks_of(list(module)), torch.randn(7, *shape).contiguous(memory_format=torch.channels_last)
    assert not any(isinstance(block, passes.ThroughAutograd) for block in blocks)
    for layer, (block, part) in enumerate(zip(blocks, module, strict=True)):
        own = [p.detach() for p in part.parameters()]
        for n, n_on in ((7, 7), (7, 0), (5, 3)):
            with torch.no_grad(), FlopCount() as count:
                out, tape = block.forward(x, own, n, n_on, 1)
                forward = count.flops
                block.backward(tape, own, torch.ones_like(out[:n]), n_on)
            assert forward == 7 * costs.forward_flops[layer]
            backward = n * costs.weight_gradient_flops[layer] + n_on * costs.input_gradient_flops[layer]
            assert count.flops - forward == backward
        x = out


def test_products_without_parameters_are_differentiated_for_the_rows_that_need_it():
    """3 x 3 products of a 4-vector with itself: 72 FLOPs a row, and twice that backward."""
    x = drawn(6, 3, 4)
    for parts, n_differentiated in (((Gram(), nn.Linear(3, 2)), 2), ((nn.Linear(4, 4), Gram()), 5)):
        module = randomised(CHAIN(*parts), 1)
        gradient = drawn(*module(x).shape, seed=1)
        linear_alone = 2 * module[0 if parts[1].__class__ is Gram else 1].weight.numel() * 3
        with FlopCount() as count:
            by_hand(module, x, gradient, 5, 2)
        of_linear = (6 + 5 + 2) * linear_alone
        assert count.flops == 6 * 72 + n_differentiated * 144 + of_linear


def test_a_summand_differentiates_only_the_rows_that_go_on():
    module = randomised(Summed(nn.Linear(3, 3), Gram()), 1)
    x, gradient = drawn(6, 3, 3), drawn(6, 3, 3, seed=1)
    with FlopCount() as count:
        by_hand(module, x, gradient, 5, 2)
    each = 2 * 3 * 3 * 3
    assert count.flops == 6 * 2 * each + 5 * each + 2 * each + 2 * 2 * each
