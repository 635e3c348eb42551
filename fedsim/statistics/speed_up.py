"""How many times sooner: ratios of times, paired by seed.

The ratio is the geometric mean over seeds of slower / faster; paired because both policies met the same weather. It is
a number only where both reached the target under every seed; where one is censored it is a bound and says so.

Source of the interval: Efron, Better bootstrap confidence intervals, JASA 82 (1987): BCa, `scipy.stats.bootstrap`, over
seeds, on the logarithms.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import stats

from fedsim.facts import Array

_N_RESAMPLES = 9_999
_SEED = 20_250_101  # the interval is a function of the data: the same tables give the same digits


@dataclass(frozen=True)
class SpeedUp:
    """`factor` times sooner than the reference, the geometric mean over `n_pairs` seeds; above 1 is sooner.

    bound: "exact"; "at_least" where only the reference is censored; "at_most" where only the policy itself is;
    "unknown" where both are or a time is zero (then `factor` is None). low, high: 95 % interval, from 3 pairs on,
    exact factors only. correlation: of the two policies' log times over seeds; what pairing gains grows with it.
    """

    bound: Literal["exact", "at_least", "at_most", "unknown"]
    factor: float | None
    n_pairs: int
    low: float | None = None
    high: float | None = None
    correlation: float | None = None


def speed_up(
    reached_s: Sequence[float | None],
    reference_s: Sequence[float | None],
    followed_s: Sequence[float],
    reference_followed_s: Sequence[float],
) -> SpeedUp:
    """How many times sooner than the reference, `[seed]` each, the same seed in the same place.

    None stands for censored at the `followed_s` of the same place, seconds.
    """
    n_pairs = len(reached_s)
    own_s = np.array([f if r is None else r for r, f in zip(reached_s, followed_s, strict=True)])
    other_s = np.array([f if r is None else r for r, f in zip(reference_s, reference_followed_s, strict=True)])
    is_censored, reference_is_censored = None in reached_s, None in reference_s
    if not n_pairs or (is_censored and reference_is_censored) or min(own_s.min(), other_s.min()) <= 0:
        return SpeedUp("unknown", None, n_pairs)
    log_ratio = np.log(other_s) - np.log(own_s)
    factor = float(np.exp(log_ratio.mean()))
    if is_censored or reference_is_censored:
        return SpeedUp("at_most" if is_censored else "at_least", factor, n_pairs)
    low, high = _interval(tuple(log_ratio.tolist()))
    return SpeedUp("exact", factor, n_pairs, low, high, _correlation(np.log(own_s), np.log(other_s)))


@lru_cache(maxsize=4096)  # a page that is filtered asks for the same pairs again and again
def _interval(log_ratio: tuple[float, ...]) -> tuple[float | None, float | None]:
    """The BCa interval of exp(mean), 95 %; none from fewer than 3 pairs, a point where all pairs agree."""
    if len(log_ratio) < 3:
        return None, None
    if np.ptp(log_ratio) < 1e-12:
        return float(np.exp(log_ratio[0])), float(np.exp(log_ratio[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # answered with NaN, handled below
        found = stats.bootstrap(
            (log_ratio,), np.mean, n_resamples=_N_RESAMPLES, method="BCa", rng=np.random.default_rng(_SEED)
        ).confidence_interval
    if not np.isfinite([found.low, found.high]).all():
        return None, None
    return float(np.exp(found.low)), float(np.exp(found.high))


def _correlation(a: Array, b: Array) -> float | None:
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])
