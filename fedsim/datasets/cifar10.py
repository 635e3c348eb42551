"""CIFAR-10: 50,000 + 10,000 colour images, 32 x 32, 10 classes; or a balanced subset of 20,000 + 5,000.

Format: records of 3,073 bytes: the label, then 1,024 red, 1,024 green and 1,024 blue bytes, each plane row by row. The
pickled version of the batches is never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedsim.datasets._files import (
    Bytes,
    absent,
    check_sha256,
    content,
    damaged,
    data_folder,
    find,
    standardised,
)
from fedsim.datasets._openml import downloaded
from fedsim.facts import LabelledData

_RECORD_BYTES = 3073
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # published, of the 50,000 training images
_FULL = (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")
_SUBSET_SHA256 = {
    "subset_batch_1.bin": "e6c128fd69b51b73ae183c0179d9e5dee73c723a59b2683cea03496af11352db",
    "subset_batch_2.bin": "b81739d7d602d3082d6c9c1e58da48be0c53af7bf0a15eff4996ae2b6f22bdaa",
    "subset_test.bin": "41a037a5dc55bbdba9674196cbe7bf3ca9db7bea28ca36f553a9d506317ff70c",
}
_SUBSET = tuple(_SUBSET_SHA256)


@dataclass(frozen=True)
class Cifar10:
    """The binary batches with their own split, standardised channel by channel.

    subset: the first 2,000 training and 500 test images per class (files subset_*.bin). Accuracies on it are not
        CIFAR-10 accuracies, so it is never taken unasked.
    """

    source: ClassVar[str] = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
    subset: bool = False

    def load(self, data_dir: Path | None, seed: int) -> LabelledData:  # noqa: ARG002  one signature for the shelf
        """Images `[sample, 3, 32, 32]`. `seed` changes nothing. Raises BadInput if files are absent or damaged.

        Looked for in DATA/cifar10, DATA/cifar10_subset, DATA/cifar-10-batches-bin, then in DATA itself.
        """
        folder = data_folder(data_dir)
        train, test = _subset_records(folder) if self.subset else _full_records(folder)
        return LabelledData(
            train_inputs=_inputs(train),
            train_labels=train[:, 0].astype(np.int64),
            test_inputs=_inputs(test),
            test_labels=test[:, 0].astype(np.int64),
            n_classes=10,
        )


def _places(folder: Path | None) -> list[Path]:
    if folder is None:
        return []
    return [folder / "cifar10", folder / "cifar10_subset", folder / "cifar-10-batches-bin", folder]


def _subset_records(folder: Path | None) -> tuple[Bytes, Bytes]:
    paths = find(_SUBSET, _places(folder))
    if paths is None:
        raise absent("cifar10_subset", _SUBSET, folder, "the subset cannot be downloaded")
    parts = []
    for name, wanted in _SUBSET_SHA256.items():
        read = content(paths[name])
        check_sha256(read, wanted, paths[name])
        parts.append(read_records(read, paths[name]))
    return np.concatenate(parts[:-1]), parts[-1]


def _full_records(folder: Path | None) -> tuple[Bytes, Bytes]:
    paths = find(_FULL, _places(folder))
    if paths is not None:
        parts = [read_records(content(paths[name]), paths[name]) for name in _FULL]
        train, test = np.concatenate(parts[:-1]), parts[-1]
        _check_whole(train, test, paths[_FULL[0]].parent)
        return train, test
    if find(_SUBSET, _places(folder)):
        raise absent("cifar10", _FULL, folder, "only the subset is there (subset: true takes it)")
    try:
        pixels, labels = downloaded("CIFAR_10", version=1)
    except OSError as why:
        raise absent("cifar10", _FULL, folder, str(why)) from None
    records = np.column_stack([labels, pixels])
    _check_whole(records[:50_000], records[50_000:], "CIFAR_10 as downloaded from OpenML")
    return records[:50_000], records[50_000:]


def read_records(read: bytes, path: Path | str) -> Bytes:
    """The records of a binary batch, `[record, 3073]`, label first. Raises BadInput that names a damaged file."""
    if not read or len(read) % _RECORD_BYTES:
        raise damaged(path, f"{len(read)} bytes are not records of {_RECORD_BYTES} bytes")
    records = np.frombuffer(read, dtype=np.uint8).reshape(-1, _RECORD_BYTES)
    if records[:, 0].max() > 9:
        raise damaged(path, f"it holds the label {records[:, 0].max()}; labels are 0..9")
    return records


def _check_whole(train: Bytes, test: Bytes, where: Path | str) -> None:
    """Refuse what cannot be the published set, for which no checksums of single batches are published."""
    n_per_class = [np.bincount(part[:, 0], minlength=10).tolist() for part in (train, test)]
    if n_per_class != [[5000] * 10, [1000] * 10]:
        raise damaged(where, "it does not hold 5,000 training and 1,000 test images of each class")
    means = train[:, 1:].reshape(-1, 3, 1024).mean(axis=(0, 2)) / 255
    if not np.allclose(means, _MEAN, rtol=0, atol=5e-5):
        raise damaged(where, f"the channel means are {np.round(means, 4).tolist()}, not the published {list(_MEAN)}")


def _inputs(records: Bytes) -> npt.NDArray[np.float32]:
    images = records[:, 1:].reshape(-1, 3, 32, 32)
    inputs = np.empty(images.shape, dtype=np.float32)
    for channel, (mean, std) in enumerate(zip(_MEAN, _STD, strict=True)):
        inputs[:, channel] = standardised(images[:, channel], mean, std)
    return inputs
