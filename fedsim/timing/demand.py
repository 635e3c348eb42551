"""What a task asks of each device, apart from luck: how much of a step, which FLOPs, how many bytes either way.

Columns are `[job]`; tables have one row per job, or a single row where all jobs are alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fedsim.facts import Array, IntArray, LayerMask, ModelShape, Task
from fedsim.timing.weather import Weather

T = TypeVar("T", bound=np.generic)

_UNCAPPED = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Demand:
    """A task on some devices.

    cap: most local steps. depth: output-most layers trained. rate: of the sub-network; None without one.
    reach: seconds of a step until each depth is reached, in full steps over the whole model, `[job or 1, depth]`.
    step_flops: of a step on one row, `[job or 1, depth]`. down_bytes: pulled. up_bytes: pushed, `[job or 1, depth]`.
    """

    cap: IntArray
    depth: IntArray
    rate: Array | None
    reach: Array
    step_flops: Array
    down_bytes: IntArray
    up_bytes: IntArray

    @classmethod
    def of(cls, weather: Weather, task: Task, devices: IntArray) -> Demand:
        """Raises BadInput for a sub-network of a model that cannot be narrowed."""
        n, shape = len(devices), weather.shape
        depth = np.broadcast_to(np.asarray(shape.n_layers if task.depth is None else task.depth, dtype=np.int64), (n,))
        cap = np.broadcast_to(np.asarray(_UNCAPPED if task.n_steps is None else task.n_steps, dtype=np.int64), (n,))
        if task.subnetwork is not None:
            return _of_parts(weather, task, depth, cap)
        reach = weather.reach_cost[None, :]
        if task.is_block_by_block:
            io_s = weather.block_io_s[depth] / weather.unit_s[devices]
            reach = reach + io_s[:, None]
        down_bytes = _masked_bytes(shape, task.pulls)[-1]
        return cls(
            cap=cap,
            depth=depth,
            rate=None,
            reach=reach,
            step_flops=shape.step_flops[None, :],
            down_bytes=np.broadcast_to(down_bytes, (n,)),
            up_bytes=_masked_bytes(shape, task.pushes)[None, :],
        )

    def reach_of(self, rows: IntArray | slice) -> Array:
        """`[row or 1, depth]`."""
        return picked(self.reach, rows)

    @property
    def cost(self) -> Array:
        """Of a step over the task's layers, in full steps over the whole model, `[job]`."""
        return at_depth(self.reach, self.depth)

    def up_bytes_at(self, rows: IntArray | slice, depth: IntArray) -> IntArray:
        """Pushed by jobs that finished so many output-most layers, `[row]`."""
        return at_depth(picked(self.up_bytes, rows), depth)


def picked(table: npt.NDArray[T], rows: IntArray | slice) -> npt.NDArray[T]:
    """Rows of a table that has a single one where all are alike."""
    return table if len(table) == 1 else table[rows]


def at_depth(table: npt.NDArray[T], depth: IntArray) -> npt.NDArray[T]:
    """The table's entry of each row's depth, `[row]`."""
    if len(table) == 1:
        # One number for a fleet that is alike: a million equal entries would be read and written for nothing.
        is_alike = depth.strides == (0,) and len(depth) > 0
        return np.broadcast_to(table[0, depth[0]], depth.shape) if is_alike else np.asarray(table[0, depth])
    return np.asarray(table[np.arange(len(depth)), depth])


def _of_parts(weather: Weather, task: Task, depth: IntArray, cap: IntArray) -> Demand:
    assert task.subnetwork is not None
    rate = np.broadcast_to(np.asarray(task.rate, dtype=np.float64), depth.shape)
    rates, which = np.unique(rate, return_inverse=True)
    shapes = [task.subnetwork.of(weather.shape, one) for one in rates.tolist()]
    up_bytes = np.stack([shape.suffix_bytes for shape in shapes])[which]
    return Demand(
        cap=cap,
        depth=depth,
        rate=rate,
        reach=np.stack([weather.reach_cost_of(shape) for shape in shapes])[which],
        step_flops=np.stack([shape.step_flops for shape in shapes])[which],
        down_bytes=up_bytes[:, -1],
        up_bytes=up_bytes,
    )


def _masked_bytes(shape: ModelShape, mask: LayerMask | None) -> IntArray:
    """Bytes of those of the `depth` output-most layers that the mask names, `[depth]`."""
    if mask is None:
        return shape.suffix_bytes
    named = np.where(mask, shape.parameter_bytes, 0)
    return np.concatenate([[0], np.cumsum(named[::-1])])
