"""Does memory grow with the number of devices in a round?

10,000 devices train the convolutional network in one round, once for a single local step with stragglers (SALF) and once
for five local steps (FedAvg). Sums are accumulated as chunks finish, and no device's model is kept. Prints the peak of
resident memory before and after, in GB; about two minutes. Run: python analysis/cohort_memory.py
"""

from __future__ import annotations

import os
import resource

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from fedsim.facts import AggregateRequest, Contributions, LabelledData
from fedsim.models.cnn import Cnn
from fedsim.training import build
from fedsim.training.batches import plan_of
from fedsim.training.dealing import Dealt
from fedsim.training.settings import Training
from fedsim.weights import layer_mean

N_DEVICES, N_SAMPLES = 10_000, 60_000


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def contributions(version: int, n_layers: int, n_steps: int) -> Contributions:
    n = N_DEVICES
    depth = np.arange(n) % (n_layers + 1) if n_steps == 1 else np.full(n, n_layers)
    is_whole = depth == n_layers
    return Contributions(
        device=np.arange(n),
        ordinal=np.full(n, version),
        version=np.full(n, version),
        n_steps=np.where(is_whole, n_steps, 0),
        partial_depth=np.where(is_whole, 0, depth),
        task_depth=np.full(n, n_layers),
        n_samples=np.full(n, N_SAMPLES // n),
        arrived_s=np.zeros(n),
        n_layers=n_layers,
    )


def main() -> None:
    luck = np.random.default_rng(0)
    data = LabelledData(
        train_inputs=luck.random((N_SAMPLES, 1, 28, 28), dtype=np.float32),
        train_labels=luck.integers(0, 10, N_SAMPLES),
        test_inputs=luck.random((16, 1, 28, 28), dtype=np.float32),
        test_labels=luck.integers(0, 10, 16),
        n_classes=10,
    )
    samples = list(np.split(np.arange(N_SAMPLES), N_DEVICES))
    plan, training = plan_of(samples, 16, "epochs"), Training(learning_rate=0.01)
    chain, shape = build.chain_of(Cnn(), data, init_seed=0), build.shape_of(Cnn(), data)
    learner = build.learner_of(chain, shape, Dealt(data, samples), plan, training, None, data_seed=0)
    print(f"ready: {peak_gb():.2f} GB, of which data {data.train_inputs.nbytes / 1e9:.2f} GB twice")
    for version, n_steps in enumerate((1, 5)):
        work = contributions(version, shape.n_layers, n_steps)
        request = AggregateRequest(work, layer_mean(work), "from_start", version, np.empty(0, dtype=np.int64))
        report = learner.aggregate(request)
        ratio = report.computed_flops / work.used_flops(shape, plan).sum()
        print(f"{N_DEVICES} devices, {n_steps} local steps: peak {peak_gb():.2f} GB, FLOPs {ratio:.3f} of the devices'")
    print(f"kernels: {learner.kernels}")


if __name__ == "__main__":
    main()
