"""Which policies may be the best, all things compared at once.

Choosing the smallest of several noisy means and testing it against the next as if it had been named beforehand claims
too much. Instead every policy defends itself against all others simultaneously: it *may be best* unless the largest of
its standardised paired differences exceeds the bootstrap quantile of that maximum. The set holds the truly best policy
with probability 1 - error_share.

Source: Hsu, Multiple Comparisons (1996), ch. 4, comparisons with the best; maximum statistic resampled over seeds as in
Romano and Wolf, Exact and approximate stepdown methods for multiple hypothesis testing, JASA 100 (2005).
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from fedsim.facts import Array, BoolArray

_N_RESAMPLES = 9_999
_SEED = 20_250_102
_ROUNDING = 1e-12


def may_be_best(costs: Array, error_share: float = 0.05) -> BoolArray:
    """Whether each policy may have the smallest mean cost, `[policy]`; at least one does.

    costs: `[policy, seed]`, smaller is better, paired by column, at least 2 seeds.
    """
    n_policies, n_seeds = costs.shape
    generator = np.random.default_rng(_SEED)
    shift = generator.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), _N_RESAMPLES) / n_seeds - 1 / n_seeds
    verdicts = np.ones(n_policies, dtype=np.bool_)
    for own in range(n_policies) if n_policies > 1 else ():
        excess = np.delete(costs[own] - costs, own, axis=0)  # [other policy, seed]; positive: the other one is better
        error = excess.std(axis=1, ddof=1) / np.sqrt(n_seeds)
        observed = _standardised(excess.mean(axis=1), error).max()
        resampled = _standardised(excess @ shift.T, error[:, None]).max(axis=0)
        verdicts[own] = observed <= _small_sample(float(np.quantile(resampled, 1 - error_share)), n_seeds)
    verdicts[np.argmin(costs.mean(axis=1))] = True
    return verdicts


def _standardised(gap: Array, error: Array) -> Array:
    """gap / error. A difference that is the same under every seed is certain: infinite if it is one, else zero."""
    # The error is that of the data, also for resamples: studentising each resample by its own error lets one policy
    # that is nearly always censored (ties, an error of zero in 11 % of resamples) make every quantile infinite.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.abs(gap) < _ROUNDING, 0.0, gap / np.where(error < _ROUNDING, 0.0, error))


def _small_sample(quantile: float, n_seeds: int) -> float:
    """A quantile on the normal scale of the bootstrap as the equally likely one of Student's t, n_seeds - 1 degrees.

    The bootstrap takes the error for known and, as a variance, (n - 1) / n too small.
    """
    as_normal = quantile * np.sqrt(n_seeds / (n_seeds - 1))
    return float(stats.t.isf(stats.norm.sf(as_normal), n_seeds - 1))
