"""Staleness, throughput and buffer fills of a server that never waits: each of M devices restarts at once, with the newest model.

A device's cycle X is all that passes between its download and the arrival of its update. Z updates make a version
(Z = 1: each is applied at once, FedAsync; Z > 1: FedBuff). The staleness of an update is the number of versions made
between its download and its arrival, the version that it completes itself not counted.

    any laws, any start   staleness of the finished + age of those under way = (M - 1) * versions; so the mean is (M - 1) / Z
    device i, Z = 1       E[s] = E[X_i] sum_j 1 / E[X_j] - 1
    exponential cycles    P(s >= k) = r^((k-1) Z + 1) (1 - r^Z) / (Z (1 - r)), k >= 1;  1 - r: the device's share of the rate
    i.i.d., Z = 1         Var s = (M - 1) E[v(X)] + (M - 1)^2 Var X / E[X]^2

v(x) is the variance of the count of a stationary renewal process over x seconds. With S_n the sum of n cycles and R a
residual life, density P(X > u) / E[X],

    v(x) = x / E[X] + (2 / E[X]) sum_n E(x - S_n)^+ - (x / E[X])^2      E[v(X)] = 2 sum_n P(S_n <= R) - Var X / E[X]^2

Sources: Xie, Koyejo, Gupta, arXiv 1903.03934 (FedAsync); Nguyen et al., arXiv 2106.06639 (FedBuff); Cox, "Renewal Theory"
(1962), ch. 4 (counts of stationary renewal processes). The first line is a count: each version ages by one every model
under way but that of the device that completed it.
Refuses cycles on a lattice, whose phases never mix, and the variance under a buffer unless cycles are exponential.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from math import exp, factorial, floor

import numpy as np
from scipy import special

from fedsim.delays import Constant, Exponential, Gamma, Uniform
from fedsim.facts import Array, IntArray
from fedsim.protocols import Law, NoClosedForm

_NEGLIGIBLE = 1e-18


# ---- any laws -------------------------------------------------------------------------------------------------------


def total_staleness(n_devices: int, n_updates: int, n_per_version: int = 1) -> int:
    """Staleness of the first `n_updates` updates together, plus the versions that those under way have aged by then."""
    return (n_devices - 1) * (n_updates // n_per_version)


def mean_staleness(n_devices: int, n_per_version: int = 1) -> float:
    """Versions, the long-run average over all updates, whatever the cycles if only their means are finite."""
    return (n_devices - 1) / n_per_version


def throughput_per_s(cycles: Sequence[Law]) -> float:
    """Updates per second in the long run; `cycles` has one law per device."""
    return float(sum(1.0 / _finite_mean(cycle) for cycle in cycles))


def mean_staleness_by_device(cycles: Sequence[Law]) -> Array:
    """Versions, `[device]`, where each update is a version: how many updates others finish in one cycle of the device."""
    return np.array([cycle.mean for cycle in cycles]) * throughput_per_s(cycles) - 1.0


def mean_fill_s(cycles: Sequence[Law], n_per_version: int) -> float:
    """Seconds between two versions in the long run. The first fill from a common start is another matter."""
    return n_per_version / throughput_per_s(cycles)


# ---- exponential cycles ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Staleness:
    """How many versions an update is late, when all cycles are exponential.

    rate_share: of the fleet's updates, those that are this device's. n_per_version: updates that make a version.
    """

    rate_share: float
    n_per_version: int = 1

    def survival(self, n: IntArray | int) -> Array:
        """P(staleness >= n), `[n]`."""
        n, r, z = np.asarray(n), 1.0 - self.rate_share, self.n_per_version
        late = r ** np.maximum((n - 1) * z + 1, 0) * (1.0 - r**z) / (z * self.rate_share)
        return np.where(n <= 0, 1.0, late)

    def pmf(self, n: IntArray | int) -> Array:
        """P(staleness = n), `[n]`."""
        return self.survival(n) - self.survival(np.asarray(n) + 1)

    @property
    def mean(self) -> float:
        return (1.0 - self.rate_share) / (self.n_per_version * self.rate_share)

    @property
    def variance(self) -> float:
        # E[s^2] = sum_k (2k - 1) P(s >= k), and P(s >= k) is geometric with ratio r^Z.
        ratio = (1.0 - self.rate_share) ** self.n_per_version
        return self.mean * (1.0 + ratio) / (1.0 - ratio) - self.mean**2


def exponential_staleness(cycles: Sequence[Law], device: int, n_per_version: int = 1) -> Staleness:
    """Of the updates of one device. Raises NoClosedForm unless all cycles are memoryless."""
    return Staleness(1.0 / (cycles[device].mean * _exponential_rate_per_s(cycles)), n_per_version)


def exponential_fill(cycles: Sequence[Law], n_per_version: int) -> Gamma:
    """Seconds between two versions, the first too. Raises NoClosedForm unless all cycles are memoryless."""
    return Gamma(shape=n_per_version, mean=n_per_version / _exponential_rate_per_s(cycles))


def _exponential_rate_per_s(cycles: Sequence[Law]) -> float:
    for cycle in cycles:
        if not isinstance(cycle, Exponential) or cycle.shift > 0.0:
            raise NoClosedForm(f"needs exponential cycles without a shift; got {cycle}")
    return throughput_per_s(cycles)


# ---- i.i.d. cycles of other laws --------------------------------------------------------------------------------------


def staleness_variance(n_devices: int, cycle: Law) -> float:
    """Variance of the staleness, versions squared, where each update is a version and devices are alike.

    Raises NoClosedForm unless cycles are constant, exponential (a shift is allowed), gamma or uniform.
    """
    n_others, spread = n_devices - 1, cycle.variance / _finite_mean(cycle) ** 2
    return n_others * (2.0 * _renewals_in_a_residual(cycle) - spread) + n_others**2 * spread


def renewal_count_variance(cycle: Law, window_s: float) -> float:
    """v(window_s): variance of the number of renewals of a stationary process.

    Raises NoClosedForm for laws as `staleness_variance` does, and for uniform cycles in a window longer than the longest.
    """
    if isinstance(cycle, Constant):
        part = window_s / cycle.value - floor(window_s / cycle.value)
        return part * (1.0 - part)
    total = 0.0
    for n in count(1):
        excess = _mean_excess_of_window(cycle, n, window_s)
        total += excess
        if excess <= _NEGLIGIBLE * window_s:
            break
    ratio = window_s / _finite_mean(cycle)
    return ratio + 2.0 * total / cycle.mean - ratio**2


def _mean_excess_of_window(cycle: Law, n: int, window_s: float) -> float:
    """E(window_s - S_n)^+, the integral of P(S_n <= u) up to `window_s`."""
    if isinstance(cycle, Uniform):
        if window_s > cycle.high:
            raise NoClosedForm(
                "needs a window no longer than the longest of uniform cycles; beyond it all digits cancel"
            )
        width = cycle.high - cycle.low
        return width * max(0.0, (window_s - n * cycle.low) / width) ** (n + 1) / factorial(n + 1)
    shift, scale, shape = _phases(cycle)
    y, n_phases = max(0.0, (window_s - n * shift) / scale), n * shape
    below, below_of_larger = special.gammainc([n_phases, n_phases + 1.0], y)
    return scale * float(y * below - n_phases * below_of_larger)


def _renewals_in_a_residual(cycle: Law) -> float:
    """sum_n P(S_n <= R)."""
    if isinstance(cycle, Constant):
        return 0.0
    if isinstance(cycle, Uniform):
        width, most = cycle.high - cycle.low, floor(20 if cycle.low == 0 else min(20, cycle.high / cycle.low))
        reach = [max(0.0, (cycle.high - n * cycle.low) / width) for n in range(1, most + 1)]
        return width / cycle.mean * sum(y ** (n + 2) / factorial(n + 2) for n, y in enumerate(reach, start=1))
    shift, scale, shape = _phases(cycle)
    if isinstance(cycle, Exponential):
        return scale / cycle.mean / (2.0 - exp(-shift / scale))
    # R is a uniform share of a size-biased cycle, and gammas in ratio are beta: terms fall like 2^-(n shape).
    n = np.arange(1.0, np.ceil(80.0 / shape) + 2.0)
    half = special.betainc(n * shape, shape + 1.0, 0.5) - n * special.betainc(n * shape + 1.0, shape, 0.5)
    return float(half[::-1].sum())


def _phases(cycle: Law) -> tuple[float, float, float]:
    """Shift, scale and shape of the gamma law that the cycle is."""
    if isinstance(cycle, Exponential):
        return cycle.shift, cycle.mean - cycle.shift, 1.0
    if isinstance(cycle, Gamma):
        return 0.0, cycle.mean / cycle.shape, cycle.shape
    raise NoClosedForm(f"needs constant, exponential, gamma or uniform cycles; got {cycle}")


def _finite_mean(cycle: Law) -> float:
    if not np.isfinite(cycle.mean):
        raise NoClosedForm(f"needs cycles of finite mean; got {cycle}")
    return cycle.mean
