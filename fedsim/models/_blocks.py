"""Pieces that several models are made of; not a model."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

from fedsim.facts import BadInput

Norm = Literal["group", "none"]


def chain_of(**parts: nn.Module) -> nn.Sequential:
    """The parts one after another, under their names."""
    return nn.Sequential(OrderedDict(parts))


def image_shape(model: str, input_shape: tuple[int, ...], *, least: int = 1) -> tuple[int, int, int]:
    """Channels, height and width. Raises BadInput if these are no images, or smaller than `least` pixels a side."""
    if len(input_shape) != 3:
        raise BadInput(f"{model} needs images (channels, height, width); got {input_shape}", at=("model",))
    channels, height, width = input_shape
    if min(height, width) < least:
        raise BadInput(
            f"{model} needs images of at least {least} x {least} pixels; got {height} x {width}", at=("model",)
        )
    return channels, height, width


def normalised(model: str, norm: Norm, n_channels: int, n_groups: int) -> nn.Module:
    """GroupNorm over `n_groups` groups of channels, or nothing. Raises BadInput if the groups come out unequal."""
    if norm == "none":
        return nn.Identity()
    if n_channels % n_groups:
        raise BadInput(
            f"{model}: {n_channels} channels do not fall into {n_groups} equal groups; choose n_groups among the divisors",
            at=("model",),
        )
    return nn.GroupNorm(n_groups, n_channels)


def conv5x5_pool(n_in: int, n_out: int) -> nn.Sequential:
    """A 5x5 convolution without padding, 2x2 max pooling, ReLU."""
    # ReLU after the pool: the same values, for a quarter of the comparisons.
    return chain_of(conv=nn.Conv2d(n_in, n_out, 5), pool=nn.MaxPool2d(2), relu=nn.ReLU())


def side_after_two(side: int) -> int:
    """Pixels a side that two `conv5x5_pool` leave; at least one if `side` is at least 16."""
    return ((side - 4) // 2 - 4) // 2
