"""FedAsync and FedBuff on a fleet of fixed times against a server written out in plain Python: losses and every version's time.

The world is that of `test_numpy.py`; the uploads are kept in a list that is searched for the next one. Three devices are
equal to the bit here, so that they upload at the same instants for as long as nobody else does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.policies.fedasync import FedAsync
from fedsim.policies.fedbuff import FedBuff
from fedsim.training.learner import TorchLearner
from tests.agreement import by_hand, test_numpy
from tests.agreement.by_hand import Layers, World
from tests.agreement.test_ahead import knowing, scenario
from tests.laws.playing import learned

world = test_numpy.world  # the fixture
both_engines = test_numpy.both_engines

TWINS = (1.0, 1.0, 1.0, 0.75, 4.5, 1.6, 2.5, 3.0, 0.5)
TWIN_LATENCY_S = (0.25, 0.25, 0.25, 0.125, 0.0625, 0.6, 0.1, 0.0625, 0.25)


@dataclass
class Upload:
    """What a device sends: when it is there, the model that it began with, and which version that was."""

    arrives_s: float
    device: int
    start: Layers
    pulled: int


def combined(terms: list[tuple[float, Layers]]) -> Layers:
    """sum of weight x model."""
    return [
        (sum(a * m[i][0] for a, m in terms), sum(a * m[i][1] for a, m in terms))  # type: ignore[misc]
        for i in range(len(terms[0][1]))
    ]


def uploads_in_order(w: World, local_steps: int) -> tuple[list[Upload], Callable[[float, int, Layers, int], Upload]]:
    """Everybody's first upload, and what makes the next one."""

    def sent(now_s: float, device: int, model: Layers, pulled: int) -> Upload:
        offset_s = w.steps_end_s(device, local_steps) + w.upload_s(device, w.n_layers)
        return Upload(now_s + offset_s, device, model, pulled)

    return [sent(0.0, d, w.start, 0) for d in range(w.n_devices)], sent


def due(under_way: list[Upload]) -> list[Upload]:
    """Taken out of the list: those that arrive next, in the order of devices."""
    now_s = min(one.arrives_s for one in under_way)
    here = sorted((one for one in under_way if one.arrives_s == now_s), key=lambda one: one.device)
    under_way[:] = [one for one in under_way if one.arrives_s > now_s]
    return here


def fedasync(w: World, n_versions: int, local_steps: int, weight: Callable[[int], float]) -> tuple[Layers, list[float]]:
    """weight: a_s of an upload that is so many versions late."""
    under_way, sent = uploads_in_order(w, local_steps)
    model, ends_s = w.start, []
    while len(ends_s) < n_versions:
        for one in due(under_way):
            a = weight(len(ends_s) - one.pulled)
            model = combined([(1 - a, model), (a, local_model(w, one, local_steps))])
            ends_s.append(one.arrives_s)
            under_way.append(sent(one.arrives_s, one.device, model, len(ends_s)))
            if len(ends_s) == n_versions:
                break
    return model, ends_s


def fedbuff(
    w: World, n_versions: int, local_steps: int, size: int, weight: Callable[[int], float]
) -> tuple[Layers, list[float]]:
    """weight: of a change that is so many versions late, before the mean is taken."""
    under_way, sent = uploads_in_order(w, local_steps)
    model, buffer, ends_s = w.start, list[tuple[float, Layers]](), []
    while len(ends_s) < n_versions:
        for one in due(under_way):
            change = by_hand.local_change(w, one.start, one.device, [w.n_layers] * local_steps, 0)
            buffer.append((weight(len(ends_s) - one.pulled), change))
            if len(buffer) == size:
                model = combined([(1.0, model), *((a / size, change) for a, change in buffer)])
                buffer = []
                ends_s.append(one.arrives_s)
            under_way.append(sent(one.arrives_s, one.device, model, len(ends_s)))
            if len(ends_s) == n_versions:
                break
    return model, ends_s


def local_model(w: World, one: Upload, local_steps: int) -> Layers:
    change = by_hand.local_change(w, one.start, one.device, [w.n_layers] * local_steps, 0)
    return combined([(1.0, one.start), (1.0, change)])


def assert_same(
    folder: Path,
    w: World,
    policy: dict[str, Any],
    play: Callable[[int], tuple[Layers, list[float]]],
    engine: str,
    lengths: tuple[int, ...] = (5, 40),
) -> None:
    """Losses after 5 and 40 versions to 1e-10, their times to 1e-12, relative."""
    for n_versions in lengths:
        result = test_numpy.run(test_numpy.scenario(folder, w, policy, engine, n_versions))
        layers, ends_s = play(n_versions)
        np.testing.assert_allclose(result.tables["rounds"]["end_s"], ends_s, rtol=1e-12, atol=0)
        np.testing.assert_allclose(result.manifest["final"]["loss"], by_hand.loss(layers, w.test), rtol=1e-10)


# ---- fedasync -------------------------------------------------------------------------------------------------------


def polynomial(s: int) -> float:
    return float(0.6 / np.sqrt(s + 1))


def hinge(s: int) -> float:
    return 0.4 if s <= 5 else 0.4 / (0.5 * (s - 5) + 1)


FEDASYNC = [
    ({}, polynomial),
    ({"mixing_share": 0.3, "staleness_weighting": "constant"}, lambda s: 0.3),
    ({"staleness_exponent": 1.0}, lambda s: 0.6 / (s + 1)),
    ({"mixing_share": 0.4, "staleness_weighting": "hinge", "hinge_slope": 0.5, "hinge_start": 5}, hinge),
    ({"staleness_weighting": "hinge"}, lambda s: 0.6 if s <= 4 else 0.6 / (10 * (s - 4) + 1)),
]
NAMES = ["polynomial", "constant", "inverse", "hinge", "papers-hinge"]


@both_engines
@pytest.mark.parametrize(("parameters", "weight"), FEDASYNC, ids=NAMES)
def test_fedasync_mixes_each_upload_with_the_weight_of_its_staleness(
    tmp_path: Path, world: World, engine: str, parameters: dict[str, Any], weight: Callable[[int], float]
) -> None:
    policy = {"kind": "fedasync", "local_steps": 2, **parameters}
    assert_same(tmp_path, world, policy, lambda n: fedasync(world, n, 2, weight), engine)


@both_engines
def test_uploads_of_one_instant_each_make_a_version(tmp_path: Path, world: World, engine: str) -> None:
    """In the order of devices, each as late as those before it make it, and each device starts from its own."""
    twins = replace(world, step_s=TWINS, upload_latency_s=TWIN_LATENCY_S)
    policy = {"kind": "fedasync", "local_steps": 2}
    rounds = test_numpy.run(test_numpy.scenario(tmp_path, twins, policy, engine, 40)).tables["rounds"]
    assert set(rounds["n_contributions"]) == {1}
    assert (np.diff(rounds["end_s"]) == 0.0).sum() > 5
    assert_same(tmp_path, twins, policy, lambda n: fedasync(twins, n, 2, polynomial), engine)


@both_engines
def test_fedasync_that_takes_over_the_model_of_a_single_device_is_sgd(
    tmp_path: Path, world: World, engine: str
) -> None:
    assert_sgd(tmp_path, world, {"kind": "fedasync", "mixing_share": 1.0}, engine)


# ---- fedbuff --------------------------------------------------------------------------------------------------------

FEDBUFF = [
    (4, {}, lambda s: 1 / np.sqrt(1 + s)),
    (1, {"staleness_exponent": 0.0}, lambda s: 1.0),
    (3, {"staleness_exponent": 1.0, "normalise_at": 2.0, "server_learning_rate": 0.7}, lambda s: 0.7 * 3 / (1 + s)),
    (14, {"server_learning_rate": 1.5}, lambda s: 1.5 / np.sqrt(1 + s)),
]


@both_engines
@pytest.mark.parametrize(("size", "parameters", "weight"), FEDBUFF)
def test_fedbuff_averages_what_its_buffer_holds(
    tmp_path: Path, world: World, engine: str, size: int, parameters: dict[str, Any], weight: Callable[[int], float]
) -> None:
    policy = {"kind": "fedbuff", "local_steps": 2, "buffer_size": size, **parameters}
    assert_same(tmp_path, world, policy, lambda n: fedbuff(world, n, 2, size, weight), engine, lengths=(2, 12))


@both_engines
@pytest.mark.parametrize("size", [1, 2, 5])
def test_of_uploads_of_one_instant_only_as_many_enter_a_version_as_fit(
    tmp_path: Path, world: World, engine: str, size: int
) -> None:
    twins = replace(world, step_s=TWINS, upload_latency_s=TWIN_LATENCY_S)
    policy = {"kind": "fedbuff", "local_steps": 2, "buffer_size": size}
    tables = test_numpy.run(test_numpy.scenario(tmp_path, twins, policy, engine, 20)).tables
    assert set(tables["rounds"]["n_contributions"]) == {size}
    assert set(tables["tasks"]["outcome"]) == {"used", "open"}, "what did not fit is not lost"
    assert_same(
        tmp_path, twins, policy, lambda n: fedbuff(twins, n, 2, size, lambda s: 1 / np.sqrt(1 + s)), engine, (2, 20)
    )


def test_a_large_fleet_may_upload_at_one_instant() -> None:
    """3,000 equal devices: as many versions at 5 s, which takes more verbs than a policy may speak without time passing."""
    values = {
        "name": "at-once",
        "fleet": {"n_devices": 3000, "compute": {"step_s": 1.0}},
        "data": {"kind": "gaussian_blobs", "n_samples": 7500, "n_features": 2, "n_classes": 2},
        "model": {"kind": "mlp", "widths": []},
        "training": {"batch_size": 1},
        "policies": [{"kind": "fedasync"}],
        "seeds": [1],
        "stop": {"n_rounds": 3001},
        "train": False,
        "record_tasks": False,
    }
    ends_s = test_numpy.run(values).tables["rounds"]["end_s"]
    assert (set(ends_s[:3000]), ends_s[3000]) == ({5.0}, 10.0)


@both_engines
def test_fedbuff_of_a_single_device_and_upload_is_sgd(tmp_path: Path, world: World, engine: str) -> None:
    assert_sgd(tmp_path, world, {"kind": "fedbuff", "buffer_size": 1}, engine)


def assert_sgd(folder: Path, world: World, policy: dict[str, Any], engine: str) -> None:
    """One device, 3 steps a task, 8 tasks: 24 steps of gradient descent on its rows, one after another."""
    values = test_numpy.scenario(folder, world, {**policy, "local_steps": 3}, engine, 8)
    np.savez(folder / "partition.npz", np.concatenate([test_numpy._indices(1797)[2][d] for d in (1, 4)]))
    values["fleet"] = {"n_devices": 1, "compute": {"step_s": 1.0}}
    layers, rows = world.start, [np.concatenate(pair) for pair in zip(world.shards[1], world.shards[4], strict=True)]
    for _ in range(24):
        gradients = by_hand.gradients(layers, (rows[0], rows[1]))
        layers = combined([(1.0, layers), (-world.learning_rate, gradients)])
    found = test_numpy.run(values).manifest["final"]["loss"]
    np.testing.assert_allclose(found, by_hand.loss(layers, world.test), rtol=1e-10)


# ---- what the trainer makes of it -----------------------------------------------------------------------------------

POLICIES = [
    FedAsync(local_steps=3),
    FedAsync(local_steps=3, concurrency=4, staleness_weighting="constant"),
    FedBuff(local_steps=3, buffer_size=3),
    FedBuff(local_steps=3, buffer_size=2, concurrency=5),
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_training_ahead_in_batches_changes_nothing(tiny: Any, policy: FedAsync | FedBuff) -> None:
    """Momentum, mini-batches, float64: the reference loop, one upload at a time, against kernels that look ahead."""
    alone, loss = learned(scenario(tiny, engine="reference"), policy)
    values = scenario(tiny, engine="auto")
    ahead, tell = knowing(values, policy)
    assert len(ahead) == 24
    together, its_loss = learned(values, policy, wrapped=tell)
    assert np.abs(together - alone).max() <= 1e-10 * np.abs(alone).max()
    assert abs(loss - its_loss) <= 1e-10


@dataclass
class Counting:
    """Counts the older models that the learner keeps, aggregate by aggregate, and the versions it has made."""

    learner: TorchLearner
    n_kept: list[int]
    versions: list[int]

    def aggregate(self, request: Any) -> Any:
        report = self.learner.aggregate(request)
        self.n_kept.append(len(self.learner._older))
        self.versions.append(report.version)
        return report

    @property
    def shape(self) -> Any:
        return self.learner.shape

    def evaluate(self, n_rows: int | None = None) -> Any:
        return self.learner.evaluate(n_rows)


@pytest.mark.parametrize(("concurrency", "most"), [(None, 6), (3, 2)])
def test_models_are_kept_only_as_long_as_somebody_works_on_them(tiny: Any, concurrency: int | None, most: int) -> None:
    """400 versions: of 7 (3) devices at work all but the one that has just pulled the newest may have older ones."""
    counters: list[Counting] = []

    def counting(learner: TorchLearner) -> Counting:
        counters.append(Counting(learner, [], []))
        return counters[0]

    learned(scenario(tiny, n_rounds=400), FedAsync(local_steps=1, concurrency=concurrency), wrapped=counting)
    assert counters[0].versions == list(range(1, 401))
    assert max(counters[0].n_kept) == most


@pytest.mark.parametrize("policy", [{"kind": "fedasync"}, {"kind": "fedbuff", "buffer_size": 2}])
def test_a_finished_device_is_replaced_by_any_idle_one(policy: dict[str, Any]) -> None:
    """Three of six at work: all six are heard, never more than three at a time, and not in a fixed order."""
    values = {
        "name": "some-idle",
        "fleet": {"n_devices": 6, "compute": {"step_s": 1.0, "task_factor": {"kind": "exponential"}}},
        "data": {"kind": "gaussian_blobs", "n_samples": 120, "n_features": 4, "n_classes": 2},
        "model": {"kind": "mlp", "widths": []},
        "policies": [{**policy, "concurrency": 3}],
        "seeds": [1],
        "stop": {"n_rounds": 200},
        "train": False,
    }
    tasks = test_numpy.run(values).tables["tasks"]
    used = tasks["outcome"] == "used"
    heard = np.bincount(tasks["device"][used], minlength=6)
    assert heard.sum() == 200 * policy.get("buffer_size", 1)
    assert heard.min() > heard.sum() / 6 - 4 * np.sqrt(heard.sum() / 6 * 5 / 6)  # as if each upload were anyone's
    begun, ended = (np.bincount(tasks[name], minlength=201) for name in ("version", "round"))
    assert set(np.cumsum(begun - ended)[:-1]) == {2}, "when a version is made, two others are under way"
