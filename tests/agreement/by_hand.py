"""Federated learning written out by hand in NumPy and plain loops: what fedsim is compared with, number by number.

Nothing here comes from fedsim. A world is a fleet whose times are fixed numbers, data per device and a multilayer
perceptron; a story says what one round of a policy makes of it; `play` trains that and nothing else.

Sources: the perceptron's gradients by the chain rule (softmax cross-entropy, mean over rows); costs of a step from
counting multiply-adds: forward F = sum f_l, depth d costs F + the d output-most weight gradients + d - 1 input
gradients, each f_l; policies from their papers' pseudo-code (arXiv 1602.05629, 1803.01113, 2210.03521, 2403.18375,
2311.10002). Layers are numbered from the input; depth d means the last d of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
IntArray = np.ndarray[Any, np.dtype[np.int64]]
Layers = list[tuple[FloatArray, FloatArray]]  # weight [out, in] and bias [out] of each layer, from the input
Rows = tuple[FloatArray, IntArray]  # inputs [row, feature], labels [row]


# ---- a multilayer perceptron ----------------------------------------------------------------------------------------


def _outputs(layers: Layers, x: FloatArray) -> list[FloatArray]:
    """What each layer takes in, and the last one's outputs."""
    taken = [x]
    for i, (weight, bias) in enumerate(layers):
        z = taken[-1] @ weight.T + bias
        taken.append(z if i == len(layers) - 1 else np.maximum(z, 0.0))
    return taken


def _log_probabilities(z: FloatArray) -> FloatArray:
    z = z - z.max(axis=1, keepdims=True)
    found: FloatArray = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return found


def loss(layers: Layers, rows: Rows) -> float:
    """Mean cross-entropy in nats."""
    log_p = _log_probabilities(_outputs(layers, rows[0])[-1])
    return float(-log_p[np.arange(len(rows[1])), rows[1]].mean())


def gradients(layers: Layers, rows: Rows) -> Layers:
    """Of the mean cross-entropy, for every layer."""
    x, labels = rows
    taken = _outputs(layers, x)
    error = np.exp(_log_probabilities(taken[-1]))
    error[np.arange(len(labels)), labels] -= 1.0
    error /= len(labels)
    found: Layers = []
    for i in reversed(range(len(layers))):
        found.append((error.T @ taken[i], error.sum(axis=0)))
        error = (error @ layers[i][0]) * (taken[i] > 0)
    return found[::-1]


def step_shares(widths: tuple[int, ...]) -> list[float]:
    """Share of a full step after which depth 1, 2, ... is done; the forward pass comes first."""
    f = [n_in * n_out for n_in, n_out in pairwise(widths)]
    done, seconds = [], float(sum(f))
    for i in reversed(range(len(f))):
        done.append(seconds + f[i])  # this layer's weights; the gradient for the layer before it comes after
        seconds += 2 * f[i]
    return [each / done[-1] for each in done]


# ---- the world ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A fleet of fixed times, what each device holds, and how it trains.

    widths: from the inputs to the outputs. ready_s: download time of the whole model, the same for all. step_s,
    upload_latency_s, shards: one per device. decay: the learning rate is multiplied by it at each new version.
    """

    widths: tuple[int, ...]
    start: Layers
    shards: list[Rows]
    test: Rows
    step_s: tuple[float, ...]
    ready_s: float
    upload_latency_s: tuple[float, ...]
    upload_bits_per_s: float
    learning_rate: float = 0.1
    decay: float = 1.0
    momentum: float = 0.0
    weight_decay: float = 0.0

    @property
    def n_devices(self) -> int:
        return len(self.step_s)

    @property
    def n_layers(self) -> int:
        return len(self.widths) - 1

    def steps_end_s(self, device: int, n_steps: int) -> float:
        """Offset from the round's start at which full steps are done."""
        at = self.ready_s
        for _ in range(n_steps):
            at += self.step_s[device]
        return at

    def reached_s(self, device: int, depth: int) -> float:
        """Offset at which the first step has done its `depth` output-most layers."""
        return self.ready_s + self.step_s[device] * step_shares(self.widths)[depth - 1]

    def upload_s(self, device: int, depth: int) -> float:
        """Seconds to send the last `depth` layers as 32-bit numbers."""
        n = sum((self.widths[i] + 1) * self.widths[i + 1] for i in range(self.n_layers - depth, self.n_layers))
        return self.upload_latency_s[device] + 32.0 * n / self.upload_bits_per_s


@dataclass(frozen=True)
class Round:
    """What one round comes to: how long it lasts; for each contributor the depths of its gradients, and its weights.

    depths: device -> the depth of each local step, in order. weights: device -> one number per layer.
    """

    length_s: float
    depths: dict[int, list[int]]
    weights: dict[int, list[float]]


Story = Callable[[World, int], Round]  # of the round with this number


# ---- the six policies -----------------------------------------------------------------------------------------------


def shared_weights(
    world: World, depths: dict[int, list[int]], *, by_samples: bool = False, total: float | None = None
) -> dict[int, list[float]]:
    """Each layer's weights, relative to those who hold the layer, or to a stated total."""
    size = {device: float(len(world.shards[device][1])) if by_samples else 1.0 for device in depths}
    weights: dict[int, list[float]] = {device: [] for device in depths}
    for layer in range(world.n_layers):
        holders = [device for device, own in depths.items() if layer >= world.n_layers - own[0]]
        over = sum(size[device] for device in holders) if total is None else total
        for device in depths:
            weights[device].append(size[device] / over if device in holders else 0.0)
    return weights


def fedavg(world: World, local_steps: int, *, n_awaited: int | None = None, by_samples: bool = True) -> Round:
    """Everyone is asked; the first `n_awaited` to arrive count (all if None)."""
    full = world.n_layers
    arrival = {d: world.steps_end_s(d, local_steps) + world.upload_s(d, full) for d in range(world.n_devices)}
    awaited = sorted(arrival, key=lambda d: arrival[d])[:n_awaited]
    depths = {d: [full] * local_steps for d in awaited}
    return Round(max(arrival[d] for d in awaited), depths, shared_weights(world, depths, by_samples=by_samples))


def drop_stragglers(world: World, local_steps: int, deadline_s: float, *, dilute: bool) -> Round:
    """Whoever has arrived by the deadline counts, exact ties included."""
    full = world.n_layers
    arrival = {d: world.steps_end_s(d, local_steps) + world.upload_s(d, full) for d in range(world.n_devices)}
    depths = {d: [full] * local_steps for d in arrival if arrival[d] <= deadline_s}
    total = float(world.n_devices) if dilute else None
    return Round(min(deadline_s, max(arrival.values())), depths, shared_weights(world, depths, total=total))


def k_sync(world: World, k: int) -> Round:
    """One gradient from each of the k that arrive first."""
    return fedavg(world, 1, n_awaited=k, by_samples=False)


def stsyn(world: World, k: int, local_steps: int) -> Round:
    """All go on until the k-th has done `local_steps`; everybody's whole steps count and are then uploaded."""
    ends = sorted(world.steps_end_s(d, local_steps) for d in range(world.n_devices))
    stop_s = ends[k - 1]
    depths: dict[int, list[int]] = {}
    for d in range(world.n_devices):
        n = 0
        while world.steps_end_s(d, n + 1) <= stop_s:
            n += 1
        if n:
            depths[d] = [world.n_layers] * n
    last_s = max(stop_s + world.upload_s(d, world.n_layers) for d in depths)
    return Round(last_s, depths, shared_weights(world, depths))


def salf(world: World, deadline_s: float, *, deadline_on: str, diluted: bool) -> Round:
    """One step, from the output until the deadline; on arrival the device stops early enough for its upload."""
    full = world.n_layers
    depths: dict[int, list[int]] = {}
    arrival: dict[int, float] = {}
    for d in range(world.n_devices):
        for depth in range(1, full + 1):
            done_s, upload_s = world.reached_s(d, depth), world.upload_s(d, depth)
            if done_s + (upload_s if deadline_on == "arrival" else 0.0) <= deadline_s:
                depths[d] = [depth]
                stopped_s = done_s if depth == full or deadline_on == "arrival" else deadline_s
                arrival[d] = stopped_s + upload_s
    if deadline_on == "arrival":
        length_s = max(arrival.values()) if len(arrival) == world.n_devices else deadline_s
    else:
        through_s = max(world.steps_end_s(d, 1) for d in range(world.n_devices))
        length_s = max(min(deadline_s, through_s), *arrival.values())
    return Round(length_s, depths, shared_weights(world, depths, total=float(world.n_devices) if diluted else None))


def fedpmt(world: World, local_steps: int, widths: list[int], *, by_samples: bool, dilute: bool) -> Round:
    """Device d trains its widths[d] output-most layers; everyone with any is waited for."""
    depths = {d: [width] * local_steps for d, width in enumerate(widths) if width}
    shares, arrival = step_shares(world.widths), []
    for d, own in depths.items():
        at = world.ready_s
        for depth in own:
            at += world.step_s[d] * shares[depth - 1]
        arrival.append(at + world.upload_s(d, own[0]))
    total = None
    if dilute:
        total = float(sum(len(world.shards[d][1]) if by_samples else 1 for d in depths))
    return Round(max(arrival), depths, shared_weights(world, depths, by_samples=by_samples, total=total))


# ---- training -------------------------------------------------------------------------------------------------------


def local_change(world: World, layers: Layers, device: int, depths: list[int], version: int) -> Layers:
    """What the device's steps change; v = momentum v + gradient + weight_decay x, x -= rate v, from v = 0."""
    rate = world.learning_rate * world.decay**version
    here = [(weight.copy(), bias.copy()) for weight, bias in layers]
    v = [(np.zeros_like(weight), np.zeros_like(bias)) for weight, bias in layers]
    for depth in depths:
        found = gradients(here, world.shards[device])
        for i in range(world.n_layers - depth, world.n_layers):
            for j in (0, 1):  # weight, bias
                v[i][j][...] = world.momentum * v[i][j] + found[i][j] + world.weight_decay * here[i][j]
                here[i][j][...] -= rate * v[i][j]
    return [
        (new[0] - old[0], new[1] - old[1]) if i >= world.n_layers - depths[0] else (0 * old[0], 0 * old[1])
        for i, (new, old) in enumerate(zip(here, layers, strict=True))
    ]


ServerRule = Callable[[int, FloatArray, FloatArray], FloatArray]  # (which tensor, its value, its change) -> new value


def plain(_: int, value: FloatArray, change: FloatArray) -> FloatArray:
    """The server adds the weighted sum."""
    return value + change


def play(world: World, story: Story, n_rounds: int, server: ServerRule = plain) -> tuple[Layers, list[float]]:
    """The global model after `n_rounds`, and when each round ended."""
    layers, ends_s, version, now_s = world.start, [], 0, 0.0
    for number in range(n_rounds):
        happened = story(world, number)
        changes = {d: local_change(world, layers, d, own, version) for d, own in happened.depths.items()}
        updated: Layers = []
        is_changed = False
        for i, pair in enumerate(layers):
            holders = [d for d in changes if happened.weights[d][i] != 0.0]
            if not holders:
                updated.append(pair)  # nobody's: neither the layer nor its server state moves
                continue
            is_changed = True
            sums = [np.sum([happened.weights[d][i] * changes[d][i][j] for d in holders], axis=0) for j in (0, 1)]
            updated.append((server(2 * i, pair[0], sums[0]), server(2 * i + 1, pair[1], sums[1])))
        layers, version, now_s = updated, version + is_changed, now_s + happened.length_s
        ends_s.append(now_s)
    return layers, ends_s
