"""The 1,797 handwritten digits that scikit-learn ships: 8 x 8 grey, 10 classes. Always there, loaded in a blink."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from fedsim.facts import LabelledData
from fedsim.randomness import Luck


@dataclass(frozen=True)
class Digits:
    """Pixels divided by 16; 1,437 training and 360 test images, split at random by the seed.

    as_images: inputs `[sample, 1, 8, 8]` instead of `[sample, 64]`.
    """

    source: ClassVar[str] = (
        "Alpaydin, Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (its test "
        "part, as sklearn.datasets.load_digits)"
    )
    as_images: bool = False

    def load(self, data_dir: Path | None, seed: int) -> LabelledData:  # noqa: ARG002  one signature for the shelf
        """`data_dir` is not looked at. One seed gives one split."""
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        inputs = (pixels / 16).astype(np.float32).reshape((-1, 1, 8, 8) if self.as_images else (-1, 64))
        order = Luck(seed, "split of digits").generator().permutation(len(labels))
        test, train = np.sort(order[:360]), np.sort(order[360:])
        labels = labels.astype(np.int64)
        return LabelledData(inputs[train], labels[train], inputs[test], labels[test], n_classes=10)
