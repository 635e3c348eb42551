"""The server's verbs on a SimPy clock.

Jobs on private links do not interact, so a job's whole course is known when it is sent or stopped: each condition is
the moment of one order statistic, and the clock fires that single event. README.md says what happens at one instant.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Literal

import numpy as np

from fedsim.facts import (
    AggregateReport,
    AggregateRequest,
    Array,
    Contributions,
    IntArray,
    Jobs,
    ModelShape,
    Task,
    Terms,
    Wanted,
)
from fedsim.protocols import AnyOf, Arrivals, Condition, Elapsed, Learner, Policy, Steps, TotalSteps
from fedsim.randomness import Luck
from fedsim.timing import accounting
from fedsim.timing.book import Book, ClosedRound, DecidedBy, Decision, Outcome, RunOver
from fedsim.timing.clock import Clock
from fedsim.timing.foresight import Foresight
from fedsim.timing.live_jobs import LiveJobs, Moment
from fedsim.timing.milestones import Progress, Work
from fedsim.timing.weather import Weather

_MOST_VERBS_WITHOUT_TIME = 10_000
_VERBS_PER_UPLOAD = 10
_CHUNK = 16_384  # jobs accounted for at once: their columns stay in the cache instead of being page-faulted anew


class SimServer:
    """A parameter server over one fleet. Implements `fedsim.protocols.Server`."""

    def __init__(
        self,
        weather: Weather,
        learner: Learner,
        book: Book,
        horizon_s: float = np.inf,
        wanted: frozenset[Wanted] = frozenset(),
        *,
        with_milestones: bool = False,
    ) -> None:
        """wanted: statistics of updates that every aggregate asks the learner for, besides the policy's own.

        with_milestones: tell the book when each job finished its steps and layers.
        """
        self._with_milestones = with_milestones
        self._weather, self._learner, self._book, self._horizon_s = weather, learner, book, horizon_s
        self._wanted = wanted
        self._foresight = Foresight(weather)
        self._clock = Clock()
        self._jobs = LiveJobs(weather.fleet.n_devices)
        self._moment = Moment(0.0, 0.0)
        self._version = self._n_samplings = self._n_verbs = 0
        self._round_start_s, self._n_sent, self._decision = 0.0, 0, Decision()

    # ---- facts --------------------------------------------------------------------------------------------------

    @property
    def now_s(self) -> float:
        return self._moment.now_s

    @property
    def version(self) -> int:
        return self._version

    @property
    def n_devices(self) -> int:
        return self._weather.fleet.n_devices

    @property
    def n_layers(self) -> int:
        return self._weather.shape.n_layers

    @property
    def shape(self) -> ModelShape:
        return self._weather.shape

    @property
    def memory_bytes(self) -> Array | None:
        return self._foresight.memory_bytes

    @property
    def batch_size(self) -> IntArray:
        return self._foresight.batch_size

    def expected_s(self, task: Task, devices: IntArray) -> Array:
        return self._foresight.expected_s(task, devices)

    def expected_compute_s(self, task: Task, devices: IntArray) -> Array:
        return self._foresight.expected_compute_s(task, devices)

    def reach_probability(
        self, devices: IntArray, within_s: float, *, deadline_on: Literal["compute", "arrival"] = "compute"
    ) -> Array:
        return self._foresight.reach_probability(devices, within_s, deadline_on=deadline_on)

    # ---- verbs that take no time --------------------------------------------------------------------------------

    def sample(self, n: int | None = None, *, idle_only: bool = True) -> IntArray:
        self._count_verb()
        devices = np.flatnonzero(~self._jobs.is_busy) if idle_only else np.arange(self.n_devices)
        if n is None or n >= len(devices):
            return devices
        self._n_samplings += 1
        luck = Luck(self._weather.clock_seed, "sample").generator(self._n_samplings)
        return np.sort(luck.choice(devices, n, replace=False))

    def send(self, devices: IntArray, task: Task) -> Jobs:
        self._count_verb()
        devices = np.asarray(devices, dtype=np.int64)
        if not (devices[1:] > devices[:-1]).all():
            named, n_times = np.unique(devices, return_counts=True)
            if (n_times > 1).any():
                raise ValueError(f"device {named[n_times > 1][0]} is named twice; a device has one task at a time")
        if self._jobs.is_busy[devices].any():
            busy = devices[self._jobs.is_busy[devices]][0]
            raise ValueError(f"device {busy} is busy; sample idle devices, or cancel its job first")
        if task.pulls is not None and (self._jobs.ordinal[devices] < 0).any():
            new = devices[self._jobs.ordinal[devices] < 0][0]
            raise ValueError(f"device {new} has no model yet; let its first task pull all layers (pulls=None)")
        work = Work.start(self._weather, task, devices, self._jobs.next_ordinals(devices))
        self._jobs.add(work, devices, self._version, self.now_s)
        self._n_sent += len(devices)
        if task.arrive_within_s is not None:
            progress, computed_s, arrived_s = work.latest_in_time(np.arange(len(devices)), task.arrive_within_s)
        else:
            progress, computed_s = Progress.whole(work.cap), work.finished_s()
            arrived_s = computed_s + work.upload_s(slice(None), work.depth)
        self._jobs.set_course(devices, progress, computed_s, arrived_s)
        version = np.broadcast_to(np.int64(self._version), devices.shape)
        return Jobs(devices, work.ordinals, version, np.broadcast_to(np.float64(self.now_s), devices.shape))

    def stop(self, jobs: Jobs) -> None:
        self._count_verb()
        live = self._jobs.of(jobs)
        running = live[~self._jobs.has_happened(live, self._jobs.computed_s[live], self._moment)]
        for work, devices, rows in self._jobs.by_work(running):
            for start in range(0, len(devices), _CHUNK):
                self._stop(work, devices[start : start + _CHUNK], rows[start : start + _CHUNK])
        held = np.maximum(self._jobs.n_steps[running], self._jobs.partial_depth[running])
        self._close(running[held == 0], "empty")

    def _stop(self, work: Work, devices: IntArray, rows: IntArray) -> None:
        elapsed_s = self._jobs.elapsed_s(devices, self._moment)
        progress = work.progress(rows, elapsed_s)
        depth = progress.depth(work.depth[rows])
        arrived_s = elapsed_s + work.upload_s(rows, depth)
        self._jobs.set_course(devices, progress, elapsed_s, np.where(depth > 0, arrived_s, np.inf))

    def cancel(self, jobs: Jobs) -> None:
        self._count_verb()
        self._close(self._jobs.of(jobs), "cancelled")

    def take(self, jobs: Jobs, *, at_most: int | None = None) -> Contributions:
        self._count_verb()
        live = self._jobs.of(jobs)
        here = live[self._jobs.has_happened(live, self._jobs.arrived_s[live], self._moment)][:at_most]
        groups = list(self._jobs.by_work(here))
        task_depth = _gathered(here, [(devices, work.depth[rows]) for work, devices, rows in groups])
        terms = {work.task.terms for work, _, _ in groups}
        if len(terms) > 1:
            raise ValueError("jobs of different update rules, layers or sub-networks cannot be taken together")
        rates = [(devices, work.demand.rate[rows]) for work, devices, rows in groups if work.demand.rate is not None]
        taken = Contributions(
            device=here,
            ordinal=self._jobs.ordinal[here],
            version=self._jobs.version[here],
            n_steps=self._jobs.n_steps[here],
            partial_depth=self._jobs.partial_depth[here],
            task_depth=task_depth.astype(np.int64),
            n_samples=self._weather.plan.n_samples[here],
            arrived_s=self._jobs.start_s[here] + self._jobs.arrived_s[here],
            n_layers=self.shape.n_layers,
            terms=terms.pop() if terms else Terms(),
            rate=_gathered(here, rates) if rates else None,
        )
        self._close(here, "taken")
        return taken

    def aggregate(
        self,
        contributions: Contributions,
        weights: Array,
        *,
        base: Literal["from_start", "from_now"] = "from_start",
        is_per_element: bool = False,
    ) -> AggregateReport:
        self._count_verb()
        if weights.shape != (len(contributions), self.shape.n_layers):
            raise ValueError(f"weights are {weights.shape}; need {(len(contributions), self.shape.n_layers)}")
        self._book.before_change(self.now_s)
        kept = np.unique(self._jobs.version[self._jobs.is_busy])
        request = AggregateRequest(contributions, weights, base, self._version, kept, self._wanted, is_per_element)
        report = self._learner.aggregate(request)
        self._version = report.version
        used = contributions.where(np.flatnonzero(weights.any(axis=1)))
        used_flops = float(used.used_flops(self.shape, self._weather.plan).sum())
        closed = ClosedRound(
            self._round_start_s, self.now_s, self._n_sent, used, weights, used_flops, report, self._decision
        )
        over = self._book.round_closed(closed)
        self._round_start_s, self._n_sent, self._decision = self.now_s, 0, Decision()
        if not report.is_finite:
            raise RunOver("diverged", "the model's weights are no longer finite")
        if over is not None:
            raise RunOver("finished", over)
        return report

    # ---- verbs that take time -----------------------------------------------------------------------------------

    def wait(self, jobs: Jobs, condition: Condition) -> Generator[Any, Any, None]:
        self._count_verb()
        due, first = self._first_due(jobs, condition)
        yield from self._sleep(due, f"nothing that is under way can fulfil {condition}")
        self._decision = _decision(self.now_s, first)

    def collect(self, jobs: Jobs) -> Generator[Any, Any, Contributions]:
        self._count_verb()
        live = self._jobs.of(jobs)
        last = self._jobs.nth(live, self._jobs.arrived_s[live], len(live), self.now_s)
        yield from self._sleep(last, "a device to collect from was never told to stop")
        return self.take(jobs)

    def _sleep(self, until: Moment, stalled: str) -> Generator[Any, Any, None]:
        """Wake up then; at once if it has passed."""
        if not np.isfinite(until.now_s):
            raise RunOver("stalled", stalled)
        if until.now_s > self._horizon_s:
            yield self._clock.at(self._horizon_s)
            self._moment = Moment(self._horizon_s, 0.0)
            raise RunOver("finished", "stop.simulated_s is reached")
        if until.now_s > self.now_s:
            yield self._clock.at(until.now_s)
            self._moment, self._n_verbs = until, 0

    def _first_due(self, jobs: Jobs, condition: Condition) -> tuple[Moment, Condition]:
        """When the condition will hold, and which of its parts holds then; of several the first that was named."""
        if isinstance(condition, AnyOf):
            return min((self._first_due(jobs, one) for one in condition.conditions), key=lambda due: due[0].now_s)
        return self._due(jobs, condition), condition

    def _due(self, jobs: Jobs, condition: Condition) -> Moment:
        """When a condition that has no parts will hold."""
        if isinstance(condition, Elapsed):
            starts = np.unique(jobs.start_s)
            if len(starts) > 1:
                raise ValueError("elapsed() counts from one moment; these jobs were sent at different ones")
            return Moment(float(starts[0]) if len(starts) else self.now_s, condition.seconds)
        live = self._jobs.of(jobs)
        if isinstance(condition, Arrivals):
            return self._jobs.nth(live, self._jobs.arrived_s[live], condition.n, self.now_s)
        if isinstance(condition, Steps):
            groups = self._jobs.by_work(live)
            ends_s = _gathered(live, [(at, work.step_end_s(condition.n_steps)[rows]) for work, at, rows in groups])
            return self._jobs.nth(live, ends_s, condition.n_jobs, self.now_s)
        if isinstance(condition, TotalSteps):
            works = list(self._jobs.by_work(live))
            if len(works) != 1 or len(works[0][0].devices) != len(live):
                raise ValueError("total_steps() counts the steps of the jobs of one send, all still under way")
            return Moment(float(self._jobs.start_s[live[0]]), works[0][0].nth_step_s(condition.n))
        raise TypeError(f"unknown condition {condition!r}")

    # ---- the run ------------------------------------------------------------------------------------------------

    def _close(self, devices: IntArray, outcome: Outcome) -> None:
        for work, mine, rows in self._jobs.by_work(devices):
            for start in range(0, len(mine), _CHUNK):
                chunk = slice(start, start + _CHUNK)
                closed = accounting.close(
                    self._jobs,
                    work,
                    mine[chunk],
                    rows[chunk],
                    outcome,
                    self._moment,
                    with_milestones=self._with_milestones,
                )
                self._book.jobs_closed(closed)
        if len(devices):
            self._jobs.close(devices)

    def _count_verb(self) -> None:
        self._n_verbs += 1
        # A whole fleet may upload at one instant, one after another.
        most = _MOST_VERBS_WITHOUT_TIME + _VERBS_PER_UPLOAD * self.n_devices
        if self._n_verbs > most:
            raise RunOver("stalled", f"{most} verbs were spoken and no simulated time passed")

    def play(self, policy: Policy) -> RunOver:
        """Run the policy's story to its end; returns how it ended. Jobs still under way are reported as open."""
        self._wanted |= getattr(policy, "feedback", frozenset())
        ends: list[RunOver] = []

        def story() -> Generator[Any, Any, None]:
            try:
                yield from policy.rounds(self)
                ends.append(RunOver("finished", "the policy's story ended"))
            except RunOver as over:
                ends.append(over)

        self._clock.process(story())
        self._clock.run()
        self._book.before_change(float(np.nextafter(self.now_s, np.inf)))
        self._close(np.flatnonzero(self._jobs.is_busy), "open")
        return ends[0]


def _decision(now_s: float, condition: Condition) -> Decision:
    by: DecidedBy = ""
    n = np.nan
    if isinstance(condition, Elapsed):
        by = "deadline"
    elif isinstance(condition, Arrivals):
        by, n = "arrival", condition.n
    elif isinstance(condition, Steps):
        by, n = "step", condition.n_jobs
    elif isinstance(condition, TotalSteps):
        by, n = "total_steps", condition.n
    return Decision(now_s, by, float(n))


def _gathered(devices: IntArray, groups: Sequence[tuple[IntArray, Array | IntArray]]) -> Array:
    """One column over `devices` from those of its groups."""
    if len(groups) == 1:
        return np.asarray(groups[0][1])
    column = np.zeros(len(devices))
    for mine, values in groups:
        column[np.searchsorted(devices, mine)] = values
    return column
