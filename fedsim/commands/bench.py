"""`fedsim bench trainer`: the trainer's speed against the loops that people write, in one process, interleaved.

A time on its own says little (other work on the machine easily doubles it); ratios of neighbours in time do. So each
case runs ours, the naive loop and the tight loop in turn, again and again, and reports the median of the ratios.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsim.facts import AggregateRequest, Contributions, LabelledData
from fedsim.models.cnn import Cnn
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

_EXTRA: dict = {}
_BATCH, _RATE, _N_CLASSES = 16, 0.01, 10
_MNIST, _CIFAR = (1, 28, 28), (3, 32, 32)


@dataclass(frozen=True)
class _Images:
    """Convolutions as people write them, ReLU before the pool."""

    kernel: int
    channels: tuple[int, int]
    hidden: int | None
    padding: int = 0

    def build(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Sequential:
        n_in, side, _ = input_shape
        blocks = []
        for n_out in self.channels:
            blocks.append(
                nn.Sequential(nn.Conv2d(n_in, n_out, self.kernel, padding=self.padding), nn.ReLU(), nn.MaxPool2d(2))
            )
            n_in, side = n_out, (side + 2 * self.padding - self.kernel + 1) // 2
        n_features = n_in * side * side
        if self.hidden is None:
            return nn.Sequential(*blocks, nn.Sequential(nn.Flatten(), nn.Linear(n_features, n_outputs)))
        hidden = nn.Sequential(nn.Flatten(), nn.Linear(n_features, self.hidden), nn.ReLU())
        return nn.Sequential(*blocks, hidden, nn.Sequential(nn.Linear(self.hidden, n_outputs)))


_MODELS: dict[str, tuple[Any, tuple[int, ...], int]] = {  # model, input shape, devices
    "mlp32": (Mlp((32, 16)), _MNIST, 100),
    "mlp200": (Mlp((200,)), _MNIST, 100),
    "mlp512": (Mlp((512, 256)), _MNIST, 100),
    "cnn28": (_Images(5, (16, 32), 128, int(__import__("os").environ.get("PAD", "0"))), _MNIST, 30),
    "cnn32": (_Images(3, (32, 64), None, 1), _CIFAR, 20),
    "resnet20": (Resnet20(), _CIFAR, 24),
    "vgg11": (Vgg11(), _CIFAR, 20),
}
_ROUNDS = {  # local steps, whether layers before the suffix are frozen, shallowest suffix
    "salf": (1, False, 0),
    "local5": (5, False, None),
    "fedpmt5": (5, True, 1),
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


def measure(cases: tuple[str, ...] = CASES, n_pairs: int = 7, device: str = "cpu") -> Iterator[Measured]:
    """Measure these cases one after another, each in `n_pairs` interleaved triples."""
    for name in cases:
        case = _case(name, device)
        case.ours(), case.naive(), case.tight()  # warm: caches, allocator, primitives
        with FlopCount() as count:
            case.ours()
        case.learner.kernels.clear()
        limit = _limit_flops_per_s(device)
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


def as_json(measured: list[Measured]) -> list[dict[str, Any]]:
    return [asdict(one) for one in measured]


def _case(name: str, device: str) -> _Case:
    kind, model_name = name.split("/")
    item, input_shape, n_devices = _MODELS[model_name]
    n_steps, freezes, shallowest = _ROUNDS.get(kind, (1, False, 0))
    data = _data(input_shape, n_devices * n_steps * _BATCH, 10_000 if kind == "evaluate" else 1)
    samples = np.split(np.arange(len(data.train_labels)), n_devices)
    plan = plan_of(list(samples), _BATCH, "epochs")
    chain = build.chain_of(item, data, init_seed=1)
    model = copy.deepcopy(chain.module).to(device)
    assert isinstance(model, nn.Sequential)
    training = Training(batch_size=_BATCH, learning_rate=_RATE, device=device, **_EXTRA)  # type: ignore[arg-type]
    learner = build.learner_of(
        chain, build.shape_of(item, data), Dealt(data, list(samples)), plan, training, None, data_seed=1
    )
    if kind == "evaluate":
        return _evaluation(learner, model, data, device)
    n_layers = learner.shape.n_layers
    depths = np.full(n_devices, n_layers)
    if shallowest is not None:
        depths = shallowest + np.arange(n_devices) % (n_layers + 1 - shallowest)
    work = _contributions(depths, n_steps, n_layers, freezes=freezes, n_samples=len(samples[0]))
    tasks = _tasks(learner, work, n_steps, device)
    version = 0

    def ours() -> None:
        nonlocal version
        now = Contributions(**{**vars(work), "version": np.full(n_devices, version)})
        request = AggregateRequest(now, layer_mean(now), "from_start", version, np.empty(0, dtype=np.int64))
        version = learner.aggregate(request).version

    listed = depths.tolist()
    return _Case(
        ours=ours,
        naive=lambda: yardsticks.naive_round(model, tasks, listed, _RATE, freezes=freezes),
        tight=lambda: yardsticks.tight_round(model, tasks, listed, _RATE),
        used_flops=float(work.used_flops(learner.shape, plan).sum()),
        n_devices=n_devices,
        learner=learner,
    )


def _evaluation(learner: TorchLearner, model: nn.Module, data: LabelledData, device: str) -> _Case:
    x, labels = torch.from_numpy(data.test_inputs).to(device), torch.from_numpy(data.test_labels).to(device)
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


def _limit_flops_per_s(device: str) -> float:
    """FLOPs per second of a large product, the best of a few."""
    n = 1024 if device == "cpu" else 8192
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    return 2 * n**3 / min(_seconds(lambda: a @ b, device) for _ in range(10))


def _seconds(what: Callable[[], object], device: str) -> float:
    begin = time.perf_counter()
    what()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - begin
