"""Averages of times that some runs never showed: right-censored data.

A run that has not reached the target by the end of what was observed is censored there, never dropped: the mean over
finishers alone shrank a true ratio of 1.30 to 1.09.

Source: Kaplan and Meier, Nonparametric estimation from incomplete observations, JASA 53 (1958), as in
`scipy.stats.ecdf`. Censoring is assumed to say nothing about the time (a common horizon does not).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

_ROUNDING = 1e-9


def median_s(reached_s: Sequence[float | None], followed_s: Sequence[float]) -> float | None:
    """The Kaplan-Meier median, seconds; None if fewer than half of the runs are known to get there.

    reached_s: `[run]`, None where the run was followed for `followed_s` without reaching. Where survival rests at
    exactly one half, the middle of that stretch, as for the median of an even number of values. With one horizon for
    all it is the median with infinity for those that never reached.
    """
    times_s = [f if r is None else r for r, f in zip(reached_s, followed_s, strict=True)]
    is_censored = [r is None for r in reached_s]
    if not times_s or all(is_censored):
        return None
    survival = stats.ecdf(stats.CensoredData.right_censored(times_s, is_censored)).sf
    event_s = np.array(sorted({r for r in reached_s if r is not None}))
    share_left = survival.evaluate(event_s)
    below = np.flatnonzero(share_left < 0.5 - _ROUNDING)
    at_half = np.flatnonzero(np.abs(share_left - 0.5) <= _ROUNDING)
    if not len(at_half):
        return float(event_s[below[0]]) if len(below) else None
    return float((event_s[at_half[0]] + event_s[below[0]]) / 2) if len(below) else None


def restricted_s(reached_s: Sequence[float | None], horizon_s: float) -> list[float]:
    """min(time, horizon), seconds, `[run]`: known for every run that was followed up to `horizon_s`."""
    return [horizon_s if r is None else min(r, horizon_s) for r in reached_s]


def common_horizon_s(followed_s: Sequence[float], is_censored: Sequence[bool]) -> float:
    """How long every run's time is known: the shortest follow-up of a censored run; infinite if none is censored."""
    return min((f for f, censored in zip(followed_s, is_censored, strict=True) if censored), default=np.inf)
