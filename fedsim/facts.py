"""What crosses the seam between the clock, the learner and the policies; nothing else.

Layers are numbered from the input, 0 ... n_layers-1. A suffix is `range(first_layer, n_layers)`; its *depth* is how
many layers it holds. Tables are columns (NumPy arrays of one length), so that the same facts describe 20 devices or
1,000,000. Axes are named in order: `[contribution, layer]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ModelShape:
    """What a model costs, layer by layer, for one sample: `[layer]` each.

    FLOPs count a multiply-add as two. `weight_gradient_flops` is all that a layer's own parameters need once the
    gradient of its output is known (inside a block that includes passing through its own sublayers);
    `input_gradient_flops` is the extra for handing the gradient on to the layer before it.
    """

    layer_names: tuple[str, ...]
    n_parameters: IntArray
    parameter_bytes: IntArray
    forward_flops: Array
    weight_gradient_flops: Array
    input_gradient_flops: Array
    n_activations: IntArray

    @property
    def n_layers(self) -> int:
        return len(self.layer_names)

    @cached_property
    def step_flops(self) -> Array:
        """FLOPs of training the `depth` output-most layers on one sample, `[depth]`, depth 0 ... n_layers.

        All forwards + `depth` weight gradients + `depth - 1` input gradients: the shallowest trained layer hands no
        gradient on. Depth 0 trains nothing and costs nothing.
        """
        backward = np.cumsum(self.weight_gradient_flops[::-1])
        backward[1:] += np.cumsum(self.input_gradient_flops[::-1])[:-1]
        return np.concatenate([[0.0], self.forward_flops.sum() + backward])

    @cached_property
    def suffix_bytes(self) -> IntArray:
        """Bytes of the `depth` output-most layers, `[depth]`, depth 0 ... n_layers."""
        return np.concatenate([[0], np.cumsum(self.parameter_bytes[::-1])])


@dataclass(frozen=True)
class Task:
    """What the server asks of a device.

    n_steps: local steps; None: go on until told to stop.
    depth: train only this many output-most layers; one number, or one per device sent to; None: all.
    unit: what counts as finished when a device is stopped: whole local steps, or also the layers (from the output)
        of the step it was in.
    update: "descend" is local SGD; "accumulate" sums every step's gradient at the model that was pulled (K-sync family).
    arrive_within_s: the device itself stops in time for its upload to arrive this long after the task was sent
        (one-step tasks by layers only).
    """

    n_steps: int | None = 1
    depth: int | IntArray | None = None
    unit: Literal["step", "layer"] = "step"
    update: Literal["descend", "accumulate"] = "descend"
    arrive_within_s: float | None = None

    def __post_init__(self) -> None:
        if self.n_steps is not None and self.n_steps < 1:
            raise ValueError(f"a task needs at least one local step; got n_steps={self.n_steps}")
        if self.arrive_within_s is not None and (self.unit != "layer" or self.n_steps != 1):
            raise ValueError("arrive_within_s is for one-step tasks that count layers: Task(n_steps=1, unit='layer')")


@dataclass(frozen=True)
class _Columns:
    """Columns of one length; rows are picked by mask or index."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def where(self, rows: BoolArray | IntArray) -> Self:
        """The picked rows, in the order given."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            self, **{name: column[rows] for name, column in columns.items() if isinstance(column, np.ndarray)}
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, one after another; at least one part."""
        first = parts[0]
        columns = [f.name for f in fields(first) if isinstance(getattr(first, f.name), np.ndarray)]
        return replace(first, **{name: np.concatenate([getattr(part, name) for part in parts]) for name in columns})


@dataclass(frozen=True)
class Jobs(_Columns):
    """Tasks under way, one row each.

    ordinal: the how-manieth task of its device this is, from 0: the address of its luck.
    version: the global model that the device pulled. start_s: when it was sent.
    """

    device: IntArray
    ordinal: IntArray
    version: IntArray
    start_s: Array


@dataclass(frozen=True)
class Contributions(_Columns):
    """What devices had finished and uploaded, one row each, in the order of devices.

    n_steps: whole local steps, each over the task's `task_depth` output-most layers.
    partial_depth: layers (from the output) finished in the step after those; 0 where the task counts whole steps.
    n_samples: samples the device holds. arrived_s: when the upload's last byte reached the server.
    """

    device: IntArray
    ordinal: IntArray
    version: IntArray
    n_steps: IntArray
    partial_depth: IntArray
    task_depth: IntArray
    n_samples: IntArray
    arrived_s: Array
    n_layers: int
    update: Literal["descend", "accumulate"] = "descend"

    @property
    def depth(self) -> IntArray:
        """Output-most layers that got at least one gradient, `[contribution]`."""
        return np.where(self.n_steps > 0, self.task_depth, self.partial_depth)

    @property
    def holds_layer(self) -> BoolArray:
        """Whether the contribution holds an update of the layer, `[contribution, layer]`."""
        return np.arange(self.n_layers) >= self.n_layers - self.depth[:, None]

    def rows_trained(self, plan: BatchPlan) -> tuple[IntArray, IntArray]:
        """Rows of the whole steps together, and of the unfinished step, `[contribution]` each."""
        whole = plan.rows_before(self.device, self.n_steps)
        return whole, plan.rows_before(self.device, self.n_steps + 1) - whole

    def used_flops(self, shape: ModelShape, plan: BatchPlan) -> Array:
        """What the finished steps and layers cost their devices, `[contribution]`."""
        whole, partial = self.rows_trained(plan)
        return whole * shape.step_flops[self.task_depth] + partial * shape.step_flops[self.partial_depth]

    def with_steps(self, at_least: int) -> Contributions:
        """Those with at least so many whole steps."""
        return self.where(self.n_steps >= at_least)


@dataclass(frozen=True)
class BatchPlan:
    """How many rows each local step of a task has: charged by the clock, trained by the learner.

    n_samples: samples of each device, `[device]`. batch_size: rows of a full step; None: all of the device's samples.
    with_replacement: every step has the full batch; otherwise an epoch's last step has what is left.
    """

    n_samples: IntArray
    batch_size: int | None
    with_replacement: bool = False

    def full_rows(self, devices: IntArray) -> IntArray:
        """Rows that a step's stated cost stands for, `[device]`."""
        if self.batch_size is None:
            return self.n_samples[devices]
        return np.broadcast_to(np.int64(self.batch_size), (len(devices),))

    def most_rows(self, devices: IntArray) -> int:
        """Rows of the largest step that any of these devices can have."""
        full = self.full_rows(devices)
        return int((full if self.with_replacement else np.minimum(full, self.n_samples[devices])).max(initial=1))

    @cached_property
    def is_even(self) -> bool:
        """Whether every step of every device has its full rows."""
        return self.batch_size is None or self.with_replacement or not (self.n_samples % self.batch_size).any()

    def rows(self, devices: IntArray, first_step: int, n_steps: int) -> IntArray:
        """Rows of steps first_step, first_step + 1, ... of a task, `[device, step]`."""
        full = self.full_rows(devices)[:, None]
        if self.is_even:
            return np.broadcast_to(full, (len(devices), n_steps))
        assert self.batch_size is not None
        n = self.n_samples[devices][:, None]
        steps_per_epoch = -(-n // self.batch_size)
        position = np.arange(first_step, first_step + n_steps)[None, :] % steps_per_epoch
        return np.where(position == steps_per_epoch - 1, n - self.batch_size * (steps_per_epoch - 1), full)

    def rows_before(self, devices: IntArray, n_steps: IntArray) -> IntArray:
        """Rows of the first `n_steps` steps of a task together, `[device]`."""
        full = self.full_rows(devices)
        if self.is_even:
            return np.asarray(full * n_steps)
        assert self.batch_size is not None
        n = self.n_samples[devices]
        epochs, rest = np.divmod(n_steps, -(-n // self.batch_size))
        return np.asarray(epochs * n + rest * full)  # `rest` is short of an epoch's end, so those steps are full

    def steps_within(self, devices: IntArray, n_rows: Array) -> IntArray:
        """Whole steps that `n_rows` rows (a fraction counts down) are enough for, `[device]`: undoes `rows_before`."""
        full = self.full_rows(devices)
        if self.is_even:
            return np.floor(n_rows / full).astype(np.int64)
        n = self.n_samples[devices]
        steps_per_epoch = -(-n // full)
        epochs, rest = np.divmod(n_rows, n)
        return np.asarray(epochs * steps_per_epoch + np.minimum(rest // full, steps_per_epoch - 1)).astype(np.int64)


Wanted = Literal["update_norm", "update_distance"]
"""Per device and layer: the squared norm of its change, and its squared distance from the weighted sum of changes."""


@dataclass(frozen=True)
class AggregateRequest:
    """`new_l = old_l + sum_k weights[k, l] * delta_k,l`, for the learner to carry out.

    base: a delta is the device's change since the model it pulled ("from_start"), or its distance from the
        model of now ("from_now": FedAsync's mixing).
    kept_versions: besides the newest, the only versions that later requests can name (jobs under way pulled them); the
        learner may forget all others.
    wanted: statistics of the devices' updates that the report should carry.
    """

    contributions: Contributions
    weights: Array
    base: Literal["from_start", "from_now"]
    version: int
    kept_versions: IntArray
    wanted: frozenset[Wanted] = frozenset()

    @property
    def used(self) -> tuple[Contributions, Array]:
        """The contributions that enter with some weight in a layer they hold, and their weights there."""
        held = np.where(self.contributions.holds_layer, self.weights, 0.0)
        rows = np.flatnonzero(held.any(axis=1))
        return self.contributions.where(rows), held[rows]


@dataclass(frozen=True)
class LayerStatistics:
    """How the devices' updates looked, layer by layer, `[contribution, layer]`; 0 in layers that were not held.

    device: whose, `[contribution]`. squared_norm: of the device's change. squared_distance: of its change from the
        weighted sum of all changes; None if it was not wanted.
    """

    device: IntArray
    squared_norm: Array
    squared_distance: Array | None


@dataclass(frozen=True)
class AggregateReport:
    """What came of an aggregate. `version` grows only if the model changed.

    computed_flops: what the learner really computed; equals what the used contributions cost their devices, unless a
        kernel states its own count.
    statistics: what the request wanted.
    """

    version: int
    is_finite: bool
    computed_flops: float
    statistics: LayerStatistics | None = None


@dataclass(frozen=True)
class Evaluation:
    """The global model on the evaluation rows."""

    accuracy: float
    loss: float


@dataclass(frozen=True)
class LabelledData:
    """A classification data set: inputs `[sample, ...]` float32, labels `[sample]` 0 ... n_classes-1."""

    train_inputs: npt.NDArray[np.float32]
    train_labels: IntArray
    test_inputs: npt.NDArray[np.float32]
    test_labels: IntArray
    n_classes: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.train_inputs.shape[1:]


class BadInput(ValueError):
    """Input that is refused: what is wrong and how to mend it, in one line.

    at: the place in the scenario that it is about, e.g. ("data", "partition"), so that the reader can name the line.
    """

    def __init__(self, message: str, at: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.at = at
