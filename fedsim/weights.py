"""Weight tables `[contribution, layer]`: how much of each device's change enters each layer.

Every table is zero where a contribution does not hold the layer. `by` is the relative weight of a device: "uniform",
or "n_samples", the number of samples that it holds (McMahan et al., arXiv 1602.05629, Algorithm 1).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedsim.facts import Array, Contributions

Weighting = Literal["uniform", "n_samples"]


def _relative(contributions: Contributions, by: Weighting) -> Array:
    if by == "n_samples":
        return contributions.n_samples.astype(np.float64)
    return np.ones(len(contributions))


def mean(contributions: Contributions, by: Weighting = "uniform") -> Array:
    """The mean over all contributions; one that lacks a layer counts as unchanged there."""
    weight = _relative(contributions, by)
    return np.asarray(contributions.holds_layer * (weight / weight.sum())[:, None])


def layer_mean(contributions: Contributions, by: Weighting = "uniform") -> Array:
    """Per layer, the mean over the contributions that hold it; a column of zeros where nobody does."""
    held = contributions.holds_layer * _relative(contributions, by)[:, None]
    total = held.sum(axis=0)
    return held / np.where(total > 0, total, 1.0)


def diluted(contributions: Contributions, total: float, by: Weighting = "uniform") -> Array:
    """Relative weights over a stated `total`: devices that did not contribute count as unchanged."""
    return contributions.holds_layer * (_relative(contributions, by) / total)[:, None]
