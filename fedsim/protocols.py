"""The roles at the seam. Implemented by shape, never subclassed.

A policy is a generator that speaks the server's verbs; it knows neither SimPy nor torch. The clock implements
`Server`, the trainer implements `Learner`; tests have a fake of a few lines for each.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from fedsim.facts import (
    AggregateReport,
    AggregateRequest,
    Array,
    Contributions,
    Evaluation,
    IntArray,
    Jobs,
    ModelShape,
    Task,
)

Rounds = Generator[Any, Any, None]
"""A policy's story: it ends only when the server ends it."""


class NoClosedForm(ValueError):
    """No exact expression holds here; the message names the assumption that failed."""


@runtime_checkable
class Law(Protocol):
    """A probability law; its unit is the unit of the key it stands under."""

    def draw(self, u: Array) -> Array: ...  # one uniform in (0, 1) in, one value out, vectorised
    @property
    def mean(self) -> float: ...
    @property
    def variance(self) -> float: ...
    def cdf(self, x: Array) -> Array: ...
    def survival(self, x: Array) -> Array: ...  # P(X > x), to full relative accuracy where it is small


# ---- conditions: when a wait is over --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """`a | b` is over as soon as either is."""

    def __or__(self, other: Condition) -> Condition:
        return AnyOf((self, other))


@dataclass(frozen=True)
class Steps(Condition):
    """`n_jobs` of the jobs have finished `n_steps` local steps each, on the devices (nothing has arrived yet)."""

    n_jobs: int
    n_steps: int


@dataclass(frozen=True)
class TotalSteps(Condition):
    """The jobs together have finished `n` local steps."""

    n: int


@dataclass(frozen=True)
class Arrivals(Condition):
    """`n` of the jobs' uploads have arrived that were not taken before."""

    n: int


@dataclass(frozen=True)
class Elapsed(Condition):
    """So many seconds have passed since the jobs were sent (all at one moment).

    An offset and not a clock reading, so that a device landing exactly on a deadline is in time at any hour:
    (start + deadline) - start misses 28 % of exact ties at clock 1e5 s.
    """

    seconds: float


@dataclass(frozen=True)
class AnyOf(Condition):
    """Over as soon as one of them is."""

    conditions: tuple[Condition, ...]


def steps(*, n_jobs: int, n_steps: int) -> Condition:
    return Steps(n_jobs=n_jobs, n_steps=n_steps)


def total_steps(n: int) -> Condition:
    return TotalSteps(n)


def arrivals(n: int) -> Condition:
    return Arrivals(n)


def elapsed(seconds: float) -> Condition:
    return Elapsed(seconds)


# ---- roles ----------------------------------------------------------------------------------------------------------


class Setting(Protocol):
    """What a policy may know before the first event: the fleet and the model, never a task's own luck."""

    @property
    def n_devices(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def shape(self) -> ModelShape: ...
    @property
    def memory_bytes(self) -> Array | None:
        """What each device has for training, `[device]`; None if the scenario does not say."""

    @property
    def batch_size(self) -> IntArray:
        """Rows of a full step, `[device]`."""

    def expected_s(self, task: Task, devices: IntArray) -> Array:
        """Mean seconds of download, compute and upload of such a task, `[device]`; persistent factors are known."""

    def expected_compute_s(self, task: Task, devices: IntArray) -> Array:
        """The compute part of `expected_s`, `[device]`."""

    def reach_probability(
        self, devices: IntArray, within_s: float, *, deadline_on: Literal["compute", "arrival"] = "compute"
    ) -> Array:
        """P(a one-step task sent now has finished layer l `within_s` later), `[device, layer]`.

        deadline_on: whether the layer must have been computed by then, or its upload must have arrived.
        Raises NoClosedForm where the fleet's laws have no quadrature.
        """


class Server(Setting, Protocol):
    """The verbs. `yield from` those that take simulated time."""

    @property
    def now_s(self) -> float: ...
    @property
    def version(self) -> int: ...

    def sample(self, n: int | None = None, *, idle_only: bool = True) -> IntArray:
        """`n` devices drawn without replacement (all if None), in ascending order; busy ones left out."""

    def send(self, devices: IntArray, task: Task) -> Jobs:
        """Start `task` on each device. A busy device refuses (ValueError)."""

    def wait(self, jobs: Jobs, condition: Condition) -> Generator[Any, Any, None]:
        """Let time pass until `condition` holds for `jobs`."""

    def stop(self, jobs: Jobs) -> None:
        """Tell devices to stop now and upload what is complete; those with nothing complete fall idle."""

    def cancel(self, jobs: Jobs) -> None:
        """Discard what was not taken, arrived or not; the devices fall idle."""

    def take(self, jobs: Jobs, *, at_most: int | None = None) -> Contributions:
        """Those of the jobs whose upload has arrived by now; their devices fall idle.

        at_most: of several that have arrived, the first so many in the order of devices; the others stay to be taken.
        """

    def collect(self, jobs: Jobs) -> Generator[Any, Any, Contributions]:
        """Wait until every job has arrived that was not cancelled or left empty-handed, then take them all."""

    def aggregate(
        self,
        contributions: Contributions,
        weights: Array,
        *,
        base: Literal["from_start", "from_now"] = "from_start",
        is_per_element: bool = False,
    ) -> AggregateReport:
        """Close a round: apply the weight table `[contribution, layer]`. No contributions: an empty round.

        is_per_element: of sub-networks, an element's sum is divided by the weights of those that hold the element.

        What was taken since the last aggregate and is not among these contributions, or has only zero weights, is
        dropped for good.
        """


class Policy(Protocol):
    """A frozen dataclass of parameters with a story."""

    source: ClassVar[str]  # where the rule comes from: "Authors, title, arXiv number, section"

    def problems(self, setting: Setting) -> list[str]:
        """What is wrong with these parameters on this fleet and model, in words; empty if nothing."""

    def rounds(self, server: Server) -> Rounds: ...


class Learner(Protocol):
    """Whoever computes. The one door through which the clock reaches the weights."""

    @property
    def shape(self) -> ModelShape: ...
    def aggregate(self, request: AggregateRequest) -> AggregateReport: ...
    def evaluate(self, n_rows: int | None = None) -> Evaluation | None:
        """The global model of now on `n_rows` fixed evaluation rows, or all; None from a learner that trains nothing."""


@runtime_checkable
class CanLookAhead(Protocol):
    """A learner that makes use of knowing what it will be asked: every request of the run, in order."""

    ahead: Sequence[AggregateRequest]


@runtime_checkable
class HasFlatWeights(Protocol):
    """A learner that shows its model as one vector, so that closed forms can start from it."""

    def flat_weights(self) -> tuple[Array, IntArray]:
        """The global model of now in float64 and the layer of each parameter, from the input, `[parameter]` both."""
