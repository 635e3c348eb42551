"""The idx files of MNIST and of the sets made in its image; not a data set.

Format: big-endian header (2051, count, rows, columns for images; 2049, count for labels), then one byte per value.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

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
from fedsim.facts import IntArray, LabelledData

_N_TRAIN = 60_000


def load_idx(
    kind: str, *, sha256: Mapping[str, str], openml_name: str, mean: float, std: float, data_dir: Path | None
) -> LabelledData:
    """Images `[sample, 1, 28, 28]`, standardised, from the four files of which `sha256` has the unpacked checksums.

    Looked for in DATA/kind, then in DATA itself; else downloaded. Raises BadInput naming what is absent or damaged.
    """
    names = tuple(sha256)  # training images and labels, test images and labels
    folder = data_folder(data_dir)
    paths = find(names, [folder / kind, folder]) if folder else None
    if paths is not None:
        contents = {name: content(paths[name]) for name in names}
    else:
        try:
            contents = dict(zip(names, _as_idx(*downloaded(openml_name, version=1)), strict=True))
        except OSError as why:
            raise absent(kind, names, folder, str(why)) from None
    origin: Mapping[str, Path | str] = paths or {name: f"{name} as downloaded from OpenML" for name in names}
    for name in names:
        check_sha256(contents[name], sha256[name], origin[name])
    train_images, train_labels, test_images, test_labels = (read_idx(contents[n], origin[n]) for n in names)
    return LabelledData(
        train_inputs=standardised(train_images[:, None], mean, std),
        train_labels=_as_labels(train_labels),
        test_inputs=standardised(test_images[:, None], mean, std),
        test_labels=_as_labels(test_labels),
        n_classes=10,
    )


def read_idx(read: bytes, path: Path | str) -> Bytes:
    """The array of an idx file of bytes. Raises BadInput that names the file if its length is not what it announces."""
    n_axes = read[3] if len(read) >= 4 and read[:3] == b"\x00\x00\x08" else 0
    start = 4 + 4 * n_axes
    if n_axes == 0 or len(read) < start:
        raise damaged(path, "it does not begin as an idx file of bytes does")
    shape = struct.unpack(f">{n_axes}I", read[4:start])
    values = np.frombuffer(read, dtype=np.uint8, offset=start)
    if values.size != np.prod(shape, dtype=object):
        raise damaged(path, f"it announces {shape} values and holds {values.size}")
    return values.reshape(shape)


def _as_idx(pixels: Bytes, labels: Bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """OpenML's rows, training rows first, as the four files, so that they pass the same checksums."""
    split = [(pixels[:_N_TRAIN], labels[:_N_TRAIN]), (pixels[_N_TRAIN:], labels[_N_TRAIN:])]
    (train_images, train_labels), (test_images, test_labels) = (
        (struct.pack(">4I", 2051, len(p), 28, 28) + p.tobytes(), struct.pack(">2I", 2049, len(y)) + y.tobytes())
        for p, y in split
    )
    return train_images, train_labels, test_images, test_labels


def _as_labels(values: Bytes) -> IntArray:
    return values.astype(np.int64)
