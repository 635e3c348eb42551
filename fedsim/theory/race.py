"""Devices take local steps until the K-th of them has finished U: which steps are finished by then, T.

X is the time of a device's U steps, T the K-th smallest of all X, V_k the k-th smallest among the others (V_0 = 0, V_M
infinite). Step n of a device is finished by T if it ends no later than V_K (n <= U) or V_{K-1} (n > U: then the device
is itself one of those that T waits for), so that
    E[N] = sum_{n <= U} P(S_n <= V_K) + sum_{n > U} P(S_n <= V_{K-1})
for any law of the steps, unequal devices too. A step that ends exactly at T counts, as on the simulator's clock.
Given T = t, of M equal devices K have finished U steps and the others are independent, each without any finished step
with probability P(S_1 > t) / P(S_U > t); where several finish at one instant, the chances of "fewer than K before it"
and "fewer than K by it" are told apart.

Source: order statistics (David, Nagaraja, "Order Statistics", 2003); the sums were derived here.
What becomes of the steps is a policy's affair and not known here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial

import numpy as np
from scipy import special

from fedsim.delays import Constant, Exponential, Gamma
from fedsim.facts import Array, BoolArray, IntArray
from fedsim.protocols import NoClosedForm
from fedsim.theory.counts import fewer_than, fewer_than_without_one, tabulated, waiting
from fedsim.theory.spread import LEVELS, TAIL, Nodes, Spread, crossings
from fedsim.theory.steps import DeviceTimes, StepTimes
from fedsim.theory.sums import atoms_of, kinks_of
from fedsim.theory.times import RandomTime

_MOST_GROUPS = 100  # kinds of devices, once each needs the law of all others
_MOST_UNEQUAL = 60  # unequal devices, once the finished and the silent are counted together
_MOST_STEPS = 400  # beyond U, that are added one by one before the rest is integrated
_MOST_DISCRETE_STEPS = 1_000_000  # of discrete laws; they do come to an end
_MOST_SUMS = 300  # beyond U, of other laws
_MOST_KINKED = 8  # sums of more steps have no kinks to speak of


@dataclass(frozen=True, eq=False)
class Race:
    """times: of the devices' steps. k: devices waited for. local_steps: what each of those must finish.

    most_steps: after which a device stops by itself; None: never.
    """

    times: DeviceTimes
    k: int
    local_steps: int
    most_steps: int | None = None
    _known_steps: dict[int, tuple[float, float | None]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.times.n_devices:
            raise ValueError(f"k is {self.k} but there are {self.times.n_devices} devices; choose 1..")

    @classmethod
    def of(cls, times: DeviceTimes, k: int, local_steps: int, most_steps: int | None = None) -> Race:
        """Of any devices; a constant step factor is made part of their units."""
        steps = times.steps
        if isinstance(steps.step, Constant):
            times = replace(times, steps=StepTimes(task=steps.task), unit_s=times.unit_s * steps.step.value)
        return cls(times, k, local_steps, most_steps)

    @cached_property
    def end(self) -> RandomTime:
        """T."""
        times, u = self.times, self.local_steps
        return waiting(
            self.k, times.n_in_group, partial(self._late, u), times.kinks_s(u), is_discrete=times.steps.is_discrete
        )

    # ---- steps --------------------------------------------------------------------------------------------------

    def late_chance(self, n: int, group: int = 0) -> float:
        """P(a device of this group has fewer than n steps at T), n <= U; accurate where it is small."""
        if self.k == self.times.n_devices:
            return 0.0
        return float(self._over_others(0, group, "survival", np.array([n]))[0])

    def n_steps(self, group: int = 0) -> tuple[float, float | None]:
        """Mean and variance (None if infinite) of the steps that a device of this group has at T."""
        if group not in self._known_steps:
            self._known_steps[group] = self._n_steps(group)
        return self._known_steps[group]

    def _n_steps(self, group: int) -> tuple[float, float | None]:
        chances, (more, more_square) = self._up_to_u(group), self._beyond_u(self._extra_chance(group))
        mean = float(chances.sum()) + more
        if more_square is None:
            return mean, None
        square = float((2 * np.arange(len(chances)) + 1) @ chances) + more_square
        return mean, max(0.0, square - mean**2)

    def step_counts(self, group: int = 0) -> Array:
        """P(N = n) of a device of this group, n = 0 ... until the rest is below 1e-15."""
        chances, extra = [1.0, *self._up_to_u(group)], self._extra_chance(group)
        last = self.local_steps + _MOST_SUMS if self.most_steps is None else self.most_steps
        while chances[-1] > 1e-15 and len(chances) <= last:
            chances.append(float(extra(np.array([len(chances)]))[0]))
        if chances[-1] > 1e-15 and self.most_steps is None:
            raise NoClosedForm(f"needs steps of which a device hardly ever does {last} in a round")
        return -np.diff([*chances, 0.0])

    def most_finished(self) -> float:
        """Mean number of steps at T of the device with the most of them. Needs equal devices."""
        if not self.times.is_equal:
            raise NoClosedForm("needs equal devices for the largest number of steps")
        if self.k == 1:
            return float(self.local_steps)
        if self.times.steps.step is not None and self._has_smooth_task and self.most_steps is None:
            raise NoClosedForm("needs a cap on the steps, or one random factor only, for the largest number of steps")
        return self.local_steps + self._beyond_u(self._somebodys_chance)[0]

    def _up_to_u(self, group: int) -> Array:
        """P(N >= n), n = 1 ... U."""
        return 1.0 - np.array([self.late_chance(n, group) for n in range(1, self.local_steps + 1)])

    def _extra_chance(self, group: int) -> Callable[[Array], Array]:
        """n > U -> P(N >= n)."""
        return np.zeros_like if self.k == 1 else partial(self._over_others, 1, group, "cdf")

    def _over_others(self, which: int, group: int, what: str, n: Array) -> Array:
        """P(n steps are done, "cdf", or not, "survival", by V_K (0) or V_{K-1} (1)), `[n]`."""
        if self.times.steps.step is not None and self._has_smooth_task:
            plain = StepTimes(step=self.times.steps.step)
            is_kinked = plain.is_discrete or bool((n <= _MOST_KINKED).all())
            cuts = np.array([plain.kinks(int(one)) for one in n]) if is_kinked else np.empty((len(n), 0))
            return self._in_own_steps(which, group).mean(partial(_of_plain_steps, plain, what), n, cuts)
        value = partial(self._of_steps, what, group)
        return self._others[which][group].mean(value, n, self._cuts_s(n, group))

    def _somebodys_chance(self, n: Array) -> Array:
        """P(some device has n steps at T), n > U, equal devices: all but one of the K are independent, past U."""
        m, atoms = self.times.n_devices, np.flatnonzero(self._is_atom)

        def among_others(n: Array, t_s: Array) -> Array:
            done = self._of_steps("cdf", 0, np.broadcast_to(self.local_steps, n.shape), t_s)
            reached = np.minimum(self._of_steps("cdf", 0, n, t_s), done)
            share = np.divide(reached, done, out=np.zeros_like(done), where=done > 0)
            with np.errstate(divide="ignore"):
                return np.asarray(-np.expm1(special.xlog1py(self.k - 1, -share)))

        chance = self._end.mean(among_others, n, self._cuts_s(n, 0), without=self._is_atom)
        if not len(atoms):
            return chance
        # At an atom: P(at least K by now, fewer before), less that with nobody at n steps.
        reached = self._of_steps("cdf", 0, n, self._nodes.t_s[atoms][None, :])
        left = np.maximum(1.0 - reached, 1e-300)
        before, now = (
            left**m * special.bdtr(self.k - 1, m, np.clip(1 - self._missing[at, 0] / left, 0.0, 1.0))
            for at in (atoms - 1, atoms)
        )
        return np.asarray(chance + np.where(reached > 0, self._end.masses[atoms] - before + now, 0.0).sum(axis=1))

    def _of_steps(self, what: str, group: int, n: Array, t_s: Array) -> Array:
        """P(n steps are done by t, "cdf", or not, "survival"); n along the first axis, or one t for all of them."""
        steps, unit = self.times.steps, (t_s - self.times.offset_s[group]) / self.times.unit_s[group]
        if steps.step is not None:
            return _by_rows(steps, what, n, unit)
        # One factor for all steps: n need not be whole.
        law = Constant(1.0) if steps.task is None else steps.task
        return np.asarray(getattr(law, what)(unit / _column(n, unit)))

    def _cuts_s(self, n: Array, group: int) -> Array:
        """Where P(n steps are done by t) has a kink that is none of the nodes' edges, `[n, cut]`."""
        times = self.times
        if times.steps.step is not None or times.steps.task is None or times.steps.is_discrete:
            return np.empty((len(n), 0))
        kinks = np.array([kink for kink in kinks_of(times.steps.task) if kink > 0])
        return np.asarray(times.offset_s[group] + times.unit_s[group] * np.asarray(n)[:, None] * kinks)

    # ---- a random factor over random steps ----------------------------------------------------------------------

    @property
    def _has_smooth_task(self) -> bool:
        """Whether the task factor is more than a few values."""
        task = self.times.steps.task
        return task is not None and atoms_of(task) is None

    @cached_property
    def _in_own_steps(self) -> Callable[[int, int], Spread]:
        """V_K (0) or V_{K-1} (1) in units of the group's own steps, (V - offset) / (unit x its task factor)."""
        return cache(self._ratio)

    def _ratio(self, which: int, group: int) -> Spread:
        times, task = self.times, self.times.steps.task
        assert task is not None
        others, own_kinks = self._others[which][group], np.array([kink for kink in kinks_of(task) if kink > 0])

        def survival(x: Array) -> Array:
            units = times.unit_s[group] * x
            cuts_s = times.offset_s[group] + units[:, None] * own_kinks
            return others.mean(
                lambda x, t_s: task.cdf((t_s - times.offset_s[group]) / times.unit_s[group] / _column(x, t_s)),
                x,
                cuts_s,
            )

        levels = crossings(survival, LEVELS[1:] + TAIL)  # the first is too near to 1 for a mean of means
        units = (np.array(times.kinks_s(self.local_steps)) - times.offset_s[group]) / times.unit_s[group]
        kinks = np.unique(units[units > 0][:, None] / own_kinks) if len(own_kinks) else np.empty(0)
        nodes = Nodes.between(levels, kinks[(kinks > levels.min()) & (kinks < levels.max())])
        return Spread(nodes, survival(nodes.t_s))

    def _beyond_u(self, chance: Callable[[Array], Array]) -> tuple[float, float | None]:
        """Sum over n > U of P(N >= n) and of (2 n - 1) P(N >= n); the second is None if infinite."""
        steps, last = self.times.steps, np.inf if self.most_steps is None else self.most_steps
        if last == np.inf:
            self._refuse_infinite_mean()
        # Whether P(N >= n) is there for n between whole numbers too, which gives the sum of a slow tail.
        is_real = self._has_smooth_task and isinstance(steps.step, Exponential | Gamma | None)
        most = _MOST_STEPS if is_real else _MOST_DISCRETE_STEPS if steps.is_discrete else _MOST_SUMS
        width = 64 if steps.step is None or is_real else 1
        least = 1e-15 if width > 1 else 1e-13
        total = square = before = 0.0
        first = self.local_steps + 1
        while first <= last:
            n = np.arange(first, min(first + width - 1, last) + 1)
            values = chance(n)
            total, square = total + float(values.sum()), square + float((2 * n - 1) @ values)
            value, before = float(values[-1]), float(values[-2]) if len(values) > 1 else before
            ratio = value / before if before > 0 else 1.0
            first = int(n[-1]) + 1
            if value <= 1e-20 * (total + square):
                break
            if not steps.is_discrete and ratio < 1 and first * value < least * (1 - ratio) ** 2 * square:
                break
            if first - self.local_steps > most and last == np.inf:
                if not is_real:
                    raise NoClosedForm(f"needs steps of which a device hardly ever does {most} in a round")
                more, more_square = _rest(chance, first)
                return total + more, None if more_square is None else square + more_square
        return total, square

    def _refuse_infinite_mean(self) -> None:
        task = self.times.steps.task
        if self.k == 1 or task is None:
            return
        if not isinstance(self.times.steps.step, Exponential | Gamma | None) and self._has_smooth_task:
            often = task.cdf(np.array([task.mean * self.local_steps / _MOST_SUMS]))[0]
            if often > 1e-15:
                raise NoClosedForm("needs a cap, or exponential or gamma steps, where a task factor comes near 0")
        near, nearer = task.cdf(np.array([1e-30, 1e-60]))
        if nearer > 0 and np.log(near / nearer) <= np.log(1e30) * (1 + 1e-9):
            raise NoClosedForm(
                "needs a finite mean of 1 / task_factor; its law comes so close to 0 that steps without a cap have an "
                "infinite mean"
            )
        assert np.isfinite(self.end.mean_s)  # raises NoClosedForm; what is done meanwhile would be infinite too

    # ---- devices with nothing -----------------------------------------------------------------------------------

    def silent_mean(self) -> float:
        """Mean number of devices without a finished step at T."""
        return float(sum(n * self.late_chance(1, g) for g, n in enumerate(self.times.n_in_group)))

    @property
    def has_joint_law(self) -> bool:
        """Whether the number of the silent has a law here, and not only a mean."""
        return self.times.is_equal or self.times.n_devices <= _MOST_UNEQUAL or self.k == self.times.n_devices

    @cached_property
    def silent_pmf(self) -> Array:
        """P(s devices have no finished step at T), s = 0 ... M - K."""
        m, most = self.times.n_devices, self.times.n_devices - self.k
        if most == 0:
            return np.ones(1)
        if not self.has_joint_law:
            raise NoClosedForm(f"needs equal devices, or at most {_MOST_UNEQUAL}; got {m} unequal ones")
        silent = self._late(1, self._nodes.t_s)
        is_likely = np.abs(self._end.masses) > 1e-18
        smooth, atoms = np.flatnonzero(~self._is_atom & is_likely), np.flatnonzero(self._is_atom)
        if self.times.is_equal:
            missing = self._missing[smooth]
            share = np.divide(silent[smooth], missing, out=np.zeros_like(missing), where=missing > 0)
            pmf = self._end.masses[smooth] @ _binomial(np.arange(most + 1), most, np.minimum(share, 1.0))
        else:
            rates = np.stack([Spread(self._nodes, one).masses for one in self._missing.T], axis=1)
            pmf = self._by_device(smooth, silent[smooth], rates[smooth]).sum(axis=0)
        before, now = (self._fewer_with_silent(nodes, silent[atoms]) for nodes in (atoms - 1, atoms))
        return np.asarray(pmf + (before - now).sum(axis=0))

    def _fewer_with_silent(self, nodes: IntArray, silent: Array) -> Array:
        """P(fewer than K have finished, s have no step), `[node, s]`. silent: P(no step), `[node, group]`."""
        m, s = self.times.n_devices, np.arange(self.times.n_devices - self.k + 1)
        if not self.times.is_equal:
            return self._by_device(nodes, silent, None)
        done = 1.0 - self._missing[nodes]
        share = np.clip(done / np.maximum(1.0 - silent, 1e-300), 0.0, 1.0)
        return _binomial(s, m, silent) * np.asarray(special.bdtr(self.k - 1, m - s, share))

    def _by_device(self, nodes: IntArray, silent: Array, rates: Array | None) -> Array:
        """Going through the devices: P(fewer than K have finished, s have no step), `[node, s]`.

        rates: P(X in the node's interval), `[node, group]`; then P(one of them is the K-th just there, s have no step).
        """
        k, most = self.k, self.times.n_devices - self.k
        counts = np.zeros((2, len(nodes), k, most + 1))  # [whether the K-th is among them, node, finished, silent]
        counts[0, :, 0, 0] = 1.0
        for g in self.times.group:
            done, none = 1.0 - self._missing[nodes, g, None, None], silent[:, g, None, None]
            after = counts * np.maximum(1.0 - done - none, 0.0)
            after[:, :, 1:] += counts[:, :, :-1] * done
            after[:, :, :, 1:] += counts[:, :, :, :-1] * none
            if rates is not None:
                after[1] += counts[0] * rates[:, g, None, None]
            counts = after
        return np.asarray(counts[0].sum(axis=1) if rates is None else counts[1, :, k - 1])

    # ---- on nodes -----------------------------------------------------------------------------------------------

    @cached_property
    def _nodes(self) -> Nodes:
        times, u = self.times, self.local_steps
        if len(times.unit_s) > _MOST_GROUPS:
            raise NoClosedForm(f"needs at most {_MOST_GROUPS} kinds of devices; got {len(times.unit_s)}")
        levels = crossings(self.end.survival, LEVELS + TAIL)
        for k in {max(self.k - 1, 1), min(self.k + 1, times.n_devices)} - {self.k}:
            levels = np.append(levels, crossings(partial(self._fewer, k), (LEVELS[0], 1e-9, TAIL[-1]), n_halvings=20))
        low, high = 0.999 * float(levels.min()), 1.001 * float(levels.max())
        n_kinked = 1 if times.steps.step is None or times.steps.is_discrete else _MOST_KINKED
        kinks = {*times.kinks_s(u), *(kink for n in range(1, n_kinked + 1) for kink in times.kinks_s(n))}
        return Nodes.between(levels, np.array(sorted(kink for kink in kinks if low < kink < high)))

    def _fewer(self, k: int, t_s: Array) -> Array:
        return fewer_than(k, self._late(self.local_steps, t_s), self.times.n_in_group)

    def _late(self, n: int, t_s: Array) -> Array:
        """P(n steps take longer than t), `[t, group]`."""
        times = self.times
        if times.steps.step is None or not self._has_smooth_task:
            # Shares of a mixture may add up to a little more than 1.
            return np.minimum(times.survival(n, t_s), 1.0)
        # Each value is an average over the task factor; one table in the devices' own units serves all of them.
        units = (t_s[:, None] - times.offset_s) / times.unit_s
        return np.asarray(self._table(n)(np.maximum(units, 0.0).ravel()).reshape(units.shape))

    @cached_property
    def _table(self) -> Callable[[int], Callable[[Array], Array]]:
        """n -> P(S_n > x), `[x] -> [x]`."""
        steps = self.times.steps
        return cache(lambda n: tabulated(partial(steps.survival, n), steps.kinks(n), _MOST_GROUPS).survival)

    @cached_property
    def _missing(self) -> Array:
        """P(X > t), `[node, group]`."""
        return self._late(self.local_steps, self._nodes.t_s)

    @cached_property
    def _end(self) -> Spread:
        """T's law."""
        return Spread(self._nodes, fewer_than(self.k, self._missing, self.times.n_in_group))

    @cached_property
    def _is_atom(self) -> BoolArray:
        """Whether a device finishes exactly there with positive probability, `[node]`."""
        return np.asarray(np.stack([Spread(self._nodes, one).jumps for one in self._missing.T]).max(axis=0) > 1e-9)

    @cached_property
    def _others(self) -> tuple[list[Spread], list[Spread]]:
        """The laws of V_K and of V_{K-1}, the others being those of a device of the group, `[group]` each."""
        n = self.times.n_in_group
        at_k, before_k = (fewer_than_without_one(k, self._missing, n).T for k in (self.k, self.k - 1))
        return [Spread(self._nodes, one) for one in at_k], [Spread(self._nodes, one) for one in before_k]


def _column(n: Array, like: Array) -> Array:
    """n along the first axis of `like`."""
    return np.asarray(n).reshape(-1, *(1,) * (like.ndim - 1))


def _by_rows(steps: StepTimes, what: str, n: Array, unit: Array) -> Array:
    rows = np.broadcast_to(unit, (len(n), *unit.shape[1:]))
    return np.stack([getattr(steps, what)(int(one), row) for one, row in zip(n.flat, rows, strict=True)])


def _of_plain_steps(steps: StepTimes, what: str, n: Array, x: Array) -> Array:
    """P(the sum of n steps is at most x), "cdf", or more; for sums that are gamma n need not be whole."""
    step, n_column = steps.step, _column(n, x)
    gamma = special.gammainc if what == "cdf" else special.gammaincc
    if isinstance(step, Exponential):
        return np.asarray(gamma(n_column, np.maximum(x - n_column * step.shift, 0.0) / (step.mean - step.shift)))
    if isinstance(step, Gamma):
        return np.asarray(gamma(n_column * step.shape, x * (step.shape / step.mean)))
    return _by_rows(steps, what, n, x)


def _binomial(s: IntArray, n: int, p: Array) -> Array:
    """P(Bin(n, p) = s), `[p, s]`. p: `[p, 1]`."""
    log = special.gammaln(n + 1) - special.gammaln(s + 1) - special.gammaln(n - s + 1)
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(log + special.xlogy(s, p) + special.xlog1py(n - s, -p)))


def _rest(chance: Callable[[Array], Array], first: int) -> tuple[float, float | None]:
    """Sum over n >= first of P(N >= n), and of (2 n - 1) P(N >= n) (None if infinite), chance being smooth in n.

    Midpoint rule backwards (Euler-Maclaurin): the integral from first - 1/2 plus 1/24 of the slope there. Beyond the last
    panel the tail is that of a power law.
    """
    begin = first - 0.5
    edges = np.log(begin * np.geomspace(1.0, 1e60, 49))
    x, w = np.polynomial.legendre.leggauss(16)
    half = np.diff(edges)[:, None] / 2
    n = np.exp(edges[:-1, None] + half * (1 + x)).ravel()
    weight = (half * w).ravel() * n
    values, (last, next_one) = chance(n), chance(np.array([first - 1.0, float(first)]))
    end = np.exp(edges[-1])
    near_end, at_end = chance(np.array([end / 10, end]))
    exponent = np.log10(near_end / at_end) if at_end > 0 else np.inf
    if exponent <= 1 + 1e-9:
        raise NoClosedForm("needs lighter tails; the number of steps of a device has an infinite mean")
    total = float(weight @ values) + (at_end * end / (exponent - 1) if at_end > 0 else 0.0) + (next_one - last) / 24
    if exponent <= 2 + 1e-9:
        return float(total), None
    square = float((weight * (2 * n - 1)) @ values) + (2 * at_end * end**2 / (exponent - 2) if at_end > 0 else 0.0)
    return float(total), float(square + ((2 * first - 1) * next_one - (2 * first - 3) * last) / 24)
