"""FedLAMA: layers in which the devices hardly differ are averaged less often than the others.

Source: Lee, Zhang, Avestimehr, "Layer-wise Adaptive Model Aggregation for Scalable Federated Learning", AAAI 2023,
arXiv 2110.10302, Algorithms 1 and 2.

    tau_l := tau' for every layer l
    for k = 1, 2, ...:                                        # local steps
        every device i: x^i := x^i - eta g(x^i)               # all layers
        for each layer l with k mod tau_l = 0:                # a round ends every tau' steps
            u_l := sum_i p_i x_l^i
            d_l := sum_i p_i ||u_l - x_l^i||^2 / (tau_l dim(u_l));   x_l^i := u_l on every device
        if k mod (phi tau') = 0:                              # the whole model is in sync: other devices may be asked
            along the layers by d, ascending:   delta := their share of sum_l d_l dim(u_l) up to this layer
                                                lambda := their share of sum_l dim(u_l) up to this layer
                tau_l := phi tau' while delta < 1 - lambda; tau_l := tau' from there on
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge

from fedsim import weights
from fedsim.facts import Array, BoolArray, IntArray, Task, Wanted
from fedsim.protocols import Rounds, Server, Setting, arrivals

Rule = Literal["corrected", "literal"]
Crossing = Literal["excluded", "included"]


def relaxed_layers(
    discrepancy: Array, sizes: IntArray, rule: Rule = "corrected", crossing: Crossing = "excluded"
) -> BoolArray:
    """Whether each layer is averaged less often from now on, `[layer]`: Algorithm 2 of arXiv 2110.10302.

    discrepancy: d_l, per parameter and local step. sizes: dim(u_l), parameters. Both `[layer]`.
    rule: "corrected" compares delta with 1 - lambda, as the paper's text, figure and code do. Departs from Algorithm 2,
        line 9, which prints lambda ("literal"): by ascending d, delta is never above lambda, and every layer but one is
        relaxed. crossing: whether the first layer that fails the comparison is relaxed all the same.
    """
    by_discrepancy = np.argsort(discrepancy, kind="stable")
    d_sum, n_sum = np.cumsum((discrepancy * sizes)[by_discrepancy]), np.cumsum(sizes[by_discrepancy])
    # All times both totals: so shares that are equal are found equal, as quotients like 1 - 80 / 100 and 20 / 100 are not.
    delta = d_sum * n_sum[-1]
    bound = (n_sum if rule == "literal" else n_sum[-1] - n_sum) * (d_sum[-1] or 1.0)
    fails = delta > bound if crossing == "included" else delta >= bound  # the code breaks only beyond the bound
    n_relaxed = int(np.append(fails, True).argmax()) + (crossing == "included")
    return np.isin(np.arange(len(sizes)), by_discrepancy[:n_relaxed])


@dataclass(frozen=True)
class FedLAMA:
    """A round ends every `local_steps` (tau') steps; a relaxed layer is averaged in every `interval_factor`-th (phi) only.

    local_steps: steps between two rounds. interval_factor: how many times less often a relaxed layer is averaged.
    n_sampled: devices asked, anew after each round that averages the whole model; all if left out.
    weighting: of the averages and the discrepancies, by samples or uniform.
    relaxed: layers (from the input, the first is 0) that are relaxed from the start and for good; no discrepancy is
        measured then. Left out: chosen by their discrepancies, whenever the whole model has been averaged.
    rule: "corrected" relaxes while delta < 1 - lambda; "literal" while delta < lambda, as Algorithm 2 prints it.
    crossing: whether the first layer for which that fails is relaxed too ("included", as in the published code).
    adjust_from_round: no layer is relaxed before the round of this number (from 0) is over (6 in the published code).
    """

    local_steps: Annotated[int, Ge(1)] = 5
    interval_factor: Annotated[int, Ge(1)] = 2
    n_sampled: Annotated[int, Ge(1)] | None = None
    weighting: weights.Weighting = "n_samples"
    relaxed: tuple[Annotated[int, Ge(0)], ...] | None = None
    rule: Rule = "corrected"
    crossing: Crossing = "excluded"
    adjust_from_round: Annotated[int, Ge(0)] = 0

    source: ClassVar[str] = "Lee, Zhang, Avestimehr, AAAI 2023, arXiv 2110.10302, Algorithms 1 and 2"

    @property
    def feedback(self) -> frozenset[Wanted]:
        """What the policy asks of training; nothing where no layer is to be chosen."""
        is_chosen = self.relaxed is None and self.interval_factor > 1
        return frozenset[Wanted]({"update_distance"} if is_chosen else ())

    def problems(self, setting: Setting) -> list[str]:
        n, n_layers, found = setting.n_devices, setting.n_layers, []
        if self.n_sampled is not None and self.n_sampled > n:
            found.append(f"n_sampled is {self.n_sampled} but the fleet has {n} devices; choose 1..{n}")
        if max(self.relaxed or (0,)) >= n_layers:
            known = f"choose among 0..{n_layers - 1}, from the input"
            found.append(f"relaxed names layer {max(self.relaxed or ())} but the model has {n_layers} layers; {known}")
        is_plain = (self.rule, self.crossing, self.adjust_from_round) == ("corrected", "excluded", 0)
        if self.relaxed is not None and not is_plain:
            found.append("relaxed is stated, so no layer is chosen; leave out rule, crossing and adjust_from_round")
        return found

    def rounds(self, server: Server) -> Rounds:
        sizes, n_closed = server.shape.n_parameters, 0
        is_relaxed = np.isin(np.arange(server.n_layers), self.relaxed or ())
        while True:  # from one round that averages the whole model to the next
            devices = server.sample(self.n_sampled)
            due = tuple((~is_relaxed).tolist()) if is_relaxed.any() else None
            n_rounds = 1 if is_relaxed.all() else self.interval_factor  # one if nothing would be due in between
            n_steps = self.local_steps * (self.interval_factor // n_rounds)
            for i in range(n_rounds):
                pulls, pushes = None if i == 0 else due, None if i == n_rounds - 1 else due
                jobs = server.send(devices, Task(n_steps=n_steps, pulls=pulls, pushes=pushes))
                yield from server.wait(jobs, arrivals(len(jobs)))
                arrived = server.take(jobs)
                p = weights.mean(arrived, self.weighting)
                report = server.aggregate(arrived, p)
            n_closed += self.interval_factor
            if self.feedback and n_closed > self.adjust_from_round:
                seen = report.statistics  # of the last round, whose devices pushed every layer
                assert seen is not None  # the run refuses feedback that nobody gives
                assert seen.squared_distance is not None
                distance = (p[np.searchsorted(arrived.device, seen.device)] * seen.squared_distance).sum(axis=0)
                tau = self.local_steps * np.where(is_relaxed, self.interval_factor, 1)
                is_relaxed = relaxed_layers(distance / (tau * sizes), sizes, self.rule, self.crossing)
