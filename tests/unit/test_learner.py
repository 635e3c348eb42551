"""The learner computes what devices finished, no more and no less, whichever kernel does it."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedsim import weights
from fedsim.training import low_rank
from fedsim.training.cohort import Cohort
from fedsim.training.flops import FlopCount
from fedsim.training.settings import ServerOptimizer
from tests.learning import MODELS, bench, relative_error

ENGINES = ["auto", "reference"]


# ---- the work -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", MODELS)
def test_flops_computed_equal_the_finished_work_at_every_depth(model, engine):
    """Ratio exactly 1: counted on torch's own operations, reported, and charged to the devices."""
    at = bench(model, engine)
    for depth in range(1, at.n_layers + 1):
        is_full = depth == at.n_layers
        work = at.work([0, 1, 3], n_steps=int(is_full), partial_depth=0 if is_full else depth)
        with FlopCount() as count:
            report = at.aggregate(work)
        charged = work.used_flops(at.learner.shape, at.plan).sum()
        assert charged > 0
        assert count.flops == report.computed_flops == charged


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", ["cnn", "resnet20"])
def test_flops_of_several_steps_and_a_broken_off_one_are_those_of_their_rows(model, engine):
    """Steps of 4, 1, 4, ... rows; one-step cohorts beside long jobs; one that reached nothing."""
    at = bench(model, engine)
    full = at.n_layers
    work = at.work([0, 1, 3, 0, 1], n_steps=[2, 0, 1, 0, 2], partial_depth=[full - 1, 2, 0, 0, 1])
    with FlopCount() as count:
        report = at.aggregate(work)
    step = at.learner.shape.step_flops
    by_hand = (5 * step[full] + 4 * step[full - 1]) + 4 * step[2] + 4 * step[full] + (8 * step[full] + step[1])
    assert count.flops == report.computed_flops == by_hand == work.used_flops(at.learner.shape, at.plan).sum()


def test_a_sample_passes_the_frozen_layers_once_however_many_steps_train_on_it():
    """Device 2 holds 4 samples, so three steps of 4 rows see each of them three times."""
    at, plain = bench("cnn"), bench("cnn", "reference")
    work = at.work([2], n_steps=3, task_depth=2)
    with FlopCount() as count:
        report = at.aggregate(work)
    shape = at.learner.shape
    frozen = shape.forward_flops[: at.n_layers - 2].sum()
    assert count.flops == report.computed_flops == 12 * shape.step_flops[2] - 8 * frozen
    assert plain.aggregate(work).computed_flops == 12 * shape.step_flops[2]


@pytest.mark.parametrize("n_steps", [[3, 3, 1], [2, 5, 2]])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "weight_decay": 0.1}])
def test_low_rank_states_its_own_flops_to_the_last(n_steps, settings):
    at = bench("mlp", **settings)
    with FlopCount() as count:
        work = at.work([0, 1, 3], n_steps=n_steps)
        change = [torch.zeros_like(w) for w in at.values]
        cohort = Cohort(at.values, 0.3, work, work.holds_layer / 3.0, np.zeros(3, dtype=np.int64))
        low_rank.add([change], cohort, at.learner.at)
    assert count.flops == at.learner.at.model.computed_flops > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_work_that_enters_with_no_weight_is_not_computed(engine):
    at = bench("mlp", engine)
    work = at.work([0, 1, 2], n_steps=[1, 4, 1])
    table = weights.layer_mean(work)
    table[1] = 0.0
    with FlopCount() as count:
        at.aggregate(work, table)
    used = work.where(np.array([0, 2]))
    assert count.flops == used.used_flops(at.learner.shape, at.plan).sum()


# ---- one answer from both engines -----------------------------------------------------------------------------------


def mixed_depths(at):
    """One step each, two devices at depths 1, 2 and all of 3 layers, one that reached nothing."""
    return at.work([0, 1, 2, 3, 0, 1, 2], n_steps=[1, 1, 0, 0, 0, 0, 0], partial_depth=[0, 0, 2, 2, 1, 1, 0])


def inverse_probability(work):
    """Every device with its own reach of every layer: no product of a row and a column."""
    q = np.random.default_rng(7).uniform(0.2, 1.0, (len(work), work.n_layers))
    return work.holds_layer / (len(work) * q)


TABLES = {
    "mean over all": weights.mean,
    "by samples": lambda work: weights.layer_mean(work, "n_samples"),
    "layer mean, corrected": lambda work: weights.layer_mean(work) / (1 - np.array([0.3, 0.1, 0.0])),
    "by samples and layer, diluted": lambda work: weights.diluted(work, 50.0, "n_samples"),
    "inverse probability": inverse_probability,
    "one layer of nobody": lambda work: weights.layer_mean(work) * np.array([0.0, 1.0, 1.0]),
}
SETTINGS = {
    "plain": {},
    "all samples": {"batch_size": "all"},
    "with replacement": {"batches": "with_replacement"},
    "weight decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "decaying rate": {"learning_rate_decay": 0.5},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("table", TABLES)
def test_both_engines_give_the_same_model(table, settings):
    found = []
    for engine in ENGINES:
        at = bench("mlp", engine, **SETTINGS[settings])
        work = mixed_depths(at)
        start = at.values
        at.aggregate(work, TABLES[table](work))
        again = at.work([0, 1, 2, 3], n_steps=1, version=1)
        at.aggregate(again, TABLES[table](again), version=1)
        found.append(at.values)
        kernels = at.learner.kernels
        if engine == "reference":
            assert set(kernels) == {"reference"}
        elif table != "inverse probability":
            assert kernels["one_batch"] == 10  # 6 that reached something, and 4
    assert relative_error(found[0], found[1], start) < 1e-10


@pytest.mark.parametrize("model", ["cnn", "resnet20"])
def test_both_engines_give_the_same_model_through_convolutions_too(model):
    found = []
    for engine in ENGINES:
        at = bench(model, engine)
        n = at.n_layers
        work = at.work([0, 1, 2, 3, 0, 1], n_steps=[1, 1, 0, 0, 0, 0], partial_depth=[0, 0, n - 1, n - 1, 1, 1])
        start = at.values
        at.aggregate(work)
        found.append(at.values)
    assert relative_error(found[0], found[1], start) < 1e-10


def test_mixtures_of_old_versions_long_jobs_and_cohorts_agree_too():
    found = []
    for engine in ENGINES:
        at = bench("mlp", engine, momentum=0.5)
        start = at.values
        at.aggregate(at.work([0, 1], n_steps=1), kept=[0])
        work = at.work([2, 3, 0, 1, 2], n_steps=[1, 1, 3, 1, 0], partial_depth=[0, 0, 2, 0, 2], version=[0, 1, 1, 1, 1])
        at.aggregate(work, version=1, kept=[0])
        found.append(at.values)
        if engine == "auto":
            assert at.learner.kernels == {"one_batch": 6, "loop": 1}
    assert relative_error(found[0], found[1], start) < 1e-10


# ---- the laws of the weight table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("optimizer", [None, ServerOptimizer(momentum=0.9), ServerOptimizer(kind="adam")])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_zero_column_leaves_the_layer_bit_for_bit(engine, optimizer, column):
    """Also where a server optimiser has momentum left, which must then neither move the layer nor decay."""
    at, other = bench("mlp", engine, optimizer), bench("mlp", engine, optimizer)
    first = at.work([0, 1, 2, 3], n_steps=1)
    at.aggregate(first)
    other.aggregate(first)
    before = at.values
    again = at.work([0, 1], n_steps=1, version=1)
    table = weights.layer_mean(again)
    table[:, column] = 0.0
    report = at.aggregate(again, table, version=1)
    assert report.version == 2
    for i, layer in enumerate(at.learner.at.model.layer_of):
        assert torch.equal(before[i], at.learner.weights[i]) == (layer == column)
    if optimizer is not None and optimizer.kind == "sgd":
        # No change for anybody: what moves the skipped layer next is the whole of the old velocity, still undecayed.
        last = at.work([0, 1], n_steps=1, version=2)
        tiny = np.full((2, 3), 1e-300)
        at.aggregate(last, tiny, version=2)
        other.aggregate(at.work([0, 1], n_steps=1, version=1), tiny, version=1)
        for i, layer in enumerate(at.learner.at.model.layer_of):
            if layer == column:
                assert torch.equal(at.learner.weights[i], other.learner.weights[i])


@pytest.mark.parametrize("engine", ENGINES)
def test_an_empty_round_changes_nothing(engine):
    at = bench("mlp", engine)
    before = at.values
    nobody = at.work(np.empty(0, dtype=np.int64))
    report = at.aggregate(nobody, np.zeros((0, 3)))
    assert (report.version, report.is_finite, report.computed_flops) == (0, True, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, at.learner.weights, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_scale_and_add_up_changes(engine):
    """The change of two devices under weights 2 and -1 is 2 changes of the one less the change of the other."""
    together, *alone = (bench("mlp", engine) for _ in range(3))
    start = together.values
    work = together.work([1, 3], n_steps=2)
    together.aggregate(work, np.array([[2.0] * 3, [-1.0] * 3]))
    for k, at in enumerate(alone):
        at.aggregate(work.where(np.array([k])), np.ones((1, 3)))
    one, other = ([v - s for v, s in zip(at.values, start, strict=True)] for at in alone)
    expected = [s + 2 * a - b for s, a, b in zip(start, one, other, strict=True)]
    assert relative_error(together.values, expected, start) < 1e-12


# ---- what a step is -------------------------------------------------------------------------------------------------


def gradient_at(at, values, device):
    """Of the mean cross-entropy over all of a device's rows, by torch alone."""
    leaves = [v.clone().requires_grad_() for v in values]
    x, labels = at.learner.at.data.gather(at.learner.at.batches.samples[device])
    for i in range(0, len(leaves), 2):
        x = x @ leaves[i].T + leaves[i + 1]
        x = x if i == len(leaves) - 2 else x.clamp(min=0)
    return torch.autograd.grad(functional.cross_entropy(x, labels), leaves)


def test_accumulated_steps_add_gradients_at_the_model_that_was_pulled():
    """Three full-batch steps are three times the first; descending ones see the moved model."""
    at, other = (bench("mlp", "reference", batch_size="all", momentum=0.0) for _ in range(2))
    start = at.values
    gradient = gradient_at(at, start, 1)
    at.aggregate(at.work([1], n_steps=3, update="accumulate"))
    expected = [s - 0.3 * 3 * g for s, g in zip(start, gradient, strict=True)]
    assert relative_error(at.values, expected, start) < 1e-12
    other.aggregate(other.work([1], n_steps=3))
    here = start
    for _ in range(3):
        here = [v - 0.3 * g for v, g in zip(here, gradient_at(other, here, 1), strict=True)]
    assert relative_error(other.values, here, start) < 1e-12
    assert relative_error(other.values, expected, start) > 1e-3


def test_momentum_starts_at_zero_in_every_task():
    """Two tasks of two steps are not one of four: v is 0 again in the third step."""
    at = bench("mlp", "reference", batch_size="all", momentum=0.9)
    start = here = at.values
    for version in (0, 1):
        at.aggregate(at.work([1], n_steps=2, version=version), version=version)
        first = gradient_at(at, here, 1)
        middle = [v - 0.3 * g for v, g in zip(here, first, strict=True)]
        second = gradient_at(at, middle, 1)
        here = [m - 0.3 * (0.9 * a + b) for m, a, b in zip(middle, first, second, strict=True)]
        assert relative_error(at.values, here, start) < 1e-12


def test_a_broken_off_step_moves_the_layers_it_reached_and_no_others():
    at, whole = (bench("mlp", "reference") for _ in range(2))
    start = at.values
    at.aggregate(at.work([1], partial_depth=2))
    whole.aggregate(whole.work([1], n_steps=1))
    for i, layer in enumerate(at.learner.at.model.layer_of):
        assert torch.equal(at.learner.weights[i], start[i] if layer == 0 else whole.learner.weights[i])


# ---- versions -------------------------------------------------------------------------------------------------------


def test_mixing_from_now_moves_towards_the_devices_own_model():
    """w + a (x_k - w): x_k was trained from version 0, w is the model of now."""
    at, device = bench("mlp", "auto"), bench("mlp", "auto")
    start = at.values
    late = at.work([3], n_steps=2)
    device.aggregate(late, np.ones((1, 3)))
    at.aggregate(at.work([0, 1], n_steps=1), kept=[0])
    now = at.values
    at.aggregate(late, np.full((1, 3), 0.25), version=1, kept=[], base="from_now")
    expected = [w + 0.25 * (x - w) for w, x in zip(now, device.values, strict=True)]
    assert relative_error(at.values, expected, start) < 1e-12


def test_a_change_from_start_is_added_to_the_model_of_now():
    at, device = bench("mlp", "auto"), bench("mlp", "auto")
    start = at.values
    late = at.work([3], n_steps=2)
    device.aggregate(late, np.ones((1, 3)))
    at.aggregate(at.work([0, 1], n_steps=1), kept=[0])
    now = at.values
    at.aggregate(late, np.full((1, 3), 0.25), version=1, kept=[])
    expected = [w + 0.25 * (x - s) for w, x, s in zip(now, device.values, start, strict=True)]
    assert relative_error(at.values, expected, start) < 1e-12


def test_versions_are_kept_as_long_as_they_are_named_and_then_forgotten():
    at = bench("mlp", "auto")
    at.aggregate(at.work([0], n_steps=1), kept=[0])
    at.aggregate(at.work([1], n_steps=1, version=1), version=1, kept=[0])
    at.aggregate(at.work([2], n_steps=1, version=0), version=2, kept=[])
    with pytest.raises(KeyError):
        at.aggregate(at.work([3], n_steps=1, version=0), version=3, kept=[])


def test_the_rate_decays_with_the_version_that_was_pulled():
    """A task of version 2 at decay 0.5 takes a quarter of the step."""
    at, plain = bench("mlp", "auto", learning_rate_decay=0.5), bench("mlp", "auto")
    start = at.values
    for each, version in ((at, 2), (plain, 0)):
        each.aggregate(each.work([0, 1], n_steps=1, version=version), version=version)
    expected = [s + 0.25 * (v - s) for s, v in zip(start, plain.values, strict=True)]
    assert relative_error(at.values, expected, start) < 1e-12


# ---- reports --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_divergence_is_reported(engine):
    at = bench("mlp", engine, learning_rate=1e308)
    assert at.aggregate(at.work([0, 1], n_steps=1), np.full((2, 3), 1000.0)).is_finite is False
    fine = bench("mlp", engine)
    assert fine.aggregate(fine.work([0, 1], n_steps=1)).is_finite is True


def test_evaluation_is_the_mean_over_the_first_rows_asked_for():
    """700 rows are more than one chunk of them."""
    at = bench("mlp", "auto")
    rows = at.learner.evaluation
    for n in (None, 700, 10, 513):
        out = at.learner.at.model.chain.module(rows.between(0, n)[0]).detach()
        found = at.learner.evaluate(n)
        assert found.loss == pytest.approx(float(functional.cross_entropy(out, rows.labels[:n])), rel=1e-12)
        assert found.accuracy == float((out.argmax(dim=1) == rows.labels[:n]).double().mean())
