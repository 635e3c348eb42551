"""Tasks on narrower models: what each device's own part costs it, and the rounds in which the server waits for all parts.

A part of rate r has its own FLOPs and bytes, counted on the narrower model; roughly r^2 of the whole one's. With F the
forward, B_l the backward FLOPs of layer l (its weight gradient, and its input gradient but for the input layer), ' of the
part, and phi the forward pass's share of a full step's time:
    seconds of a step / those of a full step = phi F'/F + (1 - phi) sum B'/sum B          # times follow from FLOPs
                                             = phi F'/F + sum_l (share of layer l) B'_l/B_l   # layers have stated seconds
Rates that change hands in each round: the sum of a_k b_j(k) over n of the M devices, which get n of the M rates in any
order. Given which n, the n! orders are equally likely; so with means a, b and variances S^2 (divisor M - 1),
    E = n a b,   Var = (n-1) S_a^2 S_b^2 + n^2 (a^2 V_b + b^2 V_a + V_a V_b),   V = (1 - n/M) S^2 / n
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import numpy as np

from fedsim.facts import Array, IntArray, ModelShape
from fedsim.protocols import NoClosedForm
from fedsim.theory import arrivals
from fedsim.theory.fleet import Expectation, Fleet
from fedsim.theory.rounds import Answers, one


@dataclass(frozen=True, eq=False)
class Parts:
    """rate: share of hidden units that each device trains, `[device]`. convolutions: whether their channels are cut too."""

    fleet: Fleet
    rate: Array
    convolutions: bool = True

    @cached_property
    def _of_rates(self) -> tuple[list[ModelShape], IntArray]:
        """The parts, and which of them each device has, `[device]`."""
        rates, which = np.unique(self.rate, return_inverse=True)
        parts = [self.fleet.shape.sliced(rate, convolutions=self.convolutions) for rate in rates.tolist()]
        return parts, which.reshape(-1)

    def _each(self, value: Callable[[ModelShape], float]) -> Array:
        """A number of each device's part, `[device]`."""
        parts, which = self._of_rates
        return np.array([float(value(part)) for part in parts])[which]

    @property
    def model_bytes(self) -> IntArray:
        """`[device]`."""
        return self._each(lambda part: float(part.parameter_bytes.sum())).astype(np.int64)

    @property
    def flops(self) -> Array:
        """Of a step on one row, `[device]`."""
        return self._each(lambda part: float(part.forward_flops.sum() + backward_flops(part).sum()))

    @property
    def mean_step_s(self) -> Array:
        """Expected seconds of a step, `[device]`."""
        fleet, laws = self.fleet, (self.fleet.task_factor, self.fleet.step_factor)
        mean = float(np.prod([law.mean for law in laws if law is not None]))
        passes = np.array([1.0, 1.0 if fleet.layer_factor is None else fleet.layer_factor.mean])  # forward, backward
        return np.asarray(fleet.unit_s * mean * self._each(lambda part: float(passes @ step_shares(fleet, part))))

    @property
    def round_trip_s(self) -> Array:
        """Seconds of the download and the upload, `[device]`."""
        return self.fleet.down_s_of(self.model_bytes) + self.fleet.up_s_of(self.model_bytes)

    @cached_property
    def as_fleet(self) -> Fleet:
        """The fleet for tasks over all layers of the parts: a full step is one over the device's own."""
        upload_s = np.zeros_like(self.fleet.upload_s)
        upload_s[:, -1] = self.fleet.up_s_of(self.model_bytes)  # of suffixes of a part nothing is asked
        share = self._each(lambda part: sum(step_shares(self.fleet, part)))
        down_s = self.fleet.down_s_of(self.model_bytes)
        return replace(self.fleet, unit_s=self.fleet.unit_s * share, download_s=down_s, upload_s=upload_s)


def backward_flops(shape: ModelShape) -> Array:
    """`[layer]`; the input layer hands no gradient on."""
    return np.asarray(shape.weight_gradient_flops + np.concatenate([[0.0], shape.input_gradient_flops[1:]]))


def step_shares(fleet: Fleet, part: ModelShape) -> tuple[float, float]:
    """Of the forward and the backward pass over the part, in full steps over the whole model."""
    whole = fleet.shape
    forward = float(fleet.reach_share[0])
    if forward > 0.0:
        forward *= float(part.forward_flops.sum() / whole.forward_flops.sum())
    own, full = backward_flops(part), backward_flops(whole)
    if fleet.has_layer_seconds:
        left = np.where(full > 0, own / np.where(full > 0, full, 1.0), 1.0)
        return forward, float(np.diff(fleet.reach_share)[::-1] @ left)
    return forward, float((1.0 - fleet.reach_share[0]) * own.sum() / full.sum())


def held_share(whole: ModelShape, part: ModelShape) -> Array:
    """Share of each layer's parameters that the part has, `[layer]`; of drawn units, the chance that one is held."""
    return np.asarray(part.n_parameters / np.maximum(whole.n_parameters, 1))


def answers_of(
    fleet: Fleet, parts: Callable[[], Parts], n_steps: int, n_asked: int, *, is_dealt_anew: bool = False
) -> Answers:
    """What a round should have on average in which n_asked devices train their parts and all of them are waited for.

    is_dealt_anew: in each round the rates change hands among all devices.
    """

    @cache
    def own() -> Parts:
        return parts()

    @cache
    def waiting() -> Answers:
        return arrivals.answers_of(own().as_fleet, n_steps, n_asked, n_asked)

    def alike(quantity: str) -> list[Expectation]:
        """As on a fleet that trains the whole model in the parts' times."""
        return waiting()[quantity]()

    def round_s() -> list[Expectation]:
        if is_dealt_anew and np.ptp(own().rate) > 0:
            _refuse_unequal(fleet)
        return alike("round_s")

    def summed(quantity: str, of_device: Array, of_rate: Array) -> list[Expectation]:
        found = (
            sum_of_dealt(of_device, of_rate, n_asked) if is_dealt_anew else sum_of_sampled(of_device * of_rate, n_asked)
        )
        return one(quantity, *found)

    def n_bytes(quantity: str) -> Callable[[], list[Expectation]]:
        return lambda: summed(quantity, np.ones(fleet.n_devices), own().model_bytes.astype(np.float64))

    return {
        quantity: partial(alike, quantity) for quantity in arrivals.answers_of(fleet, n_steps, n_asked, n_asked)
    } | {
        "round_s": round_s,
        "used_flops": lambda: summed("used_flops", n_steps * fleet.n_rows, own().flops),
        "downloaded_bytes": n_bytes("downloaded_bytes"),
        "uploaded_bytes": n_bytes("uploaded_bytes"),
    }


def _refuse_unequal(fleet: Fleet) -> None:
    """Who gets which rate must not matter. Links are straight lines in bytes: two messages tell."""
    messages = [np.full(fleet.n_devices, n_bytes) for n_bytes in (0, int(fleet.shape.parameter_bytes.sum()))]
    seconds = [of(message) for of in (fleet.down_s_of, fleet.up_s_of) for message in messages]
    if any(np.ptp(column) > 0 for column in (fleet.unit_s, *seconds)):
        raise NoClosedForm("needs equal devices where rates change hands in each round")


def sum_of_sampled(values: Array, n: int) -> tuple[float, float]:
    """Mean and variance of the sum over n of the values, drawn without replacement; variance 0 if all are taken."""
    spread = float(values.var(ddof=1)) if n < len(values) else 0.0
    return n * float(values.mean()), n * (1 - n / len(values)) * spread


def sum_of_dealt(a: Array, b: Array, n: int) -> tuple[float, float]:
    """Mean and variance of the sum of a_k b_j(k) over n of the k, drawn at random, which get n of the b in any order."""
    mean_a, mean_b, size = float(a.mean()), float(b.mean()), len(a)
    if size == 1:
        return mean_a * mean_b, 0.0
    square_a, square_b = float(a.var(ddof=1)), float(b.var(ddof=1))
    of_mean_a, of_mean_b = ((1 - n / size) * square / n for square in (square_a, square_b))
    means = mean_a**2 * of_mean_b + mean_b**2 * of_mean_a + of_mean_a * of_mean_b
    return n * mean_a * mean_b, (n - 1) * square_a * square_b + n**2 * means
