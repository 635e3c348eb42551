"""FedAsync: every upload is mixed into the model at once, the staler the less; the device starts again from the result.

Source: Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", arXiv 1903.03934, Algorithm 1 and section 5.2.

    `concurrency` devices pull x and start
    whenever device k uploads x_k, which it trained from the x of s mixings ago:
        a_s := a * f(s)
        x := (1 - a_s) x + a_s x_k
        a random idle device (k itself, if nobody else is idle) pulls x and starts
    constant:    f(s) = 1
    polynomial:  f(s) = (s + 1)^-a'
    hinge:       f(s) = 1 if s <= b, else 1 / (a' (s - b) + 1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt, Le

from fedsim import weights
from fedsim.delays import NotNegative
from fedsim.facts import Array, IntArray, Jobs, Task
from fedsim.protocols import Rounds, Server, Setting, arrivals

_OF_ONE_WEIGHTING = {"staleness_exponent": "polynomial", "hinge_slope": "hinge", "hinge_start": "hinge"}


@dataclass(frozen=True)
class FedAsync:
    """Nobody waits: each upload makes a version.

    local_steps: steps of a task. mixing_share: what a fresh model counts against the global one (a).
    staleness_weighting: what a stale one counts less (f).
    staleness_exponent: of "polynomial" (a'); 0.5 if left out.
    hinge_slope: of "hinge" (a'), per version; 10 if left out.
    hinge_start: of "hinge" (b), versions that cost nothing; 4 if left out.
    concurrency: devices at work at once; all if left out.
    """

    local_steps: Annotated[int, Ge(1)] = 5
    mixing_share: Annotated[float, Gt(0), Le(1)] = 0.6
    staleness_weighting: Literal["constant", "polynomial", "hinge"] = "polynomial"
    staleness_exponent: NotNegative | None = None
    hinge_slope: NotNegative | None = None
    hinge_start: Annotated[int, Ge(0)] | None = None
    concurrency: Annotated[int, Ge(1)] | None = None

    source: ClassVar[str] = "Xie, Koyejo, Gupta, arXiv 1903.03934, Algorithm 1 and section 5.2"

    def problems(self, setting: Setting) -> list[str]:
        n, found = setting.n_devices, []
        if self.concurrency is not None and self.concurrency > n:
            found.append(f"concurrency is {self.concurrency} but the fleet has {n} devices; choose 1..{n}")
        for name, weighting in _OF_ONE_WEIGHTING.items():
            if getattr(self, name) is not None and self.staleness_weighting != weighting:
                found.append(f"{name} is for staleness_weighting: {weighting}; choose that, or leave {name} out")
        return found

    def rounds(self, server: Server) -> Rounds:
        task = Task(n_steps=self.local_steps)
        jobs = server.send(server.sample(self.concurrency), task)
        while True:
            yield from server.wait(jobs, arrivals(1))
            arrived = server.take(jobs, at_most=1)  # those of the same instant each make a version, too
            share = self.mixing_share * self._discount(server.version - arrived.version)
            server.aggregate(arrived, share[:, None] * weights.mean(arrived), base="from_now")
            still = jobs.where(jobs.device != arrived.device)
            jobs = Jobs.concatenate([still, server.send(server.sample(1), task)])

    def _discount(self, staleness: IntArray) -> Array:
        if self.staleness_weighting == "constant":
            return np.ones(len(staleness))
        if self.staleness_weighting == "polynomial":
            exponent = 0.5 if self.staleness_exponent is None else self.staleness_exponent
            return np.asarray((staleness + 1.0) ** -exponent)
        slope = 10.0 if self.hinge_slope is None else self.hinge_slope
        start = 4 if self.hinge_start is None else self.hinge_start
        return np.asarray(1.0 / (slope * np.maximum(staleness - start, 0) + 1.0))
