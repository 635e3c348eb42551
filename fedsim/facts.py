"""What crosses the seam between the clock, the learner and the policies; nothing else.

Layers are numbered from the input, 0 ... n_layers-1. A suffix is `range(first_layer, n_layers)`; its *depth* is how
many layers it holds. Tables are columns (NumPy arrays of one length), so that the same facts describe 20 devices or
1,000,000. Axes are named in order: `[contribution, layer]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
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
    `input_gradient_flops` is the extra for handing the gradient on to the layer before it. `n_activations` are numbers
    that a layer puts out; `n_kept_activations` those that training must keep: the outputs of all convolutions and matrix
    products inside it (the count of EmbracingFL, arXiv 2406.15125).
    narrower: measures the model at (rate, whether convolutions are cut too); None if it cannot be narrowed.
    """

    layer_names: tuple[str, ...]
    n_parameters: IntArray
    parameter_bytes: IntArray
    forward_flops: Array
    weight_gradient_flops: Array
    input_gradient_flops: Array
    n_activations: IntArray
    n_kept_activations: IntArray
    narrower: Callable[[float, bool], ModelShape] | None = field(default=None, repr=False, compare=False)

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

    def memory_bytes(self, batch_size: int) -> IntArray:
        """Bytes that training the `depth` output-most layers must hold, `[depth]`, depth 0 ... n_layers.

        Their parameters and the kept activations of `batch_size` samples, in float32.
        """
        numbers = self.n_parameters + batch_size * self.n_kept_activations
        return np.concatenate([[0], 4 * np.cumsum(numbers[::-1])])

    def sliced(self, rate: float, *, convolutions: bool = True) -> ModelShape:
        """The same model with ceil(rate x C) of the C units of each hidden layer; inputs and outputs stay.

        convolutions: whether their channels are cut too, or fully connected hidden layers only.
        Raises BadInput for a model that cannot be narrowed.
        """
        if rate == 1.0:
            return self
        if self.narrower is None:
            raise BadInput(
                "the model cannot be narrowed; choose one whose class has a method `narrowed`", at=("model",)
            )
        return self.narrower(rate, convolutions)


@dataclass(frozen=True)
class Subnetwork:
    """Which part of every hidden layer a device trains: as many units as its rate says (width methods).

    units: "leading" are the first ones, nested in those of a larger rate (HeteroFL); "random" ones are drawn anew for
        each task, in fully connected hidden layers only (FedDrop).
    is_scaled: in training, activations of cut layers are divided by the share of units that is kept.
    is_masked: logits of classes of which the device has no sample count as 0 in its loss, and their rows of the output
        layer are not aggregated.
    """

    units: Literal["leading", "random"] = "leading"
    is_scaled: bool = False
    is_masked: bool = False

    def of(self, shape: ModelShape, rate: float) -> ModelShape:
        """What the part of this rate costs."""
        return shape.sliced(rate, convolutions=self.units == "leading")


LayerMask = tuple[bool, ...]
"""One claim per layer, from the input."""


@dataclass(frozen=True)
class Task:
    """What the server asks of a device.

    n_steps: local steps, one number or one per device sent to; None: go on until told to stop.
    depth: train only this many output-most layers; one number, or one per device sent to; None: all.
    unit: what counts as finished when a device is stopped: whole local steps, or also the layers (from the output)
        of the step it was in.
    update: "descend" is local SGD; "accumulate" sums every step's gradient at the model that was pulled (K-sync family).
    arrive_within_s: the device itself stops in time for its upload to arrive this long after the task was sent
        (one-step tasks by layers only).
    pulls: layers that the device downloads; the others it still has as its last task left them. None: all.
    pushes: of the layers it trains, those that it uploads; the others it keeps for its next task. None: all.
    subnetwork, rate: which part of every hidden layer, and how much of it, one number or one per device sent to
        (whole steps over all layers only).
    is_block_by_block: layers that do not train are brought into memory one after another in each step, which takes
        the fleet's `block_io_s`.
    """

    n_steps: int | IntArray | None = 1
    depth: int | IntArray | None = None
    unit: Literal["step", "layer"] = "step"
    update: Literal["descend", "accumulate"] = "descend"
    arrive_within_s: float | None = None
    pulls: LayerMask | None = None
    pushes: LayerMask | None = None
    subnetwork: Subnetwork | None = None
    rate: float | Array = 1.0
    is_block_by_block: bool = False

    def __post_init__(self) -> None:
        least = 1 if self.n_steps is None else np.min(self.n_steps, initial=1)
        if least < 1:
            raise ValueError(f"a task needs at least one local step; got n_steps={least}")
        if self.arrive_within_s is not None and (self.unit != "layer" or np.any(self.n_steps != 1)):
            raise ValueError("arrive_within_s is for one-step tasks that count layers: Task(n_steps=1, unit='layer')")
        if self.subnetwork is not None and (self.unit != "step" or self.depth is not None or self.keeps_layers):
            raise ValueError(
                "a subnetwork trains all of its layers in whole steps; leave out depth, unit, pulls, pushes"
            )
        if self.subnetwork is None and np.any(self.rate != 1.0):
            raise ValueError("rate belongs to a subnetwork: Task(subnetwork=Subnetwork(), rate=...)")

    @property
    def keeps_layers(self) -> bool:
        """Whether devices keep layers of their own from one task to the next."""
        return self.pulls is not None or self.pushes is not None

    @property
    def terms(self) -> Terms:
        return Terms(self.update, self.pulls, self.pushes, self.subnetwork)


@dataclass(frozen=True)
class Terms:
    """What is alike for all contributions that are aggregated together; see `Task`."""

    update: Literal["descend", "accumulate"] = "descend"
    pulls: LayerMask | None = None
    pushes: LayerMask | None = None
    subnetwork: Subnetwork | None = None


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
    terms: how their tasks were to be done. rate: of the sub-network; None without one.
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
    terms: Terms = Terms()
    rate: Array | None = None

    @property
    def update(self) -> Literal["descend", "accumulate"]:
        return self.terms.update

    @property
    def depth(self) -> IntArray:
        """Output-most layers that got at least one gradient, `[contribution]`."""
        return np.where(self.n_steps > 0, self.task_depth, self.partial_depth)

    @property
    def holds_layer(self) -> BoolArray:
        """Whether the contribution brings an update of the layer, `[contribution, layer]`."""
        trained = np.arange(self.n_layers) >= self.n_layers - self.depth[:, None]
        return trained if self.terms.pushes is None else trained & np.asarray(self.terms.pushes)

    def rows_trained(self, plan: BatchPlan) -> tuple[IntArray, IntArray]:
        """Rows of the whole steps together, and of the unfinished step, `[contribution]` each."""
        whole = plan.rows_before(self.device, self.n_steps)
        return whole, plan.rows_before(self.device, self.n_steps + 1) - whole

    def used_flops(self, shape: ModelShape, plan: BatchPlan) -> Array:
        """What the finished steps and layers cost their devices, `[contribution]`."""
        whole, partial = self.rows_trained(plan)
        if self.rate is not None and self.terms.subnetwork is not None:
            rates, which = np.unique(self.rate, return_inverse=True)
            step_flops = [self.terms.subnetwork.of(shape, rate).step_flops[-1] for rate in rates.tolist()]
            return np.asarray(whole * np.array(step_flops)[which])
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


Wanted = Literal["update_norm", "update_distance", "change_norm"]
"""Per device and layer the squared norm of its change, and its squared distance from the weighted sum of changes; and per
layer the norm of what the global model moved, which a learner that trains always gives."""


@dataclass(frozen=True)
class AggregateRequest:
    """`new_l = old_l + sum_k weights[k, l] * delta_k,l`, for the learner to carry out.

    base: a delta is the device's change since the model it pulled ("from_start"), or its distance from the
        model of now ("from_now": FedAsync's mixing).
    kept_versions: besides the newest, the only versions that later requests can name (jobs under way pulled them); the
        learner may forget all others.
    wanted: statistics of the devices' updates that the report should carry.
    is_per_element: of sub-networks, an element's sum is divided by the weights of those that hold the element.
    """

    contributions: Contributions
    weights: Array
    base: Literal["from_start", "from_now"]
    version: int
    kept_versions: IntArray
    wanted: frozenset[Wanted] = frozenset()
    is_per_element: bool = False

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
    change_norm: L2 norm of what the global model moved, `[layer]`; 0 where a layer kept its value, None from a learner
        that trains nothing.
    """

    version: int
    is_finite: bool
    computed_flops: float
    statistics: LayerStatistics | None = None
    change_norm: Array | None = None


@dataclass(frozen=True)
class Evaluation:
    """The global model on the evaluation rows.

    label_accuracy: of the rows of each label, `[label]`, NaN where there is no such row; None without classes.
    """

    accuracy: float
    loss: float
    label_accuracy: Array | None = None


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
