"""The reference engine: one device at a time, one step at a time. Every other kernel is tested against it.

Source: local SGD as in McMahan et al., arXiv 1602.05629, Algorithm 1 (ClientUpdate), stopped after whole steps and, in
the step under way, after the layers (from the output) that were reached; momentum and weight decay as in Sutskever et
al., ICML 2013, in the form v = m v + (g + d x), x = x - learning_rate v. Running statistics of BatchNorm change by what the
forward passes made of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedsim.facts import Contributions
from fedsim.training.cohort import Cohort, Workbench
from fedsim.training.settings import Training
from fedsim.training.state import Tensors

NAME = "reference"


def add(changes: Sequence[Tensors], cohort: Cohort, at: Workbench) -> None:
    """Add sum_k table[k, layer] * change_k to the sum that each contribution enters."""
    for k in range(len(cohort)):
        delta = change(cohort.start_of(k), cohort.contributions, k, at)
        for i, column in enumerate(at.model.columns(cohort.contributions)):
            changes[int(cohort.target[k])][i].add_(delta[i], alpha=float(cohort.table[k, column]))


def change(start: Tensors, contributions: Contributions, k: int, at: Workbench) -> Tensors:
    """What contribution `k` changed since `start`, the model it pulled, `[parameter]`; zero in layers it lacks.

    The model's parameters are scratch space: they hold the device's own model afterwards.
    """
    model, training = at.model, at.training
    model.load(start)
    delta = [torch.zeros_like(p) for p in start]
    velocity = [torch.zeros_like(p) for p in start]
    rate = learning_rate(training, int(contributions.version[k]))
    device, ordinal = int(contributions.device[k]), int(contributions.ordinal[k])
    n_steps, partial = int(contributions.n_steps[k]), int(contributions.partial_depth[k])
    task_depth = int(contributions.task_depth[k])
    depths = [task_depth] * n_steps + ([partial] if partial else [])
    for step, depth in enumerate(depths):
        x, labels = at.data.gather(at.batches.rows(device, ordinal, step))
        gradients = model.suffix_gradients(x, labels, depth, task_depth)
        own = model.with_gradient(depth)
        here, moved, v = ([tensors[i] for i in own] for tensors in (model.parameters, delta, velocity))
        with torch.no_grad():
            if training.weight_decay:
                torch._foreach_add_(gradients, here, alpha=training.weight_decay)
            if training.proximal:
                pulled = [start[i] for i in own]
                torch._foreach_add_(gradients, torch._foreach_sub(here, pulled), alpha=training.proximal)
            if contributions.update == "accumulate":
                torch._foreach_add_(moved, gradients, alpha=-rate)
                continue
            if training.momentum:
                torch._foreach_mul_(v, training.momentum)
                torch._foreach_add_(v, gradients)
                gradients = list(v)
            torch._foreach_add_(here, gradients, alpha=-rate)
            # Summed on its own: new minus old would cancel to four digits in float32.
            torch._foreach_add_(moved, gradients, alpha=-rate)
    for i in model.statistics:
        delta[i] = model.parameters[i] - start[i]
    return delta


def learning_rate(training: Training, version: int) -> float:
    """The local learning rate of a task that pulled `version`."""
    return training.learning_rate * training.learning_rate_decay**version
