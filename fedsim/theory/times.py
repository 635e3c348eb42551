"""A random time known by its survival function P(T > t), and what follows from it: mean, variance, cdf, quantiles.

    E[T] = int_0^inf P(T > t) dt,    E[T^2] = 2 int_0^inf t P(T > t) dt

both integrated in log t by composite Gauss-Legendre, split where the survival function has a kink or jumps. The tail
beyond the last node is that of a power law, whose exponent says whether a moment is finite at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedsim.facts import Array
from fedsim.protocols import NoClosedForm

_PANELS, _NODES = 64, 16
_LEAST_S, _MOST_S = 1e-250, 1e250


@dataclass(frozen=True, eq=False)
class RandomTime:
    """A random time, seconds.

    survival: P(T > t), `[t] -> [t]`, accurate where it is small. kinks_s: times at which it jumps or has a kink.
    """

    survival: Callable[[Array], Array]
    kinks_s: tuple[float, ...] = ()

    def cdf(self, t_s: Array | float) -> Array:
        """P(T <= t)."""
        return 1.0 - self.survival(np.atleast_1d(np.asarray(t_s, dtype=np.float64)))

    @cached_property
    def mean_s(self) -> float:
        """Seconds. Raises NoClosedForm if infinite."""
        return self._moment(1)

    @cached_property
    def variance_s2(self) -> float:
        """Seconds squared. Raises NoClosedForm if infinite."""
        low_s, high_s, _ = self._window
        if low_s == high_s:
            return 0.0
        # About the least value, so that a long certain part does not cost the digits of a small variance.
        shifted = RandomTime(lambda t: self.survival(t + low_s), tuple(k - low_s for k in self.kinks_s if k > low_s))
        return max(0.0, shifted._moment(2) - shifted._moment(1) ** 2)

    @property
    def sd_s(self) -> float:
        return float(np.sqrt(self.variance_s2))

    def quantile_s(self, p: float) -> float:
        """The least t with P(T <= t) >= p, by bisection, seconds."""
        return _crossing(self.survival, 1.0 - p)

    def quantiles_s(self, p: Array) -> Array:
        """`quantile_s` of each, `[p]`."""
        return _crossings(self.survival, 1.0 - np.asarray(p))

    def plus(self, seconds: float) -> RandomTime:
        """So much later."""
        if not seconds:
            return self
        return RandomTime(
            lambda t: np.where(t < seconds, 1.0, self.survival(np.maximum(t - seconds, 0.0))),
            (seconds, *(k + seconds for k in self.kinks_s)),
        )

    def at_most(self, seconds: float) -> RandomTime:
        """min(T, seconds)."""
        kinks = (*(k for k in self.kinks_s if k < seconds), seconds)
        return RandomTime(lambda t: np.where(t < seconds, self.survival(t), 0.0), kinks)

    @cached_property
    def _window(self) -> tuple[float, float, float]:
        """Below the first P(T > t) is 1, beyond the second negligible; the exponent of the tail, if it is a power law's."""
        low_s = _crossing(self.survival, 1.0 - 1e-15)
        jumps = [k for k in self.kinks_s if abs(k - low_s) <= 1e-12 * k]
        return jumps[0] if jumps else low_s, _crossing(self.survival, 1e-300), self._tail_exponent()

    def _tail_exponent(self) -> float:
        """a where P(T > t) falls like t^-a; infinite if it falls faster than any power."""
        levels = np.array([1e-50, 1e-100, 1e-150, 1e-250])
        log_t = np.log(np.maximum(_crossings(self.survival, levels), _LEAST_S))
        if log_t[-1] >= np.log(_MOST_S) * 0.999:  # so heavy a tail that it leaves the range of numbers
            near, far = self.survival(np.array([1e100, 1e200]))
            return float(np.log(near / far) / np.log(1e100))
        run = np.diff(log_t)[[0, 2]]
        if (run < 1e-9).any():
            return np.inf
        first, last = np.log([1e50, 1e100]) / run
        return float(last) if abs(last / first - 1) < 1e-3 else np.inf

    def _moment(self, power: int) -> float:
        low_s, high_s, exponent = self._window
        if exponent <= power * (1 + 1e-9):
            what = "mean" if power == 1 else "variance"
            raise NoClosedForm(f"needs a finite {what}; the tail falls like t^-{exponent:.3g}, so it is infinite")
        t, w = self._nodes(low_s, high_s, exponent - power)
        inside = float(w @ (power * t ** (power - 1) * self.survival(t)))
        tail = 0.0
        if np.isfinite(exponent):
            end_s = float(t[-1])
            tail = power * end_s**power * float(self.survival(np.array([end_s]))[0]) / (exponent - power)
        return low_s**power + inside + tail

    def _nodes(self, low_s: float, high_s: float, slack: float) -> tuple[Array, Array]:
        """Nodes and weights of an integral over the window. slack: how much faster than 1 / t the integrand falls."""
        median_s = _crossing(self.survival, 0.5)
        start = low_s if low_s > 0.0 else max(median_s * 1e-18, _LEAST_S)
        end = min(high_s, max(start, median_s) * 10.0 ** min(17.0 / slack, 60.0)) if np.isfinite(slack) else high_s
        if end <= start:
            return np.empty(0), np.empty(0)
        # Where the survival function falls, panels are laid by its quantiles; further ones evenly in log t.
        by_quantile = _crossings(self.survival, np.array(_LEVELS))
        evenly = np.geomspace(start, end, _PANELS + 1)
        edges = np.unique(np.clip([start, end, *evenly, *by_quantile, *self.kinks_s], start, end))
        edges = edges[np.concatenate([[True], np.diff(edges) > 1e-15 * edges[1:]])]
        x, w = np.polynomial.legendre.leggauss(_NODES)
        log = np.log(edges)
        half = np.diff(log)[:, None] / 2
        t = np.exp(log[:-1, None] + half * (1 + x))
        return t.ravel(), (half * w * t).ravel()


_LEVELS = (
    0.999999,
    0.9999,
    0.999,
    0.99,
    0.95,
    0.9,
    0.8,
    0.65,
    0.5,
    0.35,
    0.2,
    0.1,
    0.05,
    0.01,
    1e-3,
    1e-4,
    1e-6,
    1e-9,
    1e-13,
)


def _crossing(survival: Callable[[Array], Array], level: float) -> float:
    """The least t with P(T > t) <= level, seconds; 0 or the largest representable if it lies beyond."""
    return float(_crossings(survival, np.array([level]))[0])


def _crossings(survival: Callable[[Array], Array], levels: Array) -> Array:
    """`_crossing` of each level, all of them at once: a call costs more than a point."""
    least, most = np.log(_LEAST_S), np.log(_MOST_S)
    low, high = np.full(len(levels), least), np.full(len(levels), most)
    share = np.linspace(0.0, 1.0, 10)
    for _ in range(26):
        grid = low[:, None] + (high - low)[:, None] * share
        grid[:, -1] = high
        is_below = survival(np.exp(grid).ravel()).reshape(grid.shape) <= levels[:, None]
        first = np.where(is_below.any(axis=1), is_below.argmax(axis=1), len(share) - 1)
        rows = np.arange(len(levels))
        low, high = grid[rows, np.maximum(first - 1, 0)], grid[rows, first]
        if (high - low <= 1e-15 * np.maximum(1.0, np.abs(high))).all():
            break
    return np.where(high <= least, 0.0, np.exp(high))


def certain(seconds: float) -> RandomTime:
    """Always so long."""
    return RandomTime(lambda t: np.where(t < seconds, 1.0, 0.0), (seconds,))
