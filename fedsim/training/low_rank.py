"""Several local steps on fully connected layers, for many devices at once, without ever forming a device's weights.

A gradient of a fully connected layer is D^T H: its output gradients D and inputs H, `[row, ...]` each. Local SGD only
ever adds such products to the weights that were pulled, so those of device u after t steps are

    W_u,t = a_t W_0 - sum_{j<t} c_t,j D_u,j^T H_u,j

and a pass through them is one product with W_0, shared by all devices, and small products of rows with rows:
H W_u^T = a H W_0^T - sum c (H H_j^T) D_j. Momentum and weight decay only change the coefficients a and c, the same for
every device. The aggregate is one product over all rows of all devices. Exact algebra, closer to float64 than the plain
loop; but not the plain loop's FLOPs: `n_flops` counts what is really done, padding included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.facts import Array, IntArray
from fedsim.training import passes
from fedsim.training.cohort import Cohort, Workbench
from fedsim.training.settings import Training
from fedsim.training.state import Tensors

NAME = "low_rank"


def add(changes: Sequence[Tensors], cohort: Cohort, at: Workbench) -> None:
    """Add sum_k table[k, layer] * change_k to the sum that each contribution enters.

    All contributions train the same suffix, of Linear layers only, in whole steps.
    """
    at.model.load(cohort.start)
    depth = int(cohort.contributions.task_depth[0])
    cohort = cohort.where(np.argsort(-cohort.contributions.n_steps, kind="stable"))
    most_steps = int(cohort.contributions.n_steps[0])
    size = at.batches.plan.most_rows(cohort.contributions.device)

    def train(begin: int, end: int) -> Callable[[], None]:
        return _train(changes, cohort.where(np.arange(begin, end)), depth, size, at)

    at.each(len(cohort), train, rows_per_item=most_steps * size, is_flat=True)


def _train(changes: Sequence[Tensors], cohort: Cohort, depth: int, size: int, at: Workbench) -> Callable[[], None]:
    n_steps = cohort.contributions.n_steps
    rows, weight_of_row = _padded(cohort, size, at)
    n, most = weight_of_row.shape[:2]
    model = at.model
    first_layer = model.n_layers - depth
    x, labels = at.through_frozen(cohort.start, depth, rows.ravel())
    linear = [found for found in map(passes.linear_of, model.blocks[first_layer:]) if found is not None]
    layers = [_Layer(module, has_relu, n, most, size, x) for module, has_relu in linear]
    coefficients = Coefficients.of(at.training, cohort.rate, most)
    labels = labels.view(n, most * size)
    row_scale = torch.from_numpy(weight_of_row).to(x)
    layers[0].start(x.flatten(1))
    for step in range(most):
        active = int(np.count_nonzero(n_steps > step))
        h: Tensor | None = None
        for layer in layers:
            h = layer.forward(h, step, active, coefficients)
        assert h is not None
        now = slice(step * size, (step + 1) * size)
        gradient = model.loss.gradient(
            h.flatten(0, 1), labels[:active, now].flatten(), row_scale[:active, step].reshape(-1, 1)
        )
        d: Tensor | None = gradient.view(h.shape)
        for layer in reversed(layers):
            assert d is not None
            d = layer.backward(d, step, active, coefficients, hand_on=layer is not layers[0])
    sums = _sums(cohort, layers, coefficients, first_layer)
    model.computed_flops += sum(layer.n_flops for layer in layers)
    return partial(_commit, changes, cohort.start, sums, at)


def _padded(cohort: Cohort, size: int, at: Workbench) -> tuple[IntArray, Array]:
    """Rows of each step, `[contribution, step, row]`, and their weight in the step's mean loss; 0 where padded."""
    contributions = cohort.contributions
    n_steps = contributions.n_steps
    owner = np.repeat(np.arange(len(n_steps)), n_steps)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(n_steps) - n_steps, n_steps)
    found, n_rows = at.batches.of_steps(contributions.device[owner], contributions.ordinal[owner], step)
    rows = np.zeros((len(n_steps), int(n_steps[0]), size), dtype=np.int64)
    scale = np.zeros(rows.shape)
    owner, step, n = np.repeat(owner, n_rows), np.repeat(step, n_rows), np.repeat(n_rows, n_rows)
    within = np.arange(len(found)) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
    rows[owner, step, within] = found
    scale[owner, step, within] = 1.0 / n
    return rows, scale


_Sum = tuple[int, int, Tensors, float]  # which sum, which layer, what is added, how much of the start weights


def _sums(cohort: Cohort, layers: list[_Layer], by: Coefficients, first_layer: int) -> list[_Sum]:
    """One product over all rows for each layer and sum."""
    n_steps = cohort.contributions.n_steps
    of_start = np.array([by.of_start[t] for t in n_steps]) - 1.0
    of_step = np.zeros((len(n_steps), int(n_steps[0])))
    for k, t in enumerate(n_steps.tolist()):
        of_step[k, :t] = by.of_steps[t]
    found = []
    for target in np.unique(cohort.target).tolist():
        mine = np.flatnonzero(cohort.target == target)
        for number, layer in enumerate(layers, start=first_layer):
            weights = cohort.table[mine, number]
            parts = layer.summed(mine, torch.from_numpy(-weights[:, None] * of_step[mine]))
            found.append((target, number, parts, float(weights @ of_start[mine])))
    return found


def _commit(changes: Sequence[Tensors], start: Tensors, sums: list[_Sum], at: Workbench) -> None:
    for target, layer, parts, of_start in sums:
        for p, part in zip(at.model.parameters_of(layer), parts, strict=True):
            changes[target][p].add_(part)
            if of_start:
                changes[target][p].add_(start[p], alpha=of_start)


@dataclass(frozen=True)
class Coefficients:
    """x_t = of_start[t] x_0 - sum_{j<t} of_steps[t][j] g_j: where t steps of SGD lead from x_0.

    From v = m v + (g + d x), x = x - rate v, both being linear in x_0 and the gradients so far.
    """

    of_start: list[float]
    of_steps: list[Array]

    @classmethod
    def of(cls, training: Training, rate: float, n_steps: int) -> Coefficients:
        x0, v0, x, v = 1.0, 0.0, np.zeros(n_steps), np.zeros(n_steps)
        of_start, of_steps = [x0], [x[:0].copy()]
        for t in range(n_steps):
            v0 = training.momentum * v0 + training.weight_decay * x0
            v = training.momentum * v - training.weight_decay * x
            v[t] += 1.0
            x0, x = x0 - rate * v0, x + rate * v
            of_start.append(x0)
            of_steps.append(x[: t + 1].copy())
        return cls(of_start, of_steps)


@dataclass
class _Layer:
    """One Linear layer over a chunk of devices: its inputs and output gradients of all steps so far.

    inputs `[device, step x row, in]`, gradients `[device, step x row, out]`, biases' gradients `[device, step, out]`.
    """

    linear: nn.Linear
    has_relu: bool
    n: int
    most_steps: int
    size: int
    like: Tensor
    n_flops: float = 0.0
    inputs: Tensor = field(init=False)
    gradients: Tensor = field(init=False)
    bias_gradients: Tensor = field(init=False)
    _through_start: Tensor | None = None
    _output: Tensor | None = None

    def __post_init__(self) -> None:
        n_rows, like = self.most_steps * self.size, self.like
        self.gradients = like.new_zeros((self.n, n_rows, self.linear.out_features))
        self.bias_gradients = like.new_zeros((self.n, self.most_steps, self.linear.out_features))

    def start(self, x: Tensor) -> None:
        """The inputs of all steps are known: one product through the weights that were pulled."""
        self.inputs = x.view(self.n, -1, self.linear.in_features)
        self._through_start = self._product(x, self.linear.weight.t()).view(self.n, -1, self.linear.out_features)

    def forward(self, h: Tensor | None, step: int, active: int, by: Coefficients) -> Tensor:
        """Outputs of the step's rows of the first `active` devices, `[device, row, out]`."""
        before, now = slice(0, step * self.size), slice(step * self.size, (step + 1) * self.size)
        if h is None:
            assert self._through_start is not None
            z, h = self._through_start[:active, now], self.inputs[:active, now]
        else:
            if step == 0:
                self.inputs = h.new_zeros((self.n, self.most_steps * self.size, self.linear.in_features))
            self.inputs[:active, now] = h
            z = self._product(h.reshape(-1, h.shape[2]), self.linear.weight.t()).view(active, self.size, -1)
        of_start = by.of_start[step]
        if step:
            seen = self._gram(h, self.inputs[:active, before], by.of_steps[step])
            z = self._batched(seen, self.gradients[:active, before], onto=z, beta=of_start)
        if self.linear.bias is not None:
            bias = (of_start * self.linear.bias).expand(active, 1, -1)
            if step:
                coefficients = torch.from_numpy(by.of_steps[step]).to(z)
                self.n_flops += 2.0 * active * step * self.linear.out_features
                bias = bias - (coefficients[None, None] @ self.bias_gradients[:active, :step])
            z = z + bias
        self._output = z.relu_() if self.has_relu else z
        return self._output

    def backward(self, gradient: Tensor, step: int, active: int, by: Coefficients, *, hand_on: bool) -> Tensor | None:
        """Keep the gradient of the step's outputs; returns that of its inputs if it is to be handed on."""
        if self.has_relu:
            gradient = torch.ops.aten.threshold_backward(gradient, self._output, 0)
        self.gradients[:active, step * self.size : (step + 1) * self.size] = gradient
        self.bias_gradients[:active, step] = gradient.sum(1)
        if not hand_on:
            return None
        d = self._product(gradient.reshape(-1, gradient.shape[2]), self.linear.weight).view(active, self.size, -1)
        if not step:
            return d
        before = slice(0, step * self.size)
        seen = self._gram(gradient, self.gradients[:active, before], by.of_steps[step])
        return self._batched(seen, self.inputs[:active, before], onto=d, beta=by.of_start[step])

    def summed(self, devices: IntArray, scale: Tensor) -> Tensors:
        """sum over these devices and steps of scale[device, step] x gradient, for the weight and the bias."""
        gradients, inputs = self.gradients, self.inputs
        if len(devices) < self.n:
            gradients, inputs = gradients[devices], inputs[devices]
        scaled = gradients * scale.to(gradients).repeat_interleave(self.size, 1)[:, :, None]
        weight = self._product(scaled.flatten(0, 1).t(), inputs.flatten(0, 1))
        return [weight, scaled.sum((0, 1))][: 1 if self.linear.bias is None else 2]

    def _gram(self, rows: Tensor, earlier: Tensor, of_steps: Array) -> Tensor:
        """-coefficient x (row . earlier row), `[device, row, earlier row]`."""
        self.n_flops += 2.0 * rows.numel() * earlier.shape[1]
        seen = torch.bmm(rows, earlier.transpose(1, 2))
        if np.ptp(of_steps) == 0.0:
            return seen.mul_(-float(of_steps[0]))
        return seen.mul_(torch.from_numpy(-of_steps.repeat(self.size)).to(seen))

    def _batched(self, seen: Tensor, earlier: Tensor, *, onto: Tensor, beta: float) -> Tensor:
        self.n_flops += 2.0 * seen.numel() * earlier.shape[2]
        return torch.baddbmm(onto, seen, earlier, beta=beta)

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        self.n_flops += 2.0 * a.numel() * b.shape[1]
        return a @ b
