"""Made-up least squares: every device gets a quadratic loss of its own, whose Hessian, optimum and noise are known.

Group k (the label) has a matrix A_k and an optimum o_k; its samples are y = A_k o_k + e with noise that comes in pairs e, -e.
A sample's loss 1/2 ||y - A_k w||^2 has the gradient H_k (w - o_k) - A_k^T e, H_k = A_k^T A_k. So

    all samples of k:                  the gradient is H_k (w - o_k): the noise adds up to zero
    B of them, drawn with replacement: the same on average; covariance A_k^T Cov(e) A_k / B, whatever w is
    the test samples, one a group:     the mean loss is mean_k 1/2 (w - o_k)^T H_k (w - o_k)

`facts` reads H_k, o_k and the covariance back from the float32 numbers themselves. A device holds exactly one group under
the partition one_class in a fleet of n_groups devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from fedsim.delays import NotNegative
from fedsim.facts import Array, LabelledData
from fedsim.randomness import Luck


@dataclass(frozen=True)
class Quadratic:
    """A quadratic loss for each of `n_groups` groups, in `n_parameters` unknowns; for the model quadratic.

    n_groups: as many as devices. n_pairs: a group has twice as many samples. n_parameters: of the model.
    condition: eigenvalues of every Hessian lie between 1 / condition and 1, evenly in their logarithm.
    optimum_spread: standard deviation of every coordinate of the groups' optima around 0; 0: all groups share 0.
    hessian_spread: how far the groups' axes are turned against each other, in radians, roughly; 0: one Hessian for all.
    noise: standard deviation of every coordinate of e before it is rounded.
    """

    source: ClassVar[str] = "made up here: least squares, so that the course of training has a closed form"
    n_groups: Annotated[int, Ge(1)] = 10
    n_pairs: Annotated[int, Ge(1)] = 8
    n_parameters: Annotated[int, Ge(1)] = 7
    condition: Annotated[float, Ge(1)] = 10.0
    optimum_spread: NotNegative = 1.0
    hessian_spread: NotNegative = 0.5
    noise: NotNegative = 0.5

    def load(self, data_dir: Path | None, seed: int) -> LabelledData:  # noqa: ARG002  one signature for the shelf
        """Inputs `[sample, y and the columns of A]`, labels the groups. `data_dir` is not looked at."""
        rng, p = Luck(seed, "quadratic").generator(), self.n_parameters
        matrices = self._matrices(rng)
        optima = self.optimum_spread * rng.standard_normal((self.n_groups, p))
        noise = self.noise * rng.standard_normal((self.n_groups, self.n_pairs, p))
        centres = np.einsum("gij,gj->gi", matrices, optima)
        # Multiples of one step that float32 holds, sums included: so that the noise of a group adds up to zero exactly.
        largest = np.abs(centres).max() + np.abs(noise).max()
        step = 2.0 ** (np.ceil(np.log2(largest)) - 23) if largest else 1.0
        centres, noise = np.rint(centres / step) * step, np.rint(noise / step) * step
        signed = np.stack([noise, -noise], axis=2).reshape(self.n_groups, 2 * self.n_pairs, p)
        groups = np.arange(self.n_groups)
        labels = np.repeat(groups, 2 * self.n_pairs)
        train = _rows((centres[:, None] + signed).reshape(-1, p), matrices[labels])
        return LabelledData(train, labels, _rows(centres, matrices), groups, n_classes=self.n_groups)

    def _matrices(self, rng: np.random.Generator) -> Array:
        """A_k in the precision of float32, `[group, row, column]`: roots of the eigenvalues on axes turned at random."""
        p = self.n_parameters
        axes, _ = np.linalg.qr(rng.standard_normal((p, p)))
        common = np.sqrt(np.geomspace(1.0, 1.0 / self.condition, p))[:, None] * axes
        drawn = rng.standard_normal((self.n_groups, p, p))
        skew = 0.5 * self.hessian_spread * (drawn - drawn.transpose(0, 2, 1)) / np.sqrt(2 * p)
        turned = np.linalg.solve(np.eye(p) - skew, np.eye(p) + skew)  # Cayley: orthogonal, so the eigenvalues stay
        return np.asarray((common @ turned).astype(np.float32), dtype=np.float64)


def _rows(y: Array, matrices: Array) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Samples as the model takes them: y, then A column by column."""
    columns = matrices.transpose(0, 2, 1).reshape(len(y), -1)
    return np.concatenate([y, columns], axis=1).astype(np.float32)


def facts(data: LabelledData) -> tuple[Array, Array, Array]:
    """Hessians `[group, p, p]`, optima `[group, p]`, covariance of one sample's gradient `[group, p, p]`; in float64."""
    p = isqrt(data.input_shape[0])  # of p (p + 1) numbers
    hessians, optima, covariances = [], [], []
    for group in range(data.n_classes):
        rows = data.train_inputs[data.train_labels == group].astype(np.float64)
        y, matrix = rows[:, :p], rows[0, p:].reshape(p, p).T
        noise = (y - y.mean(axis=0)) @ matrix
        hessians.append(matrix.T @ matrix)
        optima.append(np.linalg.solve(matrix, y.mean(axis=0)))
        covariances.append(noise.T @ noise / len(rows))
    return np.stack(hessians), np.stack(optima), np.stack(covariances)
