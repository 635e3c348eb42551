"""Means of functions of a random time that is known by its survival function only, kinks and jumps included.

E[g(T)] is a weighted sum over nodes: in each panel (evenly in log t between quantiles and kinks) the survival function's
polynomial is differentiated and the product with g integrated by Clenshaw-Curtis; a jump is a weight of its own. Where g
has a kink inside a panel, the panel is cut there. So no density is needed, and one table of the survival function, which
may be dear, serves for many g.

Source: Trefethen, "Approximation Theory and Approximation Practice" (2013), ch. 19 and 21.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedsim.facts import Array, BoolArray, IntArray

_TIE = 1e-11  # relative: more than what two sums of equal steps differ by
LEVELS = (1 - 1e-15, 1 - 1e-12, 1 - 1e-9, 1 - 1e-6, 1 - 1e-4, 0.999, 0.99, 0.95, 0.85, 0.7, 0.5, 0.3)
TAIL = (0.15, 0.05, 0.01, 1e-3, 1e-4, 1e-6, 1e-9, 1e-13, 1e-18, 1e-24, 1e-32, 1e-280)
_POINTS = 20
_CHEBYSHEV = -np.cos(np.pi * np.arange(_POINTS) / (_POINTS - 1))


@dataclass(frozen=True, eq=False)
class Nodes:
    """Times at which survival functions are asked, seconds, ascending.

    A little before the first edge; in each panel Chebyshev's points (in log t) from a little after one edge to a little
    before the next; a little after the last edge. So a jump at an edge lies between two nodes.
    log_ends: of the panels, `[2, panel]`.
    """

    t_s: Array
    log_ends: Array

    @classmethod
    def between(cls, levels: Array, kinks: Array) -> Nodes:
        """Edges at the kinks, and at the levels that are not too close to one."""
        kinks = kinks[np.concatenate([[True], np.diff(kinks) > 4 * _TIE * kinks[1:]])] if len(kinks) else kinks
        low, high = levels.min(), levels.max()
        free = np.unique(
            np.append(levels, np.geomspace(low, high, 2 + int((np.log(high) - np.log(low)) / np.log(8.0))))
        )
        free = free[np.concatenate([[True], np.diff(free) > 1e-8 * free[1:]])]
        if len(kinks):
            free = free[(np.abs(free[:, None] / kinks - 1) > 1e-8).all(axis=1)]
        edges = np.sort(np.append(kinks, free))
        ends = np.log(np.stack([edges[:-1] * (1 + _TIE), edges[1:] * (1 - _TIE)]))
        inner = np.exp(ends.mean(axis=0) + _CHEBYSHEV[:, None] * np.diff(ends, axis=0)[0] / 2).T
        return cls(np.concatenate([[edges[0] * (1 - _TIE)], inner.ravel(), [edges[-1] * (1 + _TIE)]]), ends)


@dataclass(frozen=True, eq=False)
class Spread:
    """A random time's law on nodes. survival: P(T > t), `[node]`."""

    nodes: Nodes
    survival: Array

    @cached_property
    def jumps(self) -> Array:
        """What lies on an edge, at the node after it, `[node]`."""
        found = np.zeros_like(self.survival)
        after = np.arange(1, len(found), _POINTS)
        found[after] = self.survival[after - 1] - self.survival[after]
        return found

    @cached_property
    def _panels(self) -> Array:
        """`[panel, point]`."""
        return self.survival[1:-1].reshape(-1, _POINTS)

    @cached_property
    def _smooth(self) -> Array:
        """`[panel, point]`; nothing, not even rounding, where the survival function does not fall."""
        return np.where(self._panels[:, :1] == self._panels[:, -1:], 0.0, self._panels @ _FALL.T)

    @cached_property
    def masses(self) -> Array:
        """Weights with which values at the nodes average to a mean, `[node]`; they add up to 1."""
        found = self.jumps.copy()
        found[1:-1] += self._smooth.ravel()
        found[0] += 1.0 - self.survival[0]
        found[-1] += self.survival[-1]
        return found

    def mean(
        self,
        value: Callable[[Array, Array], Array],
        n: Array,
        cuts_s: Array,
        *,
        without: BoolArray | None = None,
    ) -> Array:
        """E[value(n, T)], `[n]`, value(n, t) having kinks in t at `cuts_s`, `[n, cut]`. without: nodes that do not count."""
        masses = self.masses if without is None else np.where(without, 0.0, self.masses)
        found = value(n, self.nodes.t_s[None, :]) @ masses
        return found + self._by_cutting(value, n, np.log(np.maximum(cuts_s, 1e-300))) if cuts_s.shape[1] else found

    def _by_cutting(self, value: Callable[[Array, Array], Array], n: Array, cuts: Array) -> Array:
        """What becomes of the mean when panels are cut where value has kinks, `[n]`."""
        begin, end = self.nodes.log_ends
        if not len(begin):
            return np.zeros(len(n))
        cuts = np.sort(cuts, axis=1)
        panel = np.minimum(np.searchsorted(end, cuts), len(end) - 1)
        x = (2 * cuts - begin[panel] - end[panel]) / (end - begin)[panel]
        is_inside = np.abs(x) < 1.0
        is_next = np.zeros_like(is_inside)  # another cut of the same panel lies before
        is_next[:, 1:] = is_inside[:, 1:] & is_inside[:, :-1] & (panel[:, 1:] == panel[:, :-1])
        is_last = is_inside & ~np.concatenate([is_next[:, 1:], np.zeros((len(n), 1), dtype=bool)], axis=1)
        x = np.where(is_inside, x, 0.0)
        before = np.where(is_next, np.roll(x, 1, axis=1), -1.0)
        left = self._piece(value, n, panel, before, x)
        right = self._piece(value, n, panel, x, np.ones_like(x))
        points = self.nodes.t_s[1:-1].reshape(-1, _POINTS)[panel]
        whole = (value(n, points) * self._smooth[panel]).sum(axis=2)
        cut = (
            np.where(is_inside, left, 0.0) + np.where(is_last, right, 0.0) - np.where(is_inside & ~is_next, whole, 0.0)
        )
        return np.asarray(cut.sum(axis=1))

    def _piece(
        self, value: Callable[[Array, Array], Array], n: Array, panel: IntArray, low: Array, high: Array
    ) -> Array:
        """Mean over the part of a panel from low to high (of -1 ... 1), `[n, cut]`."""
        nodes, weights = np.polynomial.legendre.leggauss(_POINTS)
        x = ((low + high) / 2)[..., None] + ((high - low) / 2)[..., None] * nodes
        begin, end = self.nodes.log_ends[:, panel, None]
        slope = np.polynomial.chebyshev.chebval(x, np.moveaxis(self._slopes[panel], 2, 0)[..., None], tensor=False)
        t_s = np.exp((begin + end) / 2 + (end - begin) / 2 * x)
        return np.asarray(-(value(n, t_s) * slope * weights).sum(axis=2) * (high - low) / 2)

    @cached_property
    def _slopes(self) -> Array:
        """Chebyshev series of the survival function's derivative over -1 ... 1, `[panel, degree]`."""
        series = self._panels @ np.linalg.inv(np.polynomial.chebyshev.chebvander(_CHEBYSHEV, _POINTS - 1)).T
        return np.asarray(np.polynomial.chebyshev.chebder(series, axis=1), dtype=np.float64)


def _falls() -> Array:
    """Minus the derivative of the polynomial through point j's value, at point i, times the quadrature's weight there."""
    power = np.polynomial.chebyshev.chebvander(_CHEBYSHEV, _POINTS - 1)
    derivative = power[:, :-1] @ np.polynomial.chebyshev.chebder(np.linalg.inv(power), axis=0)
    degree = np.arange(0, _POINTS, 2)
    whole = np.zeros(_POINTS)
    whole[degree] = 2.0 / (1.0 - degree**2)  # integrals of Chebyshev's polynomials
    return np.asarray(-np.linalg.solve(power.T, whole)[:, None] * derivative)


_FALL = _falls()


def crossings(survival: Callable[[Array], Array], levels: Sequence[float], n_halvings: int = 46) -> Array:
    """The least t with P(T > t) <= each level, by bisection in log t, seconds."""
    low, high = np.full(len(levels), np.log(1e-250)), np.full(len(levels), np.log(1e250))
    for _ in range(n_halvings):
        middle = (low + high) / 2
        is_above = survival(np.exp(middle)) > np.asarray(levels)
        low, high = np.where(is_above, middle, low), np.where(is_above, high, middle)
    return np.asarray(np.exp(high))
