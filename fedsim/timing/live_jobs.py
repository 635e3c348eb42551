"""The jobs under way: one column entry per device, because a device has at most one job.

Offsets count from the job's own start. The clock's reading is kept as (start, offset) too, so that a job sent at that
start is compared without rounding.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedsim.facts import Array, BoolArray, IntArray, Jobs
from fedsim.timing.milestones import Progress, Work


class LiveJobs:
    """Columns `[device]`; most methods take devices in ascending order and return `[device given]`."""

    def __init__(self, n_devices: int) -> None:
        self.is_busy = np.zeros(n_devices, dtype=bool)
        self.ordinal = np.full(n_devices, -1)
        self.version = np.zeros(n_devices, dtype=np.int64)
        self.start_s = np.zeros(n_devices)
        self.computed_s = np.full(n_devices, np.inf)
        self.arrived_s = np.full(n_devices, np.inf)
        self.n_steps = np.zeros(n_devices, dtype=np.int64)
        self.partial_depth = np.zeros(n_devices, dtype=np.int64)
        self.step_share = np.zeros(n_devices)  # how far the unfinished step was when the device was stopped
        self._work = np.full(n_devices, -1)  # which send ...
        self._row = np.zeros(n_devices, dtype=np.int64)  # ... and which of its rows
        self._works: dict[int, tuple[Work, int]] = {}  # with the number of its jobs that are live
        self._n_works = 0

    def next_ordinals(self, devices: IntArray) -> IntArray:
        return self.ordinal[devices] + 1

    def _at(self, devices: IntArray) -> IntArray | slice:
        """Where to write: a slice for the whole fleet, which costs a tenth of an index."""
        whole = len(devices) == len(self.is_busy) and bool((devices[1:] > devices[:-1]).all())
        return slice(None) if whole else devices

    def add(self, work: Work, devices: IntArray, version: int, now_s: float) -> None:
        """Start one job per device."""
        at = self._at(devices)
        self.is_busy[at] = True
        self.ordinal[at], self.version[at], self.start_s[at] = work.ordinals, version, now_s
        self._work[at], self._row[at] = self._n_works, np.arange(len(devices))
        self._works[self._n_works] = (work, len(devices))
        self._n_works += 1

    def set_course(self, devices: IntArray, progress: Progress, computed_s: Array, arrived_s: Array) -> None:
        """From here on these jobs need no further decision: what they hold, and when it is computed and arrives."""
        at = self._at(devices)
        self.n_steps[at], self.partial_depth[at] = progress.n_steps, progress.partial_depth
        self.step_share[at] = progress.step_share
        self.computed_s[at], self.arrived_s[at] = computed_s, arrived_s

    def of(self, jobs: Jobs) -> IntArray:
        """Devices of those jobs that are still under way, ascending."""
        mine = jobs.device[self.is_busy[jobs.device] & (self.ordinal[jobs.device] == jobs.ordinal)]
        return mine if len(mine) < 2 or (np.diff(mine) > 0).all() else np.sort(mine)

    def by_work(self, devices: IntArray) -> Iterator[tuple[Work, IntArray, IntArray]]:
        """Group by send: (work, devices, their rows in it)."""
        if not len(devices):
            return
        works = self._work[devices]
        if (works == works[0]).all():
            yield self._works[int(works[0])][0], devices, self._row[devices]
            return
        for key in np.unique(works):
            mine = devices[works == key]
            yield self._works[int(key)][0], mine, self._row[mine]

    def close(self, devices: IntArray) -> None:
        """These jobs are over; their devices are idle."""
        self.is_busy[devices] = False
        for _, mine, _ in self.by_work(devices):
            key = int(self._work[mine[0]])
            work, n_live = self._works.pop(key)
            if n_live > len(mine):
                self._works[key] = (work, n_live - len(mine))

    # ---- against the clock --------------------------------------------------------------------------------------

    def elapsed_s(self, devices: IntArray, moment: Moment) -> Array:
        """Seconds since each job's start."""
        starts = self.start_s[devices]
        return np.where(starts == moment.start_s, moment.offset_s, moment.now_s - starts)

    def has_happened(self, devices: IntArray, offsets_s: Array, moment: Moment) -> BoolArray:
        """Whether `offsets_s` after the jobs' starts has come."""
        starts = self.start_s[devices]
        return np.where(starts == moment.start_s, offsets_s <= moment.offset_s, starts + offsets_s <= moment.now_s)

    def nth(self, devices: IntArray, offsets_s: Array, n: int, now_s: float) -> Moment:
        """When the n-th of these offsets comes; never, if there are fewer."""
        if n > len(devices):
            return Moment(now_s, np.inf)
        if n < 1:
            return Moment(now_s, 0.0)
        starts = self.start_s[devices]
        if (starts == starts[0]).all():
            return Moment(float(starts[0]), float(np.partition(offsets_s, n - 1)[n - 1]))
        which = np.argpartition(starts + offsets_s, n - 1)[n - 1]
        return Moment(float(starts[which]), float(offsets_s[which]))


class Moment:
    """A clock reading that remembers what it was scheduled as: `offset_s` after `start_s`."""

    __slots__ = ("now_s", "offset_s", "start_s")

    def __init__(self, start_s: float, offset_s: float) -> None:
        self.start_s, self.offset_s, self.now_s = start_s, offset_s, start_s + offset_s
