"""K-sync and K-batch-sync SGD: the K-th fastest device, or the K-th mini-batch of the whole fleet, ends the round.

Source of the rules: Dutta, Wang, Joshi, "Slow and Stale Gradients Can Win the Race", AISTATS 2018, arXiv 1803.01113,
section 2. T_(K:M) is the K-th smallest of M times (compute and upload; the others are cancelled):
    exponential, mean m:  E = m (H_M - H_{M-K}),   Var = m^2 (1/(M-K+1)^2 + ... + 1/M^2)
    Pareto, shape a:      E = min G(M+1) G(M-K+1-1/a) / (G(M-K+1) G(M+1-1/a)),   finite only if a (M-K+1) > 1
    Weibull, K = 1:       a Weibull of the same shape, its mean divided by M^(1/shape)
K-batch-sync: devices go on to another mini-batch until the fleet has K together; N_m(t) = those of device m by t:
    P(T > t) = P(N_1 + ... + N_M < K),   P(N = n) = F_n(t) - F_{n+1}(t)
K E[X] / M, a popular shortcut for its mean, is exact for exponential times only: the round starts with M fresh batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy import special

from fedsim.facts import Array
from fedsim.protocols import Law, NoClosedForm
from fedsim.theory import arrivals
from fedsim.theory.fleet import Expectation, Fleet
from fedsim.theory.rounds import Answers, listed
from fedsim.theory.steps import times_of
from fedsim.theory.times import RandomTime


def round_time(
    n_devices: int,
    k: int,
    step_s: Law | float,
    *,
    task_factor: Law | None = None,
    device_factor: Sequence[float] | None = None,
    latency_s: float | Sequence[float] = 0.0,
) -> RandomTime:
    """Seconds until the k-th of n_devices has computed a step and uploaded it.

    step_s: of a step, a law or a number. device_factor: persistent, one per device. latency_s: download and upload.
    """
    return arrivals.nth_finisher(times_of(n_devices, step_s, task_factor, device_factor, latency_s), k, n_steps=1)


def harmonic(n_devices: int, k: int, mean_s: float = 1.0) -> tuple[float, float]:
    """Mean [s] and variance [s^2] of the k-th smallest of n_devices exponential times."""
    j = np.arange(n_devices, n_devices - k, -1.0)  # small terms first
    return mean_s * float((1 / j).sum()), mean_s**2 * float((1 / j**2).sum())


def pareto_mean_s(n_devices: int, k: int, shape: float, minimum_s: float = 1.0) -> float:
    """Mean of the k-th smallest of n_devices Pareto times. Raises NoClosedForm if infinite."""
    last = n_devices - k + 1
    if shape * last <= 1:
        raise NoClosedForm(f"needs shape x (n_devices - k + 1) above 1 for a finite mean; got {shape * last:g}")
    logs = special.gammaln([n_devices + 1, last - 1 / shape, last, n_devices + 1 - 1 / shape])
    return minimum_s * float(np.exp(logs[0] + logs[1] - logs[2] - logs[3]))


def pareto_has_variance(n_devices: int, k: int, shape: float) -> bool:
    """Whether the variance of the k-th smallest is finite; else a simulated mean does not settle like 1/sqrt(n)."""
    return shape * (n_devices - k + 1) > 2


def weibull_fastest_s(n_devices: int, shape: float, mean_s: float = 1.0) -> float:
    """Mean of the smallest of n_devices Weibull times, seconds."""
    return mean_s * float(n_devices ** (-1.0 / shape))


def batch_round_time(
    n_devices: int,
    k: int,
    step_s: Law | float,
    *,
    task_factor: Law | None = None,
    device_factor: Sequence[float] | None = None,
) -> RandomTime:
    """K-batch-sync: seconds until n_devices have done k mini-batches together, none of them ever waiting.

    Not k E[X] / n_devices, unless times are exponential. Exponential: Erlang(k) at n_devices times the rate.
    """
    times = times_of(n_devices, step_s, task_factor, device_factor)

    def survival(t_s: Array) -> Array:
        t_s = np.asarray(t_s, dtype=np.float64)
        done = [np.ones((len(t_s), len(times.unit_s))), *(times.cdf(n, t_s) for n in range(1, k + 1))]
        late = [np.zeros_like(done[0]), *(times.survival(n, t_s) for n in range(1, k + 1))]
        # Whichever difference is between small numbers.
        pmf = [np.where(late[n + 1] < 0.5, late[n + 1] - late[n], done[n] - done[n + 1]) for n in range(k)]
        counts = np.stack([np.maximum(one, 0.0) for one in pmf], axis=1)  # [t, batches, group]
        total = np.zeros((len(t_s), k))
        total[:, 0] = 1.0
        for g, n in enumerate(times.n_in_group):
            total = _convolved(total, _power(counts[:, :, g], int(n)))
        return np.asarray(np.minimum(total.sum(axis=1), 1.0))

    return RandomTime(survival, tuple(kink for n in range(1, min(k, 8) + 1) for kink in times.kinks_s(n)))


def _power(pmf: Array, n: int) -> Array:
    """n-fold convolution by squaring, `[t, j]`, j below the number of columns."""
    found = pmf
    for bit in bin(n)[3:]:
        found = _convolved(found, found)
        if bit == "1":
            found = _convolved(found, pmf)
    return found


def _convolved(a: Array, b: Array) -> Array:
    k = a.shape[1]
    found = np.zeros_like(a)
    for j in range(k):
        found[:, j:] += a[:, j : j + 1] * b[:, : k - j]
    return found


# ---- beside a simulation --------------------------------------------------------------------------------------------


class KSyncParameters(Protocol):
    """The policy's parameters, as a scenario names them."""

    @property
    def k(self) -> int: ...


def expected(policy: KSyncParameters, fleet: Fleet) -> list[Expectation]:
    """What a round should have on average on this fleet, or why there is no closed form."""
    return listed(answers(policy, fleet))


def answers(policy: KSyncParameters, fleet: Fleet) -> Answers:
    """The same, each quantity when it is asked for."""
    return arrivals.answers_of(fleet, n_steps=1, k=policy.k, n_asked=fleet.n_devices)
