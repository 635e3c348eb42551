"""The rule that picks a kernel: readable, and the same on every machine."""

import numpy as np
import pytest

from fedsim import weights
from fedsim.facts import BatchPlan, Contributions, Terms
from fedsim.training import choice
from fedsim.training.choice import Traits

N_LAYERS = 4
PLAN = BatchPlan(np.full(50, 600), 16)


def traits(**changes):
    """A small convolutional network: two convolutions, then 512 x 128 and 128 x 10."""
    facts = {
        "n_linear": 2,
        "worth_rows": np.array([0.0, 0.0, 102.4, 9.3]),
        "n_stackable": 4,
        "n_activations": np.array([2304, 512, 128, 10]),
        "n_parameters": np.array([416, 12832, 65664, 1290]),
        "on_cuda": False,
        "mixes_rows": False,
    }
    return Traits(**(facts | changes))


def work(n_steps, *, partial=0, depth=N_LAYERS, update="descend"):
    n = len(n_steps)
    return Contributions(
        device=np.arange(n),
        ordinal=np.zeros(n, dtype=np.int64),
        version=np.zeros(n, dtype=np.int64),
        n_steps=np.array(n_steps),
        partial_depth=np.broadcast_to(np.int64(partial), (n,)),
        task_depth=np.broadcast_to(np.int64(depth), (n,)),
        n_samples=np.full(n, 600),
        arrived_s=np.zeros(n),
        n_layers=N_LAYERS,
        terms=Terms(update),
    )


def chosen(contributions, table=None, **changes):
    table = weights.layer_mean(contributions) if table is None else table
    found = choice.groups(contributions, table, PLAN, traits(**changes))
    kernels = {}
    for kernel, group in found:
        kernels[kernel] = kernels.get(kernel, []) + group.tolist()
    return kernels


def test_one_gradient_each_is_one_batch_whatever_the_depth():
    depths = np.array([1, 3, 4])
    at = work([0, 0, 1], partial=np.array([1, 3, 0]))
    assert chosen(at) == {"one_batch": [0, 1, 2]}
    assert (at.depth == depths).all()


def test_accumulated_steps_are_one_batch_too():
    assert chosen(work([3, 1, 7], update="accumulate")) == {"one_batch": [0, 1, 2]}


def test_a_zero_weight_inside_a_suffix_needs_a_product():
    at = work([1, 1])
    table = np.array([[0.5, 0.0, 0.5, 0.5], [0.25, 0.0, 0.25, 0.25]])
    assert chosen(at, table) == {"one_batch": [0, 1]}
    table[1, 1] = 0.3
    assert chosen(at, table) == {"one_batch": [1], "stacked": [0]}


@pytest.mark.parametrize(("n_steps", "kernel"), [(5, "low_rank"), (6, "low_rank"), (7, "stacked")])
def test_low_rank_is_worth_it_for_few_rows_on_a_wide_matrix(n_steps, kernel):
    """512 x 128 is worth 102 rows: six batches of 16."""
    assert chosen(work([n_steps, n_steps], depth=2)) == {kernel: [0, 1]}


def test_long_and_short_tasks_of_one_round_may_go_different_ways():
    assert chosen(work([2, 9, 3], depth=2)) == {"low_rank": [0, 2], "stacked": [1]}


def test_a_convolution_in_the_suffix_is_stacked_if_a_stack_fits_the_cache():
    assert chosen(work([5, 5])) == {"stacked": [0, 1]}
    assert chosen(work([5, 5]), n_activations=np.array([8192, 4096, 128, 10])) == {"loop": [0, 1]}


def test_what_cannot_be_stacked_goes_through_the_loop_or_torch_func_on_cuda():
    assert chosen(work([5, 5]), n_stackable=2) == {"loop": [0, 1]}
    assert chosen(work([5, 5]), n_stackable=2, on_cuda=True) == {"mapped": [0, 1]}


def test_a_step_broken_off_after_whole_ones_goes_through_the_loop():
    assert chosen(work([5, 2, 5], partial=np.array([0, 1, 0]))) == {"stacked": [0, 2], "loop": [1]}


def test_rows_that_depend_on_each_other_are_for_the_reference_loop():
    assert chosen(work([1, 5]), mixes_rows=True) == {"reference": [0, 1]}


def test_every_contribution_appears_once():
    at = work([1, 5, 2, 9, 0, 3], partial=np.array([0, 0, 1, 0, 2, 0]), depth=np.array([4, 2, 4, 2, 4, 4]))
    groups = chosen(at)
    assert sorted(k for group in groups.values() for k in group) == list(range(6))
