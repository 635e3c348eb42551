"""Whether rounds came out as their closed forms say: every quantity of a policy, all its seeds together.

A closed form holds for the fleet of one seed, so the seeds are pooled as deviations, each from its own expectation:

    z = sum_seeds sum_rounds (x - E_seed) / sqrt(sum_seeds n_seed Var_seed)

Var is the closed form's where it is known, else that of the rounds (then Student's t). An event is judged by its binomial
tail: exact for one seed, cautious for seeds that differ (Hoeffding, On the distribution of the number of successes in
independent trials, Ann. Math. Stat. 27, 1956). What does not vary must be equal.

Which rounds count. Time runs out in the middle of a round that is longer than most, so the mean over closed rounds is too
small. The number of rounds that count is therefore fixed before looking at them, from the law of the round alone: the m
that are over by `stop.simulated_s` but for a delay of 5 standard deviations, m E + 5 sqrt(m Var) <= simulated_s. Every
other end (rounds, targets, divergence) is decided at the close of a round by what has happened so far: a stopping time,
for which the sum of x - E has mean 0 and variance E[n] Var (Wald, On cumulative sums of random variables, Ann. Math. Stat.
15, 1944). Stalled runs are left out: their last round never ends.

Where rounds come in cycles (`period` rounds that depend on each other), the values are the means of whole cycles.

A server that never waits lists `settled_after`. Its rounds depend on one another, and a mean without a variance is that
of the long run: judged by means of batches (`batch_means`), which take more rounds than a run usually has, so that here
it is only said so. Its `staleness` is exact in every round instead. With F_r the models under way when version r is made,

    sum_{r<R} F_r = staleness of all contributions + what those under way at the end have aged by,

because each version ages each of them by one. F_r / Z, of Z contributions each, is (C - 1) / Z whatever the cycles, where
C devices are at work. The mean of the staleness alone misses that by the last term over Z R, so that its error shrinks
like 1 / R and no spread of its rounds says how large it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from fedsim.facts import Array
from fedsim.statistics.reading import Run

FAMILY_ERROR = 0.01
"""Chance that anything at all is said to disagree where everything is right (Bonferroni)."""

_EXACT = 1e-9  # relative; closed forms are computed to about that
_DELAY_SD = 5.0
_LEAST_ROUNDS = 30  # where the variance is that of the rounds themselves
_N_BATCHES = 20
_NOT_INDEPENDENT = (
    "needs rounds that do not depend on one another: this is the mean of the long run; fedsim validate plays one"
)
_NO_PLACE_TO_STOP = (
    "needs a number of rounds fixed beforehand: the run ended in the middle of a round, and the law of the round time, "
    "which would say how many rounds count, is unknown; set stop.n_rounds"
)


@dataclass(frozen=True, eq=False)
class Sample:
    """A quantity in the rounds of one run, `[round]`, and its closed form.

    variance: over rounds; None if unknown. rounding: how far x is from exact by being stored.
    """

    x: Array
    mean: float
    variance: float | None = None
    rounding: float = 0.0


@dataclass(frozen=True)
class Deviation:
    """How far a simulated mean is from the expected one, over n rounds.

    standard_error: of the simulated mean; 0 where nothing varies. z: the deviation in standard errors, or what is as
    unlikely on a normal scale (binomial tail, skewed sums, unknown variance); None where nothing varies, and then
    is_equal says whether the two are the same.
    """

    n: int
    expected: float
    simulated: float
    standard_error: float
    z: float | None = None
    is_equal: bool | None = None


@dataclass(frozen=True)
class Agreement:
    """One quantity of one policy. layer: which one it is about. agrees: the verdict, all comparisons taken together.

    reason: why there is nothing to compare, else None; `deviation` and `agrees` are None then.
    """

    policy: str
    quantity: str
    unit: str
    layer: int | None = None
    deviation: Deviation | None = None
    agrees: bool | None = None
    reason: str | None = None


def agreements(runs: Sequence[Run]) -> list[Agreement]:
    """Every quantity that a run's tables hold and every reason why one has no closed form, policy by policy."""
    labels = dict.fromkeys(run.label for run in runs)
    rows = [row for label in labels for row in _of_policy(label, [run for run in runs if run.label == label])]
    limit = threshold(rows)
    return [replace(row, agrees=_agrees(row.deviation, limit)) if row.deviation else row for row in rows]


def threshold(rows: Sequence[Agreement]) -> float:
    """The |z| beyond which a quantity disagrees: Bonferroni over all that vary."""
    n = sum(row.deviation is not None and row.deviation.z is not None for row in rows)
    return float(stats.norm.isf(FAMILY_ERROR / max(1, n) / 2))


def _agrees(deviation: Deviation, limit: float) -> bool:
    return bool(deviation.is_equal) if deviation.z is None else abs(deviation.z) <= limit


def in_cycles(x: Array, period: int) -> Array:
    """Means of whole cycles of so many rounds, `[round] -> [cycle]`; rounds of a cycle that was not finished are left out."""
    if period == 1:
        return x
    return np.asarray(x[: len(x) - len(x) % period].reshape(-1, period).mean(axis=1))


def batch_means(x: Array, settled_after: int) -> Array | None:
    """Means of consecutive rounds once the start is forgotten, `[batch]`; None if there are too few rounds for that.

    For rounds that depend on one another: means of batches much longer than their memory hardly do, so that Student's t
    holds for them (Law, "Simulation Modeling and Analysis", 5th ed., 2015, section 9.5.3). What takes `settled_after`
    rounds to forget the start takes as long to forget anything; a batch has at least half as many.
    """
    length = (len(x) - settled_after) // _N_BATCHES
    if length < max(1, settled_after / 2):
        return None
    return np.asarray(x[len(x) - length * _N_BATCHES :].reshape(_N_BATCHES, length).mean(axis=1))


def rounds_to_settle(settled_after: int) -> int:
    """Rounds that make each batch twice as long as the start is remembered."""
    return (1 + 2 * _N_BATCHES) * settled_after


# ---- one comparison -------------------------------------------------------------------------------------------------


def compared(samples: Sequence[Sample]) -> Deviation:
    """The rounds of several runs beside their closed forms; at least one round."""
    n = np.array([len(sample.x) for sample in samples])
    means = np.array([sample.mean for sample in samples])
    values = np.concatenate([sample.x for sample in samples])
    off = values - np.repeat(means, n)
    mean = Deviation(len(off), float(n @ means / n.sum()), float(values.mean()), 0.0)
    known = all(sample.variance is not None for sample in samples)
    variances = np.array([_variance(sample) for sample in samples])
    scale = np.maximum(np.abs(means), 1e-300)
    if _is_event(values, means, variances, known):
        p = mean.expected
        return _with_z(mean, np.sqrt(p * (1 - p) / mean.n), *_binomial_tails(values, p))
    if (variances <= (_EXACT * scale) ** 2).all():
        allowed = np.repeat(_EXACT * scale + [sample.rounding for sample in samples], n)
        if known or (np.abs(off) <= allowed).all():
            return replace(mean, is_equal=bool((np.abs(off) <= allowed).all()))
        return _with_z(mean, 0.0, *_never_an_exception(mean))
    spread = float(np.sqrt(n @ variances))
    tails = _tails(off, spread) if known else _student_tails(samples, float(off.sum()), spread)
    return _with_z(mean, spread / mean.n, *tails)


def _variance(sample: Sample) -> float:
    if sample.variance is not None:
        return sample.variance
    return float(sample.x.var(ddof=1)) if len(sample.x) > 1 else 0.0


def _is_event(values: Array, means: Array, variances: Array, known: bool) -> bool:
    """Happens or not, and may do either."""
    if not (np.isin(values, (0.0, 1.0)).all() and (means >= 0).all() and (means <= 1).all() and 0 < means.mean() < 1):
        return False
    return not known or bool(np.allclose(variances, means * (1 - means), rtol=1e-6, atol=1e-12))


def _binomial_tails(values: Array, p: float) -> tuple[float, float]:
    """P(at most as many), P(at least as many)."""
    seen = int(values.sum())
    return float(stats.binom.cdf(seen, len(values), p)), float(stats.binom.sf(seen - 1, len(values), p))


def _never_an_exception(mean: Deviation) -> tuple[float, float]:
    """Every round was alike, but not as expected: rounds that differ are rare, and none was among these.

    If such a round differs by the value itself, like a layer that nobody reached, it has probability |1 - E / x|.
    """
    small, large = sorted((mean.expected, mean.simulated))
    p_none = (small / large) ** mean.n if small > 0 else 0.0
    return (p_none, 1.0) if mean.simulated < mean.expected else (1.0, p_none)


def _tails(off: Array, spread: float) -> tuple[float, float]:
    """Of a sum of deviations: of the normal law or of Pearson's type III with the skewness seen, whichever is larger.

    The second is exact for exponential rounds, and near for rare exceptions, where the normal tail is far too thin.
    """
    z, skew = float(off.sum()) / spread, float((off**3).sum()) / spread**3
    return (
        max(float(stats.norm.cdf(z)), float(stats.pearson3.cdf(z, skew))),
        max(float(stats.norm.sf(z)), float(stats.pearson3.sf(z, skew))),
    )


def _student_tails(samples: Sequence[Sample], off: float, spread: float) -> tuple[float, float]:
    """Of a sum of deviations with the variance seen: Student's t, as it is or with Hall's correction for skewness,
    whichever tail is larger. A skewed sum draws its own standard error along, so that t is skewed the other way.

    Hall, On the removal of skewness by transformation, J. R. Stat. Soc. B 54 (1992).
    """
    n_free = sum(len(sample.x) - 1 for sample in samples)
    skew = sum(float(((sample.x - sample.x.mean()) ** 3).sum()) for sample in samples) / spread**3
    t = off / spread
    corrected = t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6
    return (
        max(float(stats.t.cdf(t, n_free)), float(stats.t.cdf(corrected, n_free))),
        max(float(stats.t.sf(t, n_free)), float(stats.t.sf(corrected, n_free))),
    )


def _with_z(mean: Deviation, standard_error: float, below: float, above: float) -> Deviation:
    """With z as unlikely as the smaller tail, and of the deviation's sign."""
    tail = min(0.5, max(min(below, above), 1e-300))
    z = float(stats.norm.isf(tail)) * (1.0 if mean.simulated >= mean.expected else -1.0) + 0.0  # no minus zero
    return replace(mean, standard_error=float(standard_error), z=z)


# ---- what a run has to compare --------------------------------------------------------------------------------------


def _of_policy(label: str, runs: Sequence[Run]) -> list[Agreement]:
    samples: dict[tuple[str, int | None], list[Sample]] = {}
    rows: dict[tuple[str, int | None], Agreement] = {}
    for run in (run for run in runs if run.expected and run.outcome != "stalled"):
        columns = _columns(run)
        for one in run.expected:
            key = (str(one["quantity"]), one.get("layer"))
            if "no_closed_form" not in one and (key[0] not in columns or "mean" not in one):
                continue
            rows.setdefault(key, Agreement(label, key[0], str(one.get("unit", "")), key[1]))
            sample = _sample(run, one, columns)
            if isinstance(sample, str):
                rows[key] = replace(rows[key], reason=rows[key].reason or sample)
            elif len(sample.x):
                samples.setdefault(key, []).append(sample)
    compared_rows = [_compared(row, samples[key]) if key in samples else row for key, row in rows.items()]
    return [row for row in compared_rows if row.deviation or row.reason]


def _compared(row: Agreement, samples: Sequence[Sample]) -> Agreement:
    deviation = compared(samples)
    is_known = all(sample.variance is not None for sample in samples)
    if deviation.z is None or is_known or deviation.n >= _LEAST_ROUNDS:
        return replace(row, deviation=deviation, reason=None)
    reason = f"needs {_LEAST_ROUNDS} rounds, since its variance over rounds has no closed form; got {deviation.n}"
    return replace(row, reason=reason)


def _sample(run: Run, one: dict[str, Any], columns: dict[str, Array]) -> Sample | str:
    """The rounds that count, or why there is nothing to compare."""
    if "no_closed_form" in one:
        return str(one["no_closed_form"])
    mean, variance, period = float(one["mean"]), one.get("variance"), int(one.get("period", 1))
    if one["quantity"] in ("is_empty", "is_layer_empty") and period == 1:
        variance = mean * (1.0 - mean)
    if variance is None and any(other["quantity"] == "settled_after" for other in run.expected):
        return _NOT_INDEPENDENT
    if one["quantity"] == "round_s" and variance is None:
        return "needs a finite variance; a mean over rounds would not settle"
    n = len(run.rounds) if variance == 0.0 else rounds_that_count(run)
    if n is None:
        return _NO_PLACE_TO_STOP
    values = columns[one["quantity"]][:n] if one.get("layer") is None else columns[one["quantity"]][:n, one["layer"]]
    # The length of a round is the difference of two stored clock readings.
    rounding = 2.0 * float(np.spacing(run.simulated_s)) if one["quantity"] == "round_s" else 0.0
    return Sample(in_cycles(values, period), mean, None if variance is None else float(variance) / period, rounding)


def rounds_that_count(run: Run) -> int | None:
    """How many of the first rounds may be averaged; None if that is unknown. See the module's text."""
    horizon_s, n_closed = run.manifest["scenario"].get("stop", {}).get("simulated_s"), len(run.rounds)
    if horizon_s is None:
        return n_closed
    time = next((one for one in run.expected if one["quantity"] == "round_s"), {})
    if time.get("mean") is None or time.get("variance") is None:
        return n_closed if _is_round_closed_at_the_end(run) else None
    mean_s, sd_s = float(time["mean"]), float(time["variance"]) ** 0.5
    # m E + 5 sd sqrt(m) = horizon, solved for sqrt(m); a round that ends with the horizon is closed.
    root = (np.sqrt((_DELAY_SD * sd_s) ** 2 + 4 * mean_s * horizon_s) - _DELAY_SD * sd_s) / (2 * mean_s)
    return min(n_closed, int(root**2 * (1 + _EXACT)))


def _is_round_closed_at_the_end(run: Run) -> bool:
    return len(run.rounds) > 0 and float(run.rounds["end_s"].iloc[-1]) == run.simulated_s


def _columns(run: Run) -> dict[str, Array]:
    """What the tables hold of each round: `[round]`, or `[round, layer]`."""
    rounds: pd.DataFrame = run.rounds.select_dtypes("number").astype(np.float64)
    columns = {name: rounds[name].to_numpy() for name in ("used_flops", "uploaded_bytes", "downloaded_bytes")}
    n = columns["n_contributions"] = rounds["n_contributions"].to_numpy()
    columns["round_s"] = (rounds["end_s"] - rounds["start_s"]).to_numpy()
    columns["is_empty"] = (n == 0).astype(np.float64)
    columns["inverse_n_contributions"] = np.divide(1.0, n, out=np.zeros(len(n)), where=n > 0)
    n_layers, layers = len(run.layer_names), run.layers
    for name in ("n_contributors", "weight_sum"):
        columns[name] = np.zeros((len(n), n_layers))
        columns[name][layers["round"].to_numpy(np.int64), layers["layer"].to_numpy(np.int64)] = layers[name].to_numpy(
            np.float64
        )
    columns["is_layer_empty"] = (columns["n_contributors"] == 0).astype(np.float64)
    tasks = run.folder / "tasks.parquet"
    if tasks.is_file() and any(one["quantity"] == "staleness" for one in run.expected):
        jobs = pd.read_parquet(tasks, columns=["version", "round"])
        # Under way when round r makes its version: pulled an earlier one, and not over yet.
        begun, ended = (np.bincount(jobs[at].to_numpy(np.int64), minlength=len(n) + 1) for at in ("version", "round"))
        columns["staleness"] = np.cumsum(begun - ended)[:-1] / np.maximum(n, 1)
    return columns
