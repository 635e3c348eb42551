"""Fleets by hand, and rounds of each policy played in plain NumPy: what closed forms of whole rounds are compared with.

Nothing here comes from fedsim.theory but the record that describes a fleet. `[round, device]` unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim.facts import Array, BoolArray, IntArray, ModelShape
from fedsim.protocols import Law
from fedsim.theory.fleet import Expectation, Fleet, reach_share

SHAPE = ModelShape(
    layer_names=("a", "b", "c"),
    n_parameters=np.array([50, 20, 5]),
    parameter_bytes=np.array([200, 80, 20]),
    forward_flops=np.array([80.0, 30.0, 10.0]),
    weight_gradient_flops=np.array([80.0, 30.0, 10.0]),
    input_gradient_flops=np.array([80.0, 30.0, 10.0]),
    n_activations=np.array([5, 4, 2]),
    n_kept_activations=np.array([5, 4, 2]),
)
N_LAYERS = SHAPE.n_layers


def fleet(
    unit_s: Sequence[float],
    *,
    download_s: Sequence[float] | float = 0.0,
    latency_s: Sequence[float] | float = 0.0,
    seconds_per_byte: Sequence[float] | float = 0.0,
    n_rows: Sequence[int] | int = 16,
    **laws: Any,
) -> Fleet:
    """Uploads take latency_s + bytes x seconds_per_byte."""
    n = len(unit_s)
    per_byte, latency = np.broadcast_to(seconds_per_byte, n)[:, None], np.broadcast_to(latency_s, n)[:, None]
    upload_s = latency + per_byte * SHAPE.suffix_bytes
    upload_s[:, 0] = 0.0
    return Fleet(
        unit_s=np.asarray(unit_s, dtype=np.float64),
        reach_share=reach_share(SHAPE),
        download_s=np.broadcast_to(np.asarray(download_s, dtype=np.float64), n),
        upload_s=upload_s,
        shape=SHAPE,
        n_rows=np.broadcast_to(n_rows, n),
        n_samples=np.arange(10, 10 + n),
        **laws,
    )


# ---- luck -----------------------------------------------------------------------------------------------------------


def step_ends_s(on: Fleet, n_rounds: int, n_steps: int, rng: np.random.Generator, share: Array | float = 1.0) -> Array:
    """When each step ends, `[round, device, step]`; share: of a full step, `[device]`."""
    size = (n_rounds, on.n_devices)
    task = np.ones(size) if on.task_factor is None else on.task_factor.draw(rng.random(size))
    steps = np.ones((*size, n_steps))
    if on.step_factor is not None:
        steps = on.step_factor.draw(rng.random((*size, n_steps)))
    unit_s = on.unit_s * share
    return np.asarray(on.download_s[:, None] + (task * unit_s)[:, :, None] * np.cumsum(steps, axis=2))


def asked(on: Fleet, n_rounds: int, n_asked: int, rng: np.random.Generator) -> BoolArray:
    places = rng.permuted(np.tile(np.arange(on.n_devices), (n_rounds, 1)), axis=1)
    return np.asarray(places < n_asked)


# ---- rounds ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Played:
    """round_s: `[round]`. depth: that counts, 0 if the device is not aggregated. weights: `[round, device, layer]`.

    n_steps: whole steps finished by the device. uploaded_share, downloaded_share: of its messages; upload_depth: what
    it uploads.
    """

    on: Fleet
    n_asked: int
    round_s: Array
    depth: IntArray
    weights: Array
    n_steps: IntArray
    used_steps: int
    uploaded_share: Array
    upload_depth: IntArray
    downloaded_share: Array

    def value(self, one: Expectation) -> Array:
        """The quantity in each round."""
        held = np.arange(N_LAYERS) >= N_LAYERS - self.depth[:, :, None]
        n = (self.depth > 0).sum(axis=1)
        if one.device is not None:
            own = {"n_steps": self.n_steps, "participation": self.depth > 0}[one.quantity]
            return np.asarray(own[:, one.device], dtype=np.float64)
        if one.layer is not None:
            per_layer = {
                "n_contributors": held.sum(axis=1),
                "is_layer_empty": ~held.any(axis=1),
                "weight_sum": self.weights.sum(axis=1),
                "correction_factor": self.weights.sum(axis=1),
            }
            values_of = per_layer[one.quantity][:, one.layer]
            is_told = held.any(axis=1)[:, one.layer] if one.quantity == "correction_factor" else np.ones(len(n), bool)
            return np.asarray(values_of[is_told], dtype=np.float64)
        flops = SHAPE.step_flops[self.depth] * self.on.n_rows * self.used_steps
        values: dict[str, Any] = {
            "round_s": self.round_s,
            "n_contributions": n,
            "is_empty": n == 0,
            "inverse_n_contributions": np.where(n > 0, 1 / np.maximum(n, 1), 0.0),
            "n_steps": self.n_steps.sum(axis=1) / self.n_asked,
            "used_flops": flops.sum(axis=1),
            "downloaded_bytes": (self.downloaded_share * SHAPE.suffix_bytes[-1]).sum(axis=1),
            "uploaded_bytes": (self.uploaded_share * SHAPE.suffix_bytes[self.upload_depth]).sum(axis=1),
        }
        return np.asarray(values[one.quantity], dtype=np.float64)


def mean_weights(depth: IntArray) -> Array:
    """Each layer's plain mean over those who hold it."""
    held = (np.arange(N_LAYERS) >= N_LAYERS - depth[:, :, None]).astype(float)
    return np.asarray(held / np.maximum(held.sum(axis=1, keepdims=True), 1.0))


def shares(end_s: Array, begin_s: Array, length_s: Array) -> Array:
    """How much of a transfer is done at end_s."""
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.clip((end_s[:, None] - begin_s) / length_s, 0.0, 1.0)
    return np.where(length_s > 0, part, end_s[:, None] >= begin_s)


def whole_tasks(
    on: Fleet,
    n_steps: int,
    n_asked: int,
    k: int,
    n_rounds: int,
    seed: int,
    *,
    deadline_s: float = np.inf,
    wait_out: bool = False,
) -> Played:
    """Tasks of whole steps over all layers; the round ends with the k-th arrival or at the deadline; the rest is cancelled."""
    rng = np.random.default_rng(seed)
    ends_s, is_asked = step_ends_s(on, n_rounds, n_steps, rng), asked(on, n_rounds, n_asked, rng)
    upload_s = on.upload_s[:, -1]
    arrived_s = np.where(is_asked, ends_s[:, :, -1] + upload_s, np.inf)
    kth = np.sort(arrived_s, axis=1)[:, k - 1]
    round_s = np.full(n_rounds, deadline_s) if wait_out else np.minimum(kth, deadline_s)
    depth = np.where(arrived_s <= round_s[:, None] * (1 + 1e-12), N_LAYERS, 0)
    uploaded = shares(round_s * (1 + 1e-12), ends_s[:, :, -1], np.broadcast_to(upload_s, depth.shape)) * is_asked
    return Played(
        on, n_asked, round_s, depth, mean_weights(depth),
        ((ends_s <= round_s[:, None, None] * (1 + 1e-12)) & is_asked[:, :, None]).sum(axis=2), n_steps,
        uploaded, np.full_like(depth, N_LAYERS),
        shares(round_s * (1 + 1e-12), np.zeros_like(arrived_s), np.broadcast_to(on.download_s, depth.shape)) * is_asked,
    )  # fmt: skip


def layered_tasks(
    on: Fleet,
    n_asked: int,
    deadline_s: float,
    n_rounds: int,
    seed: int,
    *,
    on_arrival: bool = False,
    wait_out: bool = False,
    lowest: int | None = None,
    layer_law: Law | None = None,
) -> Played:
    """One step by layers until the deadline. lowest: depths are drawn uniformly from there. layer_law: of each layer."""
    rng = np.random.default_rng(seed)
    is_asked = asked(on, n_rounds, n_asked, rng)
    size = (n_rounds, on.n_devices)
    if lowest is not None:
        drawn = rng.integers(lowest, N_LAYERS + 1, size)
        reached_s = np.full((*size, N_LAYERS), np.inf)
    elif layer_law is not None:
        own = np.diff(on.reach_share) * layer_law.draw(rng.random((*size, N_LAYERS)))
        reached_s = on.download_s[:, None] + on.unit_s[:, None] * (on.reach_share[0] + np.cumsum(own, axis=2))
    else:
        whole = step_ends_s(on, n_rounds, 1, rng) - on.download_s[:, None]
        reached_s = on.download_s[:, None] + whole * on.reach_share[1:]
    up_s = on.upload_s[:, 1:]
    if on_arrival:
        fits = on.download_s[:, None] + up_s <= deadline_s
        in_time = reached_s + up_s <= deadline_s if lowest is None else fits & (np.arange(N_LAYERS) < drawn[:, :, None])
    else:
        in_time = reached_s <= deadline_s if lowest is None else np.arange(N_LAYERS) < drawn[:, :, None]
    depth = np.where(is_asked, in_time.sum(axis=2), 0)
    last = np.maximum(depth - 1, 0)
    is_whole = depth == N_LAYERS
    if on_arrival:
        at = np.take_along_axis(reached_s + up_s, last[:, :, None], axis=2)[:, :, 0]
        there_s = np.where(depth > 0, deadline_s if lowest is not None else at, deadline_s)
    else:
        stopped_s = np.where(is_whole & (lowest is None), reached_s[:, :, -1], deadline_s)
        stopped_s = np.maximum(stopped_s, deadline_s) if wait_out else stopped_s
        sent = np.take_along_axis(np.broadcast_to(on.upload_s, (*size, N_LAYERS + 1)), depth[:, :, None], axis=2)[
            :, :, 0
        ]
        done_s = np.where(is_whole & (lowest is None), reached_s[:, :, -1], deadline_s)
        there_s = np.maximum(done_s + sent, stopped_s)
    there_s = np.where(is_asked, there_s, 0.0)
    round_s = there_s.max(axis=1)
    if wait_out:
        round_s = np.maximum(round_s, deadline_s)
    down = np.where(is_asked, np.minimum(1.0, deadline_s / np.maximum(on.download_s, 1e-300)), 0.0)
    return Played(
        on, n_asked, round_s, depth, mean_weights(depth), (depth == N_LAYERS).astype(np.int64), 1,
        is_asked.astype(float), depth, down,
    )  # fmt: skip


# ---- comparison -----------------------------------------------------------------------------------------------------


def assert_agree(found: Sequence[Expectation], played: Played, *, without: Sequence[str] = ()) -> None:
    """Every mean within 4.5 standard errors (a hundred comparisons a test), every variance within 8 of its own.

    without: the quantities that have no closed form; all others must have one.
    """
    assert {one.quantity for one in found if one.mean is None} == set(without)
    for one in found:
        if one.mean is None:
            continue
        values = played.value(one)
        if not len(values):
            continue  # no round has a contributor to the layer
        n, spread = len(values), float(values.var())
        scale = max(abs(one.mean), 1e-300)
        if one.variance is not None and one.variance < 1e-18 * scale**2:
            np.testing.assert_allclose(values, one.mean, rtol=1e-9, atol=1e-12, err_msg=str(one))
            continue
        error = np.sqrt((spread if one.variance is None else one.variance) / n)
        # An event too rare to be seen has no spread of its own: 1/n is what one occurrence would make.
        assert abs(values.mean() - one.mean) <= max(4.5 * error, 1e-9 * scale, 4.5 * scale / n), (
            one,
            values.mean(),
            error,
        )
        n_unlike = int((np.abs(values - np.median(values)) > 1e-9 * scale).sum())
        if one.variance is not None and n_unlike >= 100:  # a handful of exceptions says little about a variance
            fourth = float(((values - values.mean()) ** 4).mean())
            assert abs(spread - one.variance) <= 8 * np.sqrt((fourth + one.variance**2) / n), (one, spread)
