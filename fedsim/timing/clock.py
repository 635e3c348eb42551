"""The SimPy environment with events at absolute times."""

from __future__ import annotations

import heapq

import simpy
from simpy.events import URGENT


class Clock(simpy.Environment):
    """Simulated seconds.

    SimPy schedules by delay: now + (target - now) misses the target's last bit in a third of all cases. `at` puts the
    event on the queue at the target itself, as `Environment.schedule` does with its sum.
    """

    def at(self, time_s: float) -> simpy.Event:
        """An event that happens exactly at `time_s`, which must not lie in the past."""
        if time_s < self.now:
            raise ValueError(f"{time_s} s is in the past; it is {self.now} s")
        event = simpy.Event(self)
        event._ok, event._value = True, None
        heapq.heappush(self._queue, (time_s, URGENT, next(self._eid), event))
        return event
