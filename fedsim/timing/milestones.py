"""What a job has finished when: pure functions of offsets from the job's start.

Progress goes by whole local steps, then by whole layers from the output, a layer's weight gradient before its input
gradient. Work that ends exactly at the deadline counts. Offsets are compared with offsets, never differences of clock
readings: at clock 1e5 s those miss 28 % of the exact ties.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fedsim.facts import Array, IntArray, Task
from fedsim.timing.weather import Weather

_UNCAPPED = np.iinfo(np.int64).max
_KEPT_STEPS = 32  # step durations kept per send; later ones are looked up again (they are addressed, so equal)


class Progress(NamedTuple):
    """Whole steps, layers finished in the next one, and how far that one was in time (0 ... 1); `[job]` each."""

    n_steps: IntArray
    partial_depth: IntArray
    step_share: Array

    @classmethod
    def whole(cls, n_steps: IntArray) -> Progress:
        return cls(n_steps, np.zeros_like(n_steps), np.zeros(len(n_steps)))

    def depth(self, full: IntArray) -> IntArray:
        """Output-most layers with at least one gradient."""
        return np.where(self.n_steps > 0, full, self.partial_depth)


@dataclass
class Work:
    """The compute part of the jobs of one send; columns `[job]`.

    ready_s: offset at which the download is done. step_s: a full step over all layers at step factor 1.
    cap: most local steps. depth: output-most layers trained.
    """

    weather: Weather
    task: Task
    devices: IntArray
    ordinals: IntArray
    ready_s: Array
    step_s: Array
    cap: IntArray
    depth: IntArray
    _kept_s: Array = field(default_factory=lambda: np.empty((0, 0)))

    @classmethod
    def start(cls, weather: Weather, task: Task, devices: IntArray, ordinals: IntArray) -> Work:
        n = len(devices)
        full = weather.shape.n_layers
        depth = np.broadcast_to(np.asarray(full if task.depth is None else task.depth, dtype=np.int64), (n,))
        return cls(
            weather=weather,
            task=task,
            devices=devices,
            ordinals=ordinals,
            ready_s=weather.download_s(devices, ordinals),
            step_s=weather.task_unit_s(devices, ordinals),
            cap=np.full(n, _UNCAPPED if task.n_steps is None else task.n_steps),
            depth=depth,
        )

    @property
    def is_drawn(self) -> bool:
        """Whether the fleet draws depths by law instead of timing them."""
        return self.task.unit == "layer" and self.weather.fleet.compute.depth_law is not None

    # ---- step durations -----------------------------------------------------------------------------------------

    def _full_step_s(self, rows: IntArray | slice, first: int, n: int) -> Array:
        """Seconds of steps first ... first+n-1 if they went over all layers, `[job, step]`."""
        factors = self.weather.step_factors(self.devices[rows], self.ordinals[rows], first, n)
        unit = self.step_s[rows][:, None]
        return np.repeat(unit, n, axis=1) if factors is None else unit * factors

    def _steps_s(self, rows: IntArray | slice, first: int, n: int) -> Array:
        """Seconds of steps first ... first+n-1 over the task's layers, `[job, step]`."""
        if self.weather.fleet.compute.layer_factor is None:
            return self._full_step_s(rows, first, n) * self.weather.reach_cost[self.depth[rows]][:, None]
        last = self.depth[rows][:, None] - 1
        costs = [
            np.take_along_axis(self.weather.layer_costs(self.devices[rows], self.ordinals[rows], s), last, axis=1)
            for s in range(first, first + n)
        ]
        return self._full_step_s(rows, first, n) * np.concatenate(costs, axis=1)

    def _durations_s(self, rows: IntArray | slice, first: int, n: int) -> Array:
        if first + n > _KEPT_STEPS:
            return self._steps_s(rows, first, n)
        if self._kept_s.shape[1] < first + n:
            kept = self._kept_s.shape[1]
            new = self._steps_s(slice(None), kept, first + n - kept)
            self._kept_s = np.concatenate([self._kept_s, new], axis=1) if kept else new
        return self._kept_s[rows, first : first + n]

    # ---- milestones ---------------------------------------------------------------------------------------------

    def step_end_s(self, n_steps: int) -> Array:
        """Offset at which a job finishes its `n_steps`-th step; infinite beyond its cap."""
        end = self.ready_s
        for first in range(0, n_steps, _KEPT_STEPS):
            n = min(_KEPT_STEPS, n_steps - first)
            end = self._running_ends(end, slice(None), first, n)[:, -1]
        return np.where(self.cap >= n_steps, end, np.inf)

    def _running_ends(self, start: Array, rows: IntArray | slice, first: int, n: int) -> Array:
        """Ends of the next `n` steps; summed in order, so that the same step ends at the same bit however it is asked."""
        durations = self._durations_s(rows, first, n)
        if n == 1:
            return start[:, None] + durations
        return np.cumsum(np.concatenate([start[:, None], durations], axis=1), axis=1)[:, 1:]

    def finished_s(self) -> Array:
        """Offset at which a job with a capped number of steps is through; infinite if only a stop ends it."""
        if self.task.n_steps is None or self.is_drawn:
            return np.full(len(self.devices), np.inf)
        return self.step_end_s(self.task.n_steps)

    def nth_step_s(self, n: int) -> float:
        """Offset at which the jobs together have finished `n` steps."""
        n_steps = max(1, -(-2 * n // max(len(self.devices), 1)))
        while True:
            n_steps = min(n_steps, int(self.cap.max()))
            ends = self._running_ends(self.ready_s, slice(None), 0, n_steps)
            ends = np.where(np.arange(n_steps)[None, :] < self.cap[:, None], ends, np.inf)
            if ends.size < n:
                return float("inf")
            nth = float(np.partition(ends, n - 1, axis=None)[n - 1])
            still_running = self.cap > n_steps
            if not still_running.any() or nth <= ends[still_running, -1].min():
                return nth
            n_steps *= 2

    def progress(self, rows: IntArray, elapsed_s: Array) -> Progress:
        """What the jobs in `rows` have finished `elapsed_s` after their start."""
        n_steps, end = np.zeros(len(rows), dtype=np.int64), self.ready_s[rows].copy()
        running = np.flatnonzero(end <= elapsed_s)
        cap = self.cap[rows]
        first, block = 0, 8
        while running.size:
            block = int(min(block, cap[running].max() - first))
            ends = self._running_ends(end[running], rows[running], first, block)
            done = (ends <= elapsed_s[running, None]) & (np.arange(first, first + block) < cap[running, None])
            count = done.sum(axis=1)
            n_steps[running] += count
            end[running] = np.where(
                count > 0, np.take_along_axis(ends, np.maximum(count - 1, 0)[:, None], 1)[:, 0], end[running]
            )
            running = running[(count == block) & (n_steps[running] < cap[running])]
            first, block = first + block, min(2 * block, 1024)
        return self._within_step(rows, elapsed_s, n_steps, end)

    def _within_step(self, rows: IntArray, elapsed_s: Array, n_steps: IntArray, end_s: Array) -> Progress:
        """Layers finished in the step after the whole ones, and the share of that step's time that has passed."""
        partial = np.zeros(len(rows), dtype=np.int64)
        share = np.zeros(len(rows))
        for step in np.unique(n_steps):
            mine = np.flatnonzero((n_steps == step) & (n_steps < self.cap[rows]) & (end_s <= elapsed_s))
            if not mine.size:
                continue
            at = rows[mine]
            full = self._full_step_s(at, int(step), 1)
            reached = end_s[mine, None] + full * self.weather.layer_costs(
                self.devices[at], self.ordinals[at], int(step)
            )
            within = np.arange(1, reached.shape[1] + 1) <= self.depth[at, None]
            partial[mine] = ((reached <= elapsed_s[mine, None]) & within).sum(axis=1)
            own = self.depth[at, None] - 1
            length = np.take_along_axis(reached, own, axis=1)[:, 0] - end_s[mine]
            share[mine] = np.clip((elapsed_s[mine] - end_s[mine]) / length, 0.0, 1.0)
        if self.is_drawn:
            partial = np.minimum(self.weather.drawn_depth(self.devices[rows], self.ordinals[rows]), self.depth[rows])
            n_steps = (partial == self.depth[rows]).astype(np.int64)
            return Progress(n_steps, np.where(n_steps > 0, 0, partial), share * (1 - n_steps))
        return Progress(n_steps, partial if self.task.unit == "layer" else np.zeros_like(partial), share)

    def latest_in_time(self, rows: IntArray, within_s: float) -> tuple[Progress, Array]:
        """The largest depth of a one-step task whose upload still arrives `within_s` after the start, and when it does."""
        best = np.zeros(len(rows), dtype=np.int64)
        arrival = np.full(len(rows), np.inf)
        devices, ordinals = self.devices[rows], self.ordinals[rows]
        full = self._full_step_s(rows, 0, 1)
        reached = self.ready_s[rows, None] + full * self.weather.layer_costs(devices, ordinals, 0)
        drawn = self.weather.drawn_depth(devices, ordinals) if self.is_drawn else None
        for depth in range(1, self.weather.shape.n_layers + 1):
            upload = self.weather.upload_s(devices, ordinals, np.full(len(rows), depth))
            # Under a depth law the layers are not timed: the device sends what it has as late as is in time.
            arrives = (
                reached[:, depth - 1] + upload if drawn is None else np.maximum(self.ready_s[rows] + upload, within_s)
            )
            in_time = (arrives <= within_s) & (depth <= self.depth[rows])
            if drawn is not None:
                in_time &= depth <= drawn
            best = np.where(in_time, depth, best)
            arrival = np.where(in_time, arrives, arrival)
        is_whole = best == self.depth[rows]
        progress = Progress(is_whole.astype(np.int64), np.where(is_whole, 0, best), np.zeros(len(rows)))
        return progress, arrival
