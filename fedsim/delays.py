"""Named probability laws: one uniform in, one value out; and what a closed form may ask of them.

A law has the unit of the key it stands under: seconds under `latency_s`, bit/s under `rate_bits_per_s`, none under a
`..._factor`. Theory asks a law for its mean and cdf and never keeps a copy of its parameters.
Parameterisations: Johnson, Kotz, Balakrishnan, "Continuous Univariate Distributions" (1994).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Lt, MinLen
from pydantic import Discriminator, Tag
from scipy import special

from fedsim.facts import Array

Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Gt(0), Lt(1)]


@dataclass(frozen=True)
class Constant:
    """Always `value`."""

    value: NotNegative
    kind: Literal["constant"] = "constant"

    def draw(self, u: Array) -> Array:
        return np.full_like(u, self.value)

    @property
    def mean(self) -> float:
        return self.value

    @property
    def variance(self) -> float:
        return 0.0

    def cdf(self, x: Array) -> Array:
        return np.where(np.asarray(x) >= self.value, 1.0, 0.0)

    def survival(self, x: Array) -> Array:
        return 1.0 - self.cdf(x)


@dataclass(frozen=True)
class Exponential:
    """Memoryless; `shift` is a least value that the exponential part (of mean `mean - shift`) is added to."""

    mean: Positive = 1.0
    shift: NotNegative = 0.0
    kind: Literal["exponential"] = "exponential"

    def __post_init__(self) -> None:
        if self.shift >= self.mean:
            raise ValueError(f"shift is {self.shift:g} but must lie below the mean, {self.mean:g}")

    def draw(self, u: Array) -> Array:
        return self.shift - (self.mean - self.shift) * np.log1p(-u)

    @property
    def variance(self) -> float:
        return (self.mean - self.shift) ** 2

    def cdf(self, x: Array) -> Array:
        return -np.expm1(-np.maximum(np.asarray(x) - self.shift, 0.0) / (self.mean - self.shift))

    def survival(self, x: Array) -> Array:
        return np.exp(-np.maximum(np.asarray(x) - self.shift, 0.0) / (self.mean - self.shift))


@dataclass(frozen=True)
class Gamma:
    """Sum of `shape` memoryless phases; standard deviation mean / sqrt(shape)."""

    shape: Positive
    mean: Positive = 1.0
    kind: Literal["gamma"] = "gamma"

    def draw(self, u: Array) -> Array:
        return np.asarray(special.gammaincinv(self.shape, u) * (self.mean / self.shape))

    @property
    def variance(self) -> float:
        return self.mean**2 / self.shape

    def cdf(self, x: Array) -> Array:
        return np.asarray(special.gammainc(self.shape, np.maximum(x, 0.0) * (self.shape / self.mean)))

    def survival(self, x: Array) -> Array:
        return np.asarray(special.gammaincc(self.shape, np.maximum(x, 0.0) * (self.shape / self.mean)))


@dataclass(frozen=True)
class Weibull:
    """Heavy-tailed for shape < 1, exponential at 1."""

    shape: Positive
    mean: Positive = 1.0
    kind: Literal["weibull"] = "weibull"

    @property
    def _scale(self) -> float:
        return self.mean / float(special.gamma(1 + 1 / self.shape))

    def draw(self, u: Array) -> Array:
        return self._scale * (-np.log1p(-u)) ** (1 / self.shape)

    @property
    def variance(self) -> float:
        return self._scale**2 * float(special.gamma(1 + 2 / self.shape)) - self.mean**2

    def cdf(self, x: Array) -> Array:
        return -np.expm1(-((np.maximum(np.asarray(x), 0.0) / self._scale) ** self.shape))

    def survival(self, x: Array) -> Array:
        with np.errstate(over="ignore"):  # beyond all numbers, where nothing survives
            return np.exp(-((np.maximum(np.asarray(x), 0.0) / self._scale) ** self.shape))


@dataclass(frozen=True)
class Lognormal:
    """exp of a normal with standard deviation `sigma`; `median` is exp of its mean."""

    sigma: Positive
    median: Positive = 1.0
    kind: Literal["lognormal"] = "lognormal"

    def draw(self, u: Array) -> Array:
        return self.median * np.exp(self.sigma * special.ndtri(u))

    @property
    def mean(self) -> float:
        return self.median * float(np.exp(self.sigma**2 / 2))

    @property
    def variance(self) -> float:
        return self.mean**2 * float(np.expm1(self.sigma**2))

    def cdf(self, x: Array) -> Array:
        with np.errstate(divide="ignore"):
            return special.ndtr(np.log(np.maximum(np.asarray(x), 0.0) / self.median) / self.sigma)

    def survival(self, x: Array) -> Array:
        with np.errstate(divide="ignore"):
            return special.ndtr(-np.log(np.maximum(np.asarray(x), 0.0) / self.median) / self.sigma)


@dataclass(frozen=True)
class Pareto:
    """P(X > x) = (minimum / x)^shape. The mean is infinite for shape <= 1, the variance for shape <= 2."""

    shape: Positive
    minimum: Positive = 1.0
    kind: Literal["pareto"] = "pareto"

    def draw(self, u: Array) -> Array:
        return self.minimum * np.exp(-np.log1p(-u) / self.shape)

    @property
    def mean(self) -> float:
        return self.minimum * self.shape / (self.shape - 1) if self.shape > 1 else np.inf

    @property
    def variance(self) -> float:
        a = self.shape
        return self.minimum**2 * a / ((a - 1) ** 2 * (a - 2)) if a > 2 else np.inf

    def cdf(self, x: Array) -> Array:
        return -np.expm1(self.shape * np.log(self.minimum / np.maximum(np.asarray(x), self.minimum)))

    def survival(self, x: Array) -> Array:
        return np.asarray((self.minimum / np.maximum(np.asarray(x), self.minimum)) ** self.shape)


@dataclass(frozen=True)
class Uniform:
    """Between `low` and `high`."""

    low: NotNegative
    high: Positive
    kind: Literal["uniform"] = "uniform"

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g} but must lie below high, {self.high:g}")

    def draw(self, u: Array) -> Array:
        return self.low + (self.high - self.low) * u

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2

    @property
    def variance(self) -> float:
        return (self.high - self.low) ** 2 / 12

    def cdf(self, x: Array) -> Array:
        return np.clip((np.asarray(x) - self.low) / (self.high - self.low), 0.0, 1.0)

    def survival(self, x: Array) -> Array:
        return np.clip((self.high - np.asarray(x)) / (self.high - self.low), 0.0, 1.0)


@dataclass(frozen=True)
class Empirical:
    """One of the measured `values`, all equally likely."""

    values: Annotated[tuple[NotNegative, ...], MinLen(1)]
    kind: Literal["empirical"] = "empirical"

    def draw(self, u: Array) -> Array:
        values = np.asarray(self.values)
        return values[np.minimum((u * len(values)).astype(np.int64), len(values) - 1)]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def variance(self) -> float:
        return float(np.var(self.values))

    def cdf(self, x: Array) -> Array:
        return np.searchsorted(np.sort(self.values), np.asarray(x), side="right") / len(self.values)

    def survival(self, x: Array) -> Array:
        return 1.0 - self.cdf(x)


@dataclass(frozen=True)
class Classes:
    """Speed classes: `values[i]` with probability `shares[i]`; the shares add up to 1."""

    values: Annotated[tuple[NotNegative, ...], MinLen(1)]
    shares: Annotated[tuple[Positive, ...], MinLen(1)]
    kind: Literal["classes"] = "classes"

    def __post_init__(self) -> None:
        if len(self.values) != len(self.shares):
            raise ValueError(
                f"there are {len(self.values)} values but {len(self.shares)} shares; give one share a value"
            )
        if abs(sum(self.shares) - 1) > 1e-9:
            raise ValueError(f"the shares add up to {sum(self.shares):g}; make them add up to 1")

    def draw(self, u: Array) -> Array:
        edges = np.cumsum(self.shares)[:-1]
        return np.asarray(self.values)[np.searchsorted(edges, u, side="right")]

    @property
    def mean(self) -> float:
        return float(np.dot(self.values, self.shares))

    @property
    def variance(self) -> float:
        return float(np.dot((np.asarray(self.values) - self.mean) ** 2, self.shares))

    def cdf(self, x: Array) -> Array:
        return np.asarray((np.asarray(x)[..., None] >= np.asarray(self.values)) @ np.asarray(self.shares))

    def survival(self, x: Array) -> Array:
        return np.asarray((np.asarray(x)[..., None] < np.asarray(self.values)) @ np.asarray(self.shares))


def _is_number(value: Any) -> str:
    if isinstance(value, int | float):
        return "number"
    return "list" if isinstance(value, list | tuple) else "law"


PlainLaw = Annotated[
    Constant | Exponential | Gamma | Weibull | Lognormal | Pareto | Uniform | Empirical | Classes, Discriminator("kind")
]


@dataclass(frozen=True)
class Mixture:
    """One of `laws`, the i-th with probability `shares[i]`; the shares add up to 1."""

    laws: Annotated[tuple[PlainLaw, ...], MinLen(1)]
    shares: Annotated[tuple[Positive, ...], MinLen(1)]
    kind: Literal["mixture"] = "mixture"

    def __post_init__(self) -> None:
        if len(self.laws) != len(self.shares):
            raise ValueError(f"there are {len(self.laws)} laws but {len(self.shares)} shares; give one share a law")
        if abs(sum(self.shares) - 1) > 1e-9:
            raise ValueError(f"the shares add up to {sum(self.shares):g}; make them add up to 1")

    def draw(self, u: Array) -> Array:
        u = np.asarray(u, dtype=np.float64)
        begins = np.concatenate([[0.0], np.cumsum(self.shares)[:-1]])
        chosen = np.searchsorted(begins[1:], u, side="right")
        # What is left of u once the law is chosen is uniform again.
        rest = np.clip((u - begins[chosen]) / np.asarray(self.shares)[chosen], 0.0, np.nextafter(1.0, 0.0))
        drawn = np.empty_like(u)
        for i, law in enumerate(self.laws):
            drawn[chosen == i] = law.draw(rest[chosen == i])
        return drawn

    @property
    def mean(self) -> float:
        return float(sum(share * law.mean for law, share in zip(self.laws, self.shares, strict=True)))

    @property
    def variance(self) -> float:
        squares = (share * (law.variance + law.mean**2) for law, share in zip(self.laws, self.shares, strict=True))
        return np.inf if np.isinf(self.mean) else float(sum(squares)) - self.mean**2

    def cdf(self, x: Array) -> Array:
        return np.asarray(sum(share * law.cdf(x) for law, share in zip(self.laws, self.shares, strict=True)))

    def survival(self, x: Array) -> Array:
        total = sum(share * law.survival(x) for law, share in zip(self.laws, self.shares, strict=True))
        return np.minimum(total, 1.0)  # the shares may add up to a rounding more


AnyLaw = Annotated[
    Constant | Exponential | Gamma | Weibull | Lognormal | Pareto | Uniform | Empirical | Classes | Mixture,
    Discriminator("kind"),
]
"""Every law a scenario may name, told apart by `kind`."""

Quantity = Annotated[
    Annotated[Positive, Tag("number")] | Annotated[tuple[Positive, ...], Tag("list")] | Annotated[AnyLaw, Tag("law")],
    Discriminator(_is_number),
]
"""A positive number for all devices, a list with one number per device, or a law to draw it from."""

QuantityOrZero = Annotated[
    Annotated[NotNegative, Tag("number")]
    | Annotated[tuple[NotNegative, ...], Tag("list")]
    | Annotated[AnyLaw, Tag("law")],
    Discriminator(_is_number),
]
"""Like `Quantity`, and 0 is allowed."""
