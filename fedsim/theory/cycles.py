"""Rounds that come in cycles: the rounds of a cycle differ by what travels, and share who was asked.

T_j = the slowest of the n devices asked, in round j of a cycle. Given who was asked, S, rounds are independent, so that

    E[mean over the cycle] = mean_j E[T_j],      Var[sum over the cycle] = sum_j Var[T_j] + sum_{j != k} Cov[T_j, T_k]
    Cov[T_j, T_k] = int int E_S[prod_S F_j,u(s) prod_S F_k,u(t)] - E_S[prod_S F_j,u(s)] E_S[prod_S F_k,u(t)] ds dt

The covariance is 0 where everybody is asked, or all devices are alike. Means over S, a uniform n-subset, are sums of
products over all subsets, which one pass through the devices adds up (see `sampled_fewer_than`).

Sources: Hoeffding's covariance formula (Lehmann, Some concepts of dependence, Ann. Math. Stat. 37, 1966, lemma 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedsim.facts import Array
from fedsim.protocols import NoClosedForm
from fedsim.theory.arrivals import KthArrival
from fedsim.theory.counts import sampled_fewer_than
from fedsim.theory.fleet import Expectation, of_time
from fedsim.theory.spread import LEVELS, TAIL, crossings
from fedsim.theory.times import RandomTime

_POINTS = 8  # of Gauss-Legendre in each panel
_MOST_TERMS = 200_000_000  # pairs of times x devices x drawn: a second or so


@dataclass(frozen=True, eq=False)
class Cycle:
    """rounds: the kinds of round, each of which waits for all that it asks. n_times: how often each occurs in a cycle."""

    rounds: Sequence[KthArrival]
    n_times: Sequence[int]

    @property
    def period(self) -> int:
        return sum(self.n_times)

    @cached_property
    def mean_s(self) -> float:
        """Of a round, over the cycle."""
        return float(np.dot(self.n_times, [one.end.mean_s for one in self.rounds])) / self.period

    @cached_property
    def variance_s2(self) -> float:
        """`period` times that of a cycle's mean. Raises NoClosedForm if it is infinite, or out of reach."""
        kinds = list(zip(self.rounds, self.n_times, strict=True))
        in_all = sum(n * one.end.variance_s2 for one, n in kinds)
        for i, (one, n) in enumerate(kinds):
            if not _is_independent(one):
                in_all += n * (n - 1) * _covariance(one, one) if n > 1 else 0.0
                in_all += sum(2 * n * m * _covariance(one, other) for other, m in kinds[:i])
        return in_all / self.period

    @property
    def time(self) -> RandomTime:
        """Of a round that is picked at random."""
        share = np.asarray(self.n_times) / self.period
        kinks = sorted({kink for one in self.rounds for kink in one.end.kinks_s})
        return RandomTime(
            lambda t: sum(w * one.end.survival(t) for w, one in zip(share, self.rounds, strict=True)), tuple(kinks)
        )

    def round_s(self) -> Expectation:
        """Raises NoClosedForm where the variance is out of reach; one that is infinite is None."""
        is_finite = all(of_time("round_s", one.end).variance is not None for one in self.rounds)
        variance = self.variance_s2 if is_finite else None
        return Expectation("round_s", "s", self.mean_s, variance, time=self.time, period=self.period)


def _is_independent(one: KthArrival) -> bool:
    return one.asks_all or one.arrived.is_equal


def _covariance(a: KthArrival, b: KthArrival) -> float:
    """Of the ends of two rounds that ask the same devices, drawn once for both."""
    n = a.n_asked
    (s, w_s), (t, w_t) = _nodes(a), _nodes(b)
    missing_a, missing_b = (one.missing(at)[:, one.arrived.group] for one, at in ((a, s), (b, t)))
    if missing_a.size * len(t) * n > _MOST_TERMS:
        raise NoClosedForm(
            f"needs equal devices, all of them asked, or fewer: {n} are drawn for a whole cycle of rounds"
        )
    late_a, late_b = (sampled_fewer_than(n, n, missing) for missing in (missing_a, missing_b))
    total = 0.0
    for row, at_row, weight in zip(missing_a, late_a, w_s, strict=True):
        either = sampled_fewer_than(
            n, n, row + missing_b - row * missing_b
        )  # P(late at s in the one or at t in the other)
        total += weight * float(w_t @ (at_row + late_b - at_row * late_b - either))
    return total


def _nodes(one: KthArrival) -> tuple[Array, Array]:
    """Nodes and weights of an integral over t, where the round's end may lie; panels end at kinks."""
    levels = crossings(one.end.survival, [level for level in (*LEVELS, *TAIL) if 1e-14 < level < 1.0])
    low, high = float(levels.min()) * (1 - 1e-12), float(levels.max())
    kinks = np.array([kink for kink in one.arrived.kinks_s(one.n_steps) if low < kink < high])
    edges = np.unique(np.concatenate([[low], levels, kinks]))
    edges = edges[np.concatenate([[True], np.diff(edges) > 1e-12 * edges[1:]])]
    x, w = np.polynomial.legendre.leggauss(_POINTS)
    half = np.diff(np.log(edges))[:, None] / 2
    at = edges[:-1, None] * np.exp(half * (1 + x))
    return at.ravel(), (half * w * at).ravel()
