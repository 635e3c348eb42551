"""Which expected course of training a policy has on a quadratic problem: after n rounds, and at a moment of the clock.

A table of rules, one per policy: under which assumptions its contributors are independent of the gradients, and which
function of `quadratic_rounds` or `quadratic_stsyn` it then is. At a moment of the clock more is needed: either every
round lasts the same, or its length says nothing about who contributed (or both are known together, as for STSyn).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedsim.delays import Exponential
from fedsim.facts import Array
from fedsim.protocols import NoClosedForm
from fedsim.theory import (
    drop_stragglers,
    embracingfl,
    fednova,
    fedpmt,
    flanp,
    quadratic_rounds,
    quadratic_stsyn,
    registry,
    salf,
)
from fedsim.theory.fleet import Fleet
from fedsim.theory.quadratic import Curve, Quadratic
from fedsim.theory.quadratic_clock import at_fixed_rounds, at_time
from fedsim.theory.times import RandomTime

_Rule = Callable[[Any, Fleet, Quadratic, int], Curve]


def after_rounds(kind: str, policy: Any, fleet: Fleet, problem: Quadratic, n_rounds: int) -> Curve:
    """Expected losses after 0 ... n_rounds rounds. Raises NoClosedForm."""
    if kind not in _RULES:
        raise NoClosedForm(f"needs a policy whose training has a closed form; {kind} has none here")
    return _RULES[kind](policy, fleet, problem, n_rounds)


def at_times(kind: str, policy: Any, fleet: Fleet, problem: Quadratic, losses: Array, times_s: Array) -> Array:
    """Expected losses at these moments, `[time]`. Raises NoClosedForm.

    losses: those of `after_rounds`, enough rounds to reach the last moment.
    """
    if kind == "stsyn":
        law = _stsyn_step_s(policy, fleet)
        return quadratic_stsyn.stsyn_at(problem, times_s, policy.k, policy.local_steps, law).loss
    times = [one.time for one in registry.expected(kind, policy, fleet) if one.quantity == "round_s"]
    if not times or times[0] is None:
        raise NoClosedForm("needs the law of the round time")
    time: RandomTime = times[0]
    if time.variance_s2 <= 1e-18 * time.mean_s**2:
        return at_fixed_rounds(losses, time.mean_s, times_s)
    if kind not in _INDEPENDENT:
        raise NoClosedForm("needs a round time that says nothing about who contributed; wait_out makes it so")
    return at_time(losses, time.cdf, times_s).loss


# Everybody asked contributes, or any subset alike, however long it took.
_INDEPENDENT = ("fedavg", "k_sync", "fedpmt", "embracingfl", "fednova", "flanp")


def _fedavg(policy: Any, fleet: Fleet, problem: Quadratic, n_rounds: int) -> Curve:
    if policy.over_selected:
        _needs_equal_devices(fleet)
    n_sampled = policy.n_sampled if policy.n_sampled not in (None, fleet.n_devices) else None
    weights = _weights(policy, fleet, may_differ=n_sampled is None)
    return quadratic_rounds.fedavg(problem, n_rounds, policy.local_steps, n_sampled, weights)


def _k_sync(policy: Any, fleet: Fleet, problem: Quadratic, n_rounds: int) -> Curve:
    _needs_equal_devices(fleet)
    return quadratic_rounds.k_sync(problem, n_rounds, policy.k)


def _drop_stragglers(policy: Any, fleet: Fleet, problem: Quadratic, n_rounds: int) -> Curve:
    in_time = drop_stragglers.in_time(policy, fleet)
    return quadratic_rounds.drop_stragglers(
        problem, n_rounds, policy.local_steps, in_time, dilute=policy.dilute, n_sampled=policy.n_sampled
    )


def _salf(policy: Any, fleet: Fleet, problem: Quadratic, n_rounds: int) -> Curve:
    if policy.p_l == "estimated":
        raise NoClosedForm("needs p_l: oracle or none; an estimate depends on the rounds before")
    rule = policy.rule
    if rule == "contributors" and policy.p_l == "oracle":
        rule = "debiased"
    return quadratic_rounds.salf(problem, n_rounds, salf.fleet_reach(policy, fleet), rule, n_sampled=policy.n_sampled)


def _fedpmt(policy: Any, fleet: Fleet, problem: Quadratic, n_rounds: int) -> Curve:
    widths = fedpmt.widths(policy, fleet)
    weights = _weights(policy, fleet, may_differ=True)
    return quadratic_rounds.fedpmt(problem, n_rounds, widths, policy.local_steps, weights, dilute=policy.dilute)


def _embracingfl(policy: Any, fleet: Fleet, problem: Quadratic, n_rounds: int) -> Curve:
    if policy.n_sampled not in (None, fleet.n_devices):
        raise NoClosedForm("needs everybody asked, once devices train different layers")
    weights = _weights(policy, fleet, may_differ=True)
    tiers = embracingfl.tiers(policy, fleet)
    return quadratic_rounds.fedpmt(problem, n_rounds, tiers, policy.local_steps, weights)


def _fednova(policy: Any, fleet: Fleet, problem: Quadratic, n_rounds: int) -> Curve:
    n_steps = fednova.n_steps(policy, fleet)
    return quadratic_rounds.fednova(problem, n_rounds, n_steps, fednova.table(policy, fleet))


def _flanp(policy: Any, fleet: Fleet, problem: Quadratic, n_rounds: int) -> Curve:
    asked = (flanp.n_steps(policy, fleet) > 0).astype(np.float64)
    relative = asked * fleet.n_samples if policy.weighting == "n_samples" else asked
    return quadratic_rounds.fedavg(problem, n_rounds, policy.local_steps, weights=relative)


def _stsyn(policy: Any, fleet: Fleet, problem: Quadratic, n_rounds: int) -> Curve:
    return quadratic_stsyn.stsyn(problem, n_rounds, policy.k, policy.local_steps, _stsyn_step_s(policy, fleet))


def _stsyn_step_s(policy: Any, fleet: Fleet) -> Exponential:
    _needs_equal_devices(fleet)
    law = fleet.step_factor
    if not isinstance(law, Exponential) or law.shift or fleet.task_factor is not None or fleet.layer_factor is not None:
        raise NoClosedForm("needs exponential step times and no other random factor")
    if fleet.download_s.any() or fleet.upload_s.any():
        raise NoClosedForm("needs transfers that take no time")
    plain = {"cap_factor": None, "drop_most_updated": False}
    if any(getattr(policy, name, value) != value for name, value in plain.items()):
        raise NoClosedForm("needs the plain rule: no cap_factor, nobody left out")
    return Exponential(mean=float(law.mean * fleet.unit_s[0]))


def _weights(policy: Any, fleet: Fleet, *, may_differ: bool) -> Array | None:
    if policy.weighting == "uniform" or len(np.unique(fleet.n_samples)) == 1:
        return None
    if not may_differ:
        raise NoClosedForm("needs equal weights where devices are sampled")
    return fleet.n_samples.astype(np.float64)


def _needs_equal_devices(fleet: Fleet) -> None:
    if len(np.unique(np.column_stack([fleet.unit_s, fleet.download_s, fleet.upload_s]), axis=0)) > 1:
        raise NoClosedForm("needs equal devices, of which any subset is as likely to be the fastest")
    if fleet.task_factor is None and fleet.step_factor is None:
        raise NoClosedForm("needs times that differ by chance; equal devices without it are through together")


_RULES: dict[str, _Rule] = {
    "fedavg": _fedavg,
    "k_sync": _k_sync,
    "drop_stragglers": _drop_stragglers,
    "salf": _salf,
    "fedpmt": _fedpmt,
    "embracingfl": _embracingfl,
    "fednova": _fednova,
    "flanp": _flanp,
    "stsyn": _stsyn,
}
