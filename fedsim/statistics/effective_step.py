"""How far a version moves the model, layer by layer: what a learning rate comes to under a policy.

    effective step of a layer = root of the mean over versions of ||change||^2 / n_parameters

Policies that divide by all devices instead of those that were heard, and published baselines do, move the model up to
ten times less per version at the same learning rate. Where two policies differ in this, their accuracies differ by it
too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedsim.statistics.reading import Run


def effective_step(run: Run) -> dict[str, float | None]:
    """Root-mean-square change per parameter and version, by layer from the input.

    Aggregates that changed nothing are no versions; a layer that a version left alone moved by 0. None without training,
    without a version, and where it is no number.
    """
    version = run.rounds["version"].to_numpy(np.int64)
    of_version = run.rounds["round"].to_numpy(np.int64)[np.diff(version, prepend=0) > 0]
    layers = run.layers[run.layers["round"].isin(of_version)]
    square = layers["change_norm"].to_numpy(np.float64) ** 2
    sums = np.bincount(layers["layer"].to_numpy(np.int64), square, minlength=len(run.layer_names))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.sqrt(sums / len(of_version) / [layer["n_parameters"] for layer in run.manifest["layers"]])
    return {
        name: float(value) if np.isfinite(value) else None
        for name, value in zip(run.layer_names, found.tolist(), strict=True)
    }


def of_the_largest(seeds: Sequence[int], steps: Sequence[Mapping[str, float | None]]) -> list[dict[str, float | None]]:
    """Runs' effective steps as shares of the largest that any of these runs has under the same seed, `[run]`.

    seeds: `[run]`. steps: by layer, `[run]`.
    """
    largest: dict[tuple[int, str], float] = {}
    for seed, own in zip(seeds, steps, strict=True):
        for layer, step in own.items():
            largest[seed, layer] = max(largest.get((seed, layer), 0.0), step or 0.0)
    return [
        {
            layer: step / top if step is not None and (top := largest[seed, layer]) else None
            for layer, step in own.items()
        }
        for seed, own in zip(seeds, steps, strict=True)
    ]
