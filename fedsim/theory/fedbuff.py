"""FedBuff: K uploads make a version, so that staleness in versions is about a K-th of that in uploads.

Source of the rule: Nguyen et al., AISTATS 2022, arXiv 2106.06639, Algorithm 1. C of M devices at work, a change that is s
versions late counts ((1 + s) / (1 + v))^-e, v = 0 in the paper:
    seconds between versions: Erlang(K, sum 1 / m_i) for exponential cycles, else K / throughput in the long run
    staleness: (C - 1) / K on average for any cycles; for exponential ones, with r = 1 - p_i,
        P(s >= k) = r^((k-1) K + 1) (1 - r^K) / (K (1 - r)), k >= 1
    mean sum of weights: server_learning_rate sum_k P(s = k) ((1 + k) / (1 + v))^-e
The rest, and why rounds of other cycles depend on one another: `asynchronous_rounds.py`, `asynchronous.py`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from fedsim.facts import Array, IntArray
from fedsim.theory.asynchronous_rounds import Cycles, answers_of
from fedsim.theory.fleet import Expectation, Fleet
from fedsim.theory.rounds import Answers, listed


def discount(staleness: IntArray | int, exponent: float = 0.5, normalise_at: float | None = None) -> Array:
    """What a change that is so many versions late counts, in shares of one that is `normalise_at` (0) late."""
    late = np.log1p(np.asarray(staleness, dtype=np.float64)) - np.log1p(normalise_at or 0.0)
    return np.asarray(np.exp(-exponent * late))


class FedBuffParameters(Protocol):
    """The policy's parameters, as a scenario names them."""

    @property
    def buffer_size(self) -> int: ...
    @property
    def local_steps(self) -> int: ...
    @property
    def concurrency(self) -> int | None: ...
    @property
    def staleness_exponent(self) -> float: ...
    @property
    def normalise_at(self) -> float | None: ...
    @property
    def server_learning_rate(self) -> float: ...


def cycles(policy: FedBuffParameters, fleet: Fleet) -> Cycles:
    """The fleet's cycles: their throughput, the law of the staleness. Raises NoClosedForm where they have none."""
    return Cycles.of(fleet, policy.local_steps, policy.concurrency, policy.buffer_size)


def expected(policy: FedBuffParameters, fleet: Fleet) -> list[Expectation]:
    """What a round should have on average on this fleet, or why there is no closed form."""
    return listed(answers(policy, fleet))


def answers(policy: FedBuffParameters, fleet: Fleet) -> Answers:
    """The same, each quantity when it is asked for."""

    def of(staleness: IntArray) -> Array:
        return discount(staleness, policy.staleness_exponent, policy.normalise_at)

    return answers_of(
        fleet,
        local_steps=policy.local_steps,
        concurrency=policy.concurrency,
        n_per_version=policy.buffer_size,
        weight=policy.server_learning_rate,
        discount=None if policy.staleness_exponent == 0.0 else of,
    )
