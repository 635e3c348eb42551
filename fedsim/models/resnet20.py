"""ResNet-20 for small images: a stem, nine residual blocks of 16, 32 and 64 channels, and a head."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional

from fedsim.models._blocks import Norm, chain_of, image_shape, normalised


@dataclass(frozen=True)
class Resnet20:
    """The CIFAR network of the ResNet paper with n = 3, normalised by GroupNorm instead of BatchNorm.

    shortcut: where a block changes the shape, "padded" takes every second pixel and adds channels of zeros (the paper's
        option A, its choice for CIFAR); "projection" is a 1x1 convolution (option B).
    """

    source: ClassVar[str] = (
        "He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, arXiv 1512.03385, section 4.2; "
        "Wu, He, Group Normalization, arXiv 1803.08494"
    )
    norm: Norm = "group"
    n_groups: Annotated[int, Ge(1)] = 8
    shortcut: Literal["padded", "projection"] = "padded"

    def build(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Sequential:
        """Blocks stem, residual1 ... residual9, head. Raises BadInput if the inputs are no images."""
        n_in, _, _ = image_shape("resnet20", input_shape)
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        blocks["stem"] = chain_of(convolution=self._convolution(n_in, 16), relu=nn.ReLU())
        n_in = 16
        for i, n_out in enumerate([16] * 3 + [32] * 3 + [64] * 3, start=1):
            blocks[f"residual{i}"] = self._residual(n_in, n_out)
            n_in = n_out
        blocks["head"] = chain_of(mean=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(n_in, n_outputs))
        return nn.Sequential(blocks)

    def _residual(self, n_in: int, n_out: int) -> nn.Module:
        stride = n_out // n_in
        first, second = self._convolution(n_in, n_out, stride=stride), self._convolution(n_out, n_out)
        main = chain_of(first=first, relu=nn.ReLU(), second=second)
        if n_in == n_out:
            return _Residual(main, nn.Identity())
        if self.shortcut == "padded":
            return _Residual(main, _Padded(n_in, n_out, stride))
        return _Residual(main, self._convolution(n_in, n_out, kernel=1, stride=stride))

    def _convolution(self, n_in: int, n_out: int, *, kernel: int = 3, stride: int = 1) -> nn.Module:
        # A norm has a bias of its own; without one the convolution needs it.
        bias = self.norm == "none"
        conv = nn.Conv2d(n_in, n_out, kernel, stride=stride, padding=kernel // 2, bias=bias)
        return chain_of(conv=conv, norm=normalised("resnet20", self.norm, n_out, self.n_groups))


class _Residual(nn.Module):
    # A promise to the trainer, which writes the backward pass out: forward is relu(main(x) + shortcut(x)).
    sum_of = ("main", "shortcut")

    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main, self.shortcut = main, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.main(x) + self.shortcut(x))


class _Padded(nn.Module):
    """Every `stride`-th pixel, and zeros for the channels that are not there."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.n_before = (n_out - n_in) // 2
        self.n_after = n_out - n_in - self.n_before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        thinned = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(thinned, (0, 0, 0, 0, self.n_before, self.n_after))
