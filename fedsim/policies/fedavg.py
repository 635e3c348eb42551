"""FedAvg / local SGD: everybody asked trains the same number of local steps and the server waits for all of them.

Source: McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", AISTATS 2017, arXiv 1602.05629, Algorithm 1; over-selection: Bonawitz et al., "Towards Federated
Learning at Scale", MLSys 2019, arXiv 1902.01046, section 2.2.

    each round:
        S := n_sampled + over_selected devices drawn without replacement (all if n_sampled is not stated)
        every device in S: x_k := x after `local_steps` SGD steps; upload x_k
        wait for the first n_sampled uploads; discard the others
        x := sum_k (n_k / n) x_k
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from fedsim import weights
from fedsim.facts import Task
from fedsim.protocols import Rounds, Server, Setting, arrivals


@dataclass(frozen=True)
class FedAvg:
    """Wait for all that were asked.

    local_steps: steps of a task. weighting: of the average, by samples or uniform.
    n_sampled: devices whose uploads enter a round; all if left out. over_selected: devices asked in addition.
    """

    local_steps: Annotated[int, Ge(1)] = 5
    n_sampled: Annotated[int, Ge(1)] | None = None
    over_selected: Annotated[int, Ge(0)] = 0
    weighting: weights.Weighting = "n_samples"

    source: ClassVar[str] = "McMahan et al., AISTATS 2017, arXiv 1602.05629, Algorithm 1"

    def problems(self, setting: Setting) -> list[str]:
        asked, n = (self.n_sampled or 0) + self.over_selected, setting.n_devices
        if self.n_sampled is None and self.over_selected:
            return [
                f"over_selected is {self.over_selected} but n_sampled is not stated; state how many uploads to wait for"
            ]
        if asked > n:
            return [f"n_sampled + over_selected is {asked} but the fleet has {n} devices; choose at most {n} together"]
        return []

    def rounds(self, server: Server) -> Rounds:
        while True:
            n_asked = None if self.n_sampled is None else self.n_sampled + self.over_selected
            jobs = server.send(server.sample(n_asked), Task(n_steps=self.local_steps))
            yield from server.wait(jobs, arrivals(self.n_sampled or len(jobs)))
            arrived = server.take(jobs)
            server.cancel(jobs)  # the over-selected that are late
            server.aggregate(arrived, weights.mean(arrived, self.weighting))
