"""What closed forms know of a fleet, and the form in which they answer.

Conditional on the fleet that was drawn: persistent factors are numbers here, one per device; only what is drawn anew for
each task, step or layer is a law. A formula for means over fleets is another formula (with a persistent factor the two
differ by far more than a simulation's error).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from fedsim.facts import Array, IntArray, ModelShape
from fedsim.protocols import Law, NoClosedForm
from fedsim.theory.times import RandomTime


def _of_unknown_links(n_bytes: IntArray) -> Array:
    raise NoClosedForm(f"needs seconds of messages of {n_bytes} bytes; the fleet only says those of the whole model")


@dataclass(frozen=True, eq=False)
class Fleet:
    """Devices by what their work takes.

    unit_s: a full step over all layers at factor 1, `[device]`: base x persistent device factor.
    reach_share: of a full step until depth d is reached, `[depth]`, 1 at n_layers; entry 0 is the forward pass.
    download_s: the whole model, `[device]`. upload_s: the d output-most layers, `[device, depth]`, 0 at depth 0.
    shape: FLOPs and bytes of the layers. n_rows: of a full step, `[device]`. n_samples: that it holds, `[device]`.
    task_factor, step_factor, layer_factor: laws drawn anew for each; None is always 1.
    lowest_depth: 0 or 1 where depths are drawn uniformly from lowest ... n_layers; None where they are timed.
    has_fixed_links: transfer times are the same for every task of a device. has_even_steps: every local step of a
        device has the same number of rows. rows_before: of the first n steps, `[device]`; asked where they are not even.
    down_s_of, up_s_of: seconds of one message for each device, of so many bytes, `[device] -> [device]`; where links are
        fixed. has_layer_seconds: the backward pass of each layer has a stated time, and not its share by FLOPs.
    batch_size: rows of a full step as the devices' memory must hold them, `[device]`; None if unknown.
    memory_bytes: of each device for training, `[device]`; None if it is no limit.
    block_io_s: of a step, to bring in the layers before the d output-most one by one, `[device, depth]`; None: no time.
    """

    unit_s: Array
    reach_share: Array
    download_s: Array
    upload_s: Array
    shape: ModelShape
    n_rows: Array
    n_samples: IntArray
    task_factor: Law | None = None
    step_factor: Law | None = None
    layer_factor: Law | None = None
    lowest_depth: int | None = None
    has_fixed_links: bool = True
    has_even_steps: bool = True
    rows_before: Callable[[int | IntArray], Array] = field(default=lambda n: np.array(np.nan * n), repr=False)
    down_s_of: Callable[[IntArray], Array] = field(default=_of_unknown_links, repr=False)
    up_s_of: Callable[[IntArray], Array] = field(default=_of_unknown_links, repr=False)
    has_layer_seconds: bool = False
    batch_size: IntArray | None = None
    memory_bytes: Array | None = None
    block_io_s: Array | None = None

    @property
    def n_devices(self) -> int:
        return len(self.unit_s)

    @property
    def n_layers(self) -> int:
        return len(self.reach_share) - 1


def evened(fleet: Fleet, n_steps: int | IntArray) -> Fleet:
    """The fleet as its first n_steps steps see it: each of them as long as their mean, and with its rows.

    Their end is the same to the last bit if nothing is drawn per step; where single steps end is another matter.
    n_steps: of every device, or `[device]`.
    """
    n_rows = fleet.rows_before(n_steps) / n_steps
    return replace(fleet, unit_s=fleet.unit_s * n_rows / fleet.n_rows, n_rows=n_rows, has_even_steps=True)


def rows_of(fleet: Fleet, n_steps: int) -> Array:
    """Rows of the first n_steps steps of a task together, `[device]`."""
    return np.asarray(n_steps * fleet.n_rows if fleet.has_even_steps else fleet.rows_before(n_steps), dtype=np.float64)


def reach_share(shape: ModelShape, backward_factor: float = 1.0) -> Array:
    """Share of a full step until depth d is reached, `[depth]`: all forward passes, d weight gradients, d-1 input ones.

    A FLOP of the backward pass counts `backward_factor` times.
    """
    weight = np.cumsum(shape.weight_gradient_flops[::-1])
    handed_on = np.concatenate([[0.0], np.cumsum(shape.input_gradient_flops[::-1])[:-1]])
    cost = float(shape.forward_flops.sum()) + backward_factor * np.concatenate([[0.0], weight + handed_on])
    return np.asarray(cost / cost[-1])


@dataclass(frozen=True, eq=False)
class Expectation:
    """The expected value of something that every round has, or why there is no closed form for it.

    quantity, unit: see docs/reference/quantities.md. variance: over rounds, in the unit's square; None if unknown.
    layer, device: which one it is about. time: the whole law, where it is a time.
    period: rounds of a cycle, where rounds come in cycles that are alike and independent: the mean is over a cycle's
        rounds, the variance `period` times that of a cycle's mean (so that n rounds' mean has variance / n).
    reason: the assumption that failed, if there is no closed form; `mean` is None then.
    """

    quantity: str
    unit: str
    mean: float | None
    variance: float | None = None
    layer: int | None = None
    device: int | None = None
    time: RandomTime | None = None
    reason: str | None = None
    period: int = 1


def of_time(quantity: str, time: RandomTime) -> Expectation:
    """Mean, variance (where finite) and law of a time. Raises NoClosedForm if its mean is infinite."""
    mean = time.mean_s
    try:
        variance: float | None = time.variance_s2
    except NoClosedForm:
        variance = None
    return Expectation(quantity, "s", mean, variance, time=time)


def none(quantity: str, unit: str, reason: str, *, layer: int | None = None, device: int | None = None) -> Expectation:
    return Expectation(quantity, unit, None, layer=layer, device=device, reason=reason)
