"""Perceptrons counted by hand, fleets that train parts of them, and rounds of it in plain NumPy.

A layer of n inputs and m outputs costs n m multiply-adds forward, n m for its weights, n m for its inputs (but for the
input layer): a step of widths d0 ... dL costs 3 F - d0 d1 of them, F = sum of n m. Parameters: sum of (n + 1) m.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fedsim.facts import Array, IntArray, ModelShape
from fedsim.theory.fleet import Expectation, Fleet, reach_share

WIDTHS = (12, 8, 10, 3)


def kept(widths: Sequence[int], rate: float) -> list[int]:
    return [widths[0], *[math.ceil(rate * n - 1e-9) for n in widths[1:-1]], widths[-1]]


def multiply_adds(widths: Sequence[int]) -> int:
    """Of a step on one row."""
    return 3 * sum(n * m for n, m in pairwise(widths)) - widths[0] * widths[1]


def n_bytes(widths: Sequence[int]) -> int:
    return 4 * sum((n + 1) * m for n, m in pairwise(widths))


def perceptron(widths: Sequence[int] = WIDTHS) -> ModelShape:
    products = np.array([float(n * m) for n, m in pairwise(widths)])
    parameters = np.array([(n + 1) * m for n, m in pairwise(widths)])
    outputs = np.array(widths[1:])
    return ModelShape(
        tuple(f"fc{i}" for i in range(len(products))),
        parameters, 4 * parameters, 2 * products, 2 * products, 2 * products, outputs, outputs,
        narrower=lambda rate, _: perceptron(kept(widths, rate)),
    )  # fmt: skip


def fleet(
    unit_s: Sequence[float],
    *,
    latency_s: Sequence[float] | float = 0.0,
    s_per_byte: Sequence[float] | float = 0.0,
    n_rows: Sequence[int] | int = 16,
    **other: Any,
) -> Fleet:
    """Both links take latency_s + bytes x s_per_byte, the download half of it."""
    n, shape = len(unit_s), perceptron()
    latency, per_byte = np.broadcast_to(latency_s, n), np.broadcast_to(s_per_byte, n)

    def up_s_of(size: IntArray) -> Array:
        return np.asarray(latency + per_byte * size)

    upload_s = latency[:, None] + per_byte[:, None] * shape.suffix_bytes
    return Fleet(
        unit_s=np.asarray(unit_s, dtype=np.float64),
        reach_share=reach_share(shape),
        download_s=upload_s[:, -1] / 2,
        upload_s=upload_s,
        shape=shape,
        n_rows=np.broadcast_to(np.asarray(n_rows, dtype=np.float64), n),
        n_samples=np.arange(10, 10 + n),
        down_s_of=lambda size: up_s_of(size) / 2,
        up_s_of=up_s_of,
        **other,
    )


@dataclass(frozen=True, eq=False)
class Played:
    """round_s: `[round]`. rate: of those asked, 0 of others, `[round, device]`."""

    on: Fleet
    round_s: Array
    rate: Array
    n_steps: int

    def value(self, one: Expectation) -> Array:
        """The quantity in each round."""
        is_asked, rows = self.rate > 0, np.ones(len(self.rate))
        if one.device is not None:
            scale = {"participation": 1, "n_steps": self.n_steps}[one.quantity]
            return np.asarray(scale * is_asked[:, one.device], dtype=np.float64)
        n = is_asked.sum(axis=1)
        values: dict[str, Array] = {
            "round_s": self.round_s,
            "n_contributions": n,
            "is_empty": 0 * rows,
            "inverse_n_contributions": 1 / n,
            "n_steps": self.n_steps * rows,
            "n_contributors": n,
            "is_layer_empty": 0 * rows,
            "weight_sum": rows,
            "used_flops": (self._of_parts(multiply_adds) * 2 * self.on.n_rows * self.n_steps).sum(axis=1),
            "downloaded_bytes": self._of_parts(n_bytes).sum(axis=1),
            "uploaded_bytes": self._of_parts(n_bytes).sum(axis=1),
        }
        return np.asarray(values[one.quantity], dtype=np.float64)

    def _of_parts(self, count: Any) -> Array:
        """`[round, device]`."""
        return _of_rates(self.rate, count)


def _of_rates(rate: Array, count: Any) -> Array:
    found = np.zeros(rate.shape)
    for one in np.unique(rate[rate > 0]):
        found[rate == one] = count(kept(WIDTHS, one))
    return found


def played(on: Fleet, rate: Array, n_steps: int, rng: np.random.Generator) -> Played:
    """Rounds in which everyone with a rate, `[round, device]`, trains its part and is waited for."""
    size = rate.shape
    task = np.ones(size) if on.task_factor is None else on.task_factor.draw(rng.random(size))
    steps = np.ones((*size, n_steps)) if on.step_factor is None else on.step_factor.draw(rng.random((*size, n_steps)))
    share = _of_rates(rate, multiply_adds) / multiply_adds(WIDTHS)
    message_s = np.zeros(size)
    for one in np.unique(rate[rate > 0]):
        size_of_all = np.full(size[1], n_bytes(kept(WIDTHS, one)))
        message_s += (rate == one) * (on.down_s_of(size_of_all) + on.up_s_of(size_of_all))
    through_s = np.where(rate > 0, message_s + task * on.unit_s * share * steps.sum(axis=2), 0.0)
    return Played(on, through_s.max(axis=1), rate, n_steps)
