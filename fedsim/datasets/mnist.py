"""MNIST: 60,000 + 10,000 handwritten digits, 28 x 28 grey."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedsim.datasets._idx import load_idx
from fedsim.facts import LabelledData

# sha256 of the unpacked files, computed from .gz files with the published md5 (f68b3c2d..., d53e105e..., 9fb629c4...,
# ec29112d...). Unpacked, because the checksum of a .gz depends on who compressed it.
_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass(frozen=True)
class Mnist:
    """The original four files, its own split, standardised by mean 0.1307 and deviation 0.3081."""

    source: ClassVar[str] = (
        "LeCun, Bottou, Bengio, Haffner, Gradient-based learning applied to document recognition, Proc. IEEE 86(11), "
        "1998; CC BY-SA 3.0"
    )

    def load(self, data_dir: Path | None, seed: int) -> LabelledData:  # noqa: ARG002  one signature for the shelf
        """Images `[sample, 1, 28, 28]`. `seed` changes nothing. Raises BadInput if files are absent or damaged."""
        return load_idx("mnist", sha256=_SHA256, openml_name="mnist_784", mean=0.1307, std=0.3081, data_dir=data_dir)
