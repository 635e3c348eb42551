"""Training a cohort, each contribution by the kernel that the rule chooses for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedsim.training import choice, loop, low_rank, mapped, one_batch, reference, stacked
from fedsim.training.cohort import Cohort, Workbench
from fedsim.training.state import Tensors

Train = Callable[[Sequence[Tensors], Cohort], float]
"""Adds sum_k table[k, layer] * change_k to the sum that each contribution enters; returns the FLOPs that it took."""

_KERNELS = {kernel.NAME: kernel.add for kernel in (one_batch, low_rank, stacked, mapped, loop, reference)}


def train(
    changes: Sequence[Tensors], cohort: Cohort, at: Workbench, traits: choice.Traits, n_trained: dict[str, int]
) -> float:
    """`Train` at a workbench. n_trained: contributions by kernel, counted on."""
    before = at.model.computed_flops
    chosen = [(reference.NAME, np.arange(len(cohort)))]
    if at.training.engine == "auto":
        from_own = cohort.own is not None or at.training.proximal > 0.0
        chosen = list(choice.groups(cohort.contributions, cohort.table, at.batches.plan, traits, from_own=from_own))
    for kernel, group in chosen:
        _KERNELS[kernel](changes, cohort.where(group), at)
        n_trained[kernel] = n_trained.get(kernel, 0) + len(group)
    return at.model.computed_flops - before
