"""Group norm on images whose channels come last, where torch's own kernel is slow there.

Source: Wu, He, "Group Normalization", arXiv 1803.08494. Sums and element-wise work only: no matrix products, so that it
costs no FLOPs, as torch's kernel does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.training.layout import first, is_channels_last


def is_slow(x: Tensor, n_groups: int) -> bool:
    """Whether torch's group norm is slower than the one below: a rule by shape, measured on one thread in float32.

    [64, 32, 16, 16] in 8 groups: forward 1013 us against 331, backward 717 against 401; [64, 16, 32, 32]: backward 3180
    against 784. Groups of at least 8 channels, or few pixels, are torch's: [64, 64, 8, 8] takes it 146 and 86 us.
    """
    if x.dim() != 4 or x.is_contiguous() or not is_channels_last(x) or x.device.type != "cpu":
        return False
    return x.shape[1] < 8 * n_groups and len(x) * n_groups * x[0, 0].numel() >= 40_000


def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n_groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised images, channels last, with the mean and 1 / standard deviation of each group, `[row, group]`.

    x: `[row, channel, height, width]`, channels last; weight, bias: `[channel]`, or None for 1 and 0. Two passes: the
    variance is that of centred values, so nothing cancels where a mean is large.
    """
    n, channels, height, width = x.shape
    size, lines = channels // n_groups, _lines(x)
    mean = _per_channel(lines, channels).view(n, n_groups, size).sum(2, keepdim=True).div_(size * height * width)
    work = lines - _per_line(mean.expand(-1, -1, size), width)
    squares = _per_channel(work.square_(), channels).view(n, n_groups, size).sum(2, keepdim=True)
    rstd = squares.div_(size * height * width).add_(eps).rsqrt_()
    scale = rstd.expand(-1, -1, size) if weight is None else rstd * weight.view(n_groups, size)
    offset = scale.new_zeros(()) if bias is None else bias.view(n_groups, size)
    shift = torch.addcmul(offset, mean, scale, value=-1)
    torch.addcmul(_per_line(shift, width), lines, _per_line(scale, width), out=work)
    return _images(work, x.shape), mean[:, :, 0], rstd[:, :, 0]


def group_norm_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, n_on: int
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of the first n_on rows of x (None if 0), of the weight and of the bias.

    gradient, x: `[row, channel, height, width]`, channels last; mean, rstd: `[row, group]`; weight: `[channel]` or None.
    With m values in a group, normalised to z, and h = weight * gradient:
        gradient of x = rstd * (h - sum(h) / m - z * sum(h * z) / m)
    """
    n, channels, height, width = x.shape
    n_groups = mean.shape[1]
    size, lines, above = channels // n_groups, _lines(x), _lines(gradient)
    mean, rstd = mean[:, :, None], rstd[:, :, None]
    sums = _per_channel(above, channels).view(n, n_groups, size)
    work = above * lines
    with_z = _per_channel(work, channels).view(n, n_groups, size).addcmul_(sums, mean, value=-1).mul_(rstd)
    of_weight, of_bias = with_z.sum(0).flatten(), sums.sum(0).flatten()
    if not n_on:
        return None, of_weight, of_bias
    # As a x gradient + b x x + c, with b and c by group: two passes, in the memory of the product.
    scale = rstd.expand(-1, -1, size) if weight is None else rstd * weight.view(n_groups, size)
    b = (with_z * scale).sum(2, keepdim=True).mul_(rstd).div_(-size * height * width)
    c = (sums * scale).sum(2, keepdim=True).div_(-size * height * width).addcmul_(b, mean, value=-1)
    a, b, c = (_per_line(first(t, n_on).expand(-1, -1, size), width) for t in (scale, b, c))
    on = first(work, n_on)
    torch.addcmul(c, first(lines, n_on), b, out=on).addcmul_(first(above, n_on), a)
    return _images(on, (len(on), *x.shape[1:])), of_weight, of_bias


# A line of pixels holds hundreds of neighbouring values; loops over the few channels of one pixel would not fill vectors.


def _lines(x: Tensor) -> Tensor:
    """`[row, height, width x channel]`."""
    return x.permute(0, 2, 3, 1).flatten(2)


def _images(lines: Tensor, shape: Sequence[int]) -> Tensor:
    n, channels, height, width = shape
    return lines.view(n, height, width, channels).permute(0, 3, 1, 2)


def _per_channel(lines: Tensor, channels: int) -> Tensor:
    """Sums over pixels, `[row, channel]`."""
    return lines.sum(1).view(len(lines), -1, channels).sum(1)


def _per_line(t: Tensor, width: int) -> Tensor:
    """`[row, group, channel of the group]` to `[row, 1, width x channel]`."""
    return t.reshape(len(t), 1, -1).expand(-1, width, -1).reshape(len(t), 1, -1)
