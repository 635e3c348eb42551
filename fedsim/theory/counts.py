"""How many of a fleet's devices have finished: order statistics, and numbers of successes of unequal trials.

Equal devices, I = regularised incomplete beta:      P(T_(k:m) > t) = P(Bin(m, F) < k) = I_{1-F}(m-k+1, k)
Unequal devices, number finished N, p_u = 1 - q_u:   G(z) = E z^N = prod_u (q_u + p_u z)

P(N < k) is read off G on a circle of radius r: with r at the saddle point the tilted probabilities P(N = j) r^j / G(r)
are centred at k, so that a sum of positive terms near k is found to full relative accuracy however small P(N < k) is,
from some fifty points of the circle, be it 3 devices or 10,000. Inclusion-exclusion would have lost all digits by 40
devices, and the refined normal is off by 2.5e-3 near the slowest of 10,000.

Sources: Renyi (1953) for order statistics; Daniels, "Saddlepoint approximations in statistics" (1954), for the tilt
(only the tilt: nothing is approximated here).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import special, stats

from fedsim.facts import Array, IntArray
from fedsim.protocols import NoClosedForm
from fedsim.theory.tables import LogTable
from fedsim.theory.times import RandomTime, certain

_CHUNK = 2_000_000  # complex numbers held at once
_FEW_GROUPS = 24  # up to here a survival function is asked for each time; beyond, it is tabulated once
_MOST_JUMPS = 20_000
_MOST_KINKS = 50_000  # times groups; more are too dear to be edges of panels
_MOST_SAMPLED = 3_000_000  # devices x drawn x counted


def order_survival(k: int, m: int, survival: Array) -> Array:
    """P(T_(k:m) > t), T_(k:m) the k-th smallest of m i.i.d. times, given P(T > t).

    T_(0:m) = 0; for k > m the k-th never comes.
    """
    if k < 1:
        return np.zeros_like(survival)
    return np.ones_like(survival) if k > m else np.asarray(special.betainc(m - k + 1, k, survival))


def some_missing(missing: Array, n_in_group: IntArray | int = 1) -> Array:
    """P(at least one has not finished) = 1 - prod (1 - q)^n over the last axis, accurate where it is small."""
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1((np.log1p(-missing) * n_in_group).sum(axis=-1)))


def fewer_than(k: int, missing: Array, n_in_group: IntArray) -> Array:
    """P(fewer than k of all devices have finished), `[t]`, to full relative accuracy.

    missing: P(a device of the group has not finished), `[t, group]`. n_in_group: devices of each, `[group]`.
    """
    n = int(np.sum(n_in_group))
    if k < 1 or k > n:
        return np.full(len(missing), 0.0 if k < 1 else 1.0)
    if k == n:
        return some_missing(missing, n_in_group)
    if k == 1:
        with np.errstate(divide="ignore"):
            return np.asarray(np.exp((np.log(missing) * n_in_group).sum(axis=1)))
    if missing.shape[1] == 1:
        return order_survival(k, n, missing[:, 0])
    return _in_chunks(k, missing, np.asarray(n_in_group), without_one=False)


def fewer_than_without_one(k: int, missing: Array, n_in_group: IntArray) -> Array:
    """P(fewer than k of the others have finished), the others being all but one device of the group, `[t, group]`."""
    n = int(np.sum(n_in_group)) - 1
    if k < 1 or k > n:
        return np.full(missing.shape, 0.0 if k < 1 else 1.0)
    if missing.shape[1] == 1:
        return order_survival(k, n, missing)
    return _in_chunks(k, missing, np.asarray(n_in_group), without_one=True)


def poisson_binomial_pmf(p: Array, n_in_group: IntArray | int = 1) -> Array:
    """P(N = 0), ..., P(N = n) for independent trials that succeed with p, `[j]`; absolute error 1e-15."""
    n = np.broadcast_to(np.asarray(n_in_group), np.shape(p))
    parts = [stats.binom.pmf(np.arange(each + 1), each, share) for share, each in zip(p, n, strict=True)]
    while len(parts) > 1:  # halves against halves: long convolutions are few
        parts = [_convolved(*parts[i : i + 2]) for i in range(0, len(parts), 2)]
    return np.asarray(parts[0]) if parts else np.ones(1)


def inverse_moment(pmf: Array) -> float:
    """E[1/N; N >= 1]: an average of so many has this times one's variance."""
    return float(pmf[1:] @ (1.0 / np.arange(1, len(pmf))))


def waiting(
    k: int,
    n_in_group: IntArray,
    missing: Callable[[Array], Array],
    kinks_s: Sequence[float] = (),
    *,
    is_discrete: bool = False,
) -> RandomTime:
    """When the k-th of all devices is through.

    missing: P(not yet through at t) of each group, `[t] -> [t, group]`. kinks_s: where any of them jumps or has a kink.
    is_discrete: whether they only jump, at kinks_s.
    """
    return tabulated(lambda t: fewer_than(k, missing(t), n_in_group), kinks_s, len(n_in_group), is_discrete=is_discrete)


def tabulated(
    survival: Callable[[Array], Array], kinks_s: Sequence[float], n_groups: int, *, is_discrete: bool = False
) -> RandomTime:
    """The time with this survival function, which is asked often if few groups make it cheap, else once on a table."""
    if is_discrete:
        return _jumping(survival, np.asarray(kinks_s))
    if n_groups <= _FEW_GROUPS and len(kinks_s) <= 200:
        return RandomTime(survival, tuple(kinks_s))
    table = LogTable.of(survival, kinks_s, is_faint=len(kinks_s) * n_groups > _MOST_KINKS)
    return RandomTime(table, table.kinks)


# ---- some of the fleet, drawn at random -----------------------------------------------------------------------------


def sampled_fewer_than(k: int, n_sampled: int, missing: Array) -> Array:
    """P(fewer than k of n_sampled devices, drawn without replacement, have finished), `[t]`.

    missing: P(not finished), `[t, device]`. Going through the devices, counts of the sampled and of those among them
    that have finished (or not, if that is the shorter way) grow together; every term is positive.
    Raises NoClosedForm if that takes too long.
    """
    n_t, m = missing.shape
    late = n_sampled - k + 1  # fewer than k finished: so many or more have not
    if k < 1 or late < 1:
        return np.full(n_t, 0.0 if k < 1 else 1.0)
    width = min(k, late)
    if m * n_sampled * width > _MOST_SAMPLED:
        raise NoClosedForm(f"needs equal devices, or fewer: {n_sampled} are drawn from {m} unequal ones")
    hits, others = (missing, 1.0 - missing) if late < k else (1.0 - missing, missing)
    counts = np.zeros((n_t, n_sampled + 1, width))  # [t, sampled, hits among them]
    counts[:, 0, 0] = 1.0
    beyond = np.zeros((n_t, n_sampled + 1))  # `width` hits or more
    n_drawn = np.arange(n_sampled + 1)
    for i in range(m):
        take = np.clip((n_sampled - n_drawn) / (m - i), 0.0, 1.0)
        hit, other = hits[:, i, None], others[:, i, None, None]
        taken, lost = counts[:, :-1] * take[:-1, None], beyond[:, :-1] * take[:-1]
        counts, beyond = counts * (1.0 - take)[:, None], beyond * (1.0 - take)
        counts[:, 1:] += taken * other
        counts[:, 1:, 1:] += taken[:, :, :-1] * hit[:, :, None]
        beyond[:, 1:] += lost + taken[:, :, -1] * hit
    return beyond[:, -1] if late < k else counts[:, -1].sum(axis=1)


def rank_pmf(n_devices: int, n_sampled: int, k: int) -> Array:
    """P(the j-th fastest of all is the k-th of a uniform n_sampled-subset), j = 1 ... n_devices."""
    j = np.arange(1, n_devices + 1)
    is_possible = (j >= k) & (n_devices - j >= n_sampled - k)
    inner = np.where(is_possible, j, k)
    after = np.where(is_possible, n_devices - j, n_sampled)
    logs = _log_choose(inner - 1, k - 1) + _log_choose(after, n_sampled - k) - _log_choose(n_devices, n_sampled)
    return np.where(is_possible, np.exp(logs), 0.0)


def _log_choose(n: IntArray | int, m: int) -> Array:
    n = np.asarray(n, dtype=np.float64)
    return np.asarray(special.gammaln(n + 1) - special.gammaln(m + 1) - special.gammaln(n - m + 1))


def sampled_pmf(p: Array, n_sampled: int) -> Array:
    """P(j of n_sampled devices, drawn without replacement, succeed), `[j]`; p: of each device of the fleet, `[device]`."""
    m = len(p)
    if (p == p[0]).all():
        return np.asarray(stats.binom.pmf(np.arange(n_sampled + 1), n_sampled, p[0]))
    if n_sampled == m:
        return poisson_binomial_pmf(p)
    if m * n_sampled**2 > 100 * _MOST_SAMPLED:
        raise NoClosedForm(f"needs equal devices, or fewer: {n_sampled} are drawn from {m} unequal ones")
    counts = np.zeros((n_sampled + 1, n_sampled + 1))  # [sampled, successes]
    counts[0, 0] = 1.0
    for i, share in enumerate(p):
        take = np.clip((n_sampled - np.arange(n_sampled + 1)) / (m - i), 0.0, 1.0)[:, None]
        taken = counts[:-1] * take[:-1]
        counts = counts * (1.0 - take)
        counts[1:] += taken * (1.0 - share)
        counts[1:, 1:] += taken[:, :-1] * share
    return np.asarray(counts[-1])


def sampled_sum(means: Array, squares: Array, n_sampled: int) -> tuple[float, float]:
    """Mean and variance of a sum of independent amounts over n_sampled devices, drawn without replacement.

    means, squares: E[X] and E[X^2] of each device of the fleet, `[device]`.
    """
    m, total = len(means), float(means.sum())
    if n_sampled == m:
        return total, max(0.0, float((squares - means**2).sum()))
    mean = n_sampled / m * total
    pairs = n_sampled * (n_sampled - 1) / (m * (m - 1)) * (total**2 - float((means**2).sum()))
    return mean, max(0.0, n_sampled / m * float(squares.sum()) + pairs - mean**2)


def none_of(p: Array, n_sampled: int) -> float:
    """P(none of n_sampled devices, drawn without replacement, succeeds); p: of each device of the fleet, `[device]`."""
    if n_sampled == len(p) or (p == p[0]).all():
        with np.errstate(divide="ignore"):
            return float(np.exp(np.log1p(-p[:n_sampled]).sum()))
    return float(sampled_pmf(p, n_sampled)[0])


# ---- the generating function on a circle ----------------------------------------------------------------------------


def _in_chunks(k: int, missing: Array, n_in_group: IntArray, *, without_one: bool) -> Array:
    rows = max(1, _CHUNK // (64 * missing.shape[1]))
    parts = [
        _on_circle(k, missing[i : i + rows], n_in_group, without_one=without_one) for i in range(0, len(missing), rows)
    ]
    return np.concatenate(parts) if parts else np.empty((0, missing.shape[1]) if without_one else 0)


def _on_circle(k: int, missing: Array, n_in_group: IntArray, *, without_one: bool) -> Array:
    """P(N < k), `[t]`, or P(N without one of the group < k), `[t, group]`.

    missing: `[t, group]`.
    """
    n = int(n_in_group.sum())
    p, q = 1.0 - missing, missing
    log_r = _saddle(k - 0.5, p, q, n_in_group)
    is_low = log_r <= 0.0  # fewer than k is the rare side; else k or more
    with np.errstate(divide="ignore"):
        a, b = np.log(p) + log_r[:, None], np.log(q)
    top = np.logaddexp(a, b)
    tilted = np.exp(a - top)  # P(finished) under the tilt
    log_g = (top * n_in_group).sum(axis=1)
    v = (tilted * (1.0 - tilted) * n_in_group).sum(axis=1)
    # Tilted probabilities beyond this distance from k are below 1e-17 (Bernstein); twice it aliases nothing.
    reach = int(9 * np.sqrt(v.max())) + 32
    size = min(2 * reach, n + 2)
    reach = min(reach, size)
    angle_max = np.arccos(np.clip(1.0 - 39.0 / np.maximum(v.min(), 1e-9), -1.0, 1.0))
    angles = 2 * np.pi / size * np.arange(min(size // 2, int(angle_max / (2 * np.pi) * size) + 1) + 1)
    w = np.exp(1j * angles)  # both halves of the circle are conjugate: count the upper one twice, its ends once
    double = np.where((np.arange(len(w)) == 0) | (2 * np.arange(len(w)) == size), 1.0, 2.0)
    # Terms on the rare side, outwards from its edge: j = k-1, k-2, ... or k, k+1, ...
    edge = np.where(is_low, k - 1, k)
    outward = np.exp(-np.abs(log_r))[:, None] * np.where(is_low[:, None], w, w.conj())
    n_terms = np.where(is_low, min(reach, k), min(reach, n - k + 1))[:, None]
    kernel = np.where(np.abs(1 - outward) < 1e-12, n_terms, _geometric(outward, n_terms)) * double / size
    kernel = kernel * w[None, :] ** -edge[:, None]
    factors = np.asarray(1.0 + tilted[:, None, :] * (w[None, :, None] - 1.0))
    if without_one:
        log_g, product = log_g[:, None] - top, _product_without_one(factors, n_in_group)
        found = (kernel[:, :, None] * product).sum(axis=1).real
        log_r, edge, is_low = log_r[:, None], edge[:, None], is_low[:, None]
    else:
        product = np.prod(factors if (n_in_group == 1).all() else factors**n_in_group, axis=2)
        found = (kernel * product).sum(axis=1).real
    rare = np.clip(found, 0.0, None) * np.exp(np.minimum(log_g - edge * log_r, 700.0))
    rare = np.minimum(rare, 1.0)
    return np.asarray(np.where(is_low, rare, 1.0 - rare))


def _geometric(z: Array, n: Array) -> Array:
    """1 + z + ... + z^(n-1)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((1 - z**n) / (1 - z))


def _product_without_one(factors: Array, n_in_group: IntArray) -> Array:
    """prod over groups of factor^n, less one device of each group in turn, `[t, angle, group]`; no factor divides."""
    whole = factors if (n_in_group == 1).all() else factors**n_in_group
    one = np.ones_like(whole[:, :, :1])
    before = np.cumprod(np.concatenate([one, whole[:, :, :-1]], axis=2), axis=2)
    after = np.cumprod(np.concatenate([one, whole[:, :, :0:-1]], axis=2), axis=2)[:, :, ::-1]
    rest = 1.0 if (n_in_group == 1).all() else factors ** (n_in_group - 1)
    return np.asarray(before * after * rest)


def _saddle(target: float, p: Array, q: Array, n_in_group: IntArray) -> Array:
    """Log r at which the tilted mean sum n p r / (q + p r) is `target`, `[t]`; the end of the range if it never is."""
    with np.errstate(divide="ignore"):
        logit = np.log(p) - np.log(q)
    low, high = np.full(len(p), -720.0), np.full(len(p), 720.0)
    for _ in range(18):
        middle = (low + high) / 2
        is_more = (special.expit(logit + middle[:, None]) * n_in_group).sum(axis=1) > target
        low, high = np.where(is_more, low, middle), np.where(is_more, middle, high)
    return np.asarray((low + high) / 2)


def _convolved(a: Array, b: Array | None = None) -> Array:
    if b is None:
        return a
    if min(len(a), len(b)) < 512:
        return np.convolve(a, b)
    size = len(a) + len(b) - 1
    found = np.fft.irfft(np.fft.rfft(a, size) * np.fft.rfft(b, size), size)
    return np.maximum(found, 0.0)


# ---- tables ---------------------------------------------------------------------------------------------------------


def _jumping(survival: Callable[[Array], Array], jumps_s: Array) -> RandomTime:
    """From a survival function that is constant between jumps."""
    if len(jumps_s) > _MOST_JUMPS:
        raise NoClosedForm(f"needs few different finishing times of discrete laws; got {len(jumps_s)}")
    jumps_s = np.sort(jumps_s)
    parts = [survival(jumps_s[i : i + 256]) for i in range(0, len(jumps_s), 256)]
    after = np.minimum.accumulate(np.concatenate(parts))
    happens = np.flatnonzero(-np.diff(np.concatenate([[1.0], after])) > 0.0)
    if len(happens) == 1:
        return certain(float(jumps_s[happens[0]]))
    table = np.concatenate([[1.0], after])
    return RandomTime(lambda t: table[np.searchsorted(jumps_s, t, side="right")], tuple(jumps_s[happens].tolist()))
