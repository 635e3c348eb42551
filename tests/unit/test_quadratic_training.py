"""Least squares, where everything that training does is known: each kernel against NumPy, each run against linear algebra."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import fedsim
from fedsim.commands.ending import ending
from fedsim.dashboard.report import report
from fedsim.datasets.quadratic import Quadratic as QuadraticData
from fedsim.datasets.quadratic import facts
from fedsim.facts import BadInput
from fedsim.models.mlp import Mlp
from fedsim.models.quadratic import Quadratic
from fedsim.randomness import Luck
from fedsim.run import check, simulate
from fedsim.scenario.errors import ScenarioError
from fedsim.statistics.reading import read_scenario
from fedsim.statistics.summary import summarise
from fedsim.training import build, loop, low_rank, mapped, one_batch, reference, stacked
from fedsim.training.batches import plan_of
from fedsim.training.cohort import Cohort
from fedsim.training.dealing import Dealt
from fedsim.training.partition import OneClass, deal
from fedsim.training.settings import Training
from tests import learning
from tests.learning import Bench, relative_error

SIZES = (3, 2, 2)
P = sum(SIZES)
LAYER_OF = np.repeat(np.arange(3), SIZES)
EXACT = 1e-12  # a few hundred products of float64 numbers near one
DATA = QuadraticData(n_groups=4, n_pairs=5, n_parameters=P).load(None, 3)
HESSIAN, OPTIMUM, NOISE = facts(DATA)
DEALT = Dealt(DATA, deal(OneClass(), DATA.train_labels, 4, luck=Luck(1, "partition")))


def bench(**training: Any) -> Bench:
    """Four devices, each with its own group of ten samples; batches of four leave a last one of two."""
    settings = Training(**{"batch_size": 4, "dtype": "float64", "learning_rate": 0.3, **training})
    plan = plan_of(DEALT.samples, settings.batch_size, settings.batches)
    model = Quadratic(SIZES)
    chain, shape = build.chain_of(model, DATA, init_seed=3), build.shape_of(model, DATA)
    return Bench(build.learner_of(chain, shape, DEALT, plan, settings, None, data_seed=5), plan)


def tensors(flat):
    return list(torch.from_numpy(np.array(flat)).split(SIZES))


def flat(parts):
    return torch.cat([part.reshape(-1) for part in parts]).numpy()


def cohort(at, work):
    """At weights other than the initial ones, under a table that is no product, all into one sum."""
    rng = np.random.default_rng(4)
    table = np.where(work.holds_layer, rng.uniform(0.1, 1.0, (len(work), 3)), 0.0)
    start = tensors(rng.standard_normal(P))
    rate = at.learner.at.training.learning_rate
    return Cohort(start, rate, work, table, np.zeros(len(work), dtype=np.int64))


def added(kernel, at, group):
    """What a kernel adds to the sum, `[parameter]`."""
    total = [torch.zeros_like(p) for p in group.start]
    with torch.no_grad():
        for depth in np.unique(group.contributions.task_depth):  # all but the loops take one suffix at a time
            kernel.add([total], group.where(group.contributions.task_depth == depth), at.learner.at)
    return flat(total)


def by_numpy(at, group):
    """The same from the samples themselves: w := w - rate * mean of A^T (A w - y), in the layers that train."""
    work, total = group.contributions, np.zeros(P)
    inputs = DATA.train_inputs.astype(np.float64)
    for k in range(len(work)):
        w, change = flat(group.start), np.zeros(P)
        for step in range(work.n_steps[k] + (work.partial_depth[k] > 0)):
            depth = work.task_depth[k] if step < work.n_steps[k] else work.partial_depth[k]
            rows = inputs[at.learner.at.batches.rows(int(work.device[k]), int(work.ordinal[k]), step)]
            columns = rows[:, P:].reshape(-1, P, P)  # [row, column, equation]
            residual = np.einsum("rce,c->re", columns, w) - rows[:, :P]
            gradient = np.where(3 - depth <= LAYER_OF, np.einsum("rce,re->rc", columns, residual).mean(axis=0), 0.0)
            change -= group.rate * gradient
            if work.update == "descend":
                w = w - group.rate * gradient
        total += group.table[k, LAYER_OF] * change
    return total


# ---- the data -------------------------------------------------------------------------------------------------------


def test_the_noise_of_a_group_adds_up_to_zero_in_float32_numbers():
    for group in range(4):
        rows = DATA.train_inputs[DATA.train_labels == group].astype(np.float64)
        np.testing.assert_array_equal(rows.mean(axis=0), DATA.test_inputs[group].astype(np.float64))
        assert np.ptp(rows[:, :P], axis=0).min() > 0


def test_hessians_have_the_eigenvalues_that_were_asked_for():
    data = QuadraticData(n_groups=3, condition=25.0, n_parameters=4).load(None, 1)
    found = np.linalg.eigvalsh(facts(data)[0])
    np.testing.assert_allclose(found, np.tile(np.geomspace(1 / 25, 1, 4), (3, 1)), rtol=1e-5)  # float32 numbers


def test_without_spread_all_devices_share_the_hessian_and_the_optimum():
    hessian, optimum, _ = facts(QuadraticData(hessian_spread=0.0, optimum_spread=0.0).load(None, 1))
    np.testing.assert_array_equal(hessian, np.tile(hessian[0], (10, 1, 1)))
    np.testing.assert_array_equal(optimum, 0.0)
    assert np.abs(HESSIAN[0] - HESSIAN[1]).max() > 0.1
    assert np.abs(OPTIMUM[0] - OPTIMUM[1]).max() > 0.1


def test_optima_and_noise_are_as_wide_as_asked_for():
    """4 standard errors of a variance: sqrt(2 / n)."""
    data = QuadraticData(n_groups=500, n_parameters=4, optimum_spread=3.0, noise=0.25).load(None, 2)
    _, optimum, _ = facts(data)
    noise = data.train_inputs[::2, :4] - data.test_inputs[data.train_labels[::2], :4]  # one of each pair
    for found, expected in ((optimum, 3.0), (noise, 0.25)):
        assert abs(np.mean(found.astype(np.float64) ** 2) / expected**2 - 1) < 4 * np.sqrt(2 / found.size)


def test_one_class_deals_every_device_exactly_its_group():
    for device, rows in enumerate(DEALT.samples):
        np.testing.assert_array_equal(rows, np.flatnonzero(DATA.train_labels == device))


# ---- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [one_batch, loop, mapped, reference], ids=lambda kernel: kernel.NAME)
@pytest.mark.parametrize("device", range(4))
def test_a_full_batch_gradient_is_that_of_the_quadratic(kernel, device):
    at = bench(batch_size="all")
    group = cohort(at, at.work([device], n_steps=1))
    group.table[:] = 1.0
    expected = HESSIAN[device] @ (flat(group.start) - OPTIMUM[device])
    found = added(kernel, at, group) / -group.rate
    np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT * np.abs(expected).max())


@pytest.mark.parametrize("w", [np.ones(P), np.linspace(-3, 2, P)], ids=["at 1", "elsewhere"])
def test_the_noise_of_a_gradient_has_the_stated_covariance_wherever_it_is_taken(w):
    """Over all batches of one sample that a device can draw."""
    model, data = bench().learner.at.model, bench().learner.at.data
    model.load(tensors(w))
    for device, samples in enumerate(DEALT.samples):
        found = np.stack([flat(model.suffix_gradients(*data.gather(row), 3)) for row in samples[:, None]])
        np.testing.assert_allclose(found.mean(axis=0), HESSIAN[device] @ (w - OPTIMUM[device]), atol=10 * EXACT)
        np.testing.assert_allclose(np.cov(found.T, bias=True), NOISE[device], rtol=0, atol=10 * EXACT)


ROUNDS: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
    "fedavg": ({"n_steps": 4}, (loop, mapped, reference)),
    "stsyn": ({"n_steps": [5, 2, 3, 1]}, (loop, mapped, reference)),
    "salf": ({"n_steps": [0, 1, 0, 0], "partial_depth": [2, 0, 1, 0]}, (one_batch, loop, reference)),
    "fedpmt": ({"n_steps": 3, "task_depth": [3, 1, 2, 2]}, (loop, mapped, reference)),
    "k_batch_sync": ({"n_steps": [2, 1, 4, 3], "update": "accumulate"}, (one_batch, loop, reference)),
}
EVERY_ROUND = pytest.mark.parametrize(
    ("name", "kernel"),
    [(name, kernel) for name, (_, kernels) in ROUNDS.items() for kernel in kernels],
    ids=lambda value: getattr(value, "NAME", value),
)


@EVERY_ROUND
@pytest.mark.parametrize("batches", ["epochs", "with_replacement"])
def test_a_round_of_every_kernel_is_that_of_numpy(name, kernel, batches):
    at = bench(batches=batches)
    group = cohort(at, at.work([0, 1, 2, 3], **ROUNDS[name][0]))
    expected = by_numpy(at, group)
    np.testing.assert_allclose(added(kernel, at, group), expected, rtol=0, atol=EXACT * np.abs(expected).max())


@pytest.mark.parametrize("name", ROUNDS)
def test_the_learner_makes_the_new_model_of_numpys_round(name):
    at = bench()
    work = at.work([0, 1, 2, 3], **ROUNDS[name][0])
    mean = np.where(work.holds_layer, 1.0, 0.0) / np.maximum(work.holds_layer.sum(axis=0), 1)
    group = Cohort(at.values, 0.3, work, mean, np.zeros(4, dtype=np.int64))
    expected = np.ones(P) + by_numpy(at, group)
    report = at.aggregate(work, mean)
    np.testing.assert_allclose(flat(at.values), expected, rtol=0, atol=EXACT)
    if name != "fedpmt":  # frozen layers are passed once for all steps
        assert report.computed_flops == work.used_flops(at.learner.shape, at.plan).sum()


@dataclass(frozen=True)
class _Residuals(Mlp):
    """Fully connected layers whose outputs are to vanish: the loss on the kernels that stack devices."""

    loss: ClassVar[str] = "half_squared_norm"


@pytest.mark.parametrize("kernel", [low_rank, stacked], ids=lambda kernel: kernel.NAME)
@pytest.mark.parametrize("depth", [1, 3])
def test_kernels_of_fully_connected_layers_follow_the_models_loss(monkeypatch, kernel, depth):
    monkeypatch.setitem(learning.MODELS, "residuals", (_Residuals(widths=(8, 6)), (12,)))
    at = learning.bench("residuals", momentum=0.5)
    work = at.work([0, 1, 2, 3], n_steps=[5, 2, 3, 1], task_depth=depth)
    group = Cohort(at.values, 0.3, work, work.holds_layer * 0.25, np.zeros(4, dtype=np.int64))
    found, expected = ([torch.zeros_like(p) for p in group.start] for _ in range(2))
    with torch.no_grad():
        kernel.add([found], group, at.learner.at)
        reference.add([expected], group, at.learner.at)
    assert relative_error(found, expected, [torch.zeros_like(p) for p in expected]) < 1e-10
    assert float(expected[-1].abs().max()) > 0.01


def test_the_evaluation_is_the_mean_distance_from_the_optima():
    at = bench()
    off = flat(at.values) - OPTIMUM
    found = at.learner.evaluate()
    assert found.loss == pytest.approx(0.5 * np.einsum("gi,gij,gj->g", off, HESSIAN, off).mean(), rel=EXACT)
    assert np.isnan(found.accuracy)


# ---- what does not fit ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Named:
    loss: str
    part: nn.Module

    def build(self, input_shape, n_outputs):
        return nn.Sequential(self.part)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_Named("hinge", nn.Linear(56, 4)), "loss 'hinge'; choose cross_entropy or half_squared_norm"),
        (_Named("half_squared_norm", nn.Sequential(nn.Linear(56, 4), nn.Unflatten(1, (2, 2)))), r"shape \(2, 2\)"),
        (_Named("cross_entropy", nn.Linear(56, 7)), r"shape \(7,\) but the labels are 0..3; make it give 4"),
    ],
)
def test_a_loss_that_the_model_cannot_have_is_refused(model, words):
    with pytest.raises(BadInput, match=words):
        build.chain_of(model, DATA, init_seed=1)


# ---- whole runs -----------------------------------------------------------------------------------------------------

SCENARIO = {
    "name": "quadratic",
    "fleet": {"n_devices": 4, "compute": {"step_s": 1.0, "task_factor": {"kind": "exponential"}}},
    "data": {"kind": "quadratic", "n_groups": 4, "n_pairs": 5, "partition": {"kind": "one_class"}},
    "model": {"kind": "quadratic", "layer_sizes": list(SIZES)},
    "training": {"batch_size": "all", "learning_rate": 0.4, "dtype": "float64"},
    "policies": [{"kind": "fedavg", "local_steps": 3}, {"kind": "salf", "deadline_s": 1.0}],
    "evaluation": {"every_n_rounds": 1},
    "stop": {"n_rounds": 12},
}


def test_a_run_of_fedavg_follows_its_closed_form():
    """w := mean_k (o_k + (I - rate H_k)^3 (w - o_k)), the loss of every version among the evaluations."""
    loaded = fedsim.from_dict(SCENARIO)
    journal = io.StringIO()
    result = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0], journal=journal)
    hessian, optimum, _ = facts(loaded.data.load(None, 0))
    after_3 = np.linalg.matrix_power(np.eye(P) - 0.4 * hessian, 3)
    w, expected = np.ones(P), []
    for _ in range(13):
        off = w - optimum
        expected.append(0.5 * np.einsum("gi,gij,gj->g", off, hessian, off).mean())
        w = (optimum + np.einsum("gij,gj->gi", after_3, off)).mean(axis=0)
    evaluations = result.tables["evaluations"]
    np.testing.assert_allclose(evaluations["loss"], expected, rtol=1e-11)
    assert expected[-1] < 0.8 * expected[0]
    assert np.isnan(evaluations["accuracy"]).all()
    assert result.manifest["final"] == {"accuracy": None, "loss": evaluations["loss"][-1]}
    told = [row for line in journal.getvalue().splitlines() for row in json.loads(line)["evaluations"]]
    assert told
    assert {row["accuracy"] for row in told} == {None}


def test_runs_without_an_accuracy_are_written_summed_up_and_reported(tmp_path):
    loaded = fedsim.from_dict(SCENARIO)
    runs = read_scenario(fedsim.run(loaded, out=tmp_path))
    assert [summarise(run)["final_accuracy"] for run in runs] == [None, None]
    table, sentence = ending(runs)
    assert list(table.columns[1].cells) == ["-", "-"]
    assert "has no classes" in sentence
    page = report("quadratic", runs)
    assert "has no classes" in page
    assert "no classes</td>" in page


def test_targets_of_accuracy_are_refused_where_they_stand(tmp_path):
    file = tmp_path / "q.yaml"
    file.write_text(yaml.safe_dump(SCENARIO | {"evaluation": {"every_n_rounds": 1, "targets": [0.9]}}), "utf-8")
    line = 1 + [each.split(":")[0].strip() for each in file.read_text("utf-8").splitlines()].index("targets")
    with pytest.raises(ScenarioError) as refusal:
        check(fedsim.load(file))
    assert str(refusal.value).startswith(f"{file}:{line}: evaluation: targets are accuracies, but the model quadratic")
    assert str(refusal.value).endswith("leave targets out and stop by simulated_s or n_rounds")
