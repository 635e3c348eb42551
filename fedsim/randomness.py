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
import numpy.typing as npt

from fedsim.facts import Array, IntArray

Words = npt.NDArray[np.uint64]

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

    def keys(self, devices: IntArray, tasks: IntArray, *, step: int = 0, lane: int = 0) -> Words:
        """One key for each (device, task ordinal) pair, `[job]`: 53 bits, for `permuted` and `drawn`."""
        return (self.at(devices, tasks, step=step, lane=lane) * 2.0**53).astype(np.uint64)


# ---- many small permutations ----------------------------------------------------------------------------------------

_N_TURNS = 4
_FEW = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


def permuted(positions: IntArray, n: IntArray, key: Words) -> IntArray:
    """Where a keyed random permutation of 0 ... n-1 sends each position; all three of one shape, `[draw]`.

    Costs only the positions asked for: the first 16 of 60,000 samples cost as much as the first 16 of 20. A Feistel
    network on a rectangle just larger than n, applied again to what falls outside (Black, Rogaway, "Ciphers with
    arbitrary finite domains", CT-RSA 2002); its round keys come from SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
    """
    sides = np.maximum(np.ceil(np.sqrt(n)), 1).astype(np.int64)
    width, height = sides.astype(np.uint64), (-(-n // sides)).astype(np.uint64)
    round_keys = _keys(key)
    found = _feistel(positions.astype(np.uint64), width, height, round_keys)
    bound = n.astype(np.uint64)
    outside = np.flatnonzero(found >= bound)
    while len(outside):
        keys = [k[outside] for k in round_keys]
        found[outside] = _feistel(found[outside], width[outside], height[outside], keys)
        outside = outside[found[outside] >= bound[outside]]
    few = np.flatnonzero(n <= _FEW)  # a Feistel network this small does not reach every permutation
    if len(few):
        found[few] = _ranks(positions[few], n[few], key[few])
    return found.astype(np.int64)


def _ranks(positions: IntArray, n: IntArray, key: Words) -> IntArray:
    """The rank of each position's word among those of 0 ... n-1."""
    key = _mixed(key)
    word = _mixed(key + positions.astype(np.uint64) * _GOLDEN)
    others = (_mixed(key + np.full_like(key, j) * _GOLDEN) for j in range(_FEW))
    ranks = np.zeros_like(n)
    for j, other in enumerate(others):
        ranks += (other < word) & (j < n)
    return ranks


def drawn(positions: IntArray, n: IntArray, key: Words) -> IntArray:
    """A draw from 0 ... n-1 with replacement for each position under its key, `[draw]`."""
    words = _mixed(_mixed(key) + positions.astype(np.uint64) * _GOLDEN)
    return np.asarray(np.floor((words >> np.uint64(11)) * 2.0**-53 * n), dtype=np.int64)


def _feistel(x: Words, width: Words, height: Words, keys: list[Words]) -> Words:
    row = x // width
    column = x - row * width
    for i in range(_N_TURNS):
        addend, factor = keys[i], keys[i - 1] | np.uint64(1)
        row = _turned(row, (column + addend) * factor, height)
        column = _turned(column, (row + addend) * factor, width)
    return row * width + column


def _turned(x: Words, word: Words, n: Words) -> Words:
    """x moved on, around 0 ... n-1, by a number of that range that the word chooses."""
    word = (word ^ (word >> _HALF)) * _GOLDEN
    x = x + (((word >> _HALF) * n) >> _HALF)
    return np.where(x >= n, x - n, x)


def _keys(key: Words) -> list[Words]:
    keys = []
    for _ in range(_N_TURNS):
        key = key + _GOLDEN
        keys.append(_mixed(key))
    return keys


def _mixed(words: Words) -> Words:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
