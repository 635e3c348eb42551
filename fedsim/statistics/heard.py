"""Whose work entered the model: each speed class's share of updates, local steps and weight, and how well it is served.

Shares are of a whole run, all closed rounds together. Beside them stands the class's share of devices: what it would have
if every device were heard equally often.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.facts import Array
from fedsim.speed_classes import mix_accuracy
from fedsim.statistics.reading import Run


@dataclass(frozen=True)
class Heard:
    """One speed class in one run.

    unit_s: mean seconds of a full step of its devices. update_share, step_share, weight_share: of the contributions that
    were used, of their whole local steps, of their weights in the model (mean over its parameters); None if the run has
    none of these. accuracy: of the model that the run ended with, on the class's label mix; None if there is none, or
    but one class.
    """

    name: str
    unit_s: float
    device_share: float
    samples_share: float
    update_share: float | None
    step_share: float | None
    weight_share: float | None
    accuracy: float | None


def heard(run: Run) -> list[Heard]:
    """The classes from the fastest to the slowest; none for runs from before there were classes."""
    classes = run.speed_classes
    n_devices = sum(one["n_devices"] for one in classes)
    update, step, weight = (_shares(run, column) for column in ("n_used", "n_steps", "weight_sum"))
    return [
        Heard(
            name=str(one["name"]),
            unit_s=float(one["unit_s"]),
            device_share=one["n_devices"] / n_devices,
            samples_share=float(one["samples_share"]),
            update_share=update[i],
            step_share=step[i],
            weight_share=weight[i],
            accuracy=_accuracy(run, one["label_share"]),
        )
        for i, one in enumerate(classes)
    ]


def class_sums(run: Run, column: str) -> Array:
    """A column of the table `classes` summed over the rounds, `[class]`."""
    of_class = run.classes["speed_class"].to_numpy(np.int64)
    values = run.classes[column].to_numpy(np.float64)
    return np.asarray(np.bincount(of_class, values, minlength=len(run.speed_classes)), dtype=np.float64)


def _shares(run: Run, column: str) -> list[float] | list[None]:
    sums = class_sums(run, column)
    return (sums / sums.sum()).tolist() if sums.sum() > 0 else [None] * len(sums)


def _accuracy(run: Run, label_share: list[float] | None) -> float | None:
    found = (run.manifest.get("final") or {}).get("label_accuracy")
    if found is None or label_share is None:
        return None
    value = mix_accuracy(np.array(label_share), np.array(found, dtype=np.float64))  # null becomes NaN
    return value if np.isfinite(value) else None
