"""FLANP: begin with the fastest devices alone, and ask twice as many once they have learned what their data can teach.

Source: Reisizadeh, Tziotis, Hassani, Mokhtari, Pedarsani, "Straggler-Resilient Federated Learning: Leveraging the
Interplay Between Statistical Accuracy and System Heterogeneity", arXiv 2012.14453, Algorithm 1 (recalled).

    once: order the devices by speed, the fastest first;  n := n_first
    each round:
        the n fastest: x_k := x after `local_steps` SGD steps; upload x_k
        wait for these n;  x' := their plain mean
        if |x' - x| <= threshold(n): n := 2 n, at most all       # the next stage starts from this model
    threshold(n): norm_below * sqrt(n_first / n)      # "shrinking", the paper's |gradient|^2 <= 2 mu c / n
                  norm_below                          # "fixed", a published comparison's 0.2
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt

from fedsim import weights
from fedsim.delays import Positive
from fedsim.facts import AggregateReport, Task, Wanted
from fedsim.protocols import Rounds, Server, Setting, arrivals


@dataclass(frozen=True)
class Flanp:
    """More and more of the fastest devices. Exactly one of `norm_below` and `stages`.

    n_first: devices of the first stage. local_steps: steps of a task.
    norm_below: L2 norm of the model's change in a round at which a stage ends; of the first stage, if it shrinks.
    norm_rule: "shrinking" with 1 / sqrt(devices), or "fixed" for all stages.
    stages: rounds of each stage, in place of a norm; after the last of them the number of devices stays. An empty list
        is a single stage.
    growth_factor: how many times as many devices the next stage asks. weighting: of the average.
    """

    n_first: Annotated[int, Ge(1)]
    local_steps: Annotated[int, Ge(1)] = 5
    norm_below: Positive | None = None
    norm_rule: Literal["shrinking", "fixed"] = "shrinking"
    stages: tuple[Annotated[int, Ge(1)], ...] | None = None
    growth_factor: Annotated[float, Gt(1)] = 2.0
    weighting: weights.Weighting = "uniform"

    source: ClassVar[str] = "Reisizadeh et al., arXiv 2012.14453, Algorithm 1"

    @property
    def feedback(self) -> frozenset[Wanted]:
        """What of the learner's report the story depends on; nothing where its stages are stated."""
        return frozenset({"change_norm"} if self.stages is None else ())

    def problems(self, setting: Setting) -> list[str]:
        if self.n_first > setting.n_devices:
            n = setting.n_devices
            return [f"n_first is {self.n_first} but the fleet has {n} devices; choose 1..{n}"]
        if (self.norm_below is None) == (self.stages is None):
            return ["norm_below and stages are two ways to end a stage; state exactly one of them"]
        return []

    def rounds(self, server: Server) -> Rounds:
        task, n = Task(n_steps=self.local_steps), self.n_first
        by_speed = np.argsort(server.expected_s(task, np.arange(server.n_devices)), kind="stable")
        stage = n_rounds = 0
        while True:
            jobs = server.send(np.sort(by_speed[:n]), task)
            yield from server.wait(jobs, arrivals(len(jobs)))
            arrived = server.take(jobs)
            report = server.aggregate(arrived, weights.mean(arrived, self.weighting))
            n_rounds += 1
            if n < server.n_devices and self._is_over(stage, n_rounds, n, report):
                stage, n_rounds = stage + 1, 0
                n = min(ceil(n * self.growth_factor), server.n_devices)

    def _is_over(self, stage: int, n_rounds: int, n: int, report: AggregateReport) -> bool:
        """Whether a stage of n devices ends after so many rounds."""
        if self.stages is not None:
            return stage < len(self.stages) and n_rounds == self.stages[stage]
        assert self.norm_below is not None
        assert report.change_norm is not None  # the policy declares that it depends on it
        limit = self.norm_below * (np.sqrt(self.n_first / n) if self.norm_rule == "shrinking" else 1.0)
        return bool(np.sqrt((report.change_norm**2).sum()) <= limit)
