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
from fedsim.timing.demand import Demand
from fedsim.timing.weather import Weather

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

    ready_s: offset at which the download is done. step_s: a full step over the whole model at step factor 1.
    demand: what the task asks; cap, depth and cost (of a step over the task's layers, in full steps) are its own.
    """

    weather: Weather
    task: Task
    devices: IntArray
    ordinals: IntArray
    demand: Demand
    ready_s: Array
    step_s: Array
    cap: IntArray
    depth: IntArray
    cost: Array
    _kept_s: Array = field(default_factory=lambda: np.empty((0, 0)))

    @classmethod
    def start(cls, weather: Weather, task: Task, devices: IntArray, ordinals: IntArray) -> Work:
        demand = Demand.of(weather, task, devices)
        return cls(
            weather=weather,
            task=task,
            devices=devices,
            ordinals=ordinals,
            demand=demand,
            ready_s=weather.download_s(devices, ordinals, demand.down_bytes),
            step_s=weather.task_unit_s(devices, ordinals),
            cap=demand.cap,
            depth=demand.depth,
            cost=demand.cost,
        )

    def upload_s(self, rows: IntArray | slice, depth: IntArray) -> Array:
        """Seconds to upload what jobs with so many finished output-most layers push, `[row]`."""
        n_bytes = self.demand.up_bytes_at(rows, depth)
        return self.weather.upload_s(self.devices[rows], self.ordinals[rows], depth, n_bytes)

    def asked_steps(self, rows: IntArray) -> IntArray:
        """The most local steps that the task allowed, `[row]`; -1 for no limit."""
        n_steps = self.task.n_steps
        if n_steps is None or np.ndim(n_steps) == 0:  # one number for a fleet that is alike
            return np.broadcast_to(np.int64(-1 if n_steps is None else n_steps), rows.shape)
        return self.cap[rows]

    @property
    def is_drawn(self) -> bool:
        """Whether the fleet draws depths by law instead of timing them."""
        return self.task.unit == "layer" and self.weather.fleet.compute.depth_law is not None

    # ---- step durations -----------------------------------------------------------------------------------------

    def _full_step_s(self, rows: IntArray | slice, first: int, n: int) -> Array:
        """Seconds of steps first ... first+n-1 if they went over all layers, `[job, step]`."""
        factors = self.weather.step_factors(self.devices[rows], self.ordinals[rows], first, n)
        unit = self.step_s[rows][:, None]
        return np.broadcast_to(unit, (len(unit), n)) if factors is None else unit * factors

    def _steps_s(self, rows: IntArray | slice, first: int, n: int) -> Array:
        """Seconds of steps first ... first+n-1 over the task's layers, `[job, step]`."""
        if self.weather.fleet.compute.layer_factor is None:
            return self._full_step_s(rows, first, n) * self.cost[rows][:, None]
        last = self.depth[rows][:, None] - 1
        costs = [np.take_along_axis(self._layer_costs(rows, s), last, axis=1) for s in range(first, first + n)]
        return self._full_step_s(rows, first, n) * np.concatenate(costs, axis=1)

    def _layer_costs(self, rows: IntArray | slice, step: int) -> Array:
        """Until each depth of this step, in units of the task's full step, `[row, depth 1...]`."""
        reach = self.demand.reach_of(rows)
        return self.weather.layer_costs(self.devices[rows], self.ordinals[rows], step, reach)

    def _durations_s(self, rows: IntArray | slice, first: int, n: int) -> Array:
        if first + n > _KEPT_STEPS:
            return self._steps_s(rows, first, n)
        if self._kept_s.shape[1] < first + n:
            kept = self._kept_s.shape[1]
            new = self._steps_s(slice(None), kept, first + n - kept)
            self._kept_s = np.concatenate([self._kept_s, new], axis=1) if kept else new
        return self._kept_s[rows, first : first + n]

    # ---- milestones ---------------------------------------------------------------------------------------------

    @property
    def is_regular(self) -> bool:
        """Whether the steps of a job differ only by their rows, so that any step's end is one product."""
        compute = self.weather.fleet.compute
        return compute.step_factor is None and compute.layer_factor is None

    def _regular_end_s(self, rows: IntArray | slice, n_steps: IntArray) -> Array:
        plan, devices = self.weather.plan, self.devices[rows]
        share = n_steps if plan.is_even else plan.rows_before(devices, n_steps) / plan.full_rows(devices)
        return np.asarray(self.ready_s[rows] + self.step_s[rows] * self.cost[rows] * share)

    def step_end_s(self, n_steps: int) -> Array:
        """Offset at which a job finishes its `n_steps`-th step; infinite beyond its cap."""
        end = self.ready_s
        if self.is_drawn:
            return np.full(len(end), np.inf)  # only a stop ends such a job
        if self.is_regular:
            end = self._regular_end_s(slice(None), np.broadcast_to(np.int64(n_steps), end.shape))
            return np.where(self.cap >= n_steps, end, np.inf)
        for first in range(0, n_steps, _KEPT_STEPS):
            n = min(_KEPT_STEPS, n_steps - first)
            end = self._running_ends(end, slice(None), first, n)[:, -1]
        return np.where(self.cap >= n_steps, end, np.inf)

    def _running_ends(self, start: Array, rows: IntArray | slice, first: int, n: int) -> Array:
        """Ends of the next `n` steps; summed in order, so that the same step ends at the same bit however it is asked."""
        if self.is_regular:
            counts = range(first + 1, first + n + 1)
            return np.stack(
                [self._regular_end_s(rows, np.broadcast_to(np.int64(k), start.shape)) for k in counts], axis=1
            )
        durations = self._durations_s(rows, first, n)
        if n == 1:
            return start[:, None] + durations
        return np.cumsum(np.concatenate([start[:, None], durations], axis=1), axis=1)[:, 1:]

    def step_ends_s(self, rows: IntArray, n_steps: IntArray) -> Array:
        """Offsets at which the first `n_steps` steps of each job end, one job after another, `[n_steps.sum()]`."""
        begin = np.cumsum(n_steps) - n_steps
        if self.is_regular:
            job = np.repeat(np.arange(len(rows)), n_steps)
            return self._regular_end_s(rows[job], np.arange(1, len(job) + 1) - begin[job])
        ends, end_s = np.empty(n_steps.sum()), self.ready_s[rows].copy()
        running, first, block = np.flatnonzero(n_steps), 0, int(min(8, n_steps.max(initial=1)))
        while running.size:
            found = self._running_ends(end_s[running], rows[running], first, block)
            step = first + np.arange(block)
            is_asked = step < n_steps[running, None]
            ends[(begin[running, None] + step)[is_asked]] = found[is_asked]
            end_s[running] = found[:, -1]
            first += block
            running, block = running[n_steps[running] > first], min(2 * block, 1024)
        return ends

    def layer_ends_s(self, rows: IntArray | slice, step: int, begin_s: Array) -> Array:
        """Offsets at which each depth of this step is reached by jobs that begin it at `begin_s`, `[row, depth 1...]`."""
        return np.asarray(begin_s[:, None] + self._full_step_s(rows, step, 1) * self._layer_costs(rows, step))

    def finished_s(self) -> Array:
        """Offset at which a job with a capped number of steps is through; infinite if only a stop ends it."""
        if self.task.n_steps is None or self.is_drawn:
            return np.full(len(self.devices), np.inf)
        if isinstance(self.task.n_steps, int | np.integer):
            return self.step_end_s(int(self.task.n_steps))
        if self.is_regular:
            return self._regular_end_s(slice(None), self.cap)
        ends = np.empty(len(self.devices))
        for n_steps in np.unique(self.cap).tolist():
            mine = self.cap == n_steps
            ends[mine] = self.step_end_s(n_steps)[mine]
        return ends

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
        n_steps, end_s, next_s = (self._regular_steps if self.is_regular else self._drawn_steps)(rows, elapsed_s)
        is_running = (n_steps < self.cap[rows]) & (end_s <= elapsed_s)
        share = np.zeros(len(rows))
        np.divide(elapsed_s - end_s, next_s - end_s, out=share, where=is_running)
        share = np.minimum(share, 1.0)
        if self.task.unit == "step":
            return Progress(n_steps, np.zeros_like(n_steps), share)
        if self.is_drawn:  # a depth law speaks of one step: all of its layers, or some
            depth = np.minimum(self.weather.drawn_depth(self.devices[rows], self.ordinals[rows]), self.depth[rows])
            is_whole = depth == self.depth[rows]
            return Progress(is_whole.astype(np.int64), np.where(is_whole, 0, depth), np.where(is_whole, 0.0, share))
        return Progress(n_steps, self._layers_done(rows, elapsed_s, n_steps, end_s, np.flatnonzero(is_running)), share)

    def _regular_steps(self, rows: IntArray, elapsed_s: Array) -> tuple[IntArray, Array, Array]:
        """Whole steps, the end of the last of them and of the next one."""
        devices, plan = self.devices[rows], self.weather.plan
        passed = np.maximum(elapsed_s - self.ready_s[rows], 0.0) / (self.step_s[rows] * self.cost[rows])
        n_steps = np.minimum(plan.steps_within(devices, passed * plan.full_rows(devices)), self.cap[rows])
        # The quotient may be off by one step at a tie; the ends themselves decide.
        n_steps = np.where(self._regular_end_s(rows, n_steps) > elapsed_s, np.maximum(n_steps - 1, 0), n_steps)
        n_steps = n_steps + ((n_steps < self.cap[rows]) & (self._regular_end_s(rows, n_steps + 1) <= elapsed_s))
        return n_steps, self._regular_end_s(rows, n_steps), self._regular_end_s(rows, n_steps + 1)

    def _drawn_steps(self, rows: IntArray, elapsed_s: Array) -> tuple[IntArray, Array, Array]:
        """The same, step by step: in blocks, of which only those who are still running ask for the next."""
        n_steps, end_s = np.zeros(len(rows), dtype=np.int64), self.ready_s[rows].copy()
        next_s = np.full(len(rows), np.inf)
        running = np.flatnonzero(end_s <= elapsed_s)
        first, block = 0, int(min(8, self.cap.max(initial=1)))
        while running.size:
            ends = self._running_ends(end_s[running], rows[running], first, block)
            ends[first + np.arange(block) >= self.cap[rows[running], None]] = np.inf
            count = (ends <= elapsed_s[running, None]).sum(axis=1)
            n_steps[running] += count
            moved = np.flatnonzero(count)
            end_s[running[moved]] = ends[moved, count[moved] - 1]
            stopped = np.flatnonzero(count < block)
            next_s[running[stopped]] = ends[stopped, count[stopped]]
            running = running[(count == block) & (n_steps[running] < self.cap[rows[running]])]
            first, block = first + block, min(2 * block, 1024)
        return n_steps, end_s, next_s

    def _layers_done(
        self, rows: IntArray, elapsed_s: Array, n_steps: IntArray, end_s: Array, running: IntArray
    ) -> IntArray:
        """Layers from the output finished in the step after the whole ones."""
        partial = np.zeros(len(rows), dtype=np.int64)
        for step in np.unique(n_steps[running]):
            mine = running[n_steps[running] == step]
            at = rows[mine]
            reached = self.layer_ends_s(at, int(step), end_s[mine])
            # The last layer asked for is the step's end, which alone decides about whole steps.
            is_asked = np.arange(1, reached.shape[1] + 1) < self.depth[at, None]
            partial[mine] = ((reached <= elapsed_s[mine, None]) & is_asked).sum(axis=1)
        return partial

    def latest_in_time(self, rows: IntArray, within_s: float) -> tuple[Progress, Array, Array]:
        """The largest depth of a one-step task whose upload still arrives `within_s` after the start.

        Also when the device stops for it, and when it arrives; infinite where nothing arrives in time.
        """
        best = np.zeros(len(rows), dtype=np.int64)
        computed, arrival = np.full(len(rows), np.inf), np.full(len(rows), np.inf)
        devices, ordinals = self.devices[rows], self.ordinals[rows]
        reached = self.layer_ends_s(rows, 0, self.ready_s[rows])
        if not self.is_drawn:  # the last layer asked for is the step's end, to the bit
            reached[np.arange(len(rows)), self.depth[rows] - 1] = self.step_end_s(1)[rows]
        drawn = self.weather.drawn_depth(devices, ordinals) if self.is_drawn else None
        for depth in range(1, self.weather.shape.n_layers + 1):
            upload = self.upload_s(rows, np.full(len(rows), depth))
            # Under a depth law the layers are not timed: the device sends what it has as late as is in time.
            arrives = (
                reached[:, depth - 1] + upload if drawn is None else np.maximum(self.ready_s[rows] + upload, within_s)
            )
            in_time = (arrives <= within_s) & (depth <= self.depth[rows])
            if drawn is not None:
                in_time &= depth <= drawn
            best = np.where(in_time, depth, best)
            computed = np.where(in_time, reached[:, depth - 1] if drawn is None else arrives - upload, computed)
            arrival = np.where(in_time, arrives, arrival)
        is_whole = best == self.depth[rows]
        progress = Progress(is_whole.astype(np.int64), np.where(is_whole, 0, best), np.zeros(len(rows)))
        return progress, computed, arrival
