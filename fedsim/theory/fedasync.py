"""FedAsync: every upload makes a version, so that round time, staleness and weights are those of single uploads.

Source of the rule: Xie, Koyejo, Gupta, arXiv 1903.03934, Algorithm 1 and section 5.2. C of M devices at work, an upload
that is s versions late has the weight a_s = a f(s):
    constant: f = 1;   polynomial: (s + 1)^-a';   hinge: 1 if s <= b, else 1 / (a' (s - b) + 1)
    seconds between versions: exponential with rate sum 1 / m_i for exponential cycles, else 1 / throughput in the long run
    staleness: C - 1 on average for any cycles; geometric, P(s >= k) = (1 - p_i)^k, for exponential ones
    mean weight: a sum_k P(s = k) f(k)
The rest, and why rounds of other cycles depend on one another: `asynchronous_rounds.py`, `asynchronous.py`.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

from fedsim.facts import Array, IntArray
from fedsim.theory.asynchronous_rounds import Cycles, answers_of
from fedsim.theory.fleet import Expectation, Fleet
from fedsim.theory.rounds import Answers, listed

Weighting = Literal["constant", "polynomial", "hinge"]


def discount(
    staleness: IntArray | int,
    weighting: Weighting,
    *,
    exponent: float = 0.5,
    hinge_slope: float = 10.0,
    hinge_start: int = 4,
) -> Array:
    """f(s): what an upload that is so many versions late counts, in shares of a fresh one."""
    s = np.asarray(staleness, dtype=np.float64)
    if weighting == "constant":
        return np.ones_like(s)
    if weighting == "polynomial":
        return np.asarray(np.exp(-exponent * np.log1p(s)))
    over = s - hinge_start
    return np.where(over <= 0, 1.0, 1.0 / (hinge_slope * np.where(over > 0, over, 0.0) + 1.0))


class FedAsyncParameters(Protocol):
    """The policy's parameters, as a scenario names them."""

    @property
    def local_steps(self) -> int: ...
    @property
    def mixing_share(self) -> float: ...
    @property
    def staleness_weighting(self) -> Weighting: ...
    @property
    def staleness_exponent(self) -> float | None: ...
    @property
    def hinge_slope(self) -> float | None: ...
    @property
    def hinge_start(self) -> int | None: ...
    @property
    def concurrency(self) -> int | None: ...


def cycles(policy: FedAsyncParameters, fleet: Fleet) -> Cycles:
    """The fleet's cycles: their throughput, the law of the staleness. Raises NoClosedForm where they have none."""
    return Cycles.of(fleet, policy.local_steps, policy.concurrency, 1)


def expected(policy: FedAsyncParameters, fleet: Fleet) -> list[Expectation]:
    """What a round should have on average on this fleet, or why there is no closed form."""
    return listed(answers(policy, fleet))


def answers(policy: FedAsyncParameters, fleet: Fleet) -> Answers:
    """The same, each quantity when it is asked for."""
    stated = {
        "exponent": policy.staleness_exponent,
        "hinge_slope": policy.hinge_slope,
        "hinge_start": policy.hinge_start,
    }
    settings = {name: value for name, value in stated.items() if value is not None}

    def of(staleness: IntArray) -> Array:
        return discount(staleness, policy.staleness_weighting, **settings)  # type: ignore[arg-type]

    return answers_of(
        fleet,
        local_steps=policy.local_steps,
        concurrency=policy.concurrency,
        n_per_version=1,
        weight=policy.mixing_share,
        discount=None if policy.staleness_weighting == "constant" else of,
    )
