"""Made-up data: one Gaussian cloud per class. For trying things out and for tests of any size; proves nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from fedsim.delays import Positive
from fedsim.facts import BadInput, LabelledData
from fedsim.randomness import Luck


@dataclass(frozen=True)
class GaussianBlobs:
    """x = centre of its class + spread * normal; the coordinates of the centres are standard normal.

    n_samples: of which a fifth are test samples; classes are equally frequent (+-1). spread: the standard deviation of
    every coordinate within a class.
    """

    source: ClassVar[str] = "made up here: an equal mixture of Gaussians"
    n_samples: Annotated[int, Ge(5)] = 2000
    n_features: Annotated[int, Ge(1)] = 20
    n_classes: Annotated[int, Ge(2)] = 10
    spread: Positive = 1.0

    def load(self, data_dir: Path | None, seed: int) -> LabelledData:  # noqa: ARG002  one signature for the shelf
        """Inputs `[sample, n_features]`. `data_dir` is not looked at. Raises BadInput with fewer samples than classes."""
        if self.n_samples < self.n_classes:
            raise BadInput(f"{self.n_samples} samples cannot show {self.n_classes} classes; make more", at=("data",))
        rng = Luck(seed, "gaussian blobs").generator()
        centres = rng.standard_normal((self.n_classes, self.n_features))
        labels = rng.permutation(np.arange(self.n_samples, dtype=np.int64) % self.n_classes)
        noise = rng.standard_normal((self.n_samples, self.n_features))
        inputs = (centres[labels] + self.spread * noise).astype(np.float32)
        n_test = self.n_samples // 5
        return LabelledData(
            inputs[n_test:], labels[n_test:], inputs[:n_test], labels[:n_test], n_classes=self.n_classes
        )
