"""What partial work costs: FLOPs of a suffix, traffic of layers averaged less often, memory of a network's output side.

    C_b = sum of all forwards + sum_{i <= b} weight gradients + sum_{i < b} input gradients     b output-most layers
    width = largest b with C_b <= what a device can pay; random speed f: P(depth >= b) = P(f >= C_b / budget)
    FedLAMA: traffic against averaging everything at the short interval = (1 - gamma) + gamma / phi
             gamma: share of the parameters averaged phi times less often; everything so: 1 / phi
    EmbracingFL: capacity = (p + a) / (p + a of the whole network), p parameters, a activations of a batch of 32

The published mean capacities of mixed fleets come from tier capacities that were rounded before; ties round up, which
only decimal arithmetic can see. The "capacity" adds weights to activations of a batch: a memory figure, not a time.

Sources: Wu, Wang, Narayana, arXiv 2311.10002 (FedPMT); Lee, Zhang, Avestimehr, arXiv 2110.10302 (FedLAMA, traffic of
Tables 1-4); Lee, Zhang, Prakash, Niu, Avestimehr, arXiv 2406.15125 (EmbracingFL, Tables 1 and 9).
Knows nothing of round times, nor of which layers a policy picks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import numpy as np

from fedsim.facts import Array, IntArray
from fedsim.protocols import Law

_TIE = 1e-9  # a budget that is met but for rounding is met

# ---- a suffix -------------------------------------------------------------------------------------------------------


def suffix_flops(forward: Array, weight_gradient: Array, input_gradient: Array) -> Array:
    """FLOPs of one step over the output-most layers, `[depth]`, depth 0 ... L; all arguments `[layer]` from the input.

    The shallowest trained layer hands no gradient on, so even a step over all layers leaves one input gradient out.
    """
    n_layers = len(forward)
    backward = [
        weight_gradient[n_layers - b :].sum() + input_gradient[n_layers - b + 1 :].sum() for b in range(1, n_layers + 1)
    ]
    return np.array([0.0, *(forward.sum() + np.array(backward))])


def widths(flops: Array, affordable_flops: Array) -> IntArray:
    """Output-most layers that each device can pay for, `[device]`; 0 cannot take part. flops: `[depth]`, 0 ... L."""
    return np.asarray(np.searchsorted(flops[1:], affordable_flops * (1 + _TIE), side="right"), dtype=np.int64)


def reach_share(flops: Array, budget_s: float, flops_per_s: Law) -> Array:
    """P(a device of random speed gets through at least so many output-most layers in time), `[depth]`, depth 0 ... L."""
    # P(f >= x), where the law tells P(f > x): just below x they are one.
    return np.concatenate([[1.0], flops_per_s.survival(flops[1:] / budget_s * (1 - _TIE))])


def compute_saved_share(flops: Array, widths_of_devices: IntArray) -> float:
    """Share of the FLOPs of full training that partial training leaves out."""
    return float(1.0 - flops[widths_of_devices].mean() / flops[-1])


# ---- layers averaged less often ----------------------------------------------------------------------------------------


def traffic_share(relaxed_share: float, interval_factor: int) -> float:
    """Traffic against averaging everything at the short interval; relaxed_share: of parameters, averaged less often."""
    return 1.0 - relaxed_share + relaxed_share / interval_factor


def relaxed_share(traffic_share: float, interval_factor: int) -> float:
    """Share of parameters (its time average, if it changes) that explains a traffic; undoes `traffic_share`."""
    return (1.0 - traffic_share) / (1.0 - 1.0 / interval_factor)


def stopped_traffic_share(traffic_share: float, n_steps: int, n_baseline_steps: int) -> float:
    """Traffic of `n_steps` local steps against a baseline's `n_baseline_steps` that averages everything.

    Supposes that what is averaged less often was the same share from the first step to the last.
    """
    return traffic_share * n_steps / n_baseline_steps


# ---- memory of a network's output side ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Numbers that training must keep. n_activations: of a whole batch."""

    n_parameters: int
    n_activations: int

    @property
    def total(self) -> int:
        return self.n_parameters + self.n_activations


def resnet20_memory(n_blocks_removed: int | None = None, batch_size: int = 32, n_classes: int = 10) -> Memory:
    """Of ResNet-20 on 32x32 RGB, or of what is left without the first convolution and so many residual blocks.

    The variant that the published counts are of: a 1x1 convolution as shortcut in the first block of every stage, also
    where the shape stays; no biases but the classifier's; two parameters per normalised channel. Activations are the
    outputs of convolutions and the classifier.
    """
    parts = [_convolution(3, 16, kernel=3, n_pixels=1024)]
    n_in = 16
    for n_out, n_pixels in ((16, 1024), (32, 256), (64, 64)):
        for block in range(3):
            shortcut = _convolution(n_in, n_out, kernel=1, n_pixels=n_pixels) if block == 0 else (0, 0)
            convolutions = _convolution(n_in, n_out, 3, n_pixels), _convolution(n_out, n_out, 3, n_pixels), shortcut
            parts.append((sum(p for p, _ in convolutions), sum(a for _, a in convolutions)))
            n_in = n_out
    parts.append((n_in * n_classes + n_classes, n_classes))
    kept = parts if n_blocks_removed is None else parts[1 + n_blocks_removed :]
    return Memory(sum(p for p, _ in kept), batch_size * sum(a for _, a in kept))


def _convolution(n_in: int, n_out: int, kernel: int, n_pixels: int) -> tuple[int, int]:
    """Parameters, those of the normalisation included, and outputs."""
    return n_in * n_out * kernel**2 + 2 * n_out, n_out * n_pixels


def capacity(kept: Memory, whole: Memory) -> Decimal:
    """Share of the whole network's memory, to the 28 digits of decimal arithmetic."""
    return Decimal(kept.total) / Decimal(whole.total)


def rounded_half_up(value: Decimal, n_digits: int = 2) -> Decimal:
    """To so many digits behind the point; a tie goes up."""
    return value.quantize(Decimal(1).scaleb(-n_digits), ROUND_HALF_UP)


def mean_capacity(n_devices: Sequence[int], capacities: Sequence[Decimal]) -> Decimal:
    """Mean over a fleet with so many devices in each tier."""
    in_all = sum((n * each for n, each in zip(n_devices, capacities, strict=True)), Decimal(0))
    return in_all / sum(n_devices)
