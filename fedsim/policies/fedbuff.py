"""FedBuff: nobody is waited for; uploads are collected in a buffer, and each full buffer makes a version.

Source: Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered Asynchronous
Aggregation", AISTATS 2022, arXiv 2106.06639, Algorithm 1.

    `concurrency` devices pull x and start
    whenever device k uploads its change d_k since the x that it pulled, s versions ago:
        buffer := buffer + (1 + s)^-e d_k
        once it holds K changes: x := x + server_learning_rate * buffer / K; empty the buffer; a new version
        a random idle device (k itself, if nobody else is idle) pulls x and starts
    normalise_at: v (the FLSim code): each weight is divided by (1 + v)^-e, so that a change v versions old counts 1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from fedsim import weights
from fedsim.delays import NotNegative, Positive
from fedsim.facts import Contributions, Jobs, Task
from fedsim.protocols import Rounds, Server, Setting, arrivals


@dataclass(frozen=True)
class FedBuff:
    """Nobody waits: `buffer_size` uploads (K) make a version.

    buffer_size: uploads that are averaged. local_steps: steps of a task.
    concurrency: devices at work at once; all if left out.
    staleness_exponent: how fast a stale change counts less (e); 0 is not at all.
    normalise_at: versions of staleness at which a change counts 1; left out: 0, the paper's rule.
    server_learning_rate: what the average is multiplied by.
    """

    buffer_size: Annotated[int, Ge(1)] = 10
    local_steps: Annotated[int, Ge(1)] = 5
    concurrency: Annotated[int, Ge(1)] | None = None
    staleness_exponent: NotNegative = 0.5
    normalise_at: NotNegative | None = None
    server_learning_rate: Positive = 1.0

    source: ClassVar[str] = "Nguyen et al., AISTATS 2022, arXiv 2106.06639, Algorithm 1"

    def problems(self, setting: Setting) -> list[str]:
        n = setting.n_devices
        if self.concurrency is not None and self.concurrency > n:
            return [f"concurrency is {self.concurrency} but the fleet has {n} devices; choose 1..{n}"]
        return []

    def rounds(self, server: Server) -> Rounds:
        task, buffer = Task(n_steps=self.local_steps), list[Contributions]()
        jobs = server.send(server.sample(self.concurrency), task)
        while True:
            yield from server.wait(jobs, arrivals(1))
            arrived = server.take(jobs, at_most=1)  # of the same instant, the others are for the next turn
            buffer.append(arrived)
            if len(buffer) == self.buffer_size:
                full, buffer = Contributions.concatenate(buffer), []
                late = (1.0 + server.version - full.version) / (1.0 + (self.normalise_at or 0.0))
                factor = self.server_learning_rate * late**-self.staleness_exponent
                server.aggregate(full, factor[:, None] * weights.mean(full))
            still = jobs.where(jobs.device != arrived.device)
            jobs = Jobs.concatenate([still, server.send(server.sample(1), task)])
