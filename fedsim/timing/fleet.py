"""What a scenario says about its devices: how long their work takes. Parameters only; `weather.py` draws from them.

Compute time = base x device factor (persistent) x task factor x step factor (x layer factor). Which level the
randomness sits on decides the ranking of policies, so a scenario states it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge

from fedsim.delays import AnyLaw, NotNegative, Positive, Quantity, QuantityOrZero


@dataclass(frozen=True)
class UniformDepth:
    """A device that is stopped has finished a number of layers drawn uniformly from `lowest` ... n_layers.

    The progress model of SALF's analysis (arXiv 2403.18375): depth does not depend on the deadline.
    lowest: 0 (a device may deliver nothing) or 1 (the output layer is always there).
    """

    lowest: Literal[0, 1] = 0
    kind: Literal["uniform"] = "uniform"


def _refuse_zero(name: str, stated: object) -> None:
    """A discrete law may be 0 where a transfer may take no time, but work that takes none never ends."""
    for law in getattr(stated, "laws", ()):
        _refuse_zero(name, law)
    values = getattr(stated, "values", (getattr(stated, "value", 1.0),))
    if min(values) <= 0:
        raise ValueError(f"{name} can be 0 under its law; give values greater than 0")


@dataclass(frozen=True)
class Compute:
    """Seconds of a local step. Exactly one base: `step_s`, `layer_s` or `flops_per_s`.

    step_s: a step over all layers with a full batch; the layers share it by FLOPs, forward pass first.
    layer_s: the backward pass of each layer (one number, or a list from the input); the forward pass takes `forward_s`.
    flops_per_s: the device's rate; a step costs its FLOPs.
    backward_factor: how many times a FLOP of the backward pass counts (a phone framework was measured at 200 times
        forward where FLOPs say 2); for step_s it moves the layers' shares, for flops_per_s also the total.
    device_factor is persistent, task_factor drawn anew for each task, step_factor for each local step, layer_factor for
    each layer of a step's backward pass.
    block_io_s: seconds to bring one layer into memory, one number or a list from the input; spent in each step for every
        layer that does not train, by devices that cannot hold the whole model (EmbracingFL).
    """

    step_s: Quantity | None = None
    layer_s: Positive | tuple[Positive, ...] | None = None
    flops_per_s: Quantity | None = None
    forward_s: NotNegative = 0.0
    backward_factor: Positive = 1.0
    device_factor: Quantity | None = None
    task_factor: AnyLaw | None = None
    step_factor: AnyLaw | None = None
    layer_factor: AnyLaw | None = None
    depth_law: UniformDepth | None = None
    block_io_s: NotNegative | tuple[NotNegative, ...] = 0.0

    def __post_init__(self) -> None:
        bases = [name for name in ("step_s", "layer_s", "flops_per_s") if getattr(self, name) is not None]
        if len(bases) != 1:
            given = " and ".join(bases) or "none of them"
            raise ValueError(f"state one of step_s, layer_s, flops_per_s; {given} given")
        for name in (*bases, "device_factor", "task_factor", "step_factor", "layer_factor"):
            _refuse_zero(name, getattr(self, name))
        if self.forward_s and self.layer_s is None:
            raise ValueError(
                "forward_s belongs to layer_s; with step_s or flops_per_s the forward pass has its share by FLOPs"
            )


@dataclass(frozen=True)
class Link:
    """A private link: a message of B bytes takes latency_s + 8 B / rate_bits_per_s.

    rate_bits_per_s: bits per second. latency_s: seconds before the first byte.
    redrawn: a law is drawn once per "device", or anew for each "task".
    """

    rate_bits_per_s: Quantity
    latency_s: QuantityOrZero = 0.0
    redrawn: Literal["device", "task"] = "device"

    def __post_init__(self) -> None:
        _refuse_zero("rate_bits_per_s", self.rate_bits_per_s)


@dataclass(frozen=True)
class Fleet:
    """The devices.

    n_devices: how many. compute: seconds of their work. uplink, downlink: their private links; one left out takes no time.
    memory_bytes: for training, of each device; without it memory is no limit.
    """

    n_devices: Annotated[int, Ge(1)]
    compute: Compute = field(default_factory=lambda: Compute(step_s=1.0))
    uplink: Link | None = None
    downlink: Link | None = None
    memory_bytes: Quantity | None = None
