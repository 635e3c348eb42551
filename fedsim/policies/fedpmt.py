"""FedPMT: each device trains as many output-side layers as its compute budget allows; everyone is waited for.

Source: Wu, Wang, Narayana, "Federated Learning with Partial Model Training", arXiv 2311.10002, Algorithm 1 and eq. (6).

    once: v_k := largest number of output-most layers that device k trains within the budget   # its model width
    each round:
        device k: full forward pass; `local_steps` SGD steps on the v_k output-most layers; upload those
        for each layer l: x_l := sum_k A_k,l x_k,l,   A_k,l = n_k [k trains l] / sum_j n_j [j trains l]
        a layer that nobody trains keeps its value
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from fedsim import weights
from fedsim.delays import Positive
from fedsim.facts import IntArray, Task
from fedsim.protocols import Rounds, Server, Setting, arrivals


@dataclass(frozen=True)
class FedPMT:
    """Partial model training. Exactly one of `budget_s` and `depths`.

    budget_s: expected compute seconds of a round that no device shall exceed; its width follows from its own speed.
    depths: the widths themselves, one number of output-most layers per device; 0 takes no part.
    local_steps: steps of a task. weighting: of each layer's average, by samples or uniform.
    dilute: divide each layer by all who take part, not only by those who train it.
    """

    budget_s: Positive | None = None
    depths: tuple[Annotated[int, Ge(0)], ...] | None = None
    local_steps: Annotated[int, Ge(1)] = 5
    weighting: weights.Weighting = "n_samples"
    dilute: bool = False

    source: ClassVar[str] = "Wu, Wang, Narayana, arXiv 2311.10002, Algorithm 1 and eq. (6)"

    def problems(self, setting: Setting) -> list[str]:
        if (self.budget_s is None) == (self.depths is None):
            return ["state exactly one of budget_s and depths"]
        n, n_layers = setting.n_devices, setting.n_layers
        if self.depths is not None and len(self.depths) != n:
            return [f"depths has {len(self.depths)} numbers but the fleet has {n} devices; give one number per device"]
        if self.depths is not None and max(self.depths) > n_layers:
            return [f"depths holds {max(self.depths)} but the model has {n_layers} layers; choose 0..{n_layers}"]
        if self.depths is not None and max(self.depths) == 0:
            return ["depths is 0 for every device; let at least one train a layer"]
        if not self.widths(setting).any():
            least_s = setting.expected_compute_s(Task(n_steps=self.local_steps, depth=1), np.arange(n)).min()
            return [
                f"budget_s is {self.budget_s} but the output layer alone takes the fastest device {least_s:.3g} s; raise it"
            ]
        return []

    def widths(self, setting: Setting) -> IntArray:
        """Output-most layers of each device, `[device]`."""
        if self.depths is not None:
            return np.asarray(self.depths, dtype=np.int64)
        everyone = np.arange(setting.n_devices)
        tasks = [Task(n_steps=self.local_steps, depth=depth) for depth in range(1, setting.n_layers + 1)]
        needed_s = np.stack([setting.expected_compute_s(task, everyone) for task in tasks], axis=1)
        # The budget itself is within it, also where a sum of layers is off by rounding.
        return np.asarray((needed_s <= (self.budget_s or 0.0) * (1 + 1e-9)).sum(axis=1))

    def rounds(self, server: Server) -> Rounds:
        widths = self.widths(server)
        takes_part = np.flatnonzero(widths > 0)
        while True:
            jobs = server.send(takes_part, Task(n_steps=self.local_steps, depth=widths[takes_part]))
            yield from server.wait(jobs, arrivals(len(jobs)))
            arrived = server.take(jobs)
            table = (
                weights.mean(arrived, self.weighting) if self.dilute else weights.layer_mean(arrived, self.weighting)
            )
            server.aggregate(arrived, table)
