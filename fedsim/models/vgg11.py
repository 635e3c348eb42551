"""VGG-11 (configuration A) for small images: eight 3x3 convolutions and one fully connected layer."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import nn

from fedsim.models._blocks import Count, Norm, chain_of, image_shape, n_groups_kept, n_kept, normalised

# Whether a 2x2 max pool follows a convolution.
_IS_POOLED = (True, True, False, True, False, True, False, True)


@dataclass(frozen=True)
class Vgg11:
    """VGG-11, normalised; images of at least 32 x 32 pixels.

    Departs from the paper: 512 averaged features feed one output layer (the usual form for 32 x 32 images) in place of
    three layers of 4096, without dropout; and the convolutions are normalised.

    norm: "group" is GroupNorm over n_groups groups of channels; "batch" is BatchNorm.
    channels: of the eight convolutions; (64, 128, 256, 256, 512, 512, 512, 512) is the paper's.
    """

    source: ClassVar[str] = (
        "Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv 1409.1556, "
        "configuration A; Wu, He, Group Normalization, arXiv 1803.08494"
    )
    norm: Norm = "group"
    n_groups: Count = 32
    channels: tuple[Count, Count, Count, Count, Count, Count, Count, Count] = (64, 128, 256, 256, 512, 512, 512, 512)

    def build(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Sequential:
        """Blocks conv1 ... conv8, fc. Raises BadInput if the inputs are no images of that size."""
        n_in, _, _ = image_shape("vgg11", input_shape, least=32)
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (n_out, is_pooled) in enumerate(zip(self.channels, _IS_POOLED, strict=True), start=1):
            blocks[f"conv{i}"] = self._convolution(n_in, n_out, is_pooled)
            n_in = n_out
        blocks["fc"] = chain_of(mean=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(n_in, n_outputs))
        return nn.Sequential(blocks)

    def narrowed(self, rate: float, *, convolutions: bool = True) -> Self:
        """The model of the leading channels, rate x channels of each convolution rounded up; inputs and outputs stay.

        convolutions: False leaves the model as it is. Raises BadInput if a group of GroupNorm would be cut in two.
        """
        if not convolutions:
            return replace(self)
        a, b, c, d, e, f, g, h = (n_kept(rate, n) for n in self.channels)
        n_groups = n_groups_kept("vgg11", rate, self.channels, self.n_groups) if self.norm == "group" else self.n_groups
        return replace(self, channels=(a, b, c, d, e, f, g, h), n_groups=n_groups)

    def _convolution(self, n_in: int, n_out: int, is_pooled: bool) -> nn.Sequential:
        conv = nn.Conv2d(n_in, n_out, 3, padding=1)
        norm = normalised("vgg11", self.norm, n_out, self.n_groups)
        if is_pooled:  # ReLU after the pool: the same values, for a quarter of the comparisons
            return chain_of(conv=conv, norm=norm, pool=nn.MaxPool2d(2), relu=nn.ReLU())
        return chain_of(conv=conv, norm=norm, relu=nn.ReLU())
