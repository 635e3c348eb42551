"""Training of parts of a perceptron in NumPy: any units of each hidden layer, scaled activations, masked classes.

Nothing here comes from fedsim. A part is the list of the units that it has in every layer, inputs and outputs included;
its weights are those rows and columns of the whole one's. A round averages each element over the parts that hold it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tests.agreement.by_hand import IntArray, Layers, Rows, World

Units = list[IntArray]  # kept in each layer, from the inputs to the outputs


def n_kept(rate: float, n: int) -> int:
    return math.ceil(rate * n - 1e-9)


def leading(widths: Sequence[int], rate: float) -> Units:
    """All inputs and outputs, the first ceil(rate n) units between."""
    return [np.arange(n if i in (0, len(widths) - 1) else n_kept(rate, n)) for i, n in enumerate(widths)]


def step_share(widths: Sequence[int], units: Units) -> float:
    """Of a full step over the whole perceptron: three products of each layer but two of the input layer's."""

    def products(sizes: Sequence[int]) -> int:
        each = [n_in * n_out for n_in, n_out in pairwise(sizes)]
        return 3 * sum(each) - each[0]

    return products([len(own) for own in units]) / products(widths)


def message_bits(units: Units) -> float:
    sizes = [len(own) for own in units]
    return 32.0 * sum((n_in + 1) * n_out for n_in, n_out in pairwise(sizes))


def round_trip_s(world: World, device: int, units: Units, local_steps: int) -> float:
    """Download at 2^20 bit/s after 0.125 s, steps, upload; the fleet of test_numpy."""
    at = 0.125 + message_bits(units) / 2**20
    for _ in range(local_steps):
        at += world.step_s[device] * step_share(world.widths, units)
    return at + world.upload_latency_s[device] + message_bits(units) / world.upload_bits_per_s


@dataclass(frozen=True)
class Task:
    """units: of the device's part. scales: what each layer's outputs are multiplied by. classes: whose logits count."""

    units: Units
    scales: list[float]
    classes: IntArray

    @classmethod
    def of(cls, widths: Sequence[int], units: Units, rows: Rows, *, is_scaled: bool, is_masked: bool) -> Task:
        scales = [n / len(own) if is_scaled else 1.0 for n, own in zip(widths[1:], units[1:], strict=True)]
        return cls(units, scales, np.unique(rows[1]) if is_masked else np.arange(widths[-1]))


def cut(layers: Layers, units: Units) -> Layers:
    return [
        (weight[np.ix_(own, before)].copy(), bias[own].copy())
        for (weight, bias), before, own in zip(layers, units[:-1], units[1:], strict=True)
    ]


def gradients(layers: Layers, rows: Rows, task: Task) -> Layers:
    """Of the mean cross-entropy of logits that are 0 outside the task's classes."""
    x, labels = rows
    taken = [x]
    for i, ((weight, bias), scale) in enumerate(zip(layers, task.scales, strict=True)):
        z = (taken[-1] @ weight.T + bias) * scale
        taken.append(z if i == len(layers) - 1 else np.maximum(z, 0.0))
    counts = np.zeros(len(layers[-1][1]))
    counts[task.classes] = 1.0
    logits = taken[-1] * counts
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = odds / odds.sum(axis=1, keepdims=True)
    error[np.arange(len(labels)), labels] -= 1.0
    error *= counts / len(labels)
    found: Layers = []
    for i in reversed(range(len(layers))):
        error = error * task.scales[i]
        found.append((error.T @ taken[i], error.sum(axis=0)))
        error = (error @ layers[i][0]) * (taken[i] > 0)
    return found[::-1]


def changed(world: World, start: Layers, device: int, task: Task, local_steps: int) -> Layers:
    """v = momentum v + gradient + weight_decay x, x -= rate v, from v = 0."""
    here, v = cut(start, task.units), [(0 * weight, 0 * bias) for weight, bias in cut(start, task.units)]
    for _ in range(local_steps):
        found = gradients(here, world.shards[device], task)
        for own, speed, gradient in zip(here, v, found, strict=True):
            for j in (0, 1):
                speed[j][...] = world.momentum * speed[j] + gradient[j] + world.weight_decay * own[j]
                own[j][...] -= world.learning_rate * speed[j]
    return [(new[0] - old[0], new[1] - old[1]) for new, old in zip(here, cut(start, task.units), strict=True)]


def averaged(
    world: World, start: Layers, tasks: dict[int, Task], local_steps: int, weight: dict[int, float], *, dilute: bool
) -> Layers:
    """The new global model: each element's changes over the weights of its holders, or of everybody."""
    sums, held = ([(0 * w, 0 * b) for w, b in start] for _ in range(2))
    for device, task in tasks.items():
        for i, (of_weight, of_bias) in enumerate(changed(world, start, device, task, local_steps)):
            is_output = i == len(start) - 1  # where rows of absent classes are left to others
            mine = task.classes if is_output else np.arange(len(of_bias))
            rows = task.units[i + 1][mine]
            places = np.ix_(rows, task.units[i])
            sums[i][0][places] += weight[device] * of_weight[mine]
            sums[i][1][rows] += weight[device] * of_bias[mine]
            held[i][0][places] += weight[device]
            held[i][1][rows] += weight[device]
    everybody = sum(weight.values())
    new: Layers = []
    for pair, total, holders in zip(start, sums, held, strict=True):
        over = [np.full_like(h, everybody) if dilute else np.where(h > 0, h, 1.0) for h in holders]
        new.append((pair[0] + total[0] / over[0], pair[1] + total[1] / over[1]))
    return new
