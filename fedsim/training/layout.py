"""How tensors lie in memory, and their first rows."""

from __future__ import annotations

import torch
from torch import Tensor


def first(x: Tensor, n: int) -> Tensor:
    """The first n rows; a slice costs more than a look."""
    return x if n >= len(x) else x[:n]


def is_channels_last(x: Tensor) -> bool:
    """Whether these are images that lie pixel by pixel (with one channel, or one pixel, both ways at once)."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def laid_like(gradient: Tensor, x: Tensor) -> Tensor:
    """Dense, in the layout of x; a copy only where it is not so already."""
    if is_channels_last(x) and not x.is_contiguous():
        return gradient.contiguous(memory_format=torch.channels_last)
    return gradient.contiguous()
