"""STSyn: local SGD with heterogeneous numbers of steps; the server waits for the K-th device to finish U of them.

Source: Zhu, Zhang, Wang, "STSyn: Speeding Up Local SGD with Straggler-Tolerant Synchronization", IEEE Transactions on
Signal Processing 2024, arXiv 2210.03521, Algorithm 1.

    each round:
        every device: x_k := x; SGD steps back to back, without a cap
        T := when the K-th device has finished U = `local_steps` steps
        at T every device stops; a step under way is discarded
        S := devices with at least one finished step; they upload x_k
        x := (1/|S|) sum_{k in S} x_k
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from fedsim import weights
from fedsim.facts import Contributions, Task
from fedsim.protocols import Rounds, Server, Setting, steps


@dataclass(frozen=True)
class STSyn:
    """Wait for the k fastest (K) to finish `local_steps` (U); everybody's finished steps count.

    k: devices waited for. local_steps: what each of those must finish; the others stop at the same moment.
    cap_factor: a device stops by itself after cap_factor x local_steps steps (1.5 in the published comparison).
    drop_most_updated: leave out the device with the most steps, as the published comparison script does.
    """

    k: Annotated[int, Ge(1)]
    local_steps: Annotated[int, Ge(1)] = 5
    cap_factor: Annotated[float, Ge(1)] | None = None
    drop_most_updated: bool = False

    source: ClassVar[str] = "Zhu, Zhang, Wang, IEEE TSP 2024, arXiv 2210.03521, Algorithm 1"

    def problems(self, setting: Setting) -> list[str]:
        n = setting.n_devices
        return [] if self.k <= n else [f"k is {self.k} but the fleet has {n} devices; choose 1..{n}"]

    def rounds(self, server: Server) -> Rounds:
        cap = None if self.cap_factor is None else int(self.cap_factor * self.local_steps + 1e-9)
        while True:
            jobs = server.send(server.sample(), Task(n_steps=cap))
            yield from server.wait(jobs, steps(n_jobs=self.k, n_steps=self.local_steps))  # the K-th fastest
            server.stop(jobs)
            arrived = yield from server.collect(jobs)
            arrived = self._kept(arrived.with_steps(at_least=1))
            server.aggregate(arrived, weights.mean(arrived))

    def _kept(self, arrived: Contributions) -> Contributions:
        if not self.drop_most_updated or len(arrived) < 2:
            return arrived
        return arrived.where(np.arange(len(arrived)) != arrived.n_steps.argmax())
