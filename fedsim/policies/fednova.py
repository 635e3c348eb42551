"""FedNova: devices do unequal numbers of local steps, and the server divides each one's change by its own number.

Source: Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", NeurIPS 2020, arXiv 2007.07481, eq. (10) and section 4. With p_k the weight of device k and tau_k its steps:

    each round:
        device k: x_k := x after tau_k SGD steps; upload delta_k = x_k - x
        wait for all
        a_k := what the steps add up to, in gradients      # plain SGD: tau_k
        x := x + tau_eff * sum_k p_k delta_k / a_k,   tau_eff = sum_k p_k a_k
    with local momentum m, a gradient goes on in later steps: a_k = (tau_k - m (1 - m^tau_k) / (1 - m)) / (1 - m)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Lt, MinLen

from fedsim import weights
from fedsim.delays import Positive
from fedsim.facts import Array, Contributions, IntArray, Task
from fedsim.protocols import Rounds, Server, Setting, arrivals

_ROUNDING = 1e-9  # relative: a budget that is a sum of steps is met
_POWERS = 2 ** np.arange(20, -1, -1)  # a budget pays for two million steps at most


@dataclass(frozen=True)
class FedNova:
    """Normalised averaging. Exactly one of `local_steps` and `budget_s`.

    local_steps: steps of a task (tau), one number, or one per device.
    budget_s: expected compute seconds of a round; each device does as many steps as these pay for, at least one.
    weighting: of the average (p), by samples or uniform.
    effective_steps: tau_eff; "mean" is the paper's sum_k p_k a_k.
    momentum: of the local steps, for a_k; that of `training` if left out.
    """

    local_steps: Annotated[int, Ge(1)] | Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)] | None = None
    budget_s: Positive | None = None
    weighting: weights.Weighting = "n_samples"
    effective_steps: Literal["mean"] | Positive = "mean"
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0

    source: ClassVar[str] = "Wang, Liu, Liang, Joshi, Poor, NeurIPS 2020, arXiv 2007.07481, eq. (10) and section 4"

    def problems(self, setting: Setting) -> list[str]:
        n = setting.n_devices
        if (self.local_steps is None) == (self.budget_s is None):
            return ["local_steps and budget_s are two ways to say the same; state exactly one of them"]
        if isinstance(self.local_steps, tuple) and len(self.local_steps) != n:
            return [
                f"local_steps has {len(self.local_steps)} numbers but the fleet has {n} devices; give one per device"
            ]
        return []

    def steps(self, setting: Setting) -> IntArray:
        """Local steps of each device (tau), `[device]`."""
        everyone = np.arange(setting.n_devices)
        if self.budget_s is None:
            return np.broadcast_to(np.asarray(self.local_steps, dtype=np.int64), everyone.shape)
        n_steps = np.ones(len(everyone), dtype=np.int64)
        for power in _POWERS:  # bit by bit: the time of n steps grows with n
            needed_s = setting.expected_compute_s(Task(n_steps=n_steps + power), everyone)
            n_steps = np.where(needed_s <= self.budget_s * (1 + _ROUNDING), n_steps + power, n_steps)
        return n_steps

    def rounds(self, server: Server) -> Rounds:
        n_steps = self.steps(server)
        while True:
            jobs = server.send(server.sample(), Task(n_steps=n_steps))
            yield from server.wait(jobs, arrivals(len(jobs)))
            arrived = server.take(jobs)
            server.aggregate(arrived, self._table(arrived))

    def _table(self, arrived: Contributions) -> Array:
        """Weights `[contribution, layer]`."""
        m, n_steps = self.momentum, arrived.n_steps
        gradients = (n_steps - m * (1 - m**n_steps) / (1 - m)) / (1 - m)
        shares = weights.mean(arrived, self.weighting)
        effective = shares.T @ gradients if self.effective_steps == "mean" else self.effective_steps
        return np.asarray(shares * effective / gradients[:, None])
