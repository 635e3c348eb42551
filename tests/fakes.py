"""A server and a learner small enough to be right by reading them: plain loops, no SimPy, no torch.

The fake server speaks the verbs of `fedsim.protocols.Server` for devices with a fixed number of seconds per step, no
download time and one fixed upload time. All layers of a step take equally long and the forward pass takes no time. It
refuses to know luck: it samples nobody.
The fake learner's model is one float per layer; a device's gradient is `slope[device] + curvature * model`, the same
formula in every layer, so that aggregates can be computed by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

import numpy as np

from fedsim.facts import (
    AggregateReport,
    AggregateRequest,
    BatchPlan,
    Contributions,
    Jobs,
    LayerStatistics,
    ModelShape,
    Task,
    Terms,
)
from fedsim.protocols import AnyOf, Arrivals, Elapsed, Steps, TotalSteps
from fedsim.records import RunBook
from fedsim.timing.fleet import Compute, Fleet, Link
from fedsim.timing.server import SimServer
from fedsim.timing.weather import Weather

MOST_VERBS_WITHOUT_TIME = 1_000


def equal_layers(n_layers, rate=1.0):
    """A model whose layers cost the same and weigh nothing: depth d of a step is reached after d / n_layers of it.

    Narrowed to a rate, each layer costs that share of the whole one.
    """
    costs, zeros = np.full(n_layers, rate), np.zeros(n_layers)
    none = np.zeros(n_layers, dtype=np.int64)
    names = tuple(f"layer{i}" for i in range(n_layers))

    def narrower(rate, convolutions):
        return equal_layers(n_layers, rate)

    return ModelShape(names, none + 1, none, zeros, costs, zeros, none + 1, none + 1, narrower)


class FakeLearner:
    """Local SGD on `slope * x + curvature * x^2 / 2` in every layer. Remembers what it was asked, word for word."""

    def __init__(self, slope, *, n_layers=3, learning_rate=1.0, curvature=0.0):
        self.slope, self.curvature, self.learning_rate = slope, curvature, learning_rate
        self.shape = equal_layers(n_layers)
        self.models = {0: [0.0] * n_layers}
        self.newest = 0
        self.own = {}  # of each device after its last task: every layer's value, and what it was when last pulled
        self.requests = []

    @property
    def model(self):
        return self.models[self.newest]

    def local_change(self, contributions, k):
        """What contribution `k` changed since it last pulled the layer, `[layer]`."""
        device, pulls = int(contributions.device[k]), contributions.terms.pulls
        start = self.models[int(contributions.version[k])]  # KeyError: a version that was said not to be needed again
        pulled = start
        if pulls is not None:
            had, had_pulled = self.own[device]
            start = [new if is_new else old for new, old, is_new in zip(pulled, had, pulls, strict=True)]
            pulled = [new if is_new else old for new, old, is_new in zip(pulled, had_pulled, pulls, strict=True)]
        own = list(start)
        n_steps, partial = int(contributions.n_steps[k]), int(contributions.partial_depth[k])
        for depth in [int(contributions.task_depth[k])] * n_steps + [partial]:
            for layer in range(len(own) - depth, len(own)):
                at = own[layer] if contributions.update == "descend" else start[layer]
                own[layer] -= self.learning_rate * (self.slope[device] + self.curvature * at)
        self.own[device] = own, pulled
        return [after - before for after, before in zip(own, pulled, strict=True)]

    def aggregate(self, request: AggregateRequest) -> AggregateReport:
        contributions, weights = request.contributions, request.weights.tolist()
        if request.is_per_element:  # a layer is one number, so that everybody holds it
            sums = [sum(column) for column in zip(*weights, strict=True)]
            weights = [[w / total for w, total in zip(row, sums, strict=True)] for row in weights]
        before = self.model
        new, deltas = list(before), []
        for k in range(len(contributions)):
            delta = self.local_change(contributions, k)
            deltas.append(delta)
            if request.base == "from_now":
                start = self.models[int(contributions.version[k])]
                delta = [d + s - now for d, s, now in zip(delta, start, self.model, strict=True)]
            new = [x + w * d for x, w, d in zip(new, weights[k], delta, strict=True)]
        is_changed = any(any(row) for row in weights)
        kept = {*request.kept_versions.tolist(), self.newest + is_changed}
        self.models = {v: model for v, model in {**self.models, self.newest + is_changed: new}.items() if v in kept}
        self.newest += is_changed
        self.requests.append(
            (
                contributions.device.tolist(),
                contributions.n_steps.tolist(),
                contributions.depth.tolist(),
                contributions.version.tolist(),
                contributions.arrived_s.tolist(),
                weights,
                new,
            )
        )
        moved = np.abs(np.subtract(new, before))  # a layer is one number
        is_finite, statistics = bool(np.isfinite(new).all()), None
        if request.wanted:
            delta, held = np.reshape(deltas, (-1, len(new))), contributions.holds_layer
            distance = np.where(held, (delta - np.subtract(new, before)) ** 2, 0.0)
            statistics = LayerStatistics(contributions.device, np.where(held, delta**2, 0.0), distance)
        return AggregateReport(self.newest, is_finite, computed_flops=0.0, statistics=statistics, change_norm=moved)

    def evaluate(self, n_rows=None):
        return None


class Over(Exception):
    """The story ends here."""


@dataclass
class _Job:
    device: int
    ordinal: int
    version: int
    start_s: float
    task: Task
    cap: float  # local steps; infinite if only a stop ends it
    depth: int
    rate: float  # of the sub-network
    stop_s: float | None = None  # offset
    finish_s: float = inf  # offsets from start_s
    arrive_s: float = inf
    n_steps: int = 0
    partial: int = 0


@dataclass
class FakeServer:
    """One device's job after another, each looked at from its start whenever anything is asked.

    step_s: seconds of a step over all layers, `[device]`. upload_s: of any upload. n_samples: `[device]`, 1 each if left
    out. ends_s: when the rounds ended. outcomes: (device, ordinal, round, what became of it) for every job.
    """

    learner: FakeLearner
    step_s: list[float]
    upload_s: float = 0.0
    n_samples: list[int] | None = None
    horizon_s: float = inf
    n_rounds: int | None = None
    now_s: float = 0.0
    version: int = 0
    ends_s: list[float] = field(default_factory=list)
    outcomes: list[tuple[int, int, int, str]] = field(default_factory=list)

    def __post_init__(self):
        self.live: dict[int, _Job] = {}
        self.n_tasks = [0] * len(self.step_s)
        self.n_verbs = 0
        self.wanted = frozenset()  # statistics of updates
        self.closed: list[tuple[int, int, str]] = []

    # ---- facts ------------------------------------------------------------------------------------------------------

    @property
    def shape(self):
        return self.learner.shape

    @property
    def n_devices(self):
        return len(self.step_s)

    @property
    def n_layers(self):
        return self.shape.n_layers

    @property
    def memory_bytes(self):
        return None

    @property
    def batch_size(self):
        return np.array(self.n_samples or [1] * self.n_devices, dtype=np.int64)

    def expected_compute_s(self, task, devices):
        depth = self.n_layers if task.depth is None else task.depth
        n_steps = np.broadcast_to(1 if task.n_steps is None else task.n_steps, len(devices))
        cost = np.broadcast_to(depth / self.n_layers * np.asarray(task.rate), len(devices))
        return np.array([self.step_s[d] * c * n for d, c, n in zip(devices, cost, n_steps, strict=True)])

    def expected_s(self, task, devices):
        return self.expected_compute_s(task, devices) + self.upload_s

    def reach_probability(self, devices, within_s, *, deadline_on="compute"):
        upload_s = self.upload_s if deadline_on == "arrival" else 0.0
        depths = range(self.n_layers, 0, -1)  # of layers 0, 1, ...
        reached = [
            [self.step_s[d] * (depth / self.n_layers) + upload_s <= within_s for depth in depths] for d in devices
        ]
        return np.array(reached, dtype=float)

    # ---- one job ----------------------------------------------------------------------------------------------------

    def _done(self, job, elapsed_s):
        """Whole steps and layers of the next one, so many seconds after the job's start."""
        step_s, end_s, n_steps, partial = self.step_s[job.device] * job.rate, 0.0, 0, 0
        while n_steps < job.cap and end_s + step_s * (job.depth / self.n_layers) <= elapsed_s:
            end_s += step_s * (job.depth / self.n_layers)
            n_steps += 1
        if job.task.unit == "layer" and n_steps < job.cap:
            while partial < job.depth and end_s + step_s * ((partial + 1) / self.n_layers) <= elapsed_s:
                partial += 1
        return n_steps, partial

    def _step_end_s(self, job, n_steps):
        """Offset of the end of the job's `n_steps`-th step."""
        if n_steps > job.cap:
            return inf
        end_s = 0.0
        for _ in range(n_steps):
            end_s += self.step_s[job.device] * (job.depth / self.n_layers) * job.rate
        return end_s

    def _finish(self, job, offset_s, n_steps, partial):
        job.finish_s, job.n_steps, job.partial = offset_s, n_steps, partial
        job.arrive_s = offset_s + self.upload_s if n_steps or partial else inf

    def _finish_in_time(self, job, within_s):
        """One step, as deep as still arrives in time; never, if not even the output layer does."""
        for depth in range(job.depth, 0, -1):
            reached_s = self.step_s[job.device] * (depth / self.n_layers)
            if reached_s + self.upload_s <= within_s:
                whole = depth == job.depth
                self._finish(job, reached_s, int(whole), 0 if whole else depth)
                break

    def _jobs(self, jobs):
        """Those still under way, by device."""
        wanted = set(zip(jobs.device.tolist(), jobs.ordinal.tolist(), strict=True))
        return [job for device, job in sorted(self.live.items()) if (device, job.ordinal) in wanted]

    def _close(self, job, outcome):
        del self.live[job.device]
        self.closed.append((job.device, job.ordinal, outcome))

    # ---- verbs ------------------------------------------------------------------------------------------------------

    def _verb(self):
        self.n_verbs += 1
        if self.n_verbs > MOST_VERBS_WITHOUT_TIME:
            raise Over("stalled")

    def sample(self, n=None, *, idle_only=True):
        self._verb()
        devices = [d for d in range(self.n_devices) if not (idle_only and d in self.live)]
        if n is not None and n < len(devices):
            raise NotImplementedError("the fake server has no luck; tell stories in which everybody is asked")
        return np.array(devices, dtype=np.int64)

    def send(self, devices, task):
        self._verb()
        sent = []
        asked = np.asarray(devices).tolist()
        for i, device in enumerate(asked):
            if device in self.live or device in asked[:i]:
                raise ValueError(f"device {device} is busy")
        for i, device in enumerate(asked):
            depth = self.n_layers if task.depth is None else int(np.broadcast_to(task.depth, len(devices))[i])
            cap = inf if task.n_steps is None else int(np.broadcast_to(task.n_steps, len(devices))[i])
            rate = float(np.broadcast_to(task.rate, len(devices))[i])
            job = _Job(device, self.n_tasks[device], self.version, self.now_s, task, cap, depth, rate)
            if task.arrive_within_s is not None:
                self._finish_in_time(job, task.arrive_within_s)
            elif task.n_steps is not None:
                self._finish(job, self._step_end_s(job, cap), cap, 0)
            self.n_tasks[device] += 1
            self.live[device] = job
            sent.append(job)
        columns = [
            np.array([getattr(j, name) for j in sent], dtype=np.int64) for name in ("device", "ordinal", "version")
        ]
        return Jobs(*columns, start_s=np.array([job.start_s for job in sent], dtype=float))

    def stop(self, jobs):
        self._verb()
        for job in self._jobs(jobs):
            elapsed_s = self.now_s - job.start_s
            if job.finish_s <= elapsed_s:
                continue
            self._finish(job, elapsed_s, *self._done(job, elapsed_s))
            if not (job.n_steps or job.partial):
                self._close(job, "empty")

    def cancel(self, jobs):
        self._verb()
        for job in self._jobs(jobs):
            self._close(job, "cancelled")

    def take(self, jobs, *, at_most=None):
        self._verb()
        here = [job for job in self._jobs(jobs) if job.start_s + job.arrive_s <= self.now_s][:at_most]
        for job in here:
            self._close(job, "taken")
        samples = self.n_samples or [1] * self.n_devices

        def column(values):
            return np.array(list(values), dtype=np.int64)

        return Contributions(
            device=column(job.device for job in here),
            ordinal=column(job.ordinal for job in here),
            version=column(job.version for job in here),
            n_steps=column(job.n_steps for job in here),
            partial_depth=column(job.partial for job in here),
            task_depth=column(job.depth for job in here),
            n_samples=column(samples[job.device] for job in here),
            arrived_s=np.array([job.start_s + job.arrive_s for job in here], dtype=float),
            n_layers=self.n_layers,
            terms=here[0].task.terms if here else Terms(),
            rate=np.array([job.rate for job in here]) if here and here[0].task.subnetwork else None,
        )

    def aggregate(self, contributions, weights, *, base="from_start", is_per_element=False):
        self._verb()
        if weights.shape != (len(contributions), self.n_layers):
            raise ValueError(f"weights are {weights.shape}")
        kept = np.array([job.version for job in self.live.values()], dtype=np.int64)
        request = AggregateRequest(contributions, weights, base, self.version, kept, self.wanted, is_per_element)
        report = self.learner.aggregate(request)
        self.version = report.version
        keys = zip(contributions.device.tolist(), contributions.ordinal.tolist(), strict=True)
        self._settle({key for key, row in zip(keys, weights.tolist(), strict=True) if any(row)})
        self.ends_s.append(self.now_s)
        if not report.is_finite:
            raise Over("diverged")
        if len(self.ends_s) == self.n_rounds:
            raise Over("finished")
        return report

    def _settle(self, used):
        for device, ordinal, outcome in self.closed:
            fate = outcome if outcome != "taken" else "used" if (device, ordinal) in used else "dropped"
            self.outcomes.append((device, ordinal, len(self.ends_s), fate))
        self.closed.clear()

    def wait(self, jobs, condition):
        self._verb()
        self._sleep_until(self._due_s(jobs, condition))
        yield from ()  # a generator, like the real one

    def collect(self, jobs):
        self._verb()
        live = self._jobs(jobs)
        self._sleep_until(max([job.start_s + job.arrive_s for job in live], default=self.now_s))
        yield from ()
        return self.take(jobs)

    def _sleep_until(self, due_s):
        if due_s == inf:
            raise Over("stalled")
        if due_s > self.horizon_s:
            self.now_s = self.horizon_s
            raise Over("finished")
        if due_s > self.now_s:
            self.now_s, self.n_verbs = due_s, 0

    def _due_s(self, jobs, condition):
        live = self._jobs(jobs)
        match condition:
            case AnyOf(conditions):
                return min(self._due_s(jobs, each) for each in conditions)
            case Elapsed(seconds):
                return (jobs.start_s[0] if len(jobs) else self.now_s) + seconds
            case Arrivals(n):
                return _nth([job.start_s + job.arrive_s for job in live], n, self.now_s)
            case Steps(n_jobs, n_steps):
                return _nth([job.start_s + self._step_end_s(job, n_steps) for job in live], n_jobs, self.now_s)
            case TotalSteps(n):
                ends = [job.start_s + self._step_end_s(job, step + 1) for job in live for step in range(n)]
                return _nth(ends, n, self.now_s)
        raise TypeError(condition)

    def play(self, policy):
        """Tell the whole story; returns how it ended: "finished", "diverged" or "stalled"."""
        self.wanted = getattr(policy, "feedback", frozenset())
        try:
            for _ in policy.rounds(self):
                pass
            kind = "finished"
        except Over as over:
            kind = str(over)
        for job in list(self.live.values()):
            self._close(job, "open")
        self._settle(set())
        return kind


def _nth(times_s, n, now_s):
    if n < 1:
        return now_s
    return sorted(times_s)[n - 1] if n <= len(times_s) else inf


class RealServer:
    """The SimPy server for the same fleet, with the fake's face: play, ends_s, outcomes."""

    def __init__(self, learner, step_s, *, upload_s=0.0, n_samples=None, horizon_s=inf, n_rounds=None):
        link = None if upload_s == 0.0 else Link(rate_bits_per_s=1.0, latency_s=upload_s)  # the model weighs nothing
        fleet = Fleet(n_devices=len(step_s), compute=Compute(step_s=tuple(step_s)), uplink=link)
        plan = BatchPlan(np.array(n_samples or [1] * len(step_s), dtype=np.int64), None)
        weather = Weather(fleet, learner.shape, plan, fleet_seed=1, clock_seed=2)
        self.learner = learner
        self.book = RunBook(learner=learner, grid=None, n_rounds=n_rounds)
        self.server = SimServer(weather, learner, self.book, horizon_s=horizon_s)

    def play(self, policy):
        kind = self.server.play(policy).kind
        tables = self.book.tables()
        self.ends_s = tables["rounds"]["end_s"].tolist()
        columns = [tables["tasks"][name].tolist() for name in ("device", "ordinal", "round", "outcome")]
        self.outcomes = list(zip(*columns, strict=True))
        self.now_s = self.server.now_s
        return kind
