"""A decreasing function from 1 to 0, dear to evaluate, on panels: its logarithm as a Chebyshev series in log t on each.

Panels are halved until the last terms of their series vanish, so that a survival function keeps its relative accuracy
down to 1e-300. Beyond the last panel it goes on as a power of t.

Source: Trefethen, "Approximation Theory and Approximation Practice" (2013), ch. 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np

from fedsim.facts import Array
from fedsim.protocols import NoClosedForm

_DEGREE = 20
_MOST_PANELS = 1000


@dataclass(frozen=True, eq=False)
class LogTable:
    """edges: of the panels, log t, `[panel + 1]`. series: Chebyshev coefficients of the logarithm, `[panel, degree]`.

    kinks: where the function has kinks or jumps, as far as they are edges. slope: of the logarithm beyond the last edge.
    """

    edges: Array
    series: Array
    kinks: tuple[float, ...]
    slope: float

    @classmethod
    def of(cls, survival: Callable[[Array], Array], kinks: Sequence[float] = (), *, is_faint: bool = False) -> Self:
        """is_faint: kinks are so many that each is hardly seen; they are smoothed over, at 1e-7 of a mean and 1e-5 of a variance.

        Raises NoClosedForm where the function is not smooth between its kinks.
        """
        start, end = _support(survival)
        inner = [] if is_faint else sorted(kink for kink in kinks if start < kink < end)
        panels = _refined(survival, list(pairwise(np.log([start, *inner, end]))), 1e-6 if is_faint else 1e-11)
        edges = np.array([panels[0][0], *(panel[1] for panel in panels)])
        series = np.stack([panel[2] for panel in panels])
        last = np.polynomial.chebyshev.chebval([0.98, 1.0], series[-1])
        return cls(edges, series, (start, *inner), float(last[1] - last[0]) / (0.01 * (edges[-1] - edges[-2])))

    def __call__(self, t: Array) -> Array:
        with np.errstate(divide="ignore"):
            log_t = np.log(np.maximum(np.asarray(t, dtype=np.float64), 0.0))
        i = np.clip(np.searchsorted(self.edges, log_t, side="right") - 1, 0, len(self.series) - 1)
        low, high = self.edges[i], self.edges[i + 1]
        x = np.clip((2 * np.clip(log_t, low, high) - low - high) / (high - low), -1.0, 1.0)
        found = np.zeros_like(x)  # Clenshaw's recursion, with each point's own coefficients
        before = np.zeros_like(x)
        for degree in range(_DEGREE, 0, -1):
            found, before = self.series[i, degree] + 2 * x * found - before, found
        found = self.series[i, 0] + x * found - before + self.slope * np.maximum(log_t - self.edges[-1], 0.0)
        return np.where(log_t < self.edges[0], 1.0, np.exp(np.minimum(found, 0.0)))


def _refined(
    survival: Callable[[Array], Array], todo: list[tuple[float, float]], tolerance: float
) -> list[tuple[float, float, Array]]:
    """Panels (begin, end, series), ascending."""
    nodes = np.polynomial.chebyshev.chebpts1(_DEGREE + 1)
    fit = np.linalg.inv(np.polynomial.chebyshev.chebvander(nodes, _DEGREE))
    done: list[tuple[float, float, Array]] = []
    while todo:
        ends = np.asarray(todo)
        middle, width = ends.mean(axis=1), np.diff(ends, axis=1)
        log_t = middle[:, None] + width / 2 * nodes
        with np.errstate(divide="ignore"):
            values = np.maximum(np.log(survival(np.exp(log_t).ravel())), -800.0).reshape(log_t.shape)
        series = values @ fit.T
        rest = np.abs(series[:, -4:]).max(axis=1)
        is_exact = rest <= tolerance * np.maximum(1.0, -values.max(axis=1))
        # What is left may be the rounding of a function that is only known to so many digits.
        is_rounding = (rest * np.exp(values.max(axis=1)) <= 1e-12) & (width[:, 0] < 0.05)
        is_good = is_exact | is_rounding | (width[:, 0] < 1e-9)
        done += [(ends[i, 0], ends[i, 1], series[i]) for i in np.flatnonzero(is_good)]
        todo = [half for i in np.flatnonzero(~is_good) for half in pairwise((ends[i, 0], middle[i], ends[i, 1]))]
        if len(done) + len(todo) > _MOST_PANELS:
            raise NoClosedForm("needs laws that are smoother to be tabulated for devices of so many kinds")
    return sorted(done, key=lambda panel: panel[0])


def _support(survival: Callable[[Array], Array]) -> tuple[float, float]:
    """Roughly where the function leaves 1 and where it falls below 1e-300."""

    def border(level: float) -> tuple[float, float]:
        low, high = np.log(1e-250), np.log(1e250)
        for _ in range(6):
            grid = np.linspace(low, high, 12)
            is_below = survival(np.exp(grid)) <= level
            i = int(np.argmax(is_below)) if is_below.any() else len(grid)
            low, high = grid[max(i - 1, 0)], grid[min(i, len(grid) - 1)]
        return float(np.exp(low)), float(np.exp(high))

    return border(1.0 - 1e-16)[0], border(1e-300)[1]
