"""Seconds until a run has an accuracy, and keeps it.

Times should come from one grid common to all policies: a policy that is evaluated at each of its aggregates holds more
lottery tickets the shorter its rounds. Here they need not be evenly spaced. Nothing is interpolated: an answer is always
a time of evaluation. Knows arrays only, not where they come from.
"""

from __future__ import annotations

import numpy as np

from fedsim.facts import Array

# A window of sustain_s counts as whole if what is known ends this share of its time too early: k * step and
# start + sustain differ in the last bits.
_ROUNDING = 1e-9


def first_crossing_s(time_s: Array, accuracy: Array, target: float) -> float | None:
    """The first evaluation at or above `target`; None if there is none.

    time_s, accuracy: `[evaluation]`, times ascending. An accuracy that is NaN is below every target.
    """
    at_target = np.flatnonzero(accuracy >= target)
    return float(time_s[at_target[0]]) if len(at_target) else None


def sustained_s(
    time_s: Array, accuracy: Array, target: float, sustain_s: float, followed_s: float | None = None
) -> float | None:
    """The start of the first window of `sustain_s` in which all evaluations are at or above `target`; None if never.

    time_s, accuracy: `[evaluation]`, times ascending. A window starts at an evaluation, includes both its ends and
    lies wholly inside the followed time: a run that reaches the target less than `sustain_s` before its end has not
    sustained it. followed_s: where that time ends, the last evaluation if left out. `sustain_s = 0` is the first crossing.
    """
    if not len(time_s):
        return None
    end_s = float(time_s[-1]) if followed_s is None else followed_s
    slack_s = _ROUNDING * abs(end_s)
    below = np.concatenate([[0], np.cumsum(~(accuracy >= target))])  # [evaluation + 1], evaluations below before each
    window_end = np.searchsorted(time_s, time_s + sustain_s + slack_s, side="right")
    is_whole = time_s + sustain_s <= end_s + slack_s
    sustained = np.flatnonzero(is_whole & (below[window_end] == below[:-1]))
    return float(time_s[sustained[0]]) if len(sustained) else None
