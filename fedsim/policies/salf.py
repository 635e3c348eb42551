"""SALF: one local step under a deadline; each layer is averaged over the devices whose backward pass reached it.

Source: Lang, Cohen, Shlezinger, "Stragglers-Aware Low-Latency Synchronous Federated Learning via Layer-Wise Model
Updates", arXiv 2403.18375, Algorithm 1; q_u,l = P(device u reaches layer l by the deadline).

    each round, deadline T:
        device u: forward pass, then backward from the output until T; uploads the layers that it reached
        for each layer l, U_l := devices that reached l, p_l := prod_u (1 - q_u,l) = P(U_l is empty):
            x_l := x_l + 1/(1 - p_l) * mean_{u in U_l} (x_u,l - x_l)      # rule "contributors"
            U_l empty: keep x_l
    rule "diluted" (the published code): sum_{u in U_l} (x_u,l - x_l) / U, without a factor
    rule "inverse_probability": sum_{u in U_l} (x_u,l - x_l) / (U q_u,l), unbiased for unequal devices too
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge

from fedsim import weights
from fedsim.delays import Positive
from fedsim.facts import Array, Contributions, IntArray, Task
from fedsim.protocols import NoClosedForm, Rounds, Server, Setting, arrivals, elapsed, steps


@dataclass(frozen=True)
class Salf:
    """Layer-wise average under a deadline of `deadline_s` seconds (T) from the round's start.

    deadline_s: seconds. n_sampled: devices asked in a round; all if left out.
    rule: what a layer's average is divided by, see above.
    deadline_on: the deadline bounds the "compute", uploads follow; or the "arrival" of the upload.
    p_l: "oracle" takes the reach probabilities from the fleet's own laws; "estimated" from the depths seen in earlier
        rounds, as a real server would; "none" leaves the correction out.
    wait_out: a round lasts its whole deadline even when everyone is through before.
    """

    deadline_s: Positive
    deadline_on: Literal["compute", "arrival"] = "compute"
    rule: Literal["contributors", "diluted", "inverse_probability"] = "contributors"
    p_l: Literal["oracle", "estimated", "none"] = "oracle"
    n_sampled: Annotated[int, Ge(1)] | None = None
    wait_out: bool = False

    source: ClassVar[str] = "Lang, Cohen, Shlezinger, arXiv 2403.18375, Algorithm 1"

    def problems(self, setting: Setting) -> list[str]:
        n = setting.n_devices
        found = []
        if self.n_sampled is not None and self.n_sampled > n:
            found.append(f"n_sampled is {self.n_sampled} but the fleet has {n} devices; choose 1..{n}")
        if self.rule == "inverse_probability" and self.p_l == "none":
            found.append("rule is inverse_probability but p_l is none; choose p_l: oracle or estimated")
        if self.p_l == "oracle" and self.rule != "diluted":
            try:
                setting.reach_probability(np.arange(1), self.deadline_s, deadline_on=self.deadline_on)
            except NoClosedForm as reason:
                found.append(f"p_l is oracle, which {reason}; choose p_l: estimated or none")
        return found

    def rounds(self, server: Server) -> Rounds:
        within_s = self.deadline_s if self.deadline_on == "arrival" else None
        n_seen, n_reached = 2.0, np.ones(server.n_layers)  # Laplace's rule of succession, before the first round
        while True:
            devices = server.sample(self.n_sampled)
            jobs = server.send(devices, Task(n_steps=1, unit="layer", arrive_within_s=within_s))
            deadline = elapsed(self.deadline_s)
            everyone = arrivals(len(jobs)) if within_s is not None else steps(n_jobs=len(jobs), n_steps=1)
            yield from server.wait(jobs, deadline if self.wait_out else deadline | everyone)
            if self.deadline_on == "compute":
                server.stop(jobs)
                arrived = yield from server.collect(jobs)
            else:
                arrived = server.take(jobs)
                server.cancel(jobs)
            if self.p_l == "oracle":
                reach = server.reach_probability(devices, self.deadline_s, deadline_on=self.deadline_on)
            else:
                reach = np.broadcast_to(n_reached / n_seen, (len(devices), server.n_layers))
            server.aggregate(arrived, self._table(arrived, devices, reach))
            n_seen, n_reached = n_seen + len(devices), n_reached + arrived.holds_layer.sum(axis=0)

    def _table(self, arrived: Contributions, devices: IntArray, reach: Array) -> Array:
        """Weights `[contribution, layer]`; reach is q of everyone asked, `[device asked, layer]`."""
        if self.rule == "diluted":
            return weights.diluted(arrived, len(devices))
        if self.rule == "inverse_probability":
            own = reach[np.searchsorted(devices, arrived.device)]
            return weights.diluted(arrived, len(devices)) / np.where(own > 0, own, 1.0)
        p_l = np.zeros(reach.shape[1]) if self.p_l == "none" else np.prod(1.0 - reach, axis=0)
        return weights.layer_mean(arrived) / np.where(p_l < 1.0, 1.0 - p_l, 1.0)
