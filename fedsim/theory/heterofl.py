"""HeteroFL: each device trains a model of its own width; everyone who is asked is waited for.

Source of the rule: Diao, Ding, Tarokh, ICLR 2021, arXiv 2010.01264, Algorithm 1. With C_r the cost of a step over the
model of rate r (see narrowed.py) and f_k the rate at which device k computes:
    rate r_k = largest level r with E[local_steps C_r / f_k] <= budget (equality counts, up to rounding)
             = largest level r with 4 (parameters + batch x activations kept for training) <= memory
    T_k = download + local_steps steps of C_{r_k} / f_k + upload,   round = max over those asked
Rates that change hands in each round leave the round's law as it is where devices are equal, and have none here elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from fedsim.facts import Array, BoolArray
from fedsim.protocols import NoClosedForm
from fedsim.theory.fleet import Expectation, Fleet
from fedsim.theory.narrowed import Parts, answers_of
from fedsim.theory.rounds import Answers, listed

_ROUNDING = 1e-9  # relative: a budget that is a sum of layers is met


def largest_that_fits(levels: Sequence[float], fits: BoolArray) -> Array:
    """`[device]`; fits: `[level, device]`. Raises NoClosedForm where nothing fits a device."""
    rates = np.max(np.where(fits, np.asarray(levels)[:, None], 0.0), axis=0)
    if not rates.all():
        raise NoClosedForm(f"needs a level that fits device {np.flatnonzero(rates == 0)[0]}")
    return np.asarray(rates)


# ---- beside a simulation --------------------------------------------------------------------------------------------


class HeteroFLParameters(Protocol):
    """The policy's parameters, as a scenario names them."""

    @property
    def rates(self) -> tuple[float, ...] | None: ...
    @property
    def budget_s(self) -> float | None: ...
    @property
    def levels(self) -> tuple[float, ...]: ...
    @property
    def assignment(self) -> Literal["fixed", "dynamic"]: ...
    @property
    def local_steps(self) -> int: ...
    @property
    def n_sampled(self) -> int | None: ...


NEEDS_EVEN_STEPS: frozenset[str] = frozenset()
"""Quantities that depend on where single steps end: none, everybody is waited for."""


def rates(policy: HeteroFLParameters, fleet: Fleet) -> Array:
    """Share of each hidden layer's units that a device trains, `[device]`."""
    if policy.rates is not None:
        return np.asarray(policy.rates, dtype=np.float64)
    return largest_that_fits(policy.levels, np.stack([_fits(policy, fleet, level) for level in policy.levels]))


def _fits(policy: HeteroFLParameters, fleet: Fleet, level: float) -> BoolArray:
    """`[device]`."""
    if policy.budget_s is not None:
        if not fleet.has_even_steps:
            raise NoClosedForm("needs local steps of equal numbers of rows; some device's last batch is smaller")
        step_s = Parts(fleet, np.full(fleet.n_devices, level)).mean_step_s
        return np.asarray(policy.local_steps * step_s <= policy.budget_s * (1 + _ROUNDING))
    if fleet.memory_bytes is None or fleet.batch_size is None:
        raise NoClosedForm("needs a fleet that states its memory_bytes")
    part = fleet.shape.sliced(level)
    numbers = part.n_parameters.sum() + fleet.batch_size * part.n_kept_activations.sum()
    return np.asarray(4 * numbers <= fleet.memory_bytes)


def expected(policy: HeteroFLParameters, fleet: Fleet) -> list[Expectation]:
    """What a round should have on average on this fleet, or why there is no closed form."""
    return listed(answers(policy, fleet))


def answers(policy: HeteroFLParameters, fleet: Fleet) -> Answers:
    """The same, each quantity when it is asked for."""
    return answers_of(
        fleet,
        lambda: Parts(fleet, rates(policy, fleet)),
        n_steps=policy.local_steps,
        n_asked=policy.n_sampled or fleet.n_devices,
        is_dealt_anew=policy.assignment == "dynamic",
    )
