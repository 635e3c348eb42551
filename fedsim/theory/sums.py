"""Laws of sums and products of independent times: what a law is made of, X_1 + ... + X_n, and A times such a sum.

Constants, shifted exponentials and gammas add in closed form, discrete laws by adding atoms. For any other law the sum
is a power of a Fourier transform on a lattice: mass is spread over the two lattice points about it so that its mean
stays, which leaves an error that falls with the square of the lattice's step; it is extrapolated from halved lattices
and refused where three of them do not agree to 1e-7 (heavy tails, densities that are infinite at 0). A product of two
continuous laws is averaged by Gauss-Legendre in log A, split where the other law has a kink.

Source: sums of gammas in Johnson, Kotz, Balakrishnan, "Continuous Univariate Distributions" (1994), ch. 17.
What the times are of, and on which device, is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from scipy import fft, special

from fedsim.delays import (
    Classes,
    Constant,
    Empirical,
    Exponential,
    Gamma,
    Lognormal,
    Mixture,
    Pareto,
    Uniform,
    Weibull,
)
from fedsim.facts import Array, IntArray
from fedsim.protocols import Law, NoClosedForm
from fedsim.theory.tables import LogTable

_MOST_ATOMS = 100_000
_TIE = 1e-12  # relative: a quotient of two times hits an atom only up to rounding
_ACCEPTED = 1e-7  # largest error of P(S_n > x) that passes as exact
_LATTICES = (12, 14, 16, 18, 20)  # log2 of the finest lattice's points


class Cdf(Protocol):
    """A law as far as it is needed here, `[x] -> [x]`."""

    def cdf(self, x: Array) -> Array: ...
    def survival(self, x: Array) -> Array: ...


# ---- what laws are made of ------------------------------------------------------------------------------------------


def atoms_of(law: Law) -> tuple[Array, Array] | None:
    """Values and their shares, ascending; None for a law that is not discrete."""
    if isinstance(law, Constant):
        return np.array([law.value]), np.ones(1)
    if isinstance(law, Classes):
        return _merged(np.asarray(law.values), np.asarray(law.shares))
    if isinstance(law, Empirical):
        return _merged(np.asarray(law.values), np.full(len(law.values), 1 / len(law.values)))
    if isinstance(law, Mixture):
        parts = [atoms_of(part) for part in law.laws]
        if any(part is None for part in parts):
            return None
        known = [(part, share) for part, share in zip(parts, law.shares, strict=True) if part is not None]
        return _merged(np.concatenate([p[0] for p, _ in known]), np.concatenate([s * p[1] for p, s in known]))
    return None


def kinks_of(law: Law) -> tuple[float, ...]:
    """Where a law's cdf jumps or has a kink, ascending."""
    atoms = atoms_of(law)
    if atoms is not None:
        return tuple(atoms[0].tolist())
    if isinstance(law, Uniform):
        return (law.low, law.high)
    if isinstance(law, Mixture):
        return tuple(sorted({kink for part in law.laws for kink in kinks_of(part)}))
    return (_least(law),)


def has_atoms(law: Law) -> bool:
    """Whether some value has a probability of its own."""
    return any(map(has_atoms, law.laws)) if isinstance(law, Mixture) else atoms_of(law) is not None


def density(law: Law, x: Array) -> Array:
    """Of a law without atoms. Raises NoClosedForm for a law that is not of fedsim.delays."""
    if isinstance(law, Mixture):
        return np.asarray(sum(share * density(part, x) for part, share in zip(law.laws, law.shares, strict=True)))
    if isinstance(law, Exponential):
        found = law.survival(x) / (law.mean - law.shift)
    elif isinstance(law, Gamma):
        y = x * (law.shape / law.mean)
        found = np.exp(special.xlogy(law.shape, y) - y - special.gammaln(law.shape)) / x
    elif isinstance(law, Weibull):
        y = x / law.draw(np.array([-np.expm1(-1.0)]))[0]  # the scale is the quantile at 1 - 1/e
        found = law.shape * y**law.shape * law.survival(x) / x
    elif isinstance(law, Lognormal):
        z = np.log(x / law.median) / law.sigma
        found = np.exp(-(z**2) / 2) / (np.sqrt(2 * np.pi) * law.sigma * x)
    elif isinstance(law, Pareto):
        found = law.shape * law.survival(x) / x
    elif isinstance(law, Uniform):
        found = np.where(x <= law.high, 1.0 / (law.high - law.low), 0.0)
    else:
        raise NoClosedForm(f"needs a task factor of a named law, whose density is known; got {_name(law)}")
    return np.where(x >= _least(law), found, 0.0)


def _quantile(law: Law, p: float) -> float:
    """Where a part of the law has its p-quantile first."""
    if isinstance(law, Mixture):
        return min(_quantile(part, p) for part in law.laws)
    return float(law.draw(np.array([p]))[0])


def _least(law: Law) -> float:
    return _quantile(law, 0.0)


def _greatest(law: Law) -> float:
    """What is exceeded with a probability of 1e-16 or less."""
    if isinstance(law, Mixture):
        return max(_greatest(part) for part in law.laws)
    return _quantile(law, 1.0 - 2.0**-53)


def kinks_of_sum(law: Law, n: int) -> tuple[float, ...]:
    """Where the cdf of a sum of n jumps or has a kink, ascending."""
    if n == 1:
        return kinks_of(law)
    if atoms_of(law) is not None:
        atoms = law_of_sum(law, n)
        assert isinstance(atoms, Atoms)
        return tuple(atoms.values.tolist())
    if isinstance(law, Uniform):
        return tuple(law.low * n + (law.high - law.low) * j for j in range(n + 1))
    return (n * _least(law),)


# ---- laws of sums ---------------------------------------------------------------------------------------------------


def law_of_sum(law: Law, n: int) -> Cdf:
    """X_1 + ... + X_n."""
    atoms = atoms_of(law)
    if atoms is not None:
        return _sum_of_atoms(*atoms, n)
    if n == 1:
        return law
    if isinstance(law, Exponential):
        return _Shifted(Gamma(shape=n, mean=n * (law.mean - law.shift)), n * law.shift)
    if isinstance(law, Gamma):
        return Gamma(shape=n * law.shape, mean=n * law.mean)
    return _sum_on_lattice(law, n)


@dataclass(frozen=True)
class _Shifted:
    law: Cdf
    by: float

    def cdf(self, x: Array) -> Array:
        return self.law.cdf(x - self.by)

    def survival(self, x: Array) -> Array:
        return self.law.survival(x - self.by)


@dataclass(frozen=True)
class Scaled:
    """The law of so many times a random value."""

    law: Cdf
    by: float

    def cdf(self, x: Array) -> Array:
        return self.law.cdf(x / self.by)

    def survival(self, x: Array) -> Array:
        return self.law.survival(x / self.by)


@dataclass(frozen=True, eq=False)
class Average:
    """A random factor with atoms times the law."""

    law: Cdf
    factors: Array
    shares: Array

    def cdf(self, x: Array) -> Array:
        return np.asarray(sum(p * self.law.cdf(x / a) for a, p in zip(self.factors, self.shares, strict=True)))

    def survival(self, x: Array) -> Array:
        return np.asarray(sum(p * self.law.survival(x / a) for a, p in zip(self.factors, self.shares, strict=True)))


@dataclass(frozen=True, eq=False)
class Atoms:
    """values ascending; a value counts as reached within the relative error of a quotient."""

    values: Array
    shares: Array

    @classmethod
    def of(cls, values: list[float], shares: list[float]) -> Atoms:
        return cls(np.asarray(values), np.asarray(shares))

    def cdf(self, x: Array) -> Array:
        return np.concatenate([[0.0], np.cumsum(self.shares)])[self._n_reached(x)]

    def survival(self, x: Array) -> Array:
        return np.concatenate([np.cumsum(self.shares[::-1])[::-1], [0.0]])[self._n_reached(x)]

    def _n_reached(self, x: Array) -> IntArray:
        return np.searchsorted(self.values, x + _TIE * np.abs(x), side="right")


def _merged(values: Array, shares: Array) -> tuple[Array, Array]:
    """Equal values (but for rounding) become one."""
    order = np.argsort(values, kind="stable")
    values, shares = values[order], shares[order]
    first = np.flatnonzero(np.concatenate([[True], np.diff(values) > _TIE * values[1:]]))
    return values[first], np.add.reduceat(shares, first)


def _sum_of_atoms(values: Array, shares: Array, n: int) -> Atoms:
    total, weight = np.zeros(1), np.ones(1)
    for bit in bin(n)[2:]:  # by doubling
        for more in ((total, weight), (values, shares))[: 1 + int(bit)]:
            if len(total) * len(more[0]) > 50 * _MOST_ATOMS:
                raise NoClosedForm(f"needs few different values of a discrete law; {n} steps have too many sums")
            total, weight = _merged(np.add.outer(total, more[0]).ravel(), np.multiply.outer(weight, more[1]).ravel())
            if len(total) > _MOST_ATOMS:
                raise NoClosedForm(f"needs few different values of a discrete law; {n} steps have too many sums")
    return Atoms(total, weight)


@dataclass(frozen=True, eq=False)
class _Lattice:
    """P(S > low + i step) and P(S <= ...), `[i]` each; cubic between the points, 0 and 1 beyond them."""

    low: float
    step: float
    above: Array
    below: Array

    def cdf(self, x: Array) -> Array:
        return np.where(x <= self.low, 0.0, self._between(self.below, x, after=1.0))

    def survival(self, x: Array) -> Array:
        return np.where(x <= self.low, 1.0, self._between(self.above, x, after=0.0))

    def _between(self, table: Array, x: Array, after: float) -> Array:
        at = (np.asarray(x, dtype=np.float64) - self.low) / self.step
        is_after = at >= len(table) - 1
        i = np.clip(np.floor(np.where(is_after, 0.0, at)).astype(np.int64), 1, len(table) - 3)
        s = np.where(is_after, 0.0, at) - i
        cubic = (
            -table[i - 1] * s * (s - 1) * (s - 2) / 6
            + table[i] * (s + 1) * (s - 1) * (s - 2) / 2
            - table[i + 1] * (s + 1) * s * (s - 2) / 2
            + table[i + 2] * (s + 1) * s * (s - 1) / 6
        )
        return np.where(is_after, after, np.clip(cubic, 0.0, 1.0))


def _sum_on_lattice(law: Law, n: int) -> _Lattice:
    if not np.isfinite(law.variance):
        raise NoClosedForm(f"needs steps of finite variance once there are several; got {_name(law)}")
    low = _least(law)
    width = _greatest(law) - low
    if not isinstance(law, Uniform):
        width = min(n * width, n * (law.mean - low) + 12 * np.sqrt(n * law.variance) + width)
    for log2 in _LATTICES:
        # A uniform law's ends lie on the lattice, and with them the kinks of its sums.
        coarse = width / max(1, 2 ** (log2 - 2) // n) if isinstance(law, Uniform) else width / 2 ** (log2 - 2)
        length = n * width if isinstance(law, Uniform) else width
        tables = [_power(law, n, low, length, coarse / 2**halvings) for halvings in range(3)]
        (first, second), error = _extrapolated(tables)
        if error < _ACCEPTED * 1e-4 or (log2 == _LATTICES[-1] and error < _ACCEPTED):
            return _Lattice(n * low, coarse / 2, first, second)
    raise NoClosedForm(f"needs lighter tails to add {n} steps to 1e-7; got {_name(law)}, off by {error:.1g}")


def _power(law: Law, n: int, low: float, length: float, step: float) -> tuple[Array, Array]:
    """P(S_n - n low > i step) and P(... <= i step) with the mass on a lattice, half of a point's mass on either side."""
    n_points = round(length / step) + 2
    x, w = np.polynomial.legendre.leggauss(4)
    edges = low + step * np.arange(n_points)
    above = sum(wj / 2 * law.survival(edges + step * (xj + 1) / 2) for xj, wj in zip(x, w, strict=True))
    mass = -np.diff(np.concatenate([[1.0], np.asarray(above)]))
    size = fft.next_fast_len(n_points + 2, real=True)
    total = fft.irfft(fft.rfft(mass, size) ** n, size)[:n_points]
    # Rounding where nothing is stays: to cut it off at its own level would cut off a hundred times as much of the tail.
    reverse = np.cumsum(total[::-1])[::-1]
    return reverse - total / 2, np.cumsum(total) - total / 2


def _extrapolated(tables: list[tuple[Array, Array]]) -> tuple[tuple[Array, Array], float]:
    """From three lattices, each half as wide as the last: the limit on the second, and how far it moved."""
    found, error = [], 0.0
    for coarse, middle, fine in zip(*tables, strict=True):
        m = min(len(middle), (len(fine) + 1) // 2)
        better = (4 * fine[: 2 * m : 2] - middle[:m]) / 3
        k = min(len(coarse), (m + 1) // 2)
        good = (4 * middle[: 2 * k : 2] - coarse[:k]) / 3
        error = max(error, float(np.abs(better[: 2 * k : 2] - good).max()))
        found.append(np.clip(better, 0.0, 1.0))
    return (found[0], found[1]), error


def _name(law: Law) -> str:
    return str(getattr(law, "kind", type(law).__name__))


# ---- both levels random ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Product:
    """A random factor with a density times a law with kinks at `kinks`. spread: of that law, sd / mean."""

    factor: Law
    law: Cdf
    kinks: tuple[float, ...]
    spread: float

    def cdf(self, x: Array) -> Array:
        return np.where(x > 0, self._below(1.0 / np.maximum(x, 1e-300)), 0.0)

    def survival(self, x: Array) -> Array:
        return np.where(x > 0, self._above(x), 1.0)

    # A point costs some hundred values of the law, and a round's length asks for thousands of points.

    @cached_property
    def _above(self) -> LogTable:
        return LogTable.of(lambda x: self._mean(x, "survival"), self._own_kinks)

    @cached_property
    def _below(self) -> LogTable:
        """P(<= 1/y), which falls in y."""
        return LogTable.of(lambda y: self._mean(1.0 / y, "cdf"), [1.0 / x for x in self._own_kinks if x > 0])

    @property
    def _own_kinks(self) -> list[float]:
        return [a * x for a in kinks_of(self.factor) for x in self.kinks]

    @cached_property
    def _edges(self) -> Array:
        """Panels in log a over all that the factor can be, but for 1e-20 below and 1e-300 above."""
        low = _quantile(self.factor, 1e-20)
        first, last = np.log(low), np.log(low) + 690.0
        for _ in range(60):
            middle = (first + last) / 2
            is_out = self.factor.survival(np.array([np.exp(middle)]))[0] < 1e-300
            first, last = (first, middle) if is_out else (middle, last)
        own = [np.log(k) for k in kinks_of(self.factor) if np.log(low) < np.log(max(k, low)) < last]
        width = min(0.5, 6.0 * self.spread)  # of a panel: 16 nodes follow the law's turn from 1 to 0 to 1e-13
        return np.unique([*np.linspace(np.log(low), last, 2 + int((last - np.log(low)) / width)), *own])

    def _mean(self, x: Array, what: str) -> Array:
        size = max(1, 2_000_000 // (16 * (len(self._edges) + len(self.kinks))))
        return np.concatenate([self._mean_of(x[i : i + size], what) for i in range(0, len(x), size)])

    def _mean_of(self, x: Array, what: str) -> Array:
        edges = np.broadcast_to(self._edges, (len(x), len(self._edges)))
        kinks = np.asarray([k for k in self.kinks if k > 0])
        if len(kinks):
            at = np.clip(np.log(x[:, None] / kinks), self._edges[0], self._edges[-1])
            edges = np.sort(np.concatenate([edges, at], axis=1), axis=1)
        nodes, weights = np.polynomial.legendre.leggauss(16)
        half = np.diff(edges, axis=1)[:, :, None] / 2
        a = np.exp(edges[:, :-1, None] + half * (1 + nodes))
        values = np.asarray(getattr(self.law, what)(x[:, None, None] / a))
        return np.asarray((half * weights * a * density(self.factor, a) * values).sum(axis=(1, 2)))
