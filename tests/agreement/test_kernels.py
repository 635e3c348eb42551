"""Every kernel gives the reference loop's answer: float64, largest difference at most 1e-10 of the largest change."""

import itertools

import numpy as np
import pytest
import torch

from fedsim.training import loop, low_rank, mapped, one_batch, reference, stacked
from fedsim.training.cohort import Cohort
from tests.learning import SIZES, bench, relative_error

SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "weight decay": {"weight_decay": 0.2},
    "both": {"momentum": 0.5, "weight_decay": 0.1},
    "all samples": {"batch_size": "all", "momentum": 0.5},
    "with replacement": {"batches": "with_replacement", "weight_decay": 0.1},
}
WHOLE_STEPS = {"low_rank": low_rank, "stacked": stacked, "mapped": mapped, "loop": loop}
FITS = {  # models whose blocks a kernel can take, and the depths that it can
    ("low_rank", "mlp"): (1, 2, 3),
    ("low_rank", "cnn"): (1, 2),
    ("stacked", "mlp"): (1, 2, 3),
    ("stacked", "cnn"): (1, 2, 3, 4),
    ("mapped", "mlp"): (1, 3),
    ("mapped", "cnn"): (2, 4),
    ("mapped", "resnet20"): (1, 4),
    ("loop", "mlp"): (1, 3),
    ("loop", "cnn"): (1, 2, 3, 4),
    ("loop", "resnet20"): (1, 6, 11),
}
DEVICES = [0, 1, 2, 3, 0, 3]
UNEQUAL_STEPS = [5, 2, 3, 1, 2, 5]  # with batches of 4: steps of 4, 1, 4, 1, ... and 4, 4, 1, ... and 4, 3, ... rows


def cohort(at, work, seed):
    """Under weights that are no product, half of the contributions into each of two sums."""
    rng = np.random.default_rng(seed)
    table = np.where(work.holds_layer, rng.uniform(0.1, 1.0, (len(work), at.n_layers)), 0.0)
    start = [w + 0.01 * torch.randn(w.shape, dtype=w.dtype) for w in at.learner.weights]
    return Cohort(
        start,
        rate=at.learner.at.training.learning_rate,
        contributions=work,
        table=table,
        target=np.arange(len(work)) % 2,
    )


def sums(kernel, at, group):
    found = [[torch.zeros_like(w) for w in group.start] for _ in range(2)]
    with torch.no_grad():
        kernel.add(found, group, at.learner.at)
    return found


def assert_same(kernel, at, group):
    found, expected = sums(kernel, at, group), sums(reference, at, group)
    for mine, its in zip(found, expected, strict=True):
        zero = [torch.zeros_like(p) for p in its]
        assert relative_error(mine, its, zero) < 1e-10


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("kernel", "model"), FITS)
def test_several_unequal_steps_of_unequal_batches_at_every_depth(kernel, model, settings):
    torch.manual_seed(0)
    at = bench(model, **SETTINGS[settings])
    for depth in FITS[kernel, model]:
        work = at.work(DEVICES, n_steps=UNEQUAL_STEPS, task_depth=depth)
        assert_same(WHOLE_STEPS[kernel], at, cohort(at, work, seed=depth))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet20"])
def test_one_batch_at_depths_0_to_all(model, settings):
    torch.manual_seed(0)
    at = bench(model, **SETTINGS[settings])
    n = at.n_layers
    depths = np.unique(np.linspace(0, n, 5).astype(int))
    devices = np.arange(2 * len(depths)) % len(SIZES)
    depths = np.repeat(depths, 2)
    work = at.work(devices, n_steps=np.where(depths == n, 1, 0), partial_depth=np.where(depths == n, 0, depths))
    group = cohort(at, work, seed=3)
    assert_same(one_batch, at, group.where(one_batch.can_train(work, group.table)))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kernel", [one_batch, loop])
def test_accumulated_steps_with_an_unfinished_one(kernel, settings):
    torch.manual_seed(0)
    at = bench("cnn", **SETTINGS[settings])
    work = at.work(DEVICES, n_steps=UNEQUAL_STEPS, partial_depth=[0, 2, 1, 0, 3, 0], update="accumulate")
    group = cohort(at, work, seed=4)
    assert one_batch.can_train(work, group.table).all()
    assert_same(kernel, at, group)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet20"])
def test_the_loop_trains_a_broken_off_step_after_whole_ones(model, settings):
    torch.manual_seed(0)
    at = bench(model, **SETTINGS[settings])
    work = at.work([0, 1, 2, 3], n_steps=[2, 1, 3, 2], partial_depth=[1, 2, 0, 3])
    assert_same(loop, at, cohort(at, work, seed=5))


@pytest.mark.parametrize("tuning", [{"channels_last": False}, {"written_out": False}, {"pool_before_relu": False}])
@pytest.mark.parametrize("kernel", [one_batch, loop])
def test_tuning_switched_off_changes_no_result(kernel, tuning):
    torch.manual_seed(0)
    at = bench("cnn", tuning=tuning)
    work = at.work([0, 1, 2, 3], n_steps=[1, 0, 1, 0], partial_depth=[0, 3, 0, 2])
    assert_same(kernel, at, cohort(at, work, seed=6))


def test_a_convolution_of_one_channel_folds_rows_only_in_eights():
    """16 rows go folded, 5 and 12 do not; the answer is the same."""
    torch.manual_seed(0)
    for size in (5, 12, 16):
        at = bench("cnn", batch_size=size, batches="with_replacement")
        work = at.work([0, 1, 2], n_steps=[1, 0, 0], partial_depth=[0, 3, 2])
        assert_same(one_batch, at, cohort(at, work, seed=7))
        block, x = at.learner.at.model.blocks[0], at.learner.at.data.gather(np.arange(size))[0]
        _, (_, is_folded) = block.forward(x, at.learner.at.model.by_block(at.learner.weights)[0], size, 0, 1)
        assert is_folded == (size == 16)


@pytest.mark.parametrize("rows", [1, 3, 7, 64])
def test_the_size_of_chunks_changes_no_result(rows):
    torch.manual_seed(0)
    for kernel, model in itertools.product((one_batch, loop, low_rank, stacked), ("mlp",)):
        at = bench(model, tuning={"chunk_rows": rows})
        n_steps = [1, 1, 1, 1] if kernel is one_batch else [2, 4, 1, 3]
        assert_same(kernel, at, cohort(at, at.work([0, 1, 2, 3], n_steps=n_steps), seed=8))


# ---- CUDA -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the plan on CUDA is tested where there is one")
@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet20"])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_cuda_gives_the_cpus_answer_and_marks_the_run(model, n_steps):
    on_gpu, on_cpu = bench(model, device="cuda"), bench(model)
    start = on_cpu.values
    for at in (on_gpu, on_cpu):
        at.aggregate(at.work([0, 1, 2, 3], n_steps=n_steps))
    assert relative_error([w.cpu() for w in on_gpu.values], on_cpu.values, start) < 1e-10
    assert any(note.startswith("cuda:") for note in on_gpu.learner.notes)
