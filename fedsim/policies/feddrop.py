"""FedDrop: each round every device trains a sub-network that is drawn for it; slow devices and links get smaller ones.

Source: Wen, Jeon, Huang, "Federated Dropout - A Simple Approach for Enabling Federated Learning on Resource Constrained
Devices", IEEE Wireless Communications Letters 2022, arXiv 2109.15258, abstract; what it leaves open is a parameter here.

    each round:
        for each device k: of every fully connected hidden layer, keep a share 1 - p_k of the units, drawn anew;
            p_k: the device's own rate, such that download + compute + upload meet the latency limit
        device k: download the kept part x_k of x; `local_steps` SGD steps on it; upload it
        fill global: what k dropped counts as unchanged;   x := mean over all devices
        fill contributors: each element is averaged over the devices that held it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, Le

from fedsim import weights
from fedsim.delays import Positive
from fedsim.facts import Array, BadInput, Subnetwork, Task
from fedsim.protocols import NoClosedForm, Rounds, Server, Setting, arrivals

KeptShare = Annotated[float, Gt(0), Le(1)]
_N_LEVELS = 20


@dataclass(frozen=True)
class FedDrop:
    """Dropout between server and devices. Exactly one of `kept_shares` and `deadline_s`.

    kept_shares: of the units of each fully connected hidden layer (1 - p_k), one per device.
    deadline_s: expected seconds of download, compute and upload; a device keeps the largest of 1/20, 2/20, ..., 1 that
        meets it. A device that is late all the same is waited for.
    local_steps: steps of a task. scaler: in training, divide kept activations by the share that is kept.
    fill: where devices dropped an element, its average counts them as unchanged ("global"), or leaves them out.
    weighting: of the average, by samples or uniform.
    """

    kept_shares: tuple[KeptShare, ...] | None = None
    deadline_s: Positive | None = None
    local_steps: Annotated[int, Ge(1)] = 5
    scaler: bool = True
    fill: Literal["global", "contributors"] = "global"
    weighting: weights.Weighting = "uniform"

    source: ClassVar[str] = "Wen, Jeon, Huang, IEEE Wireless Communications Letters 2022, arXiv 2109.15258, abstract"

    def problems(self, setting: Setting) -> list[str]:
        """Raises BadInput for a model that has nothing to drop."""
        n = setting.n_devices
        if (self.kept_shares is None) == (self.deadline_s is None):
            return ["state exactly one of kept_shares and deadline_s"]
        if self.kept_shares is not None and len(self.kept_shares) != n:
            n_given = len(self.kept_shares)
            return [f"kept_shares has {n_given} numbers but the fleet has {n} devices; give one per device"]
        if setting.shape.sliced(1 / _N_LEVELS, convolutions=False).step_flops[-1] == setting.shape.step_flops[-1]:
            raise BadInput(
                "the model has no fully connected hidden layer to drop units of; choose another", at=("model",)
            )
        try:
            late = np.flatnonzero(self.shares_of(setting) == 0)
        except NoClosedForm as reason:
            return [f"deadline_s needs the mean seconds of a round, but they have {reason}; state kept_shares"]
        if len(late):
            least_s = setting.expected_s(self._task(1 / _N_LEVELS), late).max()
            return [
                f"deadline_s is {self.deadline_s} but with 1/{_N_LEVELS} of the units device {late[0]} ({len(late)} in all) "
                f"misses it; the slowest takes {least_s:.3g} s; raise it"
            ]
        return []

    def shares_of(self, setting: Setting) -> Array:
        """Kept by each device, `[device]`; 0 where not even the least share meets the deadline."""
        if self.kept_shares is not None:
            return np.asarray(self.kept_shares, dtype=np.float64)
        shares = np.zeros(setting.n_devices)
        for share in np.arange(1, _N_LEVELS + 1) / _N_LEVELS:
            needed_s = setting.expected_s(self._task(share), np.arange(setting.n_devices))
            # The deadline itself is met, also where a sum of terms is off by rounding.
            shares[needed_s <= (self.deadline_s or 0.0) * (1 + 1e-9)] = share
        return shares

    def _task(self, kept_share: float | Array) -> Task:
        return Task(n_steps=self.local_steps, subnetwork=Subnetwork("random", is_scaled=self.scaler), rate=kept_share)

    def rounds(self, server: Server) -> Rounds:
        shares = self.shares_of(server)
        while True:
            devices = server.sample()
            jobs = server.send(devices, self._task(shares[devices]))
            yield from server.wait(jobs, arrivals(len(jobs)))
            arrived = server.take(jobs)
            table = weights.mean(arrived, self.weighting)
            server.aggregate(arrived, table, is_per_element=self.fill == "contributors")
