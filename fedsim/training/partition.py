"""How the training rows are dealt out to the devices. Plain NumPy: a device's data needs no torch to be counted.

A partition is parameters only; `deal` turns it into one array of row numbers per device. Every rule but `file` deals
every row exactly once. It knows the labels and, for `by_speed`, how slow each device is; it never sees the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le
from pydantic import Discriminator

from fedsim.delays import Positive
from fedsim.facts import Array, BadInput, IntArray
from fedsim.randomness import Luck
from fedsim.training.partition_file import read_partition

_AT = ("data", "partition")


@dataclass(frozen=True)
class Iid:
    """Rows in random order, cut into blocks.

    size_sigma: 0 gives sizes that differ by at most one; otherwise sizes are proportional to a lognormal draw, this
        being the standard deviation of its logarithm. A device left without a row gets one from the richest.
    """

    size_sigma: Annotated[float, Ge(0), Le(100)] = 0.0
    kind: Literal["iid"] = "iid"


@dataclass(frozen=True)
class Dirichlet:
    """Each class is shared out among the devices in proportions drawn from Dirichlet(alpha, ..., alpha).

    Source: Yurochkin et al., "Bayesian nonparametric federated learning of neural networks", arXiv 1905.12022. Small
    alpha: few classes per device and very unequal sizes. A device left without a row gets one from the richest (the
    published code draws again instead, which may never end with many devices).
    """

    alpha: Positive
    kind: Literal["dirichlet"] = "dirichlet"


@dataclass(frozen=True)
class ClassesPerDevice:
    """Every device holds exactly `n_classes` classes, drawn so that each class has equally many holders (+-1).

    A class is shared out equally among its holders. Refused if a class would have no holder, or fewer rows than
    holders.
    """

    n_classes: Annotated[int, Ge(1)]
    kind: Literal["n_classes"] = "n_classes"


@dataclass(frozen=True)
class OneClass:
    """Every device holds one class; device i of N the class number floor(i * C / N), so neighbours share a class.

    With N a multiple of C and equally frequent classes these are the contiguous blocks of sorted labels of the STSyn
    experiments (arXiv 2210.03521). Refused with fewer devices than classes, or fewer rows of a class than holders.
    """

    kind: Literal["one_class"] = "one_class"


@dataclass(frozen=True)
class BySpeed:
    """Slow devices hold the last classes: rows sorted by label, devices from fast to slow, equal contiguous blocks.

    Devices that are equally slow are taken in the order of their numbers.
    """

    kind: Literal["by_speed"] = "by_speed"


@dataclass(frozen=True)
class FromFile:
    """Row numbers from a file, kept in its order, so that other code can be compared number by number.

    path: .npz with one integer array per device, named by the device's number (`np.savez(path, *arrays)` does so:
        arr_0, arr_1, ...), or .json with a list of lists. Rows may be left out, but none may be dealt twice.
    """

    path: str
    kind: Literal["file"] = "file"


AnyPartition = Annotated[
    Iid | Dirichlet | ClassesPerDevice | OneClass | BySpeed | FromFile,
    Discriminator("kind"),
]
"""Every partition a scenario may name, told apart by `kind`."""


def deal(
    partition: AnyPartition, labels: IntArray, n_devices: int, *, luck: Luck, slowness: Array | None = None
) -> list[IntArray]:
    """The row numbers of each device, `[device][row]`: never empty, never one row twice, the same for the same luck.

    labels: `[row]`. luck: of a purpose of its own. slowness: `[device]`, larger is slower; needed by `by_speed` only.
    Rows of a device ascend (in a file: as written). Raises BadInput where the rule cannot give every device a row.
    """
    if isinstance(partition, FromFile):
        return read_partition(Path(partition.path), len(labels), n_devices)
    if len(labels) < n_devices:
        raise BadInput(
            f"{len(labels)} training rows cannot give {n_devices} devices a row each; use fewer devices or more data",
            _AT,
        )
    owner = _owners(partition, labels, n_devices, luck.generator(), slowness)
    by_owner = np.argsort(owner, kind="stable")
    return np.split(by_owner, np.cumsum(np.bincount(owner, minlength=n_devices))[:-1])


def _owners(
    partition: Iid | Dirichlet | ClassesPerDevice | OneClass | BySpeed,
    labels: IntArray,
    n_devices: int,
    rng: np.random.Generator,
    slowness: Array | None,
) -> IntArray:
    """The device that holds each row, `[row]`."""
    match partition:
        case Iid():
            return _iid(len(labels), n_devices, partition.size_sigma, rng)
        case Dirichlet():
            return _dirichlet(labels, n_devices, partition.alpha, rng)
        case ClassesPerDevice():
            return _n_classes(labels, n_devices, partition.n_classes, rng)
        case OneClass():
            return _one_class(labels, n_devices, rng)
        case BySpeed():
            return _by_speed(labels, n_devices, rng, slowness)


def _iid(n_rows: int, n_devices: int, size_sigma: float, rng: np.random.Generator) -> IntArray:
    shuffled = rng.permutation(n_rows)
    spread = size_sigma * rng.standard_normal(n_devices)
    owner = np.empty(n_rows, dtype=np.int64)
    owner[shuffled] = _blocks(n_rows, np.exp(spread - spread.max()))  # the largest is 1: no spread overflows
    return _mended(owner, n_devices)


def _dirichlet(labels: IntArray, n_devices: int, alpha: float, rng: np.random.Generator) -> IntArray:
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        owner[rows] = _blocks(len(rows), _dirichlet_shares(n_devices, alpha, rng))
    return _mended(owner, n_devices)


def _dirichlet_shares(n_devices: int, alpha: float, rng: np.random.Generator) -> Array:
    """Proportional to a Dirichlet draw, `[device]`, the largest being 1."""
    # Gamma(alpha) = Gamma(alpha + 1) * U^(1/alpha), in logarithms: for tiny alpha every plain gamma draw underflows
    # to 0. The bound on alpha keeps the division finite; below it one device gets the whole class anyway.
    log_u = np.log(np.maximum(rng.random(n_devices), 2.0**-54))
    logarithms = np.log(rng.standard_gamma(alpha + 1.0, n_devices)) + log_u / max(alpha, 1e-300)
    shares: Array = np.exp(logarithms - logarithms.max())
    return shares


def _n_classes(labels: IntArray, n_devices: int, n_classes: int, rng: np.random.Generator) -> IntArray:
    classes = np.unique(labels)
    if n_classes > len(classes):
        raise BadInput(f"n_classes is {n_classes} but the data have {len(classes)}; choose 1..{len(classes)}", _AT)
    if n_devices * n_classes < len(classes):
        raise BadInput(
            f"{n_devices} devices with {n_classes} of {len(classes)} classes each leave classes with nobody; "
            f"use at least {-(-len(classes) // n_classes)} devices or more classes per device",
            _AT,
        )
    holds = np.zeros((n_devices, len(classes)), dtype=np.bool_)
    n_holders = np.zeros(len(classes), dtype=np.int64)
    for device, tie_breaker in enumerate(rng.random((n_devices, len(classes)))):
        mine = np.lexsort((tie_breaker, n_holders))[:n_classes]  # the classes with the fewest holders so far
        holds[device, mine] = True
        n_holders[mine] += 1
    return _shared_among_holders(labels, [np.flatnonzero(column) for column in holds.T], rng)


def _one_class(labels: IntArray, n_devices: int, rng: np.random.Generator) -> IntArray:
    n_classes = len(np.unique(labels))
    if n_devices < n_classes:
        raise BadInput(
            f"one class per device leaves {n_classes - n_devices} of {n_classes} classes with nobody; "
            f"use at least {n_classes} devices, or the partition n_classes",
            _AT,
        )
    class_of = np.arange(n_devices) * n_classes // n_devices
    return _shared_among_holders(labels, [np.flatnonzero(class_of == c) for c in range(n_classes)], rng)


def _shared_among_holders(labels: IntArray, holders: list[IntArray], rng: np.random.Generator) -> IntArray:
    """Each class in random order, cut equally among its holders (`[class][device]`)."""
    owner = np.empty(len(labels), dtype=np.int64)
    for label, mine in zip(np.unique(labels), holders, strict=True):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) < len(mine):
            raise BadInput(
                f"class {label} has {len(rows)} training rows for the {len(mine)} devices that should hold it; "
                f"use fewer devices or more data",
                _AT,
            )
        owner[rows] = mine[_blocks(len(rows), np.ones(len(mine)))]
    return owner


def _by_speed(labels: IntArray, n_devices: int, rng: np.random.Generator, slowness: Array | None) -> IntArray:
    if slowness is None:
        raise BadInput("by_speed needs devices of persistent speed; give fleet.compute a device_factor", _AT)
    if len(slowness) != n_devices:
        raise ValueError(f"slowness has {len(slowness)} entries for {n_devices} devices")
    shuffled = rng.permutation(len(labels))  # which rows of a class go where is luck, not the file's order
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    owner = np.empty(len(labels), dtype=np.int64)
    owner[by_label] = np.argsort(slowness, kind="stable")[_blocks(len(labels), np.ones(n_devices))]
    return owner


def _blocks(n_rows: int, shares: Array) -> IntArray:
    """0, 0, ..., 1, 1, ...: the block of each of `n_rows` rows, sizes proportional to `shares` to within one row."""
    cumulative = np.cumsum(shares)
    ends = np.rint(cumulative / cumulative[-1] * n_rows).astype(np.int64)
    return np.repeat(np.arange(len(shares)), np.diff(ends, prepend=0))


def _mended(owner: IntArray, n_devices: int) -> IntArray:
    """Every device without a row gets the last row of the then richest device (the first of equals)."""
    n_held = np.bincount(owner, minlength=n_devices)
    for device in np.flatnonzero(n_held == 0):
        richest = int(n_held.argmax())
        owner[np.flatnonzero(owner == richest)[-1]] = device
        n_held[richest] -= 1
        n_held[device] += 1
    return owner
