"""Models with BatchNorm against plain PyTorch loops written here: what trains, what travels, what an evaluation uses."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsim import weights
from fedsim.facts import AggregateRequest, BadInput, Subnetwork
from fedsim.models.resnet20 import Resnet20
from fedsim.models.vgg11 import Vgg11
from fedsim.training import state
from fedsim.training.flops import FlopCount
from fedsim.training.settings import ServerOptimizer
from tests.learning import MODELS, bench, relative_error

MODES = ["eval_prefix", "train_prefix", "static"]
EXACT = 1e-10


class Normed:
    """Four blocks: two convolutions with BatchNorm, a linear one with a BatchNorm that has no parameters, an output."""

    def build(self, input_shape, n_outputs):
        n_in, height, width = input_shape
        parts = OrderedDict(
            conv1=nn.Sequential(nn.Conv2d(n_in, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU()),
            conv2=nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU()),
            fc1=nn.Sequential(
                nn.Flatten(), nn.Linear(4 * height * width // 4, 6), nn.BatchNorm1d(6, affine=False), nn.Tanh()
            ),
            fc2=nn.Sequential(nn.Linear(6, n_outputs)),
        )
        return nn.Sequential(parts)


ITEMS = {
    "normed": (Normed(), (2, 6, 6)),
    "resnet20": (Resnet20(norm="batch", channels=(2, 3, 4)), (3, 8, 8)),
    "vgg11": (Vgg11(norm="batch", channels=(2, 3, 4, 4, 5, 5, 5, 5)), (3, 32, 32)),
}


@pytest.fixture(autouse=True)
def _on_the_shelf(monkeypatch):
    for name, item in ITEMS.items():
        monkeypatch.setitem(MODELS, f"{name} of batches", item)


def learner(model="normed", mode="eval_prefix", **settings):
    """Batches of four rows; BatchNorm1d cannot take the single row that an epoch would end with."""
    batches = "with_replacement" if model == "normed" else "epochs"
    return bench(f"{model} of batches", **{"batch_norm": mode, "batches": batches} | settings)


def state_of(at):
    """The global model under PyTorch's names."""
    model = at.learner.at.model
    model.ready(at.learner.weights)
    return {k: v.clone() for k, v in model.chain.module.state_dict().items() if not k.endswith("num_batches_tracked")}


def is_statistic(name):
    return name.endswith(("running_mean", "running_var"))


def layer_of(at, name):
    return at.learner.shape.layer_names.index(name.split(".")[0])


# ---- the plain loop -------------------------------------------------------------------------------------------------


def plain(at, start, device, depths, *, ordinal=0, task_depth, mode, update="descend", item=None):
    """What one device makes of the model, step by step with torch.optim; depths: layers that each step comes to."""
    training, (its_item, input_shape) = at.learner.at.training, ITEMS[at.kind]
    item = its_item if item is None else item
    module = item.build(input_shape, 3).double()
    module.load_state_dict(start, strict=False)
    blocks = list(module)
    frozen = blocks[: len(blocks) - task_depth]
    module.train()
    for block in frozen:
        block.requires_grad_(False)
        block.train(mode != "eval_prefix")
    suffix = [p for block in blocks[len(frozen) :] for p in block.parameters()]
    rate = training.learning_rate
    optimizer = torch.optim.SGD(suffix, lr=rate, momentum=training.momentum, weight_decay=training.weight_decay)
    for step, depth in enumerate(depths):
        x, labels = at.learner.at.data.gather(at.learner.at.batches.rows(device, ordinal, step))
        if update == "descend":
            optimizer.zero_grad()
        functional.cross_entropy(module(x), labels).backward()
        for block in blocks[: len(blocks) - depth]:
            for parameter in block.parameters():
                parameter.grad = None
        if update == "descend":
            optimizer.step()
    if update == "accumulate":  # the gradients have added up where the model never moved
        optimizer.step()
    return {name: tensor.clone() for name, tensor in module.state_dict().items() if name in start}


def averaged(at, start, ends, table, *, column_of_statistics=None):
    """start + sum_k table[k, layer] (end_k - start)."""
    found = {}
    for name, value in start.items():
        column = layer_of(at, name)
        if is_statistic(name) and column_of_statistics is not None:
            column = column_of_statistics
        found[name] = value + sum(table[k, column] * (end[name] - value) for k, end in enumerate(ends))
    return found


def assert_same(found, expected, start, *, with_statistics=True):
    names = [name for name in start if with_statistics or not is_statistic(name)]
    assert relative_error(*[[tensors[name] for name in names] for tensors in (found, expected, start)]) < EXACT


@pytest.fixture(params=ITEMS)
def kind(request):
    return request.param


def started(model, mode, **settings):
    at = learner(model, mode, **settings)
    object.__setattr__(at, "kind", model)
    # Running statistics that differ from 0 and 1, so that normalising by them is told from normalising by the batch.
    at.aggregate(at.work([0, 1], n_steps=2))
    return at, state_of(at)


# ---- one device -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "weight_decay": 0.1}], ids=["plain", "momentum"])
@pytest.mark.parametrize("depth", ["all", 3, 2, 1])
def test_several_steps_of_one_device_are_those_of_a_plain_loop(kind, depth, settings, mode):
    at, start = started(kind, mode, **settings)
    depth = at.n_layers if depth == "all" else depth
    at.aggregate(at.work([1], n_steps=3, task_depth=depth, version=1), version=1)
    expected = plain(at, start, 1, [depth] * 3, task_depth=depth, mode=mode)
    assert_same(state_of(at), expected, start, with_statistics=mode != "static")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n_steps", "partial", "task_depth"), [(2, 1, 4), (2, 3, 4), (0, 2, 4), (1, 1, 2), (0, 1, 2)])
def test_a_step_broken_off_has_had_its_forward_pass(n_steps, partial, task_depth, mode):
    """The task's layers normalised by the batch in it, also those that the backward pass did not come to."""
    at, start = started("normed", mode)
    work = at.work([1], n_steps=n_steps, partial_depth=partial, task_depth=task_depth, version=1)
    at.aggregate(work, version=1)
    depths = [task_depth] * n_steps + [partial]
    end = plain(at, start, 1, depths, task_depth=task_depth, mode=mode)
    column = at.n_layers - 1 if mode == "train_prefix" else None
    expected = averaged(at, start, [end], weights.layer_mean(work), column_of_statistics=column)
    assert_same(state_of(at), expected, start, with_statistics=mode != "static")


@pytest.mark.parametrize("mode", MODES)
def test_accumulated_gradients_leave_the_weights_but_not_the_running_statistics(mode):
    at, start = started("normed", mode)
    at.aggregate(at.work([3], n_steps=3, version=1, update="accumulate"), version=1)
    expected = plain(at, start, 3, [4] * 3, task_depth=4, mode=mode, update="accumulate")
    assert_same(state_of(at), expected, start, with_statistics=mode != "static")


def test_layers_before_a_task_s_own_are_left_bit_for_bit():
    at, start = started("normed", "eval_prefix")
    at.aggregate(at.work([1], n_steps=3, task_depth=2, version=1), version=1)
    for name, value in state_of(at).items():
        assert torch.equal(value, start[name]) == name.startswith("conv")


def test_in_train_prefix_only_the_running_statistics_move_before_a_task_s_own_layers():
    at, start = started("normed", "train_prefix")
    at.aggregate(at.work([1], n_steps=3, task_depth=2, version=1), version=1)
    for name, value in state_of(at).items():
        assert torch.equal(value, start[name]) == (name.startswith("conv") and not is_statistic(name))


def test_the_three_conventions_train_different_models():
    """But for static and train_prefix, which both normalise by the batch and part in the evaluation only."""
    found = {}
    for mode in MODES:
        at, _ = started("normed", mode)
        at.aggregate(at.work([1], n_steps=3, task_depth=2, version=1), version=1)
        found[mode] = state_of(at)["fc2.0.weight"]
    assert not torch.allclose(found["eval_prefix"], found["train_prefix"])
    assert torch.equal(found["static"], found["train_prefix"])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_layer_reached_has_the_gradient_of_the_full_step(depth):
    """As in SALF: the device trained all layers and was stopped on its way back."""
    changes = []
    for reached in ({"n_steps": 1}, {"partial_depth": depth}):
        at, start = started("normed", "eval_prefix")
        at.aggregate(at.work([1], **reached, version=1), version=1)
        after = state_of(at)
        changes.append({k: after[k] - start[k] for k in start if layer_of(at, k) >= 4 - depth and not is_statistic(k)})
    for name, change in changes[0].items():
        torch.testing.assert_close(changes[1][name], change, rtol=1e-12, atol=1e-14)


# ---- several devices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_two_devices_are_averaged_with_their_running_statistics(mode):
    """One trains everything, one the two output-most layers: the layers before are the first one's alone. But in
    train_prefix everybody's running statistics of every layer count."""
    at, start = started("normed", mode)
    work = at.work([0, 3], n_steps=[2, 3], task_depth=[4, 2], version=1)
    at.aggregate(work, np.array([[1.0, 1.0, 0.25, 0.25], [0.0, 0.0, 0.75, 0.75]]), version=1)
    ends = [
        plain(at, start, 0, [4] * 2, task_depth=4, mode=mode),
        plain(at, start, 3, [2] * 3, ordinal=1, task_depth=2, mode=mode),
    ]
    by_hand = {}
    for name, value in start.items():
        is_shared = name.startswith("fc") or (is_statistic(name) and mode == "train_prefix")
        first, second = (0.25, 0.75) if is_shared else (1.0, 0.0)
        by_hand[name] = first * ends[0][name] + second * ends[1][name] + (1 - first - second) * value
    assert_same(state_of(at), by_hand, start, with_statistics=mode != "static")


@pytest.mark.parametrize("mode", ["eval_prefix", "train_prefix"])
@pytest.mark.parametrize("kind_of_server", ["sgd", "adam"])
def test_a_server_optimiser_acts_on_no_running_statistics(kind_of_server, mode):
    """A step of so much along a variance could make it negative; its new value is the mean of the devices'."""
    optimiser = ServerOptimizer(kind=kind_of_server, learning_rate=0.5, momentum=0.9)
    found = []
    for server_optimizer in (None, optimiser):
        at = learner(mode=mode, server_optimizer=server_optimizer)
        start = state_of(at)
        at.aggregate(at.work([0, 3], n_steps=2))
        found.append(state_of(at))
    plain_mean, stepped = found
    for name in start:
        assert torch.equal(plain_mean[name], stepped[name]) == is_statistic(name)


def test_a_correction_of_the_average_leaves_running_statistics_between_the_devices_own():
    """SALF divides by 1 - p, which may be small: parameters move by 30 times the mean change, statistics by the mean."""
    at, twin = learner(), learner()
    start, work = state_of(at), at.work([0, 1], n_steps=2)
    at.aggregate(work, 30.0 * weights.mean(work))
    twin.aggregate(work, weights.mean(work))
    found, plain = state_of(at), state_of(twin)
    for name, value in found.items():
        factor = 1.0 if is_statistic(name) else 30.0
        torch.testing.assert_close(value - start[name], factor * (plain[name] - start[name]), rtol=1e-9, atol=1e-12)


def test_mixing_moves_running_statistics_towards_the_device_s_own():
    """FedAsync: new = (1 - a) now + a (the device's), of the running statistics too."""
    at, start = started("normed", "eval_prefix")
    at.aggregate(at.work([0], n_steps=2, version=1), version=1, kept=[1])
    now = state_of(at)
    at.aggregate(at.work([3], n_steps=2, version=1), np.full((1, 4), 0.3), version=2, base="from_now")
    own = plain(at, start, 3, [4] * 2, task_depth=4, mode="eval_prefix")
    assert_same(state_of(at), {name: 0.7 * now[name] + 0.3 * own[name] for name in now}, now)


@pytest.mark.parametrize("mode", MODES)
def test_an_element_of_a_running_mean_is_averaged_over_the_devices_whose_part_holds_it(mode):
    """Leading channels as in HeteroFL: a half of every stage, and the whole."""
    at, start = started("resnet20", mode)
    narrow = ITEMS["resnet20"][0].narrowed(0.5)
    shapes = {name: tensor.shape for name, tensor in narrow.build((3, 8, 8), 3).state_dict().items()}
    places = {name: tuple(slice(n) for n in shapes[name]) for name in start}
    work = at.work([0, 3], n_steps=2, version=1, rate=[0.5, 1.0], subnetwork=Subnetwork())
    table = np.full((2, 11), 0.5)
    table[:, -1] = 0.25  # divided out again; a running mean that went by this column would keep it
    at.aggregate(work, table, version=1, is_per_element=True)
    leading = {name: value[places[name]].clone() for name, value in start.items()}
    part = plain(at, leading, 0, [11] * 2, task_depth=11, mode=mode, item=narrow)
    expected = plain(at, start, 3, [11] * 2, ordinal=1, task_depth=11, mode=mode)
    for name, value in expected.items():
        value[places[name]] = 0.5 * (part[name] + value[places[name]])
    assert_same(state_of(at), expected, start, with_statistics=mode != "static")


@pytest.mark.parametrize("mode", ["eval_prefix", "train_prefix"])
def test_running_statistics_are_pushed_with_their_layer_where_layers_are_kept(mode):
    """As in FedLAMA. The output layer is not pushed, so it cannot say how much of the others' statistics counts."""
    at, start = started("normed", mode)
    work = at.work([0, 3], n_steps=2, version=1, pushes=(True, True, False, False))
    at.aggregate(work, np.array([[0.25] * 4, [0.75] * 4]) * np.array([1, 1, 0, 0]), version=1)
    ends = [plain(at, start, d, [4] * 2, ordinal=k, task_depth=4, mode=mode) for k, d in enumerate((0, 3))]
    expected = {
        name: 0.25 * ends[0][name] + 0.75 * ends[1][name] if name.startswith("conv") else value
        for name, value in start.items()
    }
    assert_same(state_of(at), expected, start)


def test_norms_and_distances_of_updates_are_those_of_the_parameters():
    at, start = started("normed", "eval_prefix")
    work = at.work([0, 3], n_steps=2, version=1)
    table = np.full((2, 4), 0.5)
    wanted = frozenset({"update_norm", "update_distance"})
    request = AggregateRequest(work, table, "from_start", 1, np.array([], dtype=np.int64), wanted)
    found = at.learner.aggregate(request).statistics
    ends = [plain(at, start, d, [4] * 2, ordinal=k, task_depth=4, mode="eval_prefix") for k, d in enumerate((0, 3))]
    after = state_of(at)
    for k, end in enumerate(ends):
        norms, distances = np.zeros(4), np.zeros(4)
        for name, value in start.items():
            if not is_statistic(name):
                norms[layer_of(at, name)] += float((end[name] - value).square().sum())
                distances[layer_of(at, name)] += float((end[name] - after[name]).square().sum())
        np.testing.assert_allclose(found.squared_norm[k], norms, rtol=1e-10)
        np.testing.assert_allclose(found.squared_distance[k], distances, rtol=1e-10)
    # The statistics of the updates were asked for, and the running statistics have been averaged all the same.
    assert_same(after, averaged(at, start, ends, table), start)


@pytest.mark.parametrize("mode", MODES)
def test_flops_computed_are_those_of_the_finished_work(kind, mode):
    """Counted on torch's own operations. Running statistics cost none."""
    at, _ = started(kind, mode)
    work = at.work([0, 3], n_steps=[2, 1], partial_depth=[1, 0], task_depth=[3, at.n_layers], version=1)
    with FlopCount() as count:
        report = at.aggregate(work, version=1)
    assert count.flops == report.computed_flops == work.used_flops(at.learner.shape, at.plan).sum() > 0


def test_every_engine_trains_such_a_model_by_the_plain_loop_and_says_so():
    at, _ = started("resnet20", "eval_prefix")
    assert set(at.learner.kernels) == {"reference"}
    assert at.learner.notes == [
        "fallback: a row's output depends on the others of its batch; trained by the reference loop"
    ]


def test_running_statistics_that_do_not_travel_are_no_part_of_the_global_model():
    n_tensors = {mode: len(learner(mode=mode).learner.weights) for mode in MODES}
    assert n_tensors["eval_prefix"] == n_tensors["train_prefix"] == n_tensors["static"] + 3 * 2


# ---- evaluation -----------------------------------------------------------------------------------------------------


def scores(module, at):
    """Accuracy and loss in evaluation mode on all rows at once."""
    x, labels = at.learner.evaluation.between(0, len(at.learner.evaluation))
    with torch.no_grad():
        out = module.eval()(x)
    return float((out.argmax(1) == labels).double().mean()), float(functional.cross_entropy(out, labels))


def module_of(kind, values):
    item, input_shape = ITEMS[kind]
    module = item.build(input_shape, 3).double()
    module.load_state_dict(values, strict=False)
    return module


@pytest.mark.parametrize("mode", ["eval_prefix", "train_prefix"])
def test_an_evaluation_normalises_by_running_statistics(kind, mode):
    at, values = started(kind, mode)
    expected = scores(module_of(kind, values), at)
    found = at.learner.evaluate()
    assert (found.accuracy, found.loss) == pytest.approx(expected, rel=EXACT)
    after = state_of(at)
    assert all(torch.equal(after[name], value) for name, value in values.items())


@pytest.mark.parametrize("n_rows", [10, 500])
def test_a_static_evaluation_takes_the_statistics_from_all_training_data_first(kind, n_rows, monkeypatch):
    """By torch's own average over batches: of 25 rows in three parts of at most ten, row by row in turn; or all at once."""
    monkeypatch.setattr(state, "_STATISTICS_ROWS", n_rows)
    at, values = started(kind, "static")
    module = module_of(kind, values).train()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.reset_running_stats()
            part.momentum = None  # the mean over all batches seen
    x, _ = at.learner.at.data.between(0, 25)
    with torch.no_grad():
        for rows in (range(25),) if n_rows == 500 else (range(0, 25, 3), range(1, 25, 3), range(2, 25, 3)):
            module(x[list(rows)])
    norms = [part for part in at.learner.at.model.chain.module.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    found = at.learner.evaluate()
    assert (found.accuracy, found.loss) == pytest.approx(scores(module, at), rel=EXACT)
    assert [norm.momentum for norm in norms] == momenta
    assert at.learner.evaluate().loss == found.loss


def test_training_after_a_static_evaluation_is_as_if_there_had_been_none():
    found = []
    for looks in (False, True):
        at, _ = started("normed", "static")
        if looks:
            at.learner.evaluate()
        at.aggregate(at.work([1], n_steps=2, version=1), version=1)
        found.append((state_of(at), at.learner.evaluate().loss))
    assert found[0][1] == found[1][1]
    assert all(torch.equal(found[0][0][k], found[1][0][k]) for k in found[0][0] if not is_statistic(k))


# ---- refusals -------------------------------------------------------------------------------------------------------


def test_a_batch_of_one_row_is_refused_where_it_cannot_be_normalised():
    """Device 0 has 5 samples, the last batch of an epoch one. Images of several pixels can be normalised alone."""
    with pytest.raises(BadInput) as refusal:
        learner("normed", batches="epochs")
    assert str(refusal.value).startswith(
        "device 0 has a batch of one row (5 samples, batch_size 4), over which this model"
    )
    assert refusal.value.at == ("training", "batch_size")
    with pytest.raises(BadInput, match=r"device 0 has a batch of one row \(5 samples, batch_size 1\)"):
        learner("normed", batch_size=1)
    learner("normed", batches="epochs", batch_size="all")
    learner("normed", batches="epochs", batch_size=7)
    learner("resnet20", batches="epochs")
