"""Fashion-MNIST: 60,000 + 10,000 articles of clothing, 28 x 28 grey, 10 classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedsim.datasets._idx import load_idx
from fedsim.facts import LabelledData

# sha256 of the unpacked files, computed from .gz files with the published md5 (8d4fb7e6..., 25c81989..., bef4ecab...,
# bb300cfd...). Unpacked, because the checksum of a .gz depends on who compressed it.
_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


@dataclass(frozen=True)
class FashionMnist:
    """The original four files, its own split, standardised by mean 0.2860 and deviation 0.3530."""

    source: ClassVar[str] = (
        "Xiao, Rasul, Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms, "
        "arXiv 1708.07747; MIT"
    )

    def load(self, data_dir: Path | None, seed: int) -> LabelledData:  # noqa: ARG002  one signature for the shelf
        """Images `[sample, 1, 28, 28]`. `seed` changes nothing. Raises BadInput if files are absent or damaged."""
        return load_idx(
            "fashion_mnist", sha256=_SHA256, openml_name="Fashion-MNIST", mean=0.2860, std=0.3530, data_dir=data_dir
        )
