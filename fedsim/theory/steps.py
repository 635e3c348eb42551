"""Times of local steps: of n steps in units of one at factor 1, S_n = A (X_1 + ... + X_n), A drawn per task and X_i per
step, and of the devices of a fleet, offset_s + unit_s * S_n.

On which level the randomness sits decides how fast the largest of many sums grows: with A alone the n steps of a task
are all slow or all fast. Persistent factors are numbers here; see `sums.py` for the laws of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from fedsim.facts import Array, IntArray
from fedsim.protocols import Law, NoClosedForm
from fedsim.theory.fleet import Fleet
from fedsim.theory.sums import (
    Atoms,
    Average,
    Cdf,
    Product,
    Scaled,
    atoms_of,
    has_atoms,
    kinks_of,
    kinks_of_sum,
    law_of_sum,
)


@dataclass(frozen=True)
class StepTimes:
    """The law of S_n. task: of A; step: of each X; None is always 1."""

    task: Law | None = None
    step: Law | None = None
    _sums: dict[int, Cdf] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def is_discrete(self) -> bool:
        """Whether S_n takes finitely many values (one, if nothing is random)."""
        return all(law is None or atoms_of(law) is not None for law in (self.task, self.step))

    @property
    def has_atoms(self) -> bool:
        """Whether S_n has a value with a probability of its own, so that equal devices can tie."""
        return all(law is None or has_atoms(law) for law in (self.task, self.step))

    def cdf(self, n: int, x: Array) -> Array:
        """P(S_n <= x). Raises NoClosedForm where the sum's law is not known to 1e-7."""
        return self._ask("cdf", n, x)

    def survival(self, n: int, x: Array) -> Array:
        """P(S_n > x). Raises NoClosedForm where the sum's law is not known to 1e-7."""
        return self._ask("survival", n, x)

    def mean(self, n: int) -> float:
        """E[S_n]; may be infinite."""
        return n * float(np.prod([law.mean for law in (self.task, self.step) if law is not None]))

    def variance(self, n: int) -> float:
        """Var S_n; may be infinite."""
        a, x = (1.0 if law is None else law.mean for law in (self.task, self.step))
        var_a, var_x = (law.variance if law is not None else 0.0 for law in (self.task, self.step))
        if not np.isfinite([a, x, var_a, var_x]).all():
            return np.inf
        return n * var_x * (var_a + a**2) + n**2 * x**2 * var_a

    def kinks(self, n: int) -> tuple[float, ...]:
        """Where the law of S_n jumps or has a kink, ascending."""
        step = (float(n),) if self.step is None else kinks_of_sum(self.step, n)
        if self.task is None:
            return step
        if self.step is None:
            return tuple(n * a for a in kinks_of(self.task))
        # A continuous factor smooths the other's kinks, up to those at its own ends.
        return tuple(sorted({a * s for a in kinks_of(self.task) for s in step}))

    def _ask(self, what: str, n: int, x: Array) -> Array:
        x = np.asarray(x, dtype=np.float64)
        if n == 0:
            return np.full(x.shape, 1.0 if what == "cdf" else 0.0)
        if n not in self._sums:
            self._sums[n] = self._law(n)
        with np.errstate(over="ignore"):  # a power of a number that is far beyond the law
            return np.asarray(getattr(self._sums[n], what)(x))

    def _law(self, n: int) -> Cdf:
        if self.task is None:
            return law_of_sum(self.step, n) if self.step is not None else Atoms.of([float(n)], [1.0])
        if self.step is None:
            return Scaled(law_of_sum(self.task, 1), float(n))
        task, step = atoms_of(self.task), atoms_of(self.step)
        if task is not None:
            return Average(law_of_sum(self.step, n), *task)
        if step is not None:
            atoms = law_of_sum(self.step, n)
            assert isinstance(atoms, Atoms)
            return Average(law_of_sum(self.task, 1), atoms.values, atoms.shares)
        spread = float(np.sqrt(self.step.variance / n)) / self.step.mean if np.isfinite(self.step.variance) else np.inf
        return Product(self.task, law_of_sum(self.step, n), kinks_of_sum(self.step, n), spread)


@dataclass(frozen=True, eq=False)
class DeviceTimes:
    """When devices have done n steps after a common start: offset_s + unit_s * S_n, equal devices in one group.

    unit_s: seconds of a step at factor 1, `[group]`. offset_s: what does not depend on luck (transfers), `[group]`.
    n_in_group: `[group]`. group: of each device, `[device]`.
    """

    steps: StepTimes
    unit_s: Array
    offset_s: Array
    n_in_group: IntArray
    group: IntArray

    @classmethod
    def of(cls, steps: StepTimes, unit_s: Array, offset_s: Array | float = 0.0, *apart: Array) -> Self:
        """unit_s, offset_s: `[device]`. apart: what else keeps devices in different groups, `[device]` each."""
        columns = np.stack(np.broadcast_arrays(np.asarray(unit_s, dtype=np.float64), offset_s, *apart), axis=1)
        groups, group, n = np.unique(columns, axis=0, return_inverse=True, return_counts=True)
        return cls(steps, groups[:, 0], groups[:, 1], n, group.reshape(-1))

    def later(self, by_s: Array) -> Self:
        """The same groups, each so much later, `[group]`."""
        return replace(self, offset_s=self.offset_s + by_s)

    def of_groups(self, per_device: Array) -> Array:
        """What is equal within each group, `[device] -> [group]`."""
        found = np.empty(len(self.unit_s), dtype=np.asarray(per_device).dtype)
        found[self.group] = per_device
        return found

    @property
    def n_devices(self) -> int:
        return len(self.group)

    @property
    def is_equal(self) -> bool:
        return len(self.unit_s) == 1

    def survival(self, n: int, t_s: Array) -> Array:
        """P(n steps take longer than t), `[t, group]`."""
        return self.steps.survival(n, self._units(t_s))

    def cdf(self, n: int, t_s: Array) -> Array:
        """P(n steps are done by t), `[t, group]`."""
        return self.steps.cdf(n, self._units(t_s))

    def mean_s(self, n: int) -> Array:
        """`[group]`; may be infinite."""
        return np.asarray(self.offset_s + self.unit_s * self.steps.mean(n))

    def kinks_s(self, n: int) -> tuple[float, ...]:
        """Times at which some group's law jumps or has a kink."""
        kinks = np.asarray((0.0, *self.steps.kinks(n)))
        found = self.offset_s[:, None] + self.unit_s[:, None] * kinks
        return tuple(np.unique(found[found > 0.0]).tolist())

    def _units(self, t_s: Array) -> Array:
        # Below 0 nothing is done, not even by a law with an atom at 0.
        return np.asarray((np.asarray(t_s)[:, None] - self.offset_s) / self.unit_s)


def times_of(
    n_devices: int,
    step_s: Law | float,
    task_factor: Law | None = None,
    device_factor: Sequence[float] | None = None,
    latency_s: float | Sequence[float] = 0.0,
) -> DeviceTimes:
    """Of devices described by hand.

    step_s: seconds of a step, a law drawn anew for each or a number. device_factor: persistent, one per device.
    latency_s: what comes on top of the steps, for all or one per device.
    """
    unit_s = np.ones(n_devices) if device_factor is None else np.asarray(device_factor, dtype=np.float64)
    if len(unit_s) != n_devices:
        raise ValueError(f"device_factor has {len(unit_s)} numbers for {n_devices} devices; give one per device")
    is_law = isinstance(step_s, Law)
    steps = StepTimes(task_factor, step_s if isinstance(step_s, Law) else None)
    return DeviceTimes.of(steps, unit_s if is_law else unit_s * float(step_s), np.asarray(latency_s, dtype=np.float64))  # type: ignore[arg-type]


def task_times(fleet: Fleet, depth: IntArray | None = None) -> tuple[DeviceTimes, Array]:
    """When tasks on the `depth` output-most layers (all if None) are computed, and their uploads' seconds, `[group]`.

    Raises NoClosedForm for transfers drawn anew for each task, steps of unequal rows, and random layer factors.
    """
    if not fleet.has_fixed_links:
        raise NoClosedForm("needs transfer times that are fixed for each device; got a link redrawn for each task")
    if fleet.layer_factor is not None:
        raise NoClosedForm("needs layers without a random factor of their own")
    if not fleet.has_even_steps:
        raise NoClosedForm("needs local steps of equal numbers of rows; some device's last batch is smaller")
    full = np.full(fleet.n_devices, fleet.n_layers) if depth is None else depth
    upload_s = fleet.upload_s[np.arange(fleet.n_devices), full]
    steps = StepTimes(fleet.task_factor, fleet.step_factor)
    computed = DeviceTimes.of(steps, fleet.unit_s * fleet.reach_share[full], fleet.download_s, upload_s)
    return computed, computed.of_groups(upload_s)
