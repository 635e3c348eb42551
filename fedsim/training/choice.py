"""Which kernel trains which contributions: the rule, apart from the kernels.

Measured on a CPU (docs/explanation/performance.md): one batch always wins where it is possible. Over several steps on
fully connected layers, low rank wins until the rows of a task outnumber what a weight matrix of that size is worth.
A stack of devices wins where it fits the cache, and on CUDA. The loop is the best for everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedsim.facts import Array, BatchPlan, BoolArray, Contributions, IntArray
from fedsim.training import loop, low_rank, mapped, one_batch, reference, stacked


@dataclass(frozen=True)
class Traits:
    """What decides about kernels.

    n_linear: how many of the output-most layers are fully connected, with nothing else among them.
    worth_rows: of each layer, in x out / (in + out), `[layer]`; 0 where it is not fully connected.
    n_stackable: how many of the output-most layers can be stacked. n_activations, n_parameters: of each
    layer, `[layer]`; activations of one row.
    on_cuda: whether torch computes there. mixes_rows: whether a row's output depends on the other rows of its batch.
    """

    n_linear: int
    worth_rows: Array
    n_stackable: int
    n_activations: IntArray
    n_parameters: IntArray
    on_cuda: bool
    mixes_rows: bool


def groups(
    contributions: Contributions, table: Array, plan: BatchPlan, traits: Traits, *, from_own: bool = False
) -> Iterator[tuple[str, IntArray]]:
    """(kernel, contributions that it trains); every contribution that holds anything appears once.

    from_own: whether devices start from weights of their own, or are drawn back to where they started; then only kernels
        that hold each device's weights can train them.
    """
    left = np.arange(len(contributions))
    if traits.mixes_rows:
        yield reference.NAME, left
        return
    is_batch = one_batch.can_train(contributions, table) & (not from_own)
    if is_batch.any():
        yield one_batch.NAME, left[is_batch]
    left = left[~is_batch]
    is_whole = (contributions.partial_depth[left] == 0) & (contributions.update == "descend")
    rest = left[~is_whole]
    for depth in np.unique(contributions.task_depth[left[is_whole]]).tolist():
        mine = left[is_whole & (contributions.task_depth[left] == depth)]
        is_low = _is_low_rank(contributions.where(mine), plan, traits, depth) & (not from_own)
        if is_low.any():
            yield low_rank.NAME, mine[is_low]
        others = mine[~is_low]
        if not len(others):
            continue
        if _can_stack(contributions.where(others), plan, traits, depth):
            yield stacked.NAME, others
        elif traits.on_cuda and not from_own:
            yield mapped.NAME, others
        else:
            rest = np.concatenate([rest, others])
    if len(rest):
        yield loop.NAME, np.sort(rest)


def _is_low_rank(contributions: Contributions, plan: BatchPlan, traits: Traits, depth: int) -> BoolArray:
    """Whether only fully connected layers train, and a task's rows are few against them, `[contribution]`."""
    worth = traits.worth_rows[len(traits.worth_rows) - depth :].max() if depth <= traits.n_linear else 0.0
    return np.asarray(contributions.rows_trained(plan)[0] <= worth)


def _can_stack(contributions: Contributions, plan: BatchPlan, traits: Traits, depth: int) -> bool:
    n_rows = plan.most_rows(contributions.device)
    size = stacked.stack_size(
        int(traits.n_activations[-depth - 1 :].sum()), int(traits.n_parameters[-depth:].sum()), n_rows
    )
    return depth <= traits.n_stackable and (size > 1 or traits.on_cuda)
