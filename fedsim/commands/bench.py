"""`fedsim bench trainer`: the trainer's speed against the loops that people write, in one process, interleaved.

A time on its own says little (other work on the machine easily doubles it); ratios of neighbours in time do. So each
case runs ours, the naive loop and the tight loop in turn, again and again, and reports the median of the ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedsim.facts import AggregateRequest, BadInput, Contributions, LabelledData
from fedsim.models.mlp import Mlp
from fedsim.models.resnet20 import Resnet20
from fedsim.models.vgg11 import Vgg11
from fedsim.training import build, yardsticks
from fedsim.training.batches import plan_of
from fedsim.training.dealing import Dealt
from fedsim.training.flops import FlopCount
from fedsim.training.learner import TorchLearner
from fedsim.training.settings import Training
from fedsim.weights import layer_mean

_BATCH, _RATE, _N_CLASSES = 16, 0.01, 10
_MNIST, _CIFAR = (1, 28, 28), (3, 32, 32)


@dataclass(frozen=True)
class _Kind:
    """n_batches: of samples that a device holds; with fewer than steps, it sees samples again."""

    n_steps: int
    shallowest: int | None
    freezes: bool
    n_batches: int


_MODELS: dict[str, tuple[Any, tuple[int, ...], int]] = {  # model, input shape, devices
    "mlp32": (Mlp((32, 16)), _MNIST, 100),
    "mlp200": (Mlp((200,)), _MNIST, 100),
    "mlp512": (Mlp((512, 256)), _MNIST, 100),
    "cnn28": (yardsticks.Images(5, (16, 32), 128), _MNIST, 100),
    "cnn32": (yardsticks.Images(3, (32, 64), None, 1), _CIFAR, 20),
    "resnet20": (Resnet20(), _CIFAR, 24),
    "vgg11": (Vgg11(), _CIFAR, 20),
}
_KINDS = {
    "salf": _Kind(1, 0, freezes=False, n_batches=1),
    "local5": _Kind(5, None, freezes=False, n_batches=5),
    "fedpmt5": _Kind(5, 1, freezes=True, n_batches=1),
    "evaluate": _Kind(1, None, freezes=False, n_batches=1),
}
CASES = (
    *(f"salf/{model}" for model in _MODELS),
    *(f"local5/{model}" for model in ("mlp32", "mlp200", "mlp512", "cnn28", "cnn32")),
    *(f"fedpmt5/{model}" for model in ("cnn28", "cnn32")),
    *(f"evaluate/{model}" for model in ("cnn28", "cnn32")),
)


@dataclass(frozen=True)
class Measured:
    """One case. Ratios are how many times faster ours is, the median over pairs.

    gflops_per_s: of our kernels. limit_share: of a large matrix product's on this machine.
    flops_ratio: operations that torch carried out over the work of the devices.
    """

    case: str
    n_devices: int
    ratio_to_naive: float
    ratio_to_tight: float
    gflops_per_s: float
    limit_share: float
    flops_ratio: float
    kernels: dict[str, int]


@dataclass(frozen=True)
class _Case:
    """Three ways to do one thing, and what it costs the devices."""

    ours: Callable[[], object]
    naive: Callable[[], object]
    tight: Callable[[], object]
    used_flops: float
    n_devices: int
    learner: TorchLearner


def _check(device: str) -> None:
    if device not in ("cpu", "cuda"):
        raise BadInput(f"--device is {device!r}; choose cpu or cuda")
    if device == "cuda" and not yardsticks.has_cuda():
        raise BadInput("--device is cuda but torch finds none; choose cpu")


def measure(cases: tuple[str, ...] = CASES, n_pairs: int = 7, device: str = "cpu") -> Iterator[Measured]:
    """Measure these cases one after another, each in `n_pairs` interleaved triples. Raises BadInput."""
    _check(device)
    for name in cases:
        case = _case(name, device)
        case.ours(), case.naive(), case.tight()  # warm: caches, allocator, primitives
        with FlopCount() as count:
            case.ours()
        case.learner.kernels.clear()
        limit = yardsticks.limit_flops_per_s(device)
        times = [[_seconds(what, device) for what in (case.naive, case.ours, case.tight)] for _ in range(n_pairs)]
        naive, ours, tight = np.array(times).T
        flops_per_s = count.flops / statistics.median(ours)
        yield Measured(
            case=name,
            n_devices=case.n_devices,
            ratio_to_naive=round(statistics.median(naive / ours), 3),
            ratio_to_tight=round(statistics.median(tight / ours), 3),
            gflops_per_s=round(flops_per_s / 1e9, 2),
            limit_share=round(flops_per_s / limit, 3),
            flops_ratio=round(count.flops / case.used_flops, 4),
            kernels={name: n // n_pairs for name, n in case.learner.kernels.items()},
        )


def line(one: Measured) -> str:
    """One case in words."""
    return (
        f"{one.case:<16} {one.ratio_to_naive:6.2f} x naive {one.ratio_to_tight:6.2f} x tight "
        f"{one.gflops_per_s:8.1f} GFLOP/s ({100 * one.limit_share:.0f} % of a matrix product's), "
        f"FLOPs {one.flops_ratio:.3f}, {', '.join(one.kernels) or 'forward only'}"
    )


def as_json(measured: list[Measured]) -> list[dict[str, Any]]:
    return [asdict(one) for one in measured]


def _case(name: str, device: str) -> _Case:
    kind, model_name = name.split("/")
    item, input_shape, n_devices = _MODELS[model_name]
    how = _KINDS[kind]
    data = _data(input_shape, n_devices * how.n_batches * _BATCH, 10_000 if kind == "evaluate" else 1)
    samples = np.split(np.arange(len(data.train_labels)), n_devices)
    plan = plan_of(list(samples), _BATCH, "epochs")
    chain = build.chain_of(item, data, init_seed=1)
    model = yardsticks.copy_of(chain.module, device)
    training = Training(batch_size=_BATCH, learning_rate=_RATE, device=device)  # type: ignore[arg-type]
    learner = build.learner_of(
        chain, build.shape_of(item, data), Dealt(data, list(samples)), plan, training, None, data_seed=1
    )
    if kind == "evaluate":
        return _evaluation(learner, model, data, device)
    n_layers = learner.shape.n_layers
    depths = np.full(n_devices, n_layers)
    if how.shallowest is not None:
        depths = how.shallowest + np.arange(n_devices) % (n_layers + 1 - how.shallowest)
    work = _contributions(depths, how.n_steps, n_layers, freezes=how.freezes, n_samples=len(samples[0]))
    tasks = _tasks(learner, work, how.n_steps, device)
    version = 0

    def ours() -> None:
        nonlocal version
        now = Contributions(**{**vars(work), "version": np.full(n_devices, version)})
        request = AggregateRequest(now, layer_mean(now), "from_start", version, np.empty(0, dtype=np.int64))
        version = learner.aggregate(request).version

    listed = depths.tolist()
    return _Case(
        ours=ours,
        naive=lambda: yardsticks.naive_round(model, tasks, listed, _RATE, freezes=how.freezes),
        tight=lambda: yardsticks.tight_round(model, tasks, listed, _RATE),
        used_flops=float(work.used_flops(learner.shape, plan).sum()),
        n_devices=n_devices,
        learner=learner,
    )


def _evaluation(learner: TorchLearner, model: Any, data: LabelledData, device: str) -> _Case:
    x, labels = yardsticks.tensors(data.test_inputs, data.test_labels, device)
    return _Case(
        ours=learner.evaluate,
        naive=lambda: yardsticks.naive_evaluation(model, x, labels),
        tight=lambda: yardsticks.naive_evaluation(model, x, labels, n_rows=64),
        used_flops=float(len(x) * learner.shape.forward_flops.sum()),
        n_devices=0,
        learner=learner,
    )


def _contributions(depths: np.ndarray, n_steps: int, n_layers: int, *, freezes: bool, n_samples: int) -> Contributions:
    """Stragglers stopped within their only step, or suffixes assigned beforehand and trained in whole steps."""
    n = len(depths)
    is_whole = np.full(n, True) if freezes else depths == n_layers
    return Contributions(
        device=np.arange(n),
        ordinal=np.zeros(n, dtype=np.int64),
        version=np.zeros(n, dtype=np.int64),
        n_steps=np.where(is_whole, n_steps, 0),
        partial_depth=np.where(is_whole, 0, depths),
        task_depth=depths if freezes else np.full(n, n_layers),
        n_samples=np.full(n, n_samples),
        arrived_s=np.zeros(n),
        n_layers=n_layers,
    )


def _tasks(learner: TorchLearner, work: Contributions, n_steps: int, device: str) -> list[list[yardsticks.Batch]]:
    """The same batches as ours, as tensors at hand."""
    tasks = []
    for d in range(len(work)):
        batches = [learner.at.data.gather(learner.at.batches.rows(d, 0, step)) for step in range(n_steps)]
        tasks.append([(x.contiguous().to(device), labels.to(device)) for x, labels in batches])
    return tasks


def _data(input_shape: tuple[int, ...], n_train: int, n_test: int) -> LabelledData:
    luck = np.random.default_rng(1)
    return LabelledData(
        train_inputs=luck.normal(size=(n_train, *input_shape)).astype(np.float32),
        train_labels=luck.integers(0, _N_CLASSES, n_train),
        test_inputs=luck.normal(size=(n_test, *input_shape)).astype(np.float32),
        test_labels=luck.integers(0, _N_CLASSES, n_test),
        n_classes=_N_CLASSES,
    )


def _seconds(what: Callable[[], object], device: str) -> float:
    begin = time.perf_counter()
    what()
    yardsticks.wait_for(device)
    return time.perf_counter() - begin
