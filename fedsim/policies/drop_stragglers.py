"""Drop stragglers: a deadline for uploads; whoever is late is discarded.

Source: the baseline "drop" of Lang, Cohen, Shlezinger, "Stragglers-Aware Low-Latency Synchronous Federated Learning via
Layer-Wise Model Updates", arXiv 2403.18375, section IV, and of Li et al., "Federated Optimization in Heterogeneous
Networks" (FedProx), MLSys 2020, arXiv 1812.06127, section 5.2.

    each round:
        every device: x_k := x after `local_steps` SGD steps; upload x_k
        at `deadline_s` after the start: S := devices whose upload has arrived; discard the others
        x := x + (1/|S|) sum_{k in S} (x_k - x)      # or 1/(all asked) instead of 1/|S|: dilute
        if S is empty: keep x
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from fedsim import weights
from fedsim.delays import Positive
from fedsim.facts import Task
from fedsim.protocols import Rounds, Server, Setting, arrivals, elapsed


@dataclass(frozen=True)
class DropStragglers:
    """Average over those who are in time.

    deadline_s: seconds from the round's start until the last upload that counts.
    local_steps: steps of a task. n_sampled: devices asked in a round; all if left out.
    dilute: divide by all who were asked, as the literature's code does: a smaller effective step.
    wait_out: a round lasts its whole deadline even when everyone has arrived before.
    """

    deadline_s: Positive
    local_steps: Annotated[int, Ge(1)] = 5
    n_sampled: Annotated[int, Ge(1)] | None = None
    dilute: bool = False
    wait_out: bool = False

    source: ClassVar[str] = (
        "Lang et al., arXiv 2403.18375, section IV; Li et al., MLSys 2020, arXiv 1812.06127, section 5.2"
    )

    def problems(self, setting: Setting) -> list[str]:
        n = setting.n_devices
        if self.n_sampled is not None and self.n_sampled > n:
            return [f"n_sampled is {self.n_sampled} but the fleet has {n} devices; choose 1..{n}"]
        return []

    def rounds(self, server: Server) -> Rounds:
        while True:
            jobs = server.send(server.sample(self.n_sampled), Task(n_steps=self.local_steps))
            deadline = elapsed(self.deadline_s)
            yield from server.wait(jobs, deadline if self.wait_out else deadline | arrivals(len(jobs)))
            arrived = server.take(jobs)
            server.cancel(jobs)
            table = weights.diluted(arrived, len(jobs)) if self.dilute else weights.layer_mean(arrived)
            server.aggregate(arrived, table)
