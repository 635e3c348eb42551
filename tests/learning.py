"""A learner on a few samples of noise, and the work that it is given: what tests of training share."""

from dataclasses import dataclass

import numpy as np

from fedsim import weights
from fedsim.facts import AggregateRequest, Contributions, LabelledData, Terms
from fedsim.models.cnn import Cnn
from fedsim.models.mlp import Mlp
from fedsim.models.resnet20 import Resnet20
from fedsim.models.vgg11 import Vgg11
from fedsim.training import build
from fedsim.training.batches import plan_of
from fedsim.training.dealing import Dealt
from fedsim.training.settings import Training, Tuning

MODELS = {
    "mlp": (Mlp(widths=(8, 6)), (12,)),
    "cnn": (Cnn(channels=(3, 4), hidden=7), (1, 16, 16)),
    "resnet20": (Resnet20(), (3, 8, 8)),
    "vgg11": (Vgg11(norm="none"), (3, 32, 32)),
}
SIZES = (5, 9, 4, 7)  # samples of each device; a batch of 4 leaves a last one of 1, 1, none and 3 rows


@dataclass(frozen=True)
class Bench:
    """A learner with the shape and the plan that its work is charged by."""

    learner: build.TorchLearner
    plan: build.BatchPlan

    @property
    def n_layers(self) -> int:
        return self.learner.shape.n_layers

    def work(
        self,
        device,
        *,
        n_steps=0,
        partial_depth=0,
        task_depth=None,
        version=0,
        ordinal=None,
        update="descend",
        rate=None,
        **terms,
    ):
        """One column per contribution; `device` may repeat with another ordinal. terms: further ones."""
        device = np.asarray(device, dtype=np.int64)

        def column(value):
            return np.broadcast_to(np.asarray(value, dtype=np.int64), device.shape).copy()

        return Contributions(
            device=device,
            ordinal=np.arange(len(device)) if ordinal is None else column(ordinal),
            version=column(version),
            n_steps=column(n_steps),
            partial_depth=column(partial_depth),
            task_depth=column(self.n_layers if task_depth is None else task_depth),
            n_samples=np.array(SIZES)[device],
            arrived_s=np.zeros(len(device)),
            n_layers=self.n_layers,
            terms=Terms(update, **terms),
            rate=None if rate is None else np.broadcast_to(np.float64(rate), device.shape).copy(),
        )

    def aggregate(self, contributions, table=None, *, version=0, kept=(), base="from_start", **asked):
        table = weights.layer_mean(contributions) if table is None else table
        kept_versions = np.array(kept, dtype=np.int64)
        return self.learner.aggregate(AggregateRequest(contributions, table, base, version, kept_versions, **asked))

    @property
    def values(self):
        return [w.clone() for w in self.learner.weights]


def bench(model="mlp", engine="auto", server_optimizer=None, **training):
    settings = {"batch_size": 4, "dtype": "float64", "learning_rate": 0.3} | training
    settings = Training(engine=engine, **{**settings, "tuning": Tuning(**settings.get("tuning", {}))})
    item, input_shape = MODELS[model]
    rng = np.random.default_rng(1)
    n = sum(SIZES)
    data = LabelledData(
        train_inputs=rng.normal(size=(n, *input_shape)).astype(np.float32),
        train_labels=rng.integers(0, 3, n),
        test_inputs=rng.normal(size=(700, *input_shape)).astype(np.float32),
        test_labels=rng.integers(0, 3, 700),
        n_classes=3,
    )
    samples = np.split(rng.permutation(n), np.cumsum(SIZES)[:-1])
    plan = plan_of(samples, settings.batch_size, settings.batches)
    learner = build.learner_of(
        build.chain_of(item, data, init_seed=3),
        build.shape_of(item, data),
        Dealt(data, samples),
        plan,
        settings,
        server_optimizer,
        data_seed=5,
        model=item,
    )
    return Bench(learner, plan)


def relative_error(found, expected, start):
    """Largest difference over the largest change, over all parameters."""
    difference = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    return difference / max(float((b - s).abs().max()) for b, s in zip(expected, start, strict=True))
