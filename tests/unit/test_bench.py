"""What the trainer is measured against computes the same thing, and the measurement reports what it promises."""

import json

import numpy as np
import pytest
import torch

from fedsim import cli, weights
from fedsim.commands import bench as benchmark
from fedsim.training import yardsticks
from tests.learning import bench


@pytest.mark.parametrize("model", ["mlp", "cnn"])
@pytest.mark.parametrize("freezes", [False, True])
def test_the_loops_and_ours_change_the_model_alike(model, freezes):
    """Stragglers in one step, or an assigned suffix in three."""
    at = bench(model)
    n, depths = at.n_layers, np.array([int(freezes), 1, 2, at.n_layers])
    own = yardsticks.copy_of(at.learner.at.model.chain.module, "cpu")
    if freezes:
        work = at.work([0, 1, 2, 3], n_steps=3, task_depth=depths)
    else:
        is_full = depths == n
        work = at.work([0, 1, 2, 3], n_steps=is_full, partial_depth=np.where(is_full, 0, depths))
    batches, n_steps = at.learner.at.batches, 3 if freezes else 1
    tasks = [
        [at.learner.at.data.gather(batches.rows(d, int(work.ordinal[d]), step)) for step in range(n_steps)]
        for d in range(4)
    ]
    naive = yardsticks.naive_round(own, tasks, depths.tolist(), 0.3, freezes=freezes)
    tight = yardsticks.tight_round(own, tasks, depths.tolist(), 0.3)
    before = at.values
    at.aggregate(work, weights.layer_mean(work))
    for old, new, a, b in zip(before, at.values, naive, tight, strict=True):
        assert torch.allclose(a, new - old, rtol=0, atol=1e-12)
        assert torch.allclose(b, new - old, rtol=0, atol=1e-12)


def test_every_case_of_the_table_is_there():
    assert len(benchmark.CASES) == 16
    assert {name.split("/")[0] for name in benchmark.CASES} == {"salf", "local5", "fedpmt5", "evaluate"}


def test_a_case_reports_ratios_flops_and_kernels(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "trainer", "--case", "salf/mlp32", "--pairs", "1", "--json"])
    assert end.value.code in (0, None)
    said = capsys.readouterr()
    (one,) = json.loads(said.out)
    keys = {"case", "ratio_to_naive", "ratio_to_tight", "gflops_per_s", "limit_share", "flops_ratio"}
    assert keys <= set(one)
    assert one["flops_ratio"] == 1.0
    assert one["kernels"] == {"one_batch": 75}
    assert 0 < one["limit_share"] < 2
    assert "x naive" in said.err


@pytest.mark.parametrize("arguments", [["bench", "clock"], ["bench", "trainer", "--case", "salf/mlp33"]])
def test_what_cannot_be_measured_is_refused_in_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "choose" in capsys.readouterr().err
