"""From a data set to what each device holds: split, held-out rows, partition. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from fedsim.facts import Array, BadInput, IntArray, LabelledData
from fedsim.randomness import Luck
from fedsim.training.npz_file import read_npz
from fedsim.training.partition import AnyPartition, deal


@dataclass(frozen=True)
class Dealt:
    """data: its `test_*` are the evaluation rows. samples: rows of the training part, `[device][sample]`."""

    data: LabelledData
    samples: list[IntArray]


def deal_out(
    data: LabelledData,
    partition: AnyPartition,
    n_devices: int,
    *,
    seed: int,
    slowness: Array,
    split_file: str | None = None,
    validation_share: float = 0.0,
    rows: Literal["test", "validation"] = "test",
) -> Dealt:
    """Split, hold out and partition under the data seed.

    slowness: expected step seconds, `[device]`, for partitions that tie speed to labels. rows: which rows evaluate.
    Raises BadInput for index files that do not fit and partitions that leave a device without data.
    """
    if split_file is not None:
        data = _split_by_file(data, Path(split_file))
    n_train = len(data.train_labels)
    order = Luck(seed, "validation").generator().permutation(n_train)
    n_held = round(validation_share * n_train)
    held, kept = np.sort(order[:n_held]), np.sort(order[n_held:])
    if rows == "validation":
        if not n_held:
            raise BadInput("validation_share leaves no row to evaluate on; raise it", at=("data", "validation_share"))
        data = replace(data, test_inputs=data.train_inputs[held], test_labels=data.train_labels[held])
    data = replace(data, train_inputs=data.train_inputs[kept], train_labels=data.train_labels[kept])
    luck = Luck(seed, "partition")
    return Dealt(data, deal(partition, data.train_labels, n_devices, luck=luck, slowness=slowness))


def with_subset_first(data: LabelledData, seed: int) -> LabelledData:
    """The evaluation rows in an order whose every beginning is a random subset."""
    order = Luck(seed, "evaluation").generator().permutation(len(data.test_labels))
    return replace(data, test_inputs=data.test_inputs[order], test_labels=data.test_labels[order])


def _split_by_file(data: LabelledData, path: Path) -> LabelledData:
    """Training and test rows by index into the data set's rows, its own training rows first."""
    at = ("data", "split_file")
    inputs = np.concatenate([data.train_inputs, data.test_inputs])
    labels = np.concatenate([data.train_labels, data.test_labels])
    try:
        arrays = read_npz(path)
        train, test = arrays["train"], arrays["test"]
    except (OSError, ValueError, KeyError) as reason:
        raise BadInput(
            f"{path} is not an .npz with index arrays train and test ({reason}); write it anew", at
        ) from None
    for name, rows in (("train", train), ("test", test)):
        if rows.ndim != 1 or not len(rows) or rows.dtype.kind not in "iu":
            raise BadInput(f"{name} in {path} must be a list of whole numbers, at least one", at)
        if rows.min() < 0 or rows.max() >= len(labels):
            raise BadInput(
                f"{name} in {path} names row {rows.max()} but the data set has rows 0..{len(labels) - 1}", at
            )
        if len(np.unique(rows)) < len(rows):
            raise BadInput(f"{name} in {path} names a row twice; name each once", at)
    if np.intersect1d(train, test).size:
        raise BadInput(f"train and test in {path} share row {np.intersect1d(train, test)[0]}; keep them apart", at)
    return replace(
        data, train_inputs=inputs[train], train_labels=labels[train], test_inputs=inputs[test], test_labels=labels[test]
    )
