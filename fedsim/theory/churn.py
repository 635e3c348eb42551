"""Devices that come and go: how many are there, who stays, and how long work takes that is interrupted.

A device is on for times of mean 1 / alpha and off for times D in turn, all independent. pi = E[on] / (E[on] + E[D]).

    on at t, if on at 0 (both exponential)    pi + (1 - pi) e^(-t (alpha + 1 / E[D]))
    number on                                 Bin(M, pi)
    on at a random time and until s later     pi int_s^inf P(on > u) du / E[on]      (residual life, not P(on > s))
    work S, on-times exponential; it begins when the device is on
      resumed where it stopped                E = E[S] (1 + alpha E[D])
                                              Var = alpha E[S] E[D^2] + Var S (1 + alpha E[D])^2
      the same begun again                    E = (E e^(alpha S) - 1) (1 / alpha + E[D])
      other work drawn for each attempt       E = (1 / E e^(-alpha S) - 1) (1 / alpha + E[D])
    it begins at a random time                + (1 - pi) E[D^2] / (2 E[D])

The variance of work begun again is that of a geometric number of failures, each an on-time cut at S and an off-time.
Sources: Cox, "Renewal Theory" (1962), ch. 5 and 7 (residual lives, alternating renewals); Kulkarni, Nicola, Trivedi,
"The completion time of a job on multimode systems", Adv. Appl. Prob. 19 (1987) (resumed, repeated, redrawn work).
Knows nothing of what the work is, nor of devices whose on- and off-times depend on one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, localcontext
from math import exp, inf

import numpy as np
from scipy import special, stats

from fedsim.delays import Classes, Constant, Empirical, Exponential, Gamma, Lognormal, Mixture, Pareto, Uniform, Weibull
from fedsim.facts import Array
from fedsim.protocols import Law, NoClosedForm
from fedsim.theory.links import Moments

_DIGITS = 60  # where breaks are rare, the terms of a variance cancel to the third order of alpha S

# ---- who is there -----------------------------------------------------------------------------------------------------


def available_share(on_s: Law, off_s: Law) -> float:
    """pi, the share of time that a device is on in the long run."""
    for what, law in (("on-times", on_s), ("off-times", off_s)):
        if not np.isfinite(law.mean):
            raise NoClosedForm(f"needs {what} of finite mean; got {law}")
    return on_s.mean / (on_s.mean + off_s.mean)


def n_available(n_devices: int, on_s: Law, off_s: Law) -> Array:
    """Probabilities that 0 ... n_devices devices are on at a random time, `[n]`."""
    return np.asarray(stats.binom.pmf(np.arange(n_devices + 1), n_devices, available_share(on_s, off_s)))


def again_available_share(on_s: Law, off_s: Law, after_s: float) -> float:
    """P(on `after_s` after a time at which the device was on), whatever happened between."""
    rate_per_s = _exponential_rate_per_s(on_s, "on-times") + _exponential_rate_per_s(off_s, "off-times")
    share = available_share(on_s, off_s)
    return share + (1.0 - share) * exp(-rate_per_s * after_s)


def staying_share(on_s: Law, off_s: Law, for_s: float) -> float:
    """P(on at a random time and without a break for `for_s` from then)."""
    return available_share(on_s, off_s) * residual_survival(on_s, for_s)


def residual_survival(lifetime: Law, s: float) -> float:
    """P(what is left at a random time of the lifetime under way > s). Raises NoClosedForm if the mean is infinite."""
    if not np.isfinite(lifetime.mean):
        raise NoClosedForm(f"needs lifetimes of finite mean; got {lifetime}")
    return _mean_excess(lifetime, s) / lifetime.mean


def wait_until_on_s(on_s: Law, off_s: Law) -> float:
    """Mean seconds from a random time until the device is on; 0 while it is."""
    if not off_s.mean:
        return 0.0
    mean_s = (1.0 - available_share(on_s, off_s)) * _second_moment(off_s) / (2.0 * off_s.mean)
    _refuse_infinite(mean_s, off_s)
    return mean_s


# ---- work that is interrupted -----------------------------------------------------------------------------------------


def resumed(work_s: Law, on_s: Law, off_s: Law) -> Moments:
    """Seconds from a time at which the device is on until the work is done, if nothing is lost when it goes."""
    failures_per_s = _exponential_rate_per_s(on_s, "on-times")
    stretch = 1.0 + failures_per_s * off_s.mean
    mean_s = work_s.mean * stretch
    _refuse_infinite(mean_s, work_s)
    breaks = failures_per_s * work_s.mean * _second_moment(off_s) if work_s.mean else 0.0
    return Moments(mean_s, breaks + work_s.variance * stretch**2)


def restarted(work_s: Law, on_s: Law, off_s: Law) -> Moments:
    """Seconds from a time at which the device is on until the work is done, if the same work begins anew when it returns.

    The variance is infinite where E e^(2 alpha S) is. Raises NoClosedForm where the mean is.
    """
    with localcontext(prec=_DIGITS):
        a, off = Decimal(_exponential_rate_per_s(on_s, "on-times")), Decimal(off_s.mean)
        once, once_slope = _transform(work_s, a)
        mean_s = (once - 1) * (1 / a + off)
        _refuse_infinite(float(once), work_s)
        _refuse_infinite(float(mean_s), off_s)
        twice, _ = _transform(work_s, 2 * a)
        if not (twice.is_finite() and np.isfinite(off_s.variance)):
            return Moments(float(mean_s), inf)
        lost = (twice - 1 - 2 * a * once_slope) / a**2 + 2 * off * ((twice - once) / a - once_slope)
        breaks = (once - 1) * Decimal(off_s.variance) + (twice - once) * off**2
        between_works = (twice - once**2) * (1 / a + off) ** 2
        return Moments(float(mean_s), float(lost + breaks + between_works))


def redrawn_s(work_s: Law, on_s: Law, off_s: Law) -> float:
    """Mean seconds from a time at which the device is on until work is done, if each attempt draws its own work."""
    with localcontext(prec=_DIGITS):
        a = Decimal(_exponential_rate_per_s(on_s, "on-times"))
        in_one_go, _ = _transform(work_s, -a)
        mean_s = float((1 / in_one_go - 1) * (1 / a + Decimal(off_s.mean)))
    _refuse_infinite(mean_s, off_s)
    return mean_s


# ---- what the laws have to tell --------------------------------------------------------------------------------------


def _exponential_rate_per_s(law: Law, what: str) -> float:
    if not isinstance(law, Exponential) or law.shift > 0.0:
        raise NoClosedForm(f"needs exponential {what} without a shift; got {law}")
    return 1.0 / law.mean


def _refuse_infinite(value: float, law: Law) -> None:
    if not np.isfinite(value):
        raise NoClosedForm(f"needs a finite mean; it is infinite with {law}")


def _second_moment(law: Law) -> float:
    return law.variance + law.mean**2


def _weighted_values(law: Constant | Empirical | Classes) -> tuple[Array, Array]:
    if isinstance(law, Constant):
        return np.array([law.value]), np.array([1.0])
    values = np.asarray(law.values)
    return values, np.asarray(law.shares) if isinstance(law, Classes) else np.full(len(values), 1.0 / len(values))


def _mean_excess(law: Law, s: float) -> float:
    """E(X - s)^+, the integral of P(X > u) from s."""
    if isinstance(law, Constant | Empirical | Classes):
        values, shares = _weighted_values(law)
        return float(shares @ np.maximum(values - s, 0.0))
    if isinstance(law, Mixture):
        return sum(share * _mean_excess(each, s) for each, share in zip(law.laws, law.shares, strict=True))
    excess: float | np.floating
    survival = float(law.survival(np.array(s)))
    match law:
        case Exponential():
            excess = max(law.shift - s, 0.0) + (law.mean - law.shift) * survival
        case Gamma():
            excess = law.mean * special.gammaincc(law.shape + 1.0, s * law.shape / law.mean) - s * survival
        case Weibull():
            x = (s * float(special.gamma(1.0 + 1.0 / law.shape)) / law.mean) ** law.shape
            excess = law.mean * special.gammaincc(1.0 / law.shape, float(x))
        case Lognormal():
            z = (np.log(law.median) - special.xlogy(1.0, s)) / law.sigma
            excess = law.mean * special.ndtr(z + law.sigma) - s * survival
        case Pareto():
            excess = max(law.minimum - s, 0.0) + max(s, law.minimum) * survival / (law.shape - 1.0)
        case Uniform():
            excess = max(law.low - s, 0.0) + (law.high - law.low) / 2.0 * survival**2
        case _:
            raise NoClosedForm(f"needs a law whose survival function has a known integral; got {law}")
    return float(excess)


def _transform(law: Law, a: Decimal) -> tuple[Decimal, Decimal]:
    """E e^(a X) and its slope E[X e^(a X)]; infinite where they are."""
    match law:
        case Constant() | Empirical() | Classes():
            values, shares = _weighted_values(law)
            parts = [((a * value).exp(), value * (a * value).exp()) for value in map(Decimal, values.tolist())]
            return _mixed(parts, shares)
        case Mixture():
            return _mixed([_transform(each, a) for each in law.laws], np.asarray(law.shares))
        case Exponential() | Gamma():
            shift, shape = (law.shift, 1.0) if isinstance(law, Exponential) else (0.0, law.shape)
            least, scale, n_phases = Decimal(shift), Decimal((law.mean - shift) / shape), Decimal(shape)
            if a * scale >= 1:
                return Decimal("Infinity"), Decimal("Infinity")
            value = (a * least).exp() * (1 - a * scale) ** -n_phases
            return value, value * (least + n_phases * scale / (1 - a * scale))
        case Uniform():
            low, high = Decimal(law.low), Decimal(law.high)
            at_low, at_high = (a * low).exp(), (a * high).exp()
            value = (at_high - at_low) / (a * (high - low))
            return value, (high * at_high - low * at_low) / (a * (high - low)) - value / a
    if a > 0 and (isinstance(law, Lognormal | Pareto) or (isinstance(law, Weibull) and law.shape < 1.0)):
        return Decimal("Infinity"), Decimal("Infinity")
    raise NoClosedForm(f"needs work whose E exp({a:.3g} S) is elementary; got {law}")


def _mixed(parts: Sequence[tuple[Decimal, Decimal]], shares: Array) -> tuple[Decimal, Decimal]:
    """Mean of the parts. The shares are made to add up to 1 in all digits, not only in binary's 16."""
    exact = [Decimal(share) for share in shares.tolist()]
    value, slope = (
        sum((share * x for share, x in zip(exact, column, strict=True)), Decimal(0))
        for column in zip(*parts, strict=True)
    )
    return value / sum(exact), slope / sum(exact)
