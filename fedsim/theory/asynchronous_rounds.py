"""Rounds of a server that never waits: Z uploads make a version, and whoever uploads is replaced at once by a random idle device.

Of M devices C are always at work. X_i, of mean m_i, is a cycle of device i: download, local steps, upload.

    any cycles       at each version C - 1 models are under way and age by one, so contributions are (C - 1) / Z versions
                     late on average: an identity along the path, exact in every round
    any cycles,      device i uploads at rate r_i = e_{C-1}(m without i) / e_C(m), e_j the j-th elementary symmetric
    long run         polynomial (C = M: 1 / m_i); seconds between versions: Z / sum_i r_i
    exponential,     uploads are Poisson of rate R = sum 1 / m_i from the start, whose they are is drawn anew each time with
    C = M            p_i = 1 / (R m_i): rounds are independent and last Erlang(Z, R) seconds;
                     P(device i is in a round) = 1 - (1 - p_i)^Z;   E f(staleness) = sum_i p_i E f(S_i)

For the second: density prod_{i at work} P(X_i > x_i) of the sets at work and their residual lives x_i, up to a factor, is
stationary. What it loses while x_j runs down, the density of X_j at x_j times the other factors, is what its M - C + 1
predecessors bring, each by a draw of probability 1 / (M - C + 1). Integrated: P(set at work) ~ prod m_i, for any laws.

Rounds of other cycles depend on one another, and the first ones on the common start. `settled_after` says how many:
renewals of mean m and squared coefficient of variation c^2 forget their start like exp(-pi^2 c^2 t / m) or faster where c
is small (Erlang of k phases: the rate is k (1 - cos(2 pi / k)) / m, about 2 pi^2 c^2 / m), and in the mean residual life,
m (1 + c^2) / 2, where c is large; a device's staleness is forgotten once it has come back.

Sources: Kelly, "Reversibility and Stochastic Networks" (1979), ch. 3 (insensitivity); Cox, "Renewal Theory" (1962).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedsim.delays import Exponential
from fedsim.facts import Array, IntArray
from fedsim.protocols import Law, NoClosedForm
from fedsim.theory.asynchronous import Staleness, exponential_fill, mean_staleness
from fedsim.theory.counts import poisson_binomial_pmf
from fedsim.theory.fleet import Expectation, Fleet, none, of_time
from fedsim.theory.rounds import UNITS, Answers, one, participations, per_device, per_layer
from fedsim.theory.steps import DeviceTimes, task_times
from fedsim.theory.times import RandomTime

Discount = Callable[[IntArray], Array]
"""What a contribution counts, given how many versions it is late, `[staleness] -> [staleness]`."""

_FORGOTTEN = 1e-4  # of the start, when rounds count as settled
_NEGLIGIBLE = 1e-18
_MOST_TERMS = 50_000_000  # devices of different speed x versions
_MOST_SPEEDS = 300  # different means of cycles, where some of the devices are idle


@dataclass(frozen=True)
class Cycles:
    """Cycles of a fleet, all devices starting together.

    mean_s, variance_s2: `[device]`. n_at_work: devices at work at once (C). n_per_version: uploads that make a version (Z).
    is_exponential: whether every cycle is memoryless. may_lock: whether cycles have values of their own, so that the
    phases of devices may never mix.
    """

    mean_s: Array
    variance_s2: Array
    n_at_work: int
    n_per_version: int
    is_exponential: bool
    may_lock: bool

    @classmethod
    def of(cls, fleet: Fleet, local_steps: int, concurrency: int | None, n_per_version: int) -> Cycles:
        """Raises NoClosedForm for links redrawn for each task, random layer factors, and cycles of infinite mean."""
        times, upload_s = task_times(fleet)
        offset_s = (times.offset_s + upload_s)[times.group]
        mean_s = (times.mean_s(local_steps) + upload_s)[times.group]
        if not np.isfinite(mean_s).all():
            raise NoClosedForm("needs cycles of finite mean")
        return cls(
            mean_s=mean_s,
            variance_s2=(times.unit_s**2 * times.steps.variance(local_steps))[times.group],
            n_at_work=fleet.n_devices if concurrency is None else concurrency,
            n_per_version=n_per_version,
            is_exponential=not offset_s.any() and _is_memoryless(times, local_steps),
            may_lock=times.steps.has_atoms,
        )

    @property
    def is_equal(self) -> bool:
        return len(np.unique(self.mean_s)) == 1

    @property
    def is_full(self) -> bool:
        """Whether every device is always at work."""
        return self.n_at_work == len(self.mean_s)

    @property
    def has_poisson_uploads(self) -> bool:
        """From the start, at a constant rate: then round times are independent."""
        return self.is_exponential and (self.is_full or self.is_equal)

    @property
    def is_drawn_anew(self) -> bool:
        """Whether every upload is that of an independently drawn device."""
        return self.is_exponential and self.is_full

    @cached_property
    def rate_per_s(self) -> Array:
        """Uploads of each device per second in the long run, `[device]`. Raises NoClosedForm for too many speeds."""
        if self.is_full:
            return 1.0 / self.mean_s
        if self.is_equal:
            return self.n_at_work / (len(self.mean_s) * self.mean_s)
        return _rates_of_some(self.mean_s, self.n_at_work)

    @property
    def throughput_per_s(self) -> float:
        """Uploads per second in the long run."""
        return float(self.rate_per_s.sum())

    @property
    def share(self) -> Array:
        """Of the uploads, those of each device, `[device]`."""
        return self.rate_per_s / self.throughput_per_s

    @property
    def mean_staleness(self) -> float:
        """Versions that a contribution is late by."""
        return mean_staleness(self.n_at_work, self.n_per_version)

    def staleness(self) -> list[tuple[float, Staleness]]:
        """The law of a contribution's staleness, as (share of the contributions, law of those).

        Raises NoClosedForm unless cycles are exponential and all devices always at work, or equal.
        """
        if not self.has_poisson_uploads:
            raise NoClosedForm(
                "needs exponential cycles, of devices that are all at work or equal, for the law of the staleness"
            )
        if self.is_equal:
            return [(1.0, Staleness(1.0 / self.n_at_work, self.n_per_version))]
        shares, n = np.unique(self.share, return_counts=True)
        return [
            (float(share * n_alike), Staleness(float(share), self.n_per_version))
            for share, n_alike in zip(shares, n, strict=True)
        ]

    def mean_discount(self, discount: Discount) -> float:
        """E f(staleness). Raises NoClosedForm as `staleness` does, and where too many terms matter."""
        total = 0.0
        for part, law in self.staleness():
            ratio = (1.0 - law.rate_share) ** law.n_per_version
            n = 2 + int(np.log(_NEGLIGIBLE) / np.log(ratio)) if 0.0 < ratio < 1.0 else 2
            if n > _MOST_TERMS // len(self.mean_s):
                raise NoClosedForm(f"needs fewer devices: staleness is spread over {n} versions")
            late = np.arange(n)
            total += part * float(law.pmf(late) @ discount(late))
        return total

    def settled_after(self) -> int:
        """Rounds at the start that remember it, all but one part in ten thousand. Raises NoClosedForm if all do."""
        if self.may_lock:
            raise NoClosedForm(
                "needs cycles of a continuous law; else the phases of devices can lock, and never forget the start"
            )
        with np.errstate(divide="ignore"):
            spread = self.variance_s2 / self.mean_s**2
            n_cycles = np.maximum(np.maximum(1.0, 1.0 / (np.pi**2 * spread)), (1.0 + spread) / 2.0)
        if not np.isfinite(n_cycles).all():
            raise NoClosedForm("needs cycles of finite variance; else rounds remember the start for good")
        n_uploads = -np.log(_FORGOTTEN) * float((n_cycles * self.mean_s).max()) * self.throughput_per_s
        return int(np.ceil(n_uploads / self.n_per_version))


def _is_memoryless(times: DeviceTimes, local_steps: int) -> bool:
    laws: list[Law | None] = [times.steps.task, times.steps.step]
    if local_steps > 1:
        laws = [times.steps.task] if times.steps.step is None else []
    drawn = [law for law in laws if law is not None]
    return len(drawn) == 1 and isinstance(drawn[0], Exponential) and drawn[0].shift == 0.0


def _rates_of_some(mean_s: Array, n_at_work: int) -> Array:
    """e_{C-1}(m without i) / e_C(m), `[device]`.

    With odds x m_i for each device to be in, e_j x^j / prod (1 + x m) is the probability that j are: no polynomial has to
    be written out, and x is chosen such that n_at_work are in on average.
    """
    speeds, group = np.unique(mean_s, return_inverse=True)
    if len(speeds) > _MOST_SPEEDS:
        raise NoClosedForm(
            f"needs at most {_MOST_SPEEDS} different speeds where some devices are idle; got {len(speeds)}"
        )
    low, high = 1e-9 / mean_s.max(), 1e9 * len(mean_s) / mean_s.min()
    for _ in range(200):
        x = float(np.sqrt(low * high))
        low, high = (x, high) if (x * mean_s / (1.0 + x * mean_s)).sum() < n_at_work else (low, x)
    p = x * mean_s / (1.0 + x * mean_s)
    whole = poisson_binomial_pmf(p)[n_at_work]
    without = [poisson_binomial_pmf(np.delete(p, np.argmax(group == g)))[n_at_work - 1] for g in range(len(speeds))]
    return np.asarray((x / (1.0 + x * speeds) * np.array(without) / whole)[group])


# ---- beside a simulation --------------------------------------------------------------------------------------------


def answers_of(
    fleet: Fleet,
    *,
    local_steps: int,
    concurrency: int | None,
    n_per_version: int,
    weight: float,
    discount: Discount | None,
) -> Answers:
    """What a version should come to. A mean without a variance is that of the long run, of rounds that depend on one another.

    weight: what the contributions of a version count together if none of them is discounted. discount: None is always 1.
    """
    z, n_layers = n_per_version, fleet.n_layers
    whole_bytes = float(fleet.shape.suffix_bytes[-1])
    flops = local_steps * fleet.n_rows * fleet.shape.step_flops[-1]  # of a cycle, `[device]`

    def cycles() -> Cycles:
        return Cycles.of(fleet, local_steps, concurrency, z)

    def fixed(quantity: str, value: float) -> list[Expectation]:
        cycles()
        return one(quantity, value, 0.0)

    def fixed_layers(quantity: str, value: float) -> list[Expectation]:
        cycles()
        return per_layer(quantity, np.full(n_layers, value), np.zeros(n_layers))

    def round_s() -> list[Expectation]:
        found = cycles()
        if not found.has_poisson_uploads:
            return one("round_s", z / found.throughput_per_s)
        at_work = [Exponential(mean=float(mean_s)) for mean_s in found.mean_s[: found.n_at_work]]
        return [of_time("round_s", RandomTime(exponential_fill(at_work, z).survival))]

    def weight_sum() -> list[Expectation]:
        if discount is None:
            return fixed_layers("weight_sum", weight)
        return per_layer("weight_sum", np.full(n_layers, weight * cycles().mean_discount(discount)), [None] * n_layers)

    def n_steps() -> list[Expectation]:
        # The first version's devices were sent to beside those that are at work when it is made: not yet the long run.
        found = cycles()
        if not found.is_drawn_anew:
            return one("n_steps", local_steps)
        p = found.share
        return one("n_steps", local_steps) + per_device(
            "n_steps", local_steps * z * p, local_steps**2 * z * p * (1 - p)
        )

    def participation() -> list[Expectation]:
        found = cycles()
        if found.is_drawn_anew:
            return participations(-np.expm1(z * np.log1p(-found.share)) if len(found.share) > 1 else np.ones(1))
        if z > 1:
            reason = "needs exponential cycles of devices that are all at work, since a version has several uploads"
            return [none("participation", UNITS["participation"], reason)]
        return per_device("participation", found.share)

    def used_flops() -> list[Expectation]:
        found = cycles()
        if len(np.unique(flops)) == 1:
            return one("used_flops", z * flops[0], 0.0)
        p = found.share
        mean = float(p @ flops)
        return one("used_flops", z * mean, z * float(p @ (flops - mean) ** 2) if found.is_drawn_anew else None)

    return {
        "round_s": round_s,
        "n_contributions": lambda: fixed("n_contributions", z),
        "staleness": lambda: fixed("staleness", cycles().mean_staleness),
        "is_empty": lambda: fixed("is_empty", 0.0),
        "inverse_n_contributions": lambda: fixed("inverse_n_contributions", 1.0 / z),
        "n_contributors": lambda: fixed_layers("n_contributors", z),
        "is_layer_empty": lambda: fixed_layers("is_layer_empty", 0.0),
        "weight_sum": weight_sum,
        "n_steps": n_steps,
        "participation": participation,
        "used_flops": used_flops,
        "downloaded_bytes": lambda: fixed("downloaded_bytes", z * whole_bytes),
        "uploaded_bytes": lambda: fixed("uploaded_bytes", z * whole_bytes),
        "settled_after": lambda: one("settled_after", cycles().settled_after(), 0.0),
    }
