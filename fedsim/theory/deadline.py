"""What devices have of one local step by a deadline T, layer by layer from the output, and when the server has it.

With C_u the end of the whole step and d its depth at T:
    deadline on compute: a device keeps the server until C_u + upload if C_u <= T, else until T + upload of its d layers
    deadline on arrival: until its upload's arrival (of the most layers that are there by T), until T if there are none
These moments are independent of each other, so that a round that ends with the last of them has the product of their
cdfs; waited out, it does not end before T. Drawn depths are not timed: such a device works until it is stopped.

Source of the rules: Lang, Cohen, Shlezinger, arXiv 2403.18375, section III. What the server makes of the layers is not
known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedsim.facts import Array, IntArray
from fedsim.protocols import NoClosedForm
from fedsim.theory.counts import sampled_fewer_than, some_missing, tabulated
from fedsim.theory.fleet import Fleet
from fedsim.theory.steps import StepTimes
from fedsim.theory.times import RandomTime, certain


@dataclass(frozen=True, eq=False)
class LayersInTime:
    """deadline_s: from the round's start. on_arrival: whether it bounds the upload's arrival, or the computation.

    wait_out: the round does not end before its deadline.
    """

    fleet: Fleet
    deadline_s: float
    on_arrival: bool = False
    wait_out: bool = False

    @property
    def is_drawn(self) -> bool:
        return self.fleet.lowest_depth is not None

    @cached_property
    def _columns(self) -> tuple[Array, IntArray]:
        fleet = self.fleet
        columns = np.column_stack([fleet.unit_s, fleet.download_s, fleet.upload_s[:, 1:]])
        groups, group = np.unique(columns, axis=0, return_inverse=True)
        return groups, group.reshape(-1)

    @property
    def group(self) -> IntArray:
        """Of each device."""
        return self._columns[1]

    @property
    def unit_s(self) -> Array:
        return self._columns[0][:, 0]

    @property
    def download_s(self) -> Array:
        return self._columns[0][:, 1]

    @property
    def upload_s(self) -> Array:
        """`[group, depth 1...]`."""
        return self._columns[0][:, 2:]

    def _needs_fixed_links(self) -> None:
        if not self.fleet.has_fixed_links:
            raise NoClosedForm("needs transfer times that are fixed for each device; got a link redrawn for each task")

    @cached_property
    def reach(self) -> Array:
        """P(a device contributes depth b or more), `[group, depth 1...]`."""
        t_s, n_layers = self.deadline_s, self.fleet.n_layers
        if self.on_arrival or not self.is_drawn:
            self._needs_fixed_links()
        left_s = t_s - self.upload_s if self.on_arrival else np.full_like(self.upload_s, t_s)
        if self.is_drawn:
            n_values = n_layers + 1 - (self.fleet.lowest_depth or 0)
            law = np.minimum(1.0, np.arange(n_layers, 0, -1) / n_values)
            # Drawn depths do not depend on the deadline, but for what it leaves for transfers if it bounds them.
            fits = self.download_s[:, None] <= left_s if self.on_arrival else left_s > 0
            return np.asarray(law * fits)
        by_depth = [self._times.cdf(*self._units(b, left_s[:, b - 1])) for b in range(1, n_layers + 1)]
        return np.stack(by_depth, axis=1)

    @cached_property
    def _times(self) -> StepTimes:
        """Of the step, or of several equal layers."""
        fleet, own = self.fleet, np.diff(self.fleet.reach_share)
        if not fleet.has_even_steps:
            raise NoClosedForm("needs local steps of equal numbers of rows; some device's last batch is smaller")
        if fleet.layer_factor is None:
            return StepTimes(fleet.task_factor, fleet.step_factor)
        if fleet.task_factor is not None or fleet.step_factor is not None or np.ptp(own) > 1e-9 * own[0]:
            raise NoClosedForm("needs equal layer_s and no other random factor, once layers are random")
        return StepTimes(None, fleet.layer_factor)

    def _units(self, depth: int, t_s: Array) -> tuple[int, Array]:
        """How many of `_times` the depth takes, and in how many of their units it is there by t, `[..., group]`."""
        share, left = self.fleet.reach_share, (t_s - self.download_s) / self.unit_s
        if self.fleet.layer_factor is None:
            return 1, left / share[depth]
        return depth, (left - share[0]) / (share[1] - share[0])

    def _missing(self, depth: int, t_s: Array) -> Array:
        """P(depth is not computed by t), `[..., group]`."""
        return self._times.survival(*self._units(depth, t_s))

    # ---- the round's end ----------------------------------------------------------------------------------------

    def end(self, n_asked: int) -> RandomTime:
        """The last of those asked."""
        self._needs_fixed_links()
        t_s, uploads = self.deadline_s, np.unique(self.upload_s)
        if self.on_arrival and (self.wait_out or self.is_drawn):
            return certain(t_s)
        own = self._not_arrived_after if self.on_arrival else self._not_there_after
        if not self.on_arrival and self.wait_out and not self.upload_s.any():
            return certain(t_s)
        if n_asked == self.fleet.n_devices:
            n_in_group = np.bincount(self.group)

            def survival(t: Array) -> Array:
                return some_missing(own(t), n_in_group)
        elif len(self.unit_s) == 1:

            def survival(t: Array) -> Array:
                return some_missing(own(t), n_asked)
        else:

            def survival(t: Array) -> Array:
                return sampled_fewer_than(n_asked, n_asked, own(t)[:, self.group])

        kinks = {t_s, *(t_s + uploads), *self._kinks_s()}
        return tabulated(survival, tuple(sorted(kink for kink in kinks if kink > 0)), len(self.unit_s))

    def _kinks_s(self) -> set[float]:
        """Of arrivals of whole steps, and of depths that would have been deeper but for their uploads."""
        fleet, share = self.fleet, self.fleet.reach_share
        if self.is_drawn:
            return set()
        kinks = np.array(self._times.kinks(1 if fleet.layer_factor is None else fleet.n_layers))
        if fleet.layer_factor is not None:
            kinks = share[0] + (share[1] - share[0]) * kinks
        whole = (self.download_s + self.upload_s[:, -1])[:, None] + self.unit_s[:, None] * kinks
        found = set(whole[(whole > 0)].tolist())
        if self.on_arrival:
            for b in range(1, fleet.n_layers):
                slowest = (self.deadline_s - self.download_s - self.upload_s[:, b]) / share[b + 1]
                at = self.download_s + self.upload_s[:, b - 1] + share[b] * slowest
                starts = (self.download_s + self.upload_s[:, b - 1])[:, None] + self.unit_s[:, None] * share[b] * kinks
                found |= {*at.tolist(), *starts.ravel().tolist()}
        return {kink for kink in found if kink > 0}

    def _not_there_after(self, t: Array) -> Array:
        """P(a device keeps the server waiting beyond t), deadline on compute, `[t, group]`."""
        deadline_s, t = self.deadline_s, np.asarray(t)[:, None]
        done = np.concatenate([self.reach, np.zeros((len(self.reach), 1))], axis=1)
        of_depth = -np.diff(done, axis=1)  # P(depth is exactly b)
        n_partial = self.fleet.n_layers if self.is_drawn else self.fleet.n_layers - 1
        waits = [of_depth[:, b] * (deadline_s + self.upload_s[:, b] > t) for b in range(n_partial)]
        after = np.sum([np.zeros(np.broadcast_shapes(t.shape, self.unit_s.shape)), *waits], axis=0)
        if self.is_drawn:
            return np.where(t < deadline_s, 1.0, after)
        computed_s = np.minimum(t - self.upload_s[:, -1], deadline_s)
        not_whole = self._missing(self.fleet.n_layers, computed_s)
        late = not_whole - self._missing(self.fleet.n_layers, np.full((1, 1), deadline_s))
        # Nothing, not even rounding, once the last upload that began by the deadline is there.
        after = after + np.where(computed_s < deadline_s, np.maximum(late, 0.0), 0.0)
        return np.where(t < deadline_s, 1.0 if self.wait_out else not_whole, after)

    def _not_arrived_after(self, t: Array) -> Array:
        """P(a device keeps the server waiting beyond t), deadline on arrival, `[t, group]`."""
        if self.fleet.layer_factor is not None:
            raise NoClosedForm("needs wait_out, or layers without a random factor of their own")
        deadline_s, t, n_layers = self.deadline_s, np.asarray(t)[:, None], self.fleet.n_layers
        missing = [self._missing(b, deadline_s - self.upload_s[:, b - 1]) for b in range(1, n_layers + 1)]
        # Slowest first: without any layer, then, for each depth that is the last in time, those not there by t.
        waits = missing[0] + np.zeros_like(t)
        for b in range(1, n_layers + 1):
            deeper = missing[b] if b < n_layers else np.ones_like(missing[0])
            not_there = np.minimum(self._missing(b, t - self.upload_s[:, b - 1]), deeper)
            waits = waits + np.maximum(not_there - missing[b - 1], 0.0)
        return np.where(t < deadline_s, np.minimum(waits, 1.0), 0.0)
