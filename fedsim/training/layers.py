"""A model as a chain of named blocks, and what each block costs.

A *layer* of fedsim is a block: any nn.Module with parameters of its own that maps one tensor to one tensor (residual
connections or attention may hide inside). A model is an `nn.Sequential` of blocks, or any nn.Module whose attribute
`block_names: tuple[str, ...]` names its submodules in the order in which the input passes through them.

FLOPs are what `flops.py` counts: matrix products, convolutions and attention, a multiply-add being two.
Nothing here draws from torch's global generator or touches a parameter's `.grad`; no device, no time, no data set.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from fedsim.facts import BadInput, IntArray, ModelShape
from fedsim.randomness import Luck
from fedsim.training.flops import FlopCount
from fedsim.training.loss import CROSS_ENTROPY, Loss
from fedsim.training.weights_file import read_weights

_AT = ("model",)
_WIRE_BYTES = 4  # a parameter travels as float32, whatever the precision of training
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # exact types: a subclass may keep something else
_FORWARD_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)


@dataclass(frozen=True, eq=False)
class Chain:
    """A module and its blocks in the order of the forward pass, `[layer]`; build it with `Chain.of`."""

    module: nn.Module
    names: tuple[str, ...]
    blocks: tuple[nn.Module, ...]
    loss: Loss = CROSS_ENTROPY

    @classmethod
    def of(cls, module: nn.Module, input_shape: Sequence[int], loss: Loss = CROSS_ENTROPY) -> Chain:
        """The chain of a module whose inputs are `[sample, *input_shape]`.

        Raises BadInput if the model is not a chain of blocks, if a parameter belongs to no block or to two, if a block
        has none, for active Dropout, and for running statistics of anything but ordinary BatchNorm. Checked on a copy with random parameters: the module, its
        gradients and torch's generator stay as they were.
        """
        names, blocks = _named_blocks(module)
        chain = cls(module, names, blocks, loss)
        _refuse_coupling(module)
        _refuse_homeless_parameters(chain)
        _refuse_other_paths(chain, tuple(input_shape))
        return chain

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    def parameters_of(self, layer: int) -> list[nn.Parameter]:
        """The parameters of one block, in the module's own order."""
        return list(self.blocks[layer].parameters())

    def norms_of(self, layer: int) -> list[_BatchNorm]:
        """The modules of one block that keep running statistics."""
        return [
            part for part in self.blocks[layer].modules() if isinstance(part, _BatchNorm) and _keeps_statistics(part)
        ]

    def statistics_of(self, layer: int) -> list[Tensor]:
        """Running means and variances of one block: what it has learned without a gradient."""
        # The third, a count of batches, is only needed by averages over all batches ever seen, which are refused.
        found = [statistic for norm in self.norms_of(layer) for statistic in (norm.running_mean, norm.running_var)]
        return [statistic for statistic in found if statistic is not None]


def measure(chain: Chain, input_shape: Sequence[int]) -> ModelShape:
    """Exact costs of each block for one sample of `[*input_shape]`; bytes are those of float32, running statistics included.

    Weight-gradient FLOPs are counted on a backward pass through the block whose input needs no gradient, input-gradient
    FLOPs are what it costs more when the input needs one. Raises BadInput if a block's FLOPs are not proportional to
    the number of samples.
    """
    with statistics_kept(chain.module):
        costs_of_2, costs_of_3 = _block_costs(chain, input_shape, 2), _block_costs(chain, input_shape, 3)
    for name, two, three in zip(chain.names, costs_of_2, costs_of_3, strict=True):
        if (3 * two != 2 * three).any():
            raise BadInput(
                f"block {name} costs {two[0]} FLOPs for 2 samples but {three[0]} for 3; make it proportional", _AT
            )
    forward, weight_gradient, input_gradient, n_activations, n_kept_activations = np.stack(costs_of_2, axis=1) // 2
    n_parameters = _n_numbers(chain.parameters_of(layer) for layer in range(chain.n_layers))
    n_statistics = _n_numbers(chain.statistics_of(layer) for layer in range(chain.n_layers))
    return ModelShape(
        layer_names=chain.names,
        n_parameters=n_parameters,
        parameter_bytes=_WIRE_BYTES * (n_parameters + n_statistics),
        forward_flops=forward.astype(np.float64),
        weight_gradient_flops=weight_gradient.astype(np.float64),
        input_gradient_flops=input_gradient.astype(np.float64),
        n_activations=n_activations,
        n_kept_activations=n_kept_activations,
    )


def build_seeded(builder: Callable[[], nn.Module], luck: Luck) -> nn.Module:
    """What `builder` builds, its parameters drawn from `luck` and not from torch's global generator.

    Whatever the builder draws through torch on the CPU is the same in every process; the generator is put back after.
    """
    with _own_generator(int(luck.generator().integers(2**63))):
        return builder()


def load_initial_weights(chain: Chain, path: str | Path) -> None:
    """Overwrite the parameters by those of a .npz or .safetensors file, one array per name of `module.state_dict()`.

    Raises BadInput naming the first array that is missing, left over, misshapen or not finite; then nothing is changed.
    """
    wanted = chain.module.state_dict()
    arrays = read_weights(Path(path), wanted)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(arrays[name])


def input_dims(chain: Chain, input_shape: Sequence[int]) -> list[int]:
    """Dimensions of what each block takes in, the sample's among them, `[layer]`."""
    x, found = _example(chain, input_shape, n_samples=2), []
    with torch.no_grad(), statistics_kept(chain.module):
        for block in chain.blocks:
            found.append(x.dim())
            x = block(x.clone())
    return found


def mixes_rows(chain: Chain, input_shape: Sequence[int]) -> bool:
    """Whether a sample's output depends on the other samples of its batch, as batch normalisation makes it.

    Then a batch of many devices is not many batches, and only a loop over devices trains such a model.
    """
    if any(chain.norms_of(layer) for layer in range(chain.n_layers)):
        return True
    x = _example(chain, input_shape, n_samples=3)
    with torch.no_grad():
        together = chain.module(x.clone())
        try:
            apart = torch.cat([chain.module(row.clone()) for row in x.split(1)])  # type: ignore[no-untyped-call]
        except _FORWARD_ERRORS:  # statistics over one sample can be impossible, which says it as well
            return True
    return not torch.allclose(together, apart, rtol=1e-3, atol=1e-5, equal_nan=True)


def needs_two_rows(chain: Chain, input_shape: Sequence[int]) -> bool:
    """Whether a batch of one row cannot be trained on, as where a channel has one number for each row to be normalised."""
    try:
        with torch.no_grad(), statistics_kept(chain.module), in_training(chain.module):
            chain.module(_example(chain, input_shape, n_samples=1))
    except _FORWARD_ERRORS:
        return True
    return False


@contextmanager
def in_training(module: nn.Module) -> Iterator[None]:
    """Inside, the module is in training mode; afterwards each part is in the mode that it was in."""
    before = [(part, part.training) for part in module.modules()]
    module.train()
    try:
        yield
    finally:
        for part, mode in before:
            part.training = mode


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Whatever passes through inside, running statistics are afterwards what they were."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, values in before:
                buffer.copy_(values)


# ---- what a chain is ------------------------------------------------------------------------------------------------


def _named_blocks(module: nn.Module) -> tuple[tuple[str, ...], tuple[nn.Module, ...]]:
    names = getattr(module, "block_names", None)
    if names is None and isinstance(module, nn.Sequential):
        names = tuple(module._modules)  # named_children() would leave out a module that stands there twice
    if not isinstance(names, tuple | list) or not names or not all(isinstance(name, str) for name in names):
        raise _not_a_chain(
            f"{type(module).__name__} names no blocks; make it an nn.Sequential, or list them in block_names"
        )
    try:
        return tuple(names), tuple(module.get_submodule(name) for name in names)
    except AttributeError as missing:
        raise _not_a_chain(f"block_names lists what is not there ({missing})") from None


def _refuse_coupling(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, _NormBase) and _keeps_statistics(part):
            _check_statistics(name, part)
        if isinstance(part, _DropoutNd) and part.p > 0:
            raise BadInput(
                f"{name} ({type(part).__name__}) would need luck of its own on every device; leave it out", _AT
            )


def _keeps_statistics(part: _NormBase) -> bool:
    return part.track_running_stats and part.running_mean is not None


def _check_statistics(name: str, part: _NormBase) -> None:
    if type(part) not in _BATCH_NORMS:
        raise BadInput(
            f"{name} ({type(part).__name__}) keeps running statistics, which devices can only share of BatchNorm1d, "
            f"BatchNorm2d and BatchNorm3d; use one of these, or GroupNorm",
            _AT,
        )
    if part.momentum is None:
        raise BadInput(
            f"{name} ({type(part).__name__}) without a momentum averages over all batches that it has ever seen, which "
            f"devices cannot share; give it a momentum, such as 0.1",
            _AT,
        )


def _refuse_homeless_parameters(chain: Chain) -> None:
    home: dict[Tensor, str] = {}
    for layer, (name, block) in enumerate(zip(chain.names, chain.blocks, strict=True)):
        mine = list(block.parameters())
        if not mine:
            raise _not_a_chain(
                f"block {name} ({type(block).__name__}) has no parameters; put it inside the next or the previous block"
            )
        for tensor in [*mine, *chain.statistics_of(layer)]:
            if tensor in home:
                raise _not_a_chain(f"blocks {home[tensor]} and {name} share a parameter; give each its own")
            home[tensor] = name
    for name, parameter in chain.module.named_parameters():
        if parameter not in home:
            raise _not_a_chain(f"parameter {name} belongs to no block; put it inside one")
        if nn.parameter.is_lazy(parameter) or not parameter.requires_grad:
            raise BadInput(
                f"parameter {name} cannot be trained (frozen or without a size); make it an ordinary parameter", _AT
            )


def _refuse_other_paths(chain: Chain, input_shape: tuple[int, ...]) -> None:
    """Refuse a model that is not `blocks[-1](... blocks[0](x))`, or in which a parameter takes no part."""
    # A copy with random parameters: weights that start at zero would hide a path, and buffers stay as they are.
    twin = copy.deepcopy(chain.module)
    generator = torch.Generator().manual_seed(20_240_319)
    with torch.no_grad():
        for parameter in twin.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.01 * noise.to(parameter.device))
    x = _example(chain, input_shape, n_samples=2)
    names, blocks = _named_blocks(twin)
    with _own_generator(seed=0), torch.enable_grad():
        whole, again = _forward(twin, x, input_shape), _forward(twin, x, input_shape)
        in_turn = x
        for name, block in zip(names, blocks, strict=True):
            in_turn = _forward(block, in_turn, tuple(in_turn.shape[1:]), f"block {name}")
        gradients = torch.autograd.grad(whole.sum(), list(twin.parameters()), allow_unused=True)
    if not torch.allclose(whole, again, rtol=0, atol=0, equal_nan=True):
        raise BadInput(
            "the model draws at random in its forward pass, which would need luck on every device; take it out", _AT
        )
    if whole.shape != in_turn.shape or not torch.allclose(whole, in_turn, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise _not_a_chain(
            "its output is not that of its blocks applied one after another; hide other paths inside a block"
        )
    for (name, _), gradient in zip(twin.named_parameters(), gradients, strict=True):
        if gradient is None:
            raise _not_a_chain(f"parameter {name} takes no part in the output; leave it out")


def _forward(module: nn.Module, x: Tensor, input_shape: tuple[int, ...], what: str = "the model") -> Tensor:
    try:
        out = module(x.clone())  # its first operation may be in place
    except _FORWARD_ERRORS as reason:
        first_line = (str(reason).splitlines() or [type(reason).__name__])[0]
        raise BadInput(f"{what} does not take inputs of shape {input_shape}: {first_line}", _AT) from None
    if not isinstance(out, Tensor) or out.dim() < 1 or len(out) != len(x) or not out.requires_grad:
        raise _not_a_chain(f"{what} does not give one tensor with a row per sample that depends on its parameters")
    return out


def _not_a_chain(reason: str) -> BadInput:
    return BadInput(f"the model is not a chain of blocks: {reason}", _AT)


# ---- what it costs --------------------------------------------------------------------------------------------------


def _n_numbers(tensors: Iterable[Sequence[Tensor]]) -> IntArray:
    return np.array([sum(tensor.numel() for tensor in own) for own in tensors], dtype=np.int64)


def _block_costs(chain: Chain, input_shape: Sequence[int], n_samples: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """Of `n_samples` together: forward, weight-gradient, input-gradient FLOPs, outputs, numbers kept, `[layer][5]`."""
    x = _example(chain, input_shape, n_samples)
    costs = []
    for block in chain.blocks:
        with torch.no_grad(), FlopCount() as forward:
            out = block(x)
        weights = _backward_flops(block, x, with_input=False)
        both = _backward_flops(block, x, with_input=True)
        found = [forward.flops, weights, both - weights, out.numel(), forward.n_outputs]
        costs.append(np.array(found, dtype=np.int64))
        x = out
    return costs


def _backward_flops(block: nn.Module, x: Tensor, *, with_input: bool) -> int:
    x = x.detach().requires_grad_(with_input)
    wanted: list[Tensor] = [*block.parameters(), *([x] if with_input else [])]
    with torch.enable_grad():
        out = block(x.clone())  # a leaf may not be changed in place, which the block's first operation may do
    with FlopCount() as backward:
        torch.autograd.grad(out, wanted, grad_outputs=torch.ones_like(out))
    flops: int = backward.flops
    return flops


def _example(chain: Chain, input_shape: Sequence[int], n_samples: int) -> Tensor:
    first = next(chain.blocks[0].parameters())
    generator = torch.Generator().manual_seed(20_240_319)
    return torch.randn((n_samples, *input_shape), generator=generator, dtype=first.dtype).to(first.device)


@contextmanager
def _own_generator(seed: int) -> Iterator[None]:
    """torch's global CPU generator, seeded inside and put back after."""
    # Not torch.manual_seed: that seeds the generators of every accelerator too, and those are not put back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
