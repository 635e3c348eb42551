"""Pieces that several models are made of; not a model."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Annotated, Literal

from annotated_types import Ge
from torch import nn

from fedsim.facts import BadInput

Count = Annotated[int, Ge(1)]
Norm = Literal["group", "batch", "none"]

_ROUNDING = 1e-9  # 0.07 of 100 units is 7, though 0.07 * 100 is 7.000000000000001


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
    """GroupNorm over `n_groups` groups of channels, BatchNorm, or nothing. Raises BadInput if the groups come out unequal."""
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return nn.BatchNorm2d(n_channels)
    if n_channels % n_groups:
        raise BadInput(
            f"{model}: {n_channels} channels do not fall into {n_groups} equal groups; choose n_groups among the divisors",
            at=("model",),
        )
    return nn.GroupNorm(n_groups, n_channels)


def n_kept(rate: float, n_units: int) -> int:
    """Units of a layer that a model of this rate keeps: rate x n_units rounded up. Raises BadInput unless 0 < rate <= 1."""
    if not 0 < rate <= 1:
        raise BadInput(
            f"a model cannot be narrowed to {rate} of its units; choose a rate above 0 and at most 1", at=("model",)
        )
    return max(1, math.ceil(rate * n_units - _ROUNDING))


def n_groups_kept(model: str, rate: float, channels: Iterable[int], n_groups: int) -> int:
    """Groups that are left of `n_groups` if every group keeps its size. Raises BadInput if it cuts one in two.

    So the groups of the narrower model are the leading groups of the whole one, with the same channels in them.
    """
    for n_channels in channels:
        size, left = n_channels // n_groups, n_kept(rate, n_channels)
        if size and left % size:
            raise BadInput(
                f"{model}: rate {rate} keeps {left} of {n_channels} channels, which cuts a group of {size} in two; choose "
                f"a rate that keeps whole groups, such as {n_kept(rate, n_groups)}/{n_groups}, or norm none or batch",
                at=("model",),
            )
    return n_kept(rate, n_groups)


def conv5x5_pool(n_in: int, n_out: int) -> nn.Sequential:
    """A 5x5 convolution without padding, 2x2 max pooling, ReLU."""
    # ReLU after the pool: the same values, for a quarter of the comparisons.
    return chain_of(conv=nn.Conv2d(n_in, n_out, 5), pool=nn.MaxPool2d(2), relu=nn.ReLU())


def side_after_two(side: int) -> int:
    """Pixels a side that two `conv5x5_pool` leave; at least one if `side` is at least 16."""
    return ((side - 4) // 2 - 4) // 2
