"""The server waits for the k-th arrival among n_asked devices, drawn uniformly from the fleet, and cancels the others.

A_u = arrival (download, n local steps, upload) of device u, C_u = the end of its computation, T = the k-th smallest A of
those asked, V_u = the k-th smallest among the others asked. A device is in time if A_u <= T, which is A_u <= V_u, and has
done something by T that happens before A_u at time X if X <= V_u. So what a device has come to at T is a mean over the law
of V_u, which is independent of u's own luck:
    P(u contributes) = P(A_u <= V_u),   E[steps] = sum_n P(C_u,n <= V_u),   share of its upload = E[((V_u - C_u) / upload)^0..1]

Sources: order statistics (Renyi 1953). Among times that are fixed for each device and a uniform n-subset, the j-th of M
is the k-th of the subset with probability C(j-1, k-1) C(M-j, n-k) / C(M, n).
Who arrives at the same moment as the k-th counts too, so that with discrete laws more than k may contribute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedsim.facts import Array
from fedsim.protocols import NoClosedForm
from fedsim.theory.counts import (
    fewer_than_without_one,
    order_survival,
    rank_pmf,
    sampled_fewer_than,
    tabulated,
    waiting,
)
from fedsim.theory.fleet import Expectation, Fleet, of_time
from fedsim.theory.rounds import (
    MOST_LISTED,
    Answers,
    events,
    one,
    participations,
    per_device,
    per_layer,
)
from fedsim.theory.spread import LEVELS, TAIL, Nodes, Spread, crossings
from fedsim.theory.steps import DeviceTimes, task_times
from fedsim.theory.times import RandomTime, certain

_MOST_GROUPS = 100  # kinds of devices, each of which needs the law of all others


@dataclass(frozen=True, eq=False)
class KthArrival:
    """computed: C of n_steps steps. upload_s: `[group]`. k: arrivals waited for; n_asked: devices asked."""

    computed: DeviceTimes
    upload_s: Array
    n_steps: int
    k: int
    n_asked: int

    @property
    def n_devices(self) -> int:
        return self.computed.n_devices

    @property
    def waits_for_all(self) -> bool:
        return self.k == self.n_asked

    @property
    def asks_all(self) -> bool:
        return self.n_asked == self.n_devices

    @cached_property
    def arrived(self) -> DeviceTimes:
        return self.computed.later(self.upload_s)

    @cached_property
    def is_certain(self) -> bool:
        """Whether nothing about a device's time is random."""
        steps = self.computed.steps
        return steps.is_discrete and len(steps.kinks(self.n_steps)) == 1

    @cached_property
    def end(self) -> RandomTime:
        """T, from the round's start."""
        return self._nth(self.k)

    def missing(self, t_s: Array) -> Array:
        """P(A > t), `[t, group]`."""
        return self.arrived.survival(self.n_steps, t_s)

    # ---- who is in time -----------------------------------------------------------------------------------------

    @cached_property
    def participation(self) -> Array:
        """P(a device is among the contributors | it is asked), `[group]`."""
        if self.waits_for_all:
            return np.ones(len(self.upload_s))
        if self.arrived.is_equal and not self.may_tie:
            return np.array([self.k / self.n_asked])
        found = self.mean_at_end(lambda t: self.arrived.cdf(self.n_steps, t))
        total = float(found @ self.computed.n_in_group) * self.n_asked / self.n_devices
        if not self.may_tie and abs(total / self.k - 1) > 1e-7:
            raise NoClosedForm(f"needs devices less unequal: quadrature finds {total:.9g} contributors of {self.k}")
        return found

    @property
    def may_tie(self) -> bool:
        """Whether others may arrive at the very moment of the k-th; they count too."""
        is_apart = self.is_certain and len(self.upload_s) == self.n_devices  # groups differ
        return self.computed.steps.has_atoms and not is_apart and not self.waits_for_all

    @property
    def n_contributions(self) -> int:
        """The same in every round. Raises NoClosedForm where it is not: there, see `participation` for its mean."""
        if self.is_certain and self.asks_all:
            return round(float(self.participation @ self.computed.n_in_group))
        if self.may_tie:
            raise NoClosedForm("needs times without ties; got a law with atoms, and not everybody is waited for")
        return self.k

    # ---- means at T ---------------------------------------------------------------------------------------------

    def mean_at_end(self, value: Callable[[Array], Array], kinks_s: tuple[float, ...] = ()) -> Array:
        """E[value_u(V_u)], `[group]`. value: `[t] -> [t, group]`, its kinks at kinks_s and those of the arrivals.

        Not where everybody is waited for: V_u never comes.
        """
        if len(self.upload_s) > _MOST_GROUPS:
            raise NoClosedForm(f"needs at most {_MOST_GROUPS} kinds of devices; got {len(self.upload_s)}")
        # T <= V_u <= the arrival after T.
        levels = np.concatenate([crossings(self._nth(k).survival, LEVELS + TAIL) for k in (self.k, self.k + 1)])
        low, high = 0.999 * float(levels.min()), 1.001 * float(levels.max())
        kinks = {kink for kink in (*kinks_s, *self.arrived.kinks_s(self.n_steps)) if low < kink < high}
        nodes = Nodes.between(levels, np.array(sorted(kinks)))
        later = self._fewer_others(nodes.t_s)
        masses = np.stack([Spread(nodes, one).masses for one in later.T], axis=1)
        return np.asarray((masses * value(nodes.t_s)).sum(axis=0))

    def _fewer_others(self, t_s: Array) -> Array:
        """P(V_u > t), `[t, group]`."""
        missing, n_in_group = self.missing(t_s), self.computed.n_in_group
        if self.arrived.is_equal:
            return order_survival(self.k, self.n_asked - 1, missing)
        if self.asks_all:
            return fewer_than_without_one(self.k, missing, n_in_group)
        if self.n_devices**2 * self.n_asked * min(self.k, self.n_asked - self.k) > 1_000_000:
            raise NoClosedForm("needs equal devices, or fewer of them, once they are sampled and cancelled")
        first = [int(np.flatnonzero(self.computed.group == g)[0]) for g in range(len(n_in_group))]
        everyone = missing[:, self.computed.group]
        others = [sampled_fewer_than(self.k, self.n_asked - 1, np.delete(everyone, u, axis=1)) for u in first]
        return np.stack(others, axis=1)

    def _nth(self, k: int) -> RandomTime:
        n, times = self.n_asked, self.arrived
        if self.is_certain:
            return self._fixed_nth(k)
        kinks, is_discrete = times.kinks_s(self.n_steps), times.steps.is_discrete
        if self.asks_all:
            return waiting(k, times.n_in_group, self.missing, kinks, is_discrete=is_discrete)
        if times.is_equal:
            return waiting(k, np.array([n]), self.missing, kinks, is_discrete=is_discrete)
        return tabulated(
            lambda t: sampled_fewer_than(k, n, self.missing(t)[:, times.group]),
            kinks,
            self.n_devices * n,
            is_discrete=is_discrete,
        )

    def _fixed_nth(self, k: int) -> RandomTime:
        """Where only the choice of those asked is random."""
        own_s = self.arrived.mean_s(self.n_steps)
        by_rank_s = np.sort(np.repeat(own_s, self.arrived.n_in_group))
        if self.asks_all:
            return certain(float(by_rank_s[k - 1]))
        later = np.append(np.cumsum(rank_pmf(self.n_devices, self.n_asked, k)[::-1])[::-1], 0.0)
        return tabulated(
            lambda t: later[np.searchsorted(by_rank_s, t, side="right")],
            tuple(np.unique(own_s)),
            len(own_s),
            is_discrete=True,
        )


def nth_finisher(times: DeviceTimes, k: int, n_steps: int) -> RandomTime:
    """When the k-th device has done n_steps."""
    if not 1 <= k <= times.n_devices:
        raise ValueError(f"k is {k} but there are {times.n_devices} devices; choose 1..{times.n_devices}")
    return KthArrival(times, np.zeros(len(times.unit_s)), n_steps, k, times.n_devices).end


# ---- beside a simulation --------------------------------------------------------------------------------------------


def kth_arrival(fleet: Fleet, n_steps: int, k: int, n_asked: int) -> KthArrival:
    """Of tasks of whole steps over all layers. Raises NoClosedForm where the fleet's times have no closed law."""
    computed, upload_s = task_times(fleet)
    return KthArrival(computed, upload_s, n_steps, k, n_asked)


def answers_of(fleet: Fleet, n_steps: int, k: int, n_asked: int) -> Answers:
    """What a round should have on average, each quantity when it is asked for."""

    def this() -> KthArrival:
        found = _memory.get("this") or kth_arrival(fleet, n_steps, k, n_asked)
        _memory["this"] = found
        return found

    _memory: dict[str, KthArrival] = {}

    def counts() -> tuple[float, float | None]:
        """Mean and variance of the number of contributors."""
        if this().may_tie and not (this().is_certain and this().asks_all):
            return float(_of_devices(this(), this().participation).sum()), None
        return float(this().n_contributions), 0.0

    def alike(quantity: str, mean: float, variance: float | None) -> list[Expectation]:
        return per_layer(quantity, [mean] * fleet.n_layers, [variance] * fleet.n_layers)

    return {
        "round_s": lambda: [of_time("round_s", this().end)],
        "n_contributions": lambda: one("n_contributions", *counts()),
        "is_empty": lambda: one("is_empty", 0.0, 0.0),
        "inverse_n_contributions": lambda: one("inverse_n_contributions", 1.0 / this().n_contributions, 0.0),
        "n_contributors": lambda: alike("n_contributors", *counts()),
        "is_layer_empty": lambda: events("is_layer_empty", np.zeros(fleet.n_layers)),
        "weight_sum": lambda: alike("weight_sum", 1.0, 0.0),
        "n_steps": lambda: _n_steps(this()),
        "participation": lambda: participations(_of_devices(this(), this().participation)),
        "used_flops": lambda: _used_flops(this(), fleet),
        "downloaded_bytes": lambda: _downloaded_bytes(this(), fleet),
        "uploaded_bytes": lambda: _uploaded_bytes(this(), fleet),
    }


def _of_devices(this: KthArrival, per_group: Array) -> Array:
    """From means given that a device is asked, `[group]`, to means over all rounds, `[device]`."""
    return per_group[this.computed.group] * (this.n_asked / this.n_devices)


def _n_steps(this: KthArrival) -> list[Expectation]:
    n, share = this.n_steps, this.n_asked / this.n_devices
    if this.waits_for_all:
        p = np.full(this.n_devices, share)
        return one("n_steps", n, 0.0) + per_device("n_steps", n * p, n**2 * p * (1 - p))
    if n == 1 and not this.upload_s.any() and not this.may_tie:  # to have computed is to have arrived
        found = one("n_steps", this.k / this.n_asked, 0.0)
        if this.n_devices > MOST_LISTED:
            return found
        p = _of_devices(this, this.participation)
        return found + per_device("n_steps", p, p * (1 - p))
    steps = range(1, n + 1)
    kinks = tuple(kink for j in steps for kink in this.computed.kinks_s(j)) if n <= 8 else ()

    def mean(weights: Iterable[int]) -> Array:
        """Of a weighted sum over steps of P(finished by the end), `[device]`."""
        own = list(zip(steps, weights, strict=True))
        value = this.mean_at_end(lambda t: np.sum([w * this.computed.cdf(j, t) for j, w in own], axis=0), kinks)
        return _of_devices(this, value)

    means, squares = mean([1] * n), mean([2 * j - 1 for j in steps])
    return one("n_steps", float(means.sum()) / this.n_asked) + per_device("n_steps", means, squares - means**2)


def _used_flops(this: KthArrival, fleet: Fleet) -> list[Expectation]:
    per_task = this.n_steps * fleet.n_rows * float(fleet.shape.step_flops[-1])
    if (per_task == per_task[0]).all() and not this.may_tie:
        return one("used_flops", this.k * per_task[0], 0.0)
    is_fixed = this.asks_all and (this.waits_for_all or this.is_certain)
    return one("used_flops", float(_of_devices(this, this.participation) @ per_task), 0.0 if is_fixed else None)


def _downloaded_bytes(this: KthArrival, fleet: Fleet) -> list[Expectation]:
    """The whole model to each, less what is under way to those cancelled before it is there."""
    model_bytes = float(fleet.shape.suffix_bytes[-1])
    download_s = this.computed.offset_s
    if this.waits_for_all or (download_s == download_s[0]).all():
        return one("downloaded_bytes", this.n_asked * model_bytes, 0.0)
    slow = np.maximum(download_s, 1e-300)
    share = this.mean_at_end(lambda t: np.minimum(1.0, t[:, None] / slow), tuple(download_s))
    is_fixed = this.asks_all and this.is_certain
    return one("downloaded_bytes", float(_of_devices(this, share).sum()) * model_bytes, 0.0 if is_fixed else None)


def _uploaded_bytes(this: KthArrival, fleet: Fleet) -> list[Expectation]:
    """The whole model from each contributor, and of those cancelled what was sent by then."""
    model_bytes = float(fleet.shape.suffix_bytes[-1])
    if this.waits_for_all or not (this.upload_s.any() or this.may_tie):
        return one("uploaded_bytes", this.k * model_bytes, 0.0)
    kinks = (*this.computed.kinks_s(this.n_steps), *this.arrived.kinks_s(this.n_steps))
    share = this.mean_at_end(lambda t: upload_share(this.computed, this.upload_s, this.n_steps, t), kinks)
    is_fixed = this.asks_all and this.is_certain
    return one("uploaded_bytes", float(_of_devices(this, share).sum()) * model_bytes, 0.0 if is_fixed else None)


def upload_share(computed: DeviceTimes, upload_s: Array, n_steps: int, t_s: Array) -> Array:
    """Mean share of its upload that a device has sent by t: the mean of P(C <= x) over the upload before t, `[t, group]`."""
    kinks = np.asarray(computed.steps.kinks(n_steps))
    if len(kinks) > 12:
        raise NoClosedForm("needs fewer kinks in the law of steps to know what cancelled uploads had sent")
    at_s = t_s[:, None, None]
    cuts = np.clip(computed.offset_s[:, None] + computed.unit_s[:, None] * kinks, at_s - upload_s[:, None], at_s)
    ends = [at_s - upload_s[:, None], at_s + np.zeros_like(upload_s[:, None])]
    edges = np.sort(np.concatenate([ends[0], cuts, ends[1]], axis=2), axis=2)
    x, w = np.polynomial.legendre.leggauss(16)
    half = np.diff(edges, axis=2)[..., None] / 2
    inner = edges[..., :-1, None] + half * (1 + x)
    done = computed.steps.cdf(n_steps, (inner - computed.offset_s[:, None, None]) / computed.unit_s[:, None, None])
    whole = (half * w * done).sum(axis=(2, 3))
    at_once = computed.cdf(n_steps, t_s)
    return np.asarray(np.where(upload_s > 0, whole / np.maximum(upload_s, 1e-300), at_once))
