"""Which places of a ranking the seeds allow to tell apart.

Times to a target are listed from the soonest on, but two policies that stand beside each other may have come out in
this order by luck. Each policy gets the interval of places that it may have: 1 + how many policies are told to be
sooner ... the number of policies - how many are told to be later. All intervals hold at once with probability 1 - error_share.

Rounds of the same seed meet the same weather, so that log times are those of randomised blocks: policy + seed + residual.
With so few seeds (2 are enough) no policy's own spread is known; the residuals of all policies together are:
    s^2 = sum_(p, s) (y_ps - y_p. - y_.s + y_..)^2 / ((P - 1) (n - 1))
    p and q are told apart if |y_p. - y_q.| > q_(P, (P - 1)(n - 1)) s / sqrt(n)       (studentised range)
which supposes that the logarithms of all policies' times scatter alike.

Sources: Tukey, The problem of multiple comparisons (1953), for randomised blocks in Hsu, Multiple Comparisons (1996), ch. 5
and 7; intervals of places from it: Al Mohamad, Goeman, van Zwet, Simultaneous confidence intervals for ranks with
application to ranking institutions, Biometrics 78 (2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy import optimize, stats

from fedsim.facts import Array, BoolArray

_ROUNDING = 1e-12


def told_apart(
    log_times: Array, is_known: BoolArray, error_share: float = 0.05, least_variance: float = 0.0
) -> BoolArray:
    """Whether the first policy is told to be sooner than the second, `[policy, policy]`.

    log_times: `[policy, seed]`, paired by column. is_known: whether a policy's times are known under every seed, `[policy]`;
    those of the others are lower bounds, which tell nothing of how times scatter. least_variance: of a log time, from what
    is known beforehand (the grid of evaluations rounds times); a few residuals may happen to be smaller.
    """
    n_policies, n_seeds = log_times.shape
    degrees = (int(is_known.sum()) - 1) * (n_seeds - 1)
    if degrees < 1:
        return np.zeros((n_policies, n_policies), dtype=np.bool_)
    known = log_times[is_known]
    residual = known - known.mean(axis=1, keepdims=True) - known.mean(axis=0) + known.mean()
    error = float(np.sqrt(max((residual**2).sum() / degrees, least_variance) / n_seeds))
    mean = log_times.mean(axis=1)
    gap = mean[None, :] - mean[:, None]
    range_ = _studentized_range(1 - error_share, n_policies, degrees)
    # A policy whose times are lower bounds is not told to be sooner than anybody.
    return np.asarray((gap > np.maximum(range_ * error, _ROUNDING)) & is_known[:, None])


@cache
def _studentized_range(p: float, n_policies: int, degrees: int) -> float:
    """Its quantile, from Bonferroni's bound by secants: half the time of scipy's own, which searches an interval."""
    bound = np.sqrt(2.0) * stats.t.isf((1 - p) / (n_policies * (n_policies - 1)), degrees)
    law = stats.studentized_range(n_policies, degrees)
    return float(optimize.newton(lambda q: float(law.cdf(q)) - p, bound, x1=0.97 * bound, rtol=1e-8))


def places(sooner: BoolArray) -> list[tuple[int, int]]:
    """The first and the last place that each policy may have, from 1; sooner: as from `told_apart`."""
    n = len(sooner)
    return [(1 + int(sooner[:, p].sum()), n - int(sooner[p].sum())) for p in range(n)]


def ties(labels: Sequence[str], sooner: BoolArray) -> list[tuple[str, ...]]:
    """Neighbours of the ranking of which none is told apart from another, two or more at a time, as many as possible.

    A policy may stand in two of them: not told apart from the one before it, nor from the one after it, which are told
    apart. labels: best first, in the order of `sooner`.
    """
    apart = sooner | sooner.T
    found: list[tuple[int, int]] = []
    for first in range(len(labels)):
        last = first
        while last + 1 < len(labels) and not apart[first : last + 1, last + 1].any():
            last += 1
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return [tuple(labels[first : last + 1]) for first, last in found]
