"""ResNet-20 for small images: a stem, nine residual blocks in three stages of 16, 32 and 64 channels, and a head."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from torch import Tensor, nn
from torch.nn import functional

from fedsim.facts import BadInput
from fedsim.models._blocks import Count, Norm, chain_of, image_shape, n_groups_kept, n_kept, normalised


@dataclass(frozen=True)
class Resnet20:
    """The CIFAR network of the ResNet paper with n = 3; by default normalised by GroupNorm instead of BatchNorm.

    norm: "group" is GroupNorm over n_groups groups of channels; "batch" is BatchNorm as in the paper.
    channels: of the three stages; the stem has those of the first.
    shortcut: where a block changes the shape, "padded" takes every second pixel and adds channels of zeros (the paper's
        option A, its choice for CIFAR); "projection" is a 1x1 convolution (option B); "projection_every_stage" has one in
        the first block of the first stage too, where the shape stays (as in federated studies that count memory).
    """

    source: ClassVar[str] = (
        "He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, arXiv 1512.03385, section 4.2; "
        "Wu, He, Group Normalization, arXiv 1803.08494"
    )
    norm: Norm = "group"
    n_groups: Count = 8
    shortcut: Literal["padded", "projection", "projection_every_stage"] = "padded"
    channels: tuple[Count, Count, Count] = (16, 32, 64)

    def build(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Sequential:
        """Blocks stem, residual1 ... residual9, head. Raises BadInput if the inputs are no images."""
        n_in, _, _ = image_shape("resnet20", input_shape)
        if self.shortcut == "padded" and list(self.channels) != sorted(self.channels):
            raise BadInput(
                f"resnet20: padded shortcuts add channels, but those of the stages are {self.channels}; let them grow, "
                f"or choose shortcut projection",
                at=("model",),
            )
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        blocks["stem"] = chain_of(convolution=self._convolution(n_in, self.channels[0]), relu=nn.ReLU())
        n_in = self.channels[0]
        for i in range(9):
            n_out = self.channels[i // 3]
            blocks[f"residual{i + 1}"] = self._residual(n_in, n_out, number=i)
            n_in = n_out
        blocks["head"] = chain_of(mean=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(n_in, n_outputs))
        return nn.Sequential(blocks)

    def narrowed(self, rate: float, *, convolutions: bool = True) -> Self:
        """The model of the leading channels, rate x channels of each stage rounded up; inputs and outputs stay.

        convolutions: False leaves the model as it is. Raises BadInput if a group of GroupNorm would be cut in two.
        """
        if not convolutions:
            return replace(self)
        first, second, third = (n_kept(rate, n) for n in self.channels)
        n_groups = self.n_groups
        if self.norm == "group":
            n_groups = n_groups_kept("resnet20", rate, self.channels, n_groups)
        return replace(self, channels=(first, second, third), n_groups=n_groups)

    def _residual(self, n_in: int, n_out: int, number: int) -> nn.Module:
        # By its place and not by its channels: so a narrower model has the same parts.
        stride = 2 if number in (3, 6) else 1
        first, second = self._convolution(n_in, n_out, stride=stride), self._convolution(n_out, n_out)
        main = chain_of(first=first, relu=nn.ReLU(), second=second)
        if stride == 1 and not (number == 0 and self.shortcut == "projection_every_stage"):
            return _Residual(main, nn.Identity())
        if self.shortcut == "padded":
            return _Residual(main, _Padded(n_out - n_in, stride))
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
    """Every `stride`-th pixel, and `n_zeros` channels of zeros after those that are there."""

    # All after, none before: so the leading channels of a narrower model meet the leading channels of the whole one.
    def __init__(self, n_zeros: int, stride: int) -> None:
        super().__init__()
        self.n_zeros, self.stride = n_zeros, stride

    def forward(self, x: Tensor) -> Tensor:
        thinned = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(thinned, (0, 0, 0, 0, 0, self.n_zeros))
