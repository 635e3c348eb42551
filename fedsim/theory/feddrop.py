"""FedDrop: each device trains a sub-network drawn for it, of a size that suits its speed and its links; all are waited for.

Source of the rule: Wen, Jeon, Huang, IEEE Wireless Communications Letters 2022, arXiv 2109.15258, abstract. With C_s the
cost of a step and B_s the bytes of a model that keeps a share s of its fully connected hidden units (see narrowed.py):
    s_k = largest of 1/20, 2/20, ..., 1 with download(B_s) + E[local_steps C_s / f_k] + upload(B_s) <= deadline
    T_k = the same at s_k with this task's luck,   round = max_k T_k
    of a layer's elements device k holds the share P(B_{s_k})/P, P the layer's parameters: filled with the global value,
    one of them moves by the average over all devices, of which only so many moved it
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from fedsim.facts import Array
from fedsim.protocols import NoClosedForm
from fedsim.theory.fleet import Expectation, Fleet
from fedsim.theory.narrowed import Parts, answers_of
from fedsim.theory.rounds import Answers, listed

_ROUNDING = 1e-9  # relative: a deadline that is a sum of terms is met


class FedDropParameters(Protocol):
    """The policy's parameters, as a scenario names them."""

    @property
    def kept_shares(self) -> tuple[float, ...] | None: ...
    @property
    def deadline_s(self) -> float | None: ...
    @property
    def local_steps(self) -> int: ...


NEEDS_EVEN_STEPS: frozenset[str] = frozenset()
"""Quantities that depend on where single steps end: none, everybody is waited for."""


def kept_shares(policy: FedDropParameters, fleet: Fleet) -> Array:
    """Share of each fully connected hidden layer's units that a device keeps, `[device]`."""
    if policy.kept_shares is not None:
        return np.asarray(policy.kept_shares, dtype=np.float64)
    assert policy.deadline_s is not None
    if not fleet.has_fixed_links:
        raise NoClosedForm("needs transfer times that are fixed for each device; got a link redrawn for each task")
    if not fleet.has_even_steps:
        raise NoClosedForm("needs local steps of equal numbers of rows; some device's last batch is smaller")
    found = np.zeros(fleet.n_devices)
    for share in (k / 20 for k in range(1, 21)):
        parts = Parts(fleet, np.full(fleet.n_devices, share), convolutions=False)
        needed_s = parts.round_trip_s + policy.local_steps * parts.mean_step_s
        found = np.where(needed_s <= policy.deadline_s * (1 + _ROUNDING), share, found)
    if not found.all():
        raise NoClosedForm(f"needs a deadline that device {np.flatnonzero(found == 0)[0]} can meet")
    return found


def expected(policy: FedDropParameters, fleet: Fleet) -> list[Expectation]:
    """What a round should have on average on this fleet, or why there is no closed form."""
    return listed(answers(policy, fleet))


def answers(policy: FedDropParameters, fleet: Fleet) -> Answers:
    """The same, each quantity when it is asked for."""
    return answers_of(
        fleet,
        lambda: Parts(fleet, kept_shares(policy, fleet), convolutions=False),
        n_steps=policy.local_steps,
        n_asked=fleet.n_devices,
    )
