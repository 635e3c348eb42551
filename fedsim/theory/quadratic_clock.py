"""Expected losses at instants: curves over rounds, read on a wall clock; and the rounds and seconds to a target.

The model at time t is that of the last round ended by t. Where round times are i.i.d. and independent of the training
(FedAvg, K-sync, fixed deadlines; not STSyn, whose short rounds are short on steps too),
    E[loss(t)] = loss_0 + sum_n (loss_n - loss_(n-1)) P(T_1 + ... + T_n <= t).
The laws of the sums come from one discrete Fourier transform, exponentially tilted against wrap-around (Gruebel and
Hermesmeier, ASTIN Bulletin 29, 1999), of the round time's law on a grid; what the grid costs falls as its square and is
extrapolated to zero (Richardson), the grid refined until three extrapolations agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import fft, stats
from scipy.interpolate import CubicSpline

from fedsim.facts import Array
from fedsim.protocols import NoClosedForm

# A fixed deadline's n-th multiple and the clock's own sum of n deadlines differ by rounding; both mean "ends now".
TIE_SHARE = 1e-9
MOST_CELLS = 2**17


@dataclass(frozen=True, eq=False)
class Timed:
    """Expected losses at instants, `[time]`; error: how far the last refinements of the grid still moved them."""

    loss: Array
    error: float


def at_fixed_rounds(losses: Array, round_s: float, times_s: Array) -> Array:
    """Losses at instants if every round lasts `round_s`, `[time]`; a round that ends at that very instant counts."""
    n_done = np.floor(np.asarray(times_s) / round_s * (1 + TIE_SHARE)).astype(np.int64)
    if n_done.max() >= len(losses):
        raise ValueError(f"the last instant comes after {n_done.max()} rounds; compute as many, not {len(losses) - 1}")
    return np.asarray(losses)[n_done]


def at_poisson_updates(losses: Array, updates_per_s: float, times_s: Array) -> Array:
    """Expected losses at instants if updates are a Poisson process, `[time]`: devices with memoryless cycles."""
    expected = updates_per_s * np.asarray(times_s, dtype=np.float64)
    _refuse_short(float(stats.poisson.sf(len(losses) - 1, expected.max())), len(losses) - 1)
    return np.asarray(stats.poisson.pmf(np.arange(len(losses)), expected[:, None]) @ losses)


def at_time(losses: Array, round_cdf: Callable[[Array], Array], times_s: Array, *, tolerance: float = 1e-7) -> Timed:
    """Expected losses at instants, round times i.i.d. with `round_cdf` and independent of the training.

    tolerance: of the error, as a share of the largest loss. Raises NoClosedForm where the grid does not reach it, as
    with round times that have atoms.
    """
    losses, times_s = np.asarray(losses, dtype=np.float64), np.asarray(times_s, dtype=np.float64)
    horizon_s = float(times_s.max())
    if horizon_s <= 0:
        return Timed(np.full(len(times_s), losses[0]), 0.0)
    _refuse_atoms(round_cdf, horizon_s)
    least_s = _least_value_s(round_cdf, horizon_s)
    # A density often jumps at the least round time, and on a grid point that costs no order of convergence.
    unit_s = least_s if least_s > horizon_s / 500 else horizon_s

    def on_grid(n_per_unit: int) -> Array:
        h = unit_s / n_per_unit
        n_cells = int(np.ceil(horizon_s / h))
        return np.asarray(CubicSpline(np.arange(n_cells + 1) * h, _renewals(losses, round_cdf, h, n_cells))(times_s))

    n_units = horizon_s / unit_s
    tolerated = tolerance * float(np.abs(losses).max())
    return refined(on_grid, int(np.ceil(512 / n_units)), int(MOST_CELLS / n_units), tolerated)


def _renewals(losses: Array, round_cdf: Callable[[Array], Array], h: float, n_cells: int) -> Array:
    """E[loss] at 0, h, ..., n_cells h, the round time rounded to that grid."""
    n_points = fft.next_fast_len(2 * (n_cells + 1), real=True)
    edges = np.concatenate([[0.0], (np.arange(n_cells + 1) + 0.5) * h])
    mass = np.diff(np.asarray(round_cdf(edges)))
    # Mass beyond the horizon returns as an alias, weakened to 1e-10; rounding grows by 1e5.
    tilt = np.exp(-np.log(1e5) / n_cells * np.arange(n_cells + 1))
    transform = fft.rfft(mass * tilt, n_points)
    total = np.zeros_like(transform)
    for jump in np.diff(losses)[::-1]:
        total = (total + jump) * transform
    one_more = fft.irfft(transform ** len(losses), n_points)[: n_cells + 1] / tilt
    _refuse_short(float(one_more.sum()), len(losses) - 1)
    steps = fft.irfft(total, n_points)[: n_cells + 1] / tilt
    found = losses[0] + np.cumsum(steps) - steps / 2  # half of the mass at an instant lies after it
    found[0] = losses[0]  # all of the mass at 0
    return np.asarray(found)


def refined(on_grid: Callable[[int], Array], n: int, most: int, tolerance: float) -> Timed:
    """The limit of `on_grid(n)`, n up to `most`, whose error falls as 1 / n^2; to `tolerance`, by the last two moves.

    n grows by 1.7 at a time: doubling can keep a kink at the same place between two points, and so seem to converge.
    """
    coarse, found, moved = on_grid(n), None, (np.inf, np.inf)
    while True:
        finer = int(1.7 * n) + 1
        if finer > most:
            raise NoClosedForm(f"needs smooth round times, not too many; the result still moves by {max(moved):.2g}")
        fine = on_grid(finer)
        previous, found = found, fine + (fine - coarse) / ((finer / n) ** 2 - 1)
        coarse, n = fine, finer
        moved = (moved[1], np.inf if previous is None else float(np.abs(found - previous).max()))
        if max(moved) <= tolerance:
            return Timed(found, max(moved))


def _least_value_s(round_cdf: Callable[[Array], Array], horizon_s: float) -> float:
    """Up to where the cdf is 0, by bisection."""
    low, high = 0.0, horizon_s
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if float(round_cdf(np.array([middle]))[0]) > 0 else (middle, high)
    return low


def _refuse_atoms(round_cdf: Callable[[Array], Array], horizon_s: float) -> None:
    """The most that one cell holds must shrink with the cells."""
    most = [float(np.diff(round_cdf(np.linspace(0.0, horizon_s, n + 1))).max()) for n in (2**12, 2**16)]
    if most[0] > 0 and most[1] > 0.8 * most[0]:
        raise NoClosedForm(f"needs smooth round times; got an atom of probability {most[1]:.3g}")


def _refuse_short(missing: float, n_rounds: int) -> None:
    if missing > 1e-8:
        raise ValueError(
            f"more than {n_rounds} rounds end by the last instant with probability {missing:.2g}; compute more rounds"
        )


# ---- to a target ----------------------------------------------------------------------------------------------------


def first_round_below(losses: Array, target: float) -> int:
    """The first round after which the expected loss is at most `target`.

    That is when the expectation crosses, not the expected first crossing of a run.
    """
    below = np.flatnonzero(np.asarray(losses) <= target)
    if not len(below):
        raise NoClosedForm(
            f"needs a target that is reached; the loss stays above {target:g} for {len(losses) - 1} rounds"
        )
    return int(below[0])


def rounds_to_target(*, start: float, limit: float, contraction: float, target: float) -> int:
    """The same where the expected loss is limit + (start - limit) contraction^n, one direction of a quadratic."""
    if start <= target:
        return 0
    if not (0 < contraction < 1 and limit < target):
        raise NoClosedForm(f"needs a target that is reached; the loss settles at {limit:g}, above {target:g}")
    exact = np.log((target - limit) / (start - limit)) / np.log(contraction)
    return int(np.ceil(exact * (1 - 1e-14)))


@dataclass(frozen=True)
class Duration:
    """Mean and variance of a time."""

    mean_s: float
    variance_s2: float


def time_of_rounds(n_rounds: int, round_mean_s: float, round_variance_s2: float) -> Duration:
    """How long `n_rounds` i.i.d. rounds take."""
    return Duration(n_rounds * round_mean_s, n_rounds * round_variance_s2)
