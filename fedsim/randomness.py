"""Addressed luck: a uniform is looked up by (seed, purpose, device, task, step), never consumed.

Philox is counter-based (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): key = (seed, purpose),
counter = (device block, step, task ordinal, lane). So every policy meets the same weather, adding a policy or a device
never changes another's draws, and a run can be replayed from any point.

One native row per (purpose, task, step) covers a fleet: 0.01 us per draw, where a generator per address costs 2-23 us.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fedsim.facts import Array, IntArray

_BLOCK = 4  # uniforms per Philox counter value
_TINY = 2.0**-54  # a draw is never exactly 0, where an inverse cdf may be infinite; random() is never 1


@dataclass(frozen=True)
class Luck:
    """The uniforms of one purpose under one seed, each in the open interval (0, 1)."""

    seed: int
    purpose: str

    @cached_property
    def _key(self) -> tuple[int, int]:
        digest = hashlib.sha256(self.purpose.encode()).digest()
        return self.seed % 2**64, int.from_bytes(digest[:8], "little")

    @cached_property
    def _philox(self) -> tuple[np.random.Philox, Any, np.random.Generator]:
        # One bit generator whose state is set anew for every address: building one costs ten times as much.
        bits = np.random.Philox(key=np.array(self._key, dtype=np.uint64))
        return bits, bits.state, np.random.Generator(bits)

    def _at(self, *counter: int) -> np.random.Generator:
        bits, state, generator = self._philox
        state["state"]["counter"] = np.array(counter, dtype=np.uint64)
        state["buffer_pos"] = _BLOCK
        state["has_uint32"] = 0
        bits.state = state
        return generator

    def row(self, n: int, *, task: int = 0, step: int = 0, lane: int = 0) -> Array:
        """One uniform for each device 0 ... n-1, `[device]`."""
        uniforms = self._at(0, step, task, lane).random(n)
        return np.maximum(uniforms, _TINY, out=uniforms)

    def at(self, devices: IntArray, tasks: IntArray, *, step: int = 0, lane: int = 0) -> Array:
        """One uniform for each (device, task ordinal) pair, `[job]`; equals `row(...)[device]` for that task."""
        if len(devices) == 0:
            return np.empty(0)
        if (tasks == tasks[0]).all():
            return self._one_task(devices, int(tasks[0]), step, lane)
        uniforms = np.empty(len(devices))
        for task in np.unique(tasks):
            mine = tasks == task
            uniforms[mine] = self._one_task(devices[mine], int(task), step, lane)
        return uniforms

    def _one_task(self, devices: IntArray, task: int, step: int, lane: int) -> Array:
        first = int(devices.min()) // _BLOCK
        span = int(devices.max()) + 1 - first * _BLOCK
        if span <= 256 * len(devices):
            uniforms = self._at(first, step, task, lane).random(span)
            start = int(devices[0]) - first * _BLOCK
            is_range = start + len(devices) == span and bool((devices[1:] > devices[:-1]).all())
            uniforms = uniforms[start:] if is_range else uniforms[devices - first * _BLOCK]
        else:  # few devices of a huge fleet: one address each costs less than the row between them
            uniforms = np.array(
                [self._at(d // _BLOCK, step, task, lane).random(_BLOCK)[d % _BLOCK] for d in devices.tolist()]
            )
        return np.maximum(uniforms, _TINY, out=uniforms)

    def generator(self, *address: int) -> np.random.Generator:
        """A generator for one address of up to three numbers (permutations, splits); independent of `row` and `at`."""
        if len(address) > 3:
            raise ValueError(f"an address has at most three numbers; got {address}")
        words = [self._key[0], (self._key[1] + 1) % 2**64]
        counter = [0, *address, *([0] * (3 - len(address)))]
        return np.random.Generator(np.random.Philox(key=np.array(words, dtype=np.uint64), counter=counter))
