"""Which devices count as slow and which as fast: classes by the seconds of a local step that a device keeps for good.

Luck that is drawn anew for each task or step makes no device slow, so it makes no classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.facts import Array, IntArray

MOST_DISTINCT = 5
"""Speeds that are a class each; a fleet with more of them is cut into thirds."""

_SAME = 1e-9  # relative: speeds that differ by less come from one number, multiplied in another order
_NAMES = {
    1: ("all",),
    2: ("fastest", "slowest"),
    3: ("fastest", "middle", "slowest"),
    4: ("fastest", "second", "third", "slowest"),
    5: ("fastest", "second", "third", "fourth", "slowest"),
}


@dataclass(frozen=True, eq=False)
class SpeedClasses:
    """The classes of one fleet, from the fastest to the slowest; none is empty.

    names: `[class]`. of_device: which class a device is in, `[device]`.
    """

    names: tuple[str, ...]
    of_device: IntArray

    @classmethod
    def of(cls, step_s: Array) -> SpeedClasses:
        """By the seconds of a step, `[device]`, at least one device.

        At most five distinct values: a class each. More: thirds of the fleet by rank; devices that are equally fast stay
        together, in the third that holds the middle of their ranks, so that thirds may be unequal or one may be missing.
        """
        ascending = np.sort(step_s)
        starts = np.concatenate([[0], np.flatnonzero(np.diff(ascending) > _SAME * ascending[:-1]) + 1])
        group = np.searchsorted(ascending[starts], step_s, side="right") - 1
        if len(starts) <= MOST_DISTINCT:
            return cls(_NAMES[len(starts)], group)
        n = len(step_s)
        size = np.diff(starts, append=n)
        third = 3 * (2 * starts + size) // (2 * n)
        held, as_class = np.unique(third, return_inverse=True)
        return cls(_NAMES[len(held)], as_class[group])

    def __len__(self) -> int:
        return len(self.names)

    @property
    def n_devices(self) -> IntArray:
        """Devices of each class, `[class]`."""
        return np.bincount(self.of_device, minlength=len(self))

    def sums(self, of_device: Array | IntArray) -> Array:
        """What the devices of each class have together, `[class]`; of_device: `[device]`."""
        return np.asarray(np.bincount(self.of_device, weights=of_device, minlength=len(self)), dtype=np.float64)

    def label_shares(self, samples: Sequence[IntArray], labels: IntArray, n_labels: int) -> Array:
        """The label mix of each class: labels' shares of all samples that its devices hold, `[class, label]`.

        samples: rows of the training set, `[device][sample]`. labels: of the training set, `[row]`.
        """
        owner = np.repeat(self.of_device, np.fromiter(map(len, samples), np.int64, len(samples)))
        address = owner * n_labels + labels[np.concatenate(samples)]
        counts = np.bincount(address, minlength=len(self) * n_labels).reshape(len(self), n_labels)
        return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def mix_accuracy(label_share: Array, label_accuracy: Array) -> float:
    """Accuracy on rows of this label mix: sum_label share x accuracy, `[label]` both.

    NaN if a label of the mix has no accuracy: what it would be is then unknown.
    """
    held = label_share > 0
    return float(label_share[held] @ label_accuracy[held])
