"""K-sync SGD: one gradient from each of the K fastest devices; the others are cancelled.

Source: Dutta, Wang, Joshi, "Slow and Stale Gradients Can Win the Race", AISTATS 2018, arXiv 1803.01113, section 2.

    each round:
        every device: one mini-batch gradient g_k at x; upload g_k
        S := the K devices that arrive first; cancel the others
        x := x - learning_rate * (1/K) sum_{k in S} g_k
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from fedsim import weights
from fedsim.facts import Task
from fedsim.protocols import Rounds, Server, Setting, arrivals


@dataclass(frozen=True)
class KSync:
    """Wait for the k fastest.

    k: uploads that the server waits for; one that arrives at the very instant of the K-th counts too.
    """

    k: Annotated[int, Ge(1)]

    source: ClassVar[str] = "Dutta et al., AISTATS 2018, arXiv 1803.01113, section 2"

    def problems(self, setting: Setting) -> list[str]:
        n = setting.n_devices
        return [] if self.k <= n else [f"k is {self.k} but the fleet has {n} devices; choose 1..{n}"]

    def rounds(self, server: Server) -> Rounds:
        while True:
            jobs = server.send(server.sample(), Task(n_steps=1, update="accumulate"))
            yield from server.wait(jobs, arrivals(self.k))
            arrived = server.take(jobs)
            server.cancel(jobs)
            server.aggregate(arrived, weights.mean(arrived))
