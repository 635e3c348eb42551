"""How the closed forms of a policy are listed: its quantities in one order, each with its unit and, if none, the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedsim.facts import Array
from fedsim.protocols import NoClosedForm
from fedsim.theory.counts import inverse_moment
from fedsim.theory.fleet import Expectation, none

UNITS = {
    "round_s": "s",
    "n_contributions": "devices",
    "staleness": "versions",
    "is_empty": "1",
    "inverse_n_contributions": "1",
    "n_contributors": "devices",
    "is_layer_empty": "1",
    "weight_sum": "1",
    "correction_factor": "1",
    "n_steps": "steps",
    "participation": "1",
    "used_flops": "FLOPs",
    "downloaded_bytes": "bytes",
    "uploaded_bytes": "bytes",
    "settled_after": "rounds",
}
MOST_LISTED = 100  # devices, of which each is listed

Answers = dict[str, Callable[[], list[Expectation]]]
"""By quantity."""


def listed(answers: Answers) -> list[Expectation]:
    """All that is asked, and the reason in place of what raises NoClosedForm."""
    found: list[Expectation] = []
    for quantity, answer in answers.items():
        try:
            found += answer()
        except NoClosedForm as reason:
            found.append(none(quantity, UNITS[quantity], str(reason)))
    return found


def one(quantity: str, mean: float, variance: float | None = None) -> list[Expectation]:
    return [Expectation(quantity, UNITS[quantity], float(mean), None if variance is None else float(variance))]


def per_layer(
    quantity: str, means: Sequence[float] | Array, variances: Sequence[float | None] | Array
) -> list[Expectation]:
    """means, variances (None: unknown): `[layer]`."""
    return [
        Expectation(quantity, UNITS[quantity], float(mean), None if variance is None else float(variance), layer=layer)
        for layer, (mean, variance) in enumerate(zip(means, variances, strict=True))
    ]


def per_device(quantity: str, means: Array, variances: Array | None = None) -> list[Expectation]:
    """means, variances: `[device]`; an empty list for a fleet too large to be listed."""
    if len(means) > MOST_LISTED:
        return []
    known = [None] * len(means) if variances is None else [float(v) for v in variances]
    return [
        Expectation(quantity, UNITS[quantity], float(mean), variance, device=device)
        for device, (mean, variance) in enumerate(zip(means, known, strict=True))
    ]


def events(quantity: str, p: Array) -> list[Expectation]:
    """Of events with these probabilities, `[layer]`."""
    return per_layer(quantity, p, p * (1.0 - p))


def participations(p: Array) -> list[Expectation]:
    """p: that the device's work is aggregated, `[device]`."""
    return per_device("participation", p, p * (1.0 - p))


def counted(quantity: str, pmf: Array) -> list[Expectation]:
    """Mean and variance of a number with this law, `[j]`."""
    j = np.arange(len(pmf))
    mean = float(pmf @ j)
    return one(quantity, mean, float(pmf @ (j - mean) ** 2))


def inverse_count(pmf: Array) -> list[Expectation]:
    """E[1/N; N >= 1] and its variance."""
    mean = inverse_moment(pmf)
    square = float(pmf[1:] @ (1.0 / np.arange(1, len(pmf)) ** 2))
    return one("inverse_n_contributions", mean, max(0.0, square - mean**2))
