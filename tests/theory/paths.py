"""Servers that never wait, played upload by upload in plain Python: what closed forms of their rounds are compared with.

Nothing here comes from fedsim.theory but the record that describes a fleet.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedsim.facts import Array, IntArray
from fedsim.theory.fleet import Fleet

_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class Path:
    """One run, versions in order. round_s: `[version]`. device, staleness: of its uploads, `[version, upload]`.

    age: versions that the models under way at the end have missed, `[job]`.
    """

    round_s: Array
    device: IntArray
    staleness: IntArray
    age: IntArray


def cycle_draws(on: Fleet, n_steps: int, rng: np.random.Generator) -> Callable[[int], float]:
    """A device's next cycle, seconds: download, n_steps local steps, upload of the whole model."""
    fixed_s = on.download_s + on.upload_s[:, -1]
    blocks: list[list[float]] = [[] for _ in range(on.n_devices)]

    def draw(device: int) -> float:
        if not blocks[device]:
            task = np.ones(_BLOCK) if on.task_factor is None else on.task_factor.draw(rng.random(_BLOCK))
            steps = np.full(_BLOCK, float(n_steps))
            if on.step_factor is not None:
                steps = on.step_factor.draw(rng.random((_BLOCK, n_steps))).sum(axis=1)
            blocks[device] = (fixed_s[device] + on.unit_s[device] * task * steps).tolist()
        return blocks[device].pop()

    return draw


def path(on: Fleet, n_steps: int, n_versions: int, seed: int, *, at_work: int | None = None, size: int = 1) -> Path:
    """`size` uploads make a version; whoever uploads is replaced by a random idle device, so that `at_work` always are."""
    rng = np.random.default_rng(seed)
    draw = cycle_draws(on, n_steps, rng)
    idle = rng.permutation(on.n_devices).tolist()
    under_way = [(draw(d), d, 0) for d in idle[: at_work or on.n_devices]]
    idle = idle[at_work or on.n_devices :]
    heapq.heapify(under_way)
    ends_s, devices, late = [0.0], [], []
    for version in range(n_versions):
        for held in range(size):
            now_s, device, pulled = heapq.heappop(under_way)
            devices.append(device)
            late.append(version - pulled)
            idle.append(device)
            chosen = int(rng.integers(len(idle)))
            idle[chosen], idle[-1] = idle[-1], idle[chosen]
            is_full = held + 1 == size
            started = idle.pop()
            heapq.heappush(under_way, (now_s + draw(started), started, version + is_full))
        ends_s.append(now_s)
    age = np.array([n_versions - pulled for _, _, pulled in under_way])
    shape = (n_versions, size)
    return Path(np.diff(ends_s), np.reshape(devices, shape), np.reshape(late, shape), age)


def assert_mean(values: Array, expected: float, variance: float | None = None) -> None:
    """Within 4.5 standard errors; values: independent. variance: of one value; that of the values if it is not known."""
    error = np.sqrt((values.var(ddof=1) if variance is None else variance) / len(values))
    assert abs(values.mean() - expected) <= max(4.5 * error, 1e-12 * abs(expected)), (values.mean(), expected, error)
