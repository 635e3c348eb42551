"""Expected losses of STSyn on quadratics with one Hessian, exponential step times: after rounds, and at instants.

Source of the rule: Zhu, Zhang, Wang, arXiv 2210.03521, Algorithm 1. Along an eigenvector of the Hessian, with factor
a = 1 - rate * eigenvalue per step, N_m the steps of device m and n the number of uploads,
    e+ = phi e + (noise and the devices' own optima),   phi = (1/n) sum over uploads of a^N_m.
Given that the round ends at T = t: one device has done U steps, K - 1 others N >= U steps, each of the M - K rest uploads
with probability 1 - P(N = 0 | N < U) and then has 1 <= N < U; all these counts are independent Poissons of mean
t / step_mean_s, cut as said. The rest is quadrature over t. E[phi] is not a^E[N]: the mean of powers is not the power of
the mean.
Steps and round times depend on each other (fast rounds are short on steps too), so the loss at an instant does not follow
from the curve over rounds. It solves a renewal equation for the first round's end s, with k(s) = E[phi^2 | T = s] f_T(s)
and q(s) what a round of length s adds, times f_T(s):
    E[e(t)^2] = alpha(t) e_0^2 + beta(t),   alpha = P(T > t) + k * alpha,   beta = q * alpha + f_T * beta.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import signal, special
from scipy.interpolate import CubicSpline

from fedsim.delays import Exponential
from fedsim.facts import Array, IntArray
from fedsim.protocols import Law, NoClosedForm
from fedsim.theory.quadratic import Curve, Quadratic, Steady, refuse_growth
from fedsim.theory.quadratic_clock import MOST_CELLS, Timed, refined


def stsyn(problem: Quadratic, n_rounds: int, k: int, local_steps: int, step_s: Law) -> Curve:
    """Expectations after 0 ... n_rounds rounds; every device's steps last `step_s` each, uploads take no time."""
    _step_mean_s(step_s)
    return StsynRound(problem, k, local_steps).curve(n_rounds)


def stsyn_at(
    problem: Quadratic, times_s: Array, k: int, local_steps: int, step_s: Law, *, tolerance: float = 1e-8
) -> Timed:
    """Expected losses at instants, `[time]`, uploads taking no time; tolerance: as a share of the loss at the start."""
    times = np.asarray(times_s, dtype=np.float64) / _step_mean_s(step_s)
    horizon, this = float(times.max()), StsynRound(problem, k, local_steps)
    if horizon <= 0:
        return Timed(np.full(len(times), problem.loss(problem.start)), 0.0)

    def on_grid(n_cells: int) -> Array:
        return np.asarray(CubicSpline(np.linspace(0.0, horizon, n_cells + 1), this.on_clock(horizon, n_cells))(times))

    n_cells = int(32 + 8 * horizon / this.mean_round_steps)
    return refined(on_grid, n_cells, MOST_CELLS, tolerance * float(problem.loss(problem.start)))


@dataclass(frozen=True, eq=False)
class Directions:
    """What a round does along each eigenvector of the Hessian, `[..., direction]`.

    phi, phi_squared: E[phi], E[phi^2], the shares of the error that stay. added: second moment that noise and the
    devices' own optima add.
    """

    phi: Array
    phi_squared: Array
    added: Array


@dataclass(frozen=True, eq=False)
class StsynRound:
    """One round, K = `k` and U = `local_steps`; time in mean steps of a device."""

    problem: Quadratic
    k: int
    local_steps: int

    def __post_init__(self) -> None:
        m = self.problem.n_devices
        if not 1 <= self.k <= m:
            raise ValueError(f"k is {self.k} but there are {m} devices; choose 1..{m}")

    @cached_property
    def _eigen(self) -> tuple[Array, Array]:
        values, vectors = np.linalg.eigh(self.problem.common_hessian())
        return values, vectors

    @cached_property
    def _apart(self) -> Array:
        """Mean square of the devices' own optima around the common one, `[direction]`."""
        return np.asarray(((self.problem.centred.optimum @ self._eigen[1]) ** 2).mean(axis=0))

    @cached_property
    def _step_noise(self) -> Array:
        """Variance that one step adds, `[direction]`; the devices are exchangeable, so their mean is all that counts."""
        vectors = self._eigen[1]
        return np.asarray(self.problem.rate**2 * np.einsum("id,ij,jd->d", vectors, self.problem.noise.mean(0), vectors))

    # ---- how long a round lasts -------------------------------------------------------------------------------------

    def survival(self, times: Array) -> Array:
        """P(T > t): fewer than K of M have done U steps."""
        m, k = self.problem.n_devices, self.k
        return np.asarray(special.betainc(m - k + 1, k, special.gammaincc(self.local_steps, times)))

    def density(self, times: Array) -> Array:
        """Of T: the K-th smallest of M sums of U memoryless steps."""
        m, k, u = self.problem.n_devices, self.k, self.local_steps
        counts = special.gammaln(m + 1) - special.gammaln(k) - special.gammaln(m - k + 1)
        before = special.xlogy(k - 1, special.gammainc(u, times)) + special.xlogy(m - k, special.gammaincc(u, times))
        return np.asarray(np.exp(counts + before + special.xlogy(u - 1, times) - times - special.gammaln(u)))

    @cached_property
    def _nodes(self) -> tuple[Array, Array]:
        """Points and weights of an expectation over T: Gauss-Legendre with 20 nodes on 60 panels of log t."""
        m, k, u = self.problem.n_devices, self.k, self.local_steps
        first = special.gammaincinv(u, special.betaincinv(k, m - k + 1, 1e-18))
        last = special.gammainccinv(u, special.betaincinv(m - k + 1, k, 1e-18))
        nodes, weights = np.polynomial.legendre.leggauss(20)
        edges = np.linspace(np.log(first), np.log(last), 61)
        half = np.diff(edges)[:, None] / 2
        times = np.exp((edges[:-1, None] + half * (nodes + 1)).ravel())
        return times, (half * weights).ravel() * times * self.density(times)

    @cached_property
    def mean_round_steps(self) -> float:
        """E[T] in mean steps."""
        times, weights = self._nodes
        return float(times @ weights)

    # ---- what a round does ------------------------------------------------------------------------------------------

    def given(self, times: Array) -> Directions:
        """What a round that ends at T = t does, `[time, direction]`."""
        m, k, u = self.problem.n_devices, self.k, self.local_steps
        fast, slow, idle = _poisson_at_least(times, u), _poisson_between(times, u), _idle_share(times, u)
        steps = np.arange(fast.shape[1] + u)
        a = 1.0 - self.problem.rate * self._eigen[0]
        power, square = a ** steps[:, None], a ** (2 * steps[:, None])
        made_noise = np.concatenate([np.zeros((1, len(a))), np.cumsum(square, axis=0)[:-1]])  # sum of a^2j, j < N
        pulled = (1.0 - power) ** 2

        n_slow = np.arange(m - k + 1)
        share = special.binom(m - k, n_slow) * (1 - idle[:, None]) ** n_slow * idle[:, None] ** (m - k - n_slow)
        one, slow_one, slow_two = ((share @ (n_slow**i / (k + n_slow) ** 2.0))[:, None] for i in (0, 1, 2))
        kept = (share @ (1.0 / (k + n_slow)))[:, None], (share @ (n_slow / (k + n_slow)))[:, None]

        def summed(values: Array) -> Array:
            """E[sum over uploads of value(N)] / (number of uploads)^2."""
            all_fast = values[u] + (k - 1) * (fast @ values[u:])
            return np.asarray(all_fast * one + (slow @ values[1:u]) * slow_one)

        fast_mean, slow_mean = fast @ power[u:], slow @ power[1:u]
        sure = power[u] + (k - 1) * fast_mean
        mean_squared = sure**2 * one + 2 * sure * slow_mean * slow_one + slow_mean**2 * slow_two
        variance = (k - 1) * (fast @ square[u:] - fast_mean**2) * one + (slow @ square[1:u] - slow_mean**2) * slow_one
        phi, phi_squared = sure * kept[0] + slow_mean * kept[1], mean_squared + variance
        # Exchangeable devices whose optima add up to 0: only the unevenness of the pulls (1 - a^N_m) / n counts.
        uneven = (m * summed(pulled) - (1 - 2 * phi + phi_squared)) / max(m - 1, 1)
        return Directions(phi, phi_squared, self._step_noise * summed(made_noise) + self._apart * uneven)

    @cached_property
    def directions(self) -> Directions:
        """What a round does, `[direction]`."""
        times, weights = self._nodes
        given = self.given(times)
        return Directions(weights @ given.phi, weights @ given.phi_squared, weights @ given.added)

    def curve(self, n_rounds: int) -> Curve:
        """Expectations after 0 ... n_rounds rounds."""
        each, vectors, rounds = self.directions, self._eigen[1], np.arange(n_rounds + 1)[:, None]
        start = self.problem.centred.start @ vectors
        second = np.empty((n_rounds + 1, len(start)))
        second[0] = start**2
        for n in range(n_rounds):
            second[n + 1] = each.phi_squared * second[n] + each.added
        if not np.isfinite(second).all():
            raise NoClosedForm("needs second moments that floats can hold; they overflow")
        mean = (start * each.phi**rounds) @ vectors.T + self.problem.minimiser
        return Curve(self._loss(second), mean, self)

    def steady(self) -> Steady:
        each, matters = self.directions, self._eigen[0] > 0
        refuse_growth(float(each.phi_squared[matters].max()))
        second = np.where(matters, each.added / np.where(matters, 1 - each.phi_squared, 1.0), 0.0)
        return Steady(float(self._loss(second)), self.problem.minimiser)

    def _loss(self, second: Array) -> Array:
        """From second moments of the errors, `[..., direction]`."""
        return np.asarray(0.5 * (second + self._apart) @ self._eigen[0])

    # ---- on the clock -----------------------------------------------------------------------------------------------

    def on_clock(self, horizon: float, n_cells: int) -> Array:
        """Expected losses at n_cells + 1 instants up to `horizon` mean steps, by the trapezoidal rule."""
        times = np.linspace(0.0, horizon, n_cells + 1)
        h, n_possible = horizon / n_cells, int((times <= self._nodes[0][-1]).sum())  # no round is longer
        given, density = self.given(times[:n_possible]), self.density(times)[:, None]
        kernel, adds = (
            density * np.pad(values, ((0, len(times) - n_possible), (0, 0)))
            for values in (given.phi_squared, given.added)
        )
        alpha = _renewal(np.broadcast_to(self.survival(times)[:, None], kernel.shape), kernel, h)
        beta = _renewal(_trapezoid(adds, alpha, h), np.broadcast_to(density, kernel.shape), h)
        start = (self.problem.centred.start @ self._eigen[1]) ** 2
        return self._loss(alpha * start + beta)


def _step_mean_s(step_s: Law) -> float:
    if not isinstance(step_s, Exponential) or step_s.shift > 0:
        raise NoClosedForm(f"needs exponential step times without a shift; got {step_s}")
    return step_s.mean


# ---- counts of steps by time t, one mean step as unit, `[time, ...]` ------------------------------------------------


def _poisson_logs(times: Array, counts: IntArray) -> Array:
    """log of t^n / n!, `[time, count]`."""
    return np.asarray(np.log(np.maximum(times, 1e-300))[:, None] * counts - special.gammaln(counts + 1.0))


def _poisson_at_least(times: Array, u: int) -> Array:
    """P(N = n | N >= u), n = u, u + 1, ... until nothing is left."""
    most = float(times.max())
    return np.asarray(special.softmax(_poisson_logs(times, u + np.arange(int(most + 12 * np.sqrt(most)) + 60)), axis=1))


def _poisson_between(times: Array, u: int) -> Array:
    """P(N = n | 1 <= N < u), n = 1 ... u - 1."""
    if u == 1:
        return np.zeros((len(times), 0))
    return np.asarray(special.softmax(_poisson_logs(times, np.arange(1, u)), axis=1))


def _idle_share(times: Array, u: int) -> Array:
    """P(N = 0 | N < u)."""
    return np.asarray(np.exp(-special.logsumexp(_poisson_logs(times, np.arange(u)), axis=1)))


# ---- convolutions on a grid of spacing h, `[time, direction]` -------------------------------------------------------


def _trapezoid(first: Array, second: Array, h: float) -> Array:
    """Integral of first(s) second(t - s) over s from 0 to t."""
    ends = (first * second[0] + first[0] * second) / 2
    return np.asarray(h * (signal.fftconvolve(first, second, axes=0)[: len(first)] - ends))


def _renewal(known: Array, kernel: Array, h: float) -> Array:
    """x = known + kernel * x, by the trapezoidal rule: a quotient of power series in the shift by h."""
    n = len(known)
    denominator = -h * kernel
    denominator[0] = 1.0 - h * kernel[0] / 2
    inverse = 1.0 / denominator[:1]
    while len(inverse) < n:  # Newton: every pass doubles the number of right coefficients
        size = min(2 * len(inverse), n)
        product = signal.fftconvolve(inverse, denominator[:size], axes=0)[:size]
        correction = signal.fftconvolve(inverse, product, axes=0)[:size]
        inverse = 2 * np.pad(inverse, ((0, size - len(inverse)), (0, 0))) - correction
    return np.asarray(signal.fftconvolve(inverse, known - h * kernel * known[0] / 2, axes=0)[:n])
