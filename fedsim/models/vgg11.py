"""VGG-11 (configuration A) for small images: eight 3x3 convolutions and one fully connected layer."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge
from torch import nn

from fedsim.models._blocks import Norm, chain_of, image_shape, normalised

# Channels of each convolution, and whether a 2x2 max pool follows.
_CONVOLUTIONS = (
    (64, True),
    (128, True),
    (256, False),
    (256, True),
    (512, False),
    (512, True),
    (512, False),
    (512, True),
)


@dataclass(frozen=True)
class Vgg11:
    """VGG-11 with GroupNorm; images of at least 32 x 32 pixels.

    Departs from the paper: 512 averaged features feed one output layer (the usual form for 32 x 32 images) in place of
    three layers of 4096, without dropout; and the convolutions are normalised.
    """

    source: ClassVar[str] = (
        "Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv 1409.1556, "
        "configuration A; Wu, He, Group Normalization, arXiv 1803.08494"
    )
    norm: Norm = "group"
    n_groups: Annotated[int, Ge(1)] = 32

    def build(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Sequential:
        """Blocks conv1 ... conv8, fc. Raises BadInput if the inputs are no images of that size."""
        n_in, _, _ = image_shape("vgg11", input_shape, least=32)
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (n_out, is_pooled) in enumerate(_CONVOLUTIONS, start=1):
            blocks[f"conv{i}"] = self._convolution(n_in, n_out, is_pooled)
            n_in = n_out
        blocks["fc"] = chain_of(mean=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), linear=nn.Linear(n_in, n_outputs))
        return nn.Sequential(blocks)

    def _convolution(self, n_in: int, n_out: int, is_pooled: bool) -> nn.Sequential:
        conv = nn.Conv2d(n_in, n_out, 3, padding=1)
        norm = normalised("vgg11", self.norm, n_out, self.n_groups)
        if is_pooled:  # ReLU after the pool: the same values, for a quarter of the comparisons
            return chain_of(conv=conv, norm=norm, pool=nn.MaxPool2d(2), relu=nn.ReLU())
        return chain_of(conv=conv, norm=norm, relu=nn.ReLU())
