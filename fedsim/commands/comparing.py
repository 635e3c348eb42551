"""One simulated quantity beside its closed form, and the verdict over a whole family of them.

How a deviation is judged is told in `fedsim.statistics.agreement`, which does the same for the runs of a report.

Source: Law, "Simulation Modeling and Analysis" (5th ed., 2015), ch. 9 (independent replications, several measures).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from scipy import stats

from fedsim.facts import Array
from fedsim.statistics import agreement
from fedsim.statistics.agreement import FAMILY_ERROR, Sample


@dataclass(frozen=True)
class Compared:
    """One quantity of one policy.

    variant: of the scenario. n: rounds (they, or their cycles, are independent), or runs. standard_error: of the simulated mean; 0 where nothing
    varies. z: distance in standard errors, or what is as unlikely on a normal scale; None where nothing varies.
    detectable_share: relative error of the mean that would be refused. no_closed_form: why there is nothing to compare.
    """

    policy: str
    quantity: str
    unit: str
    expected: float | None = None
    simulated: float | None = None
    standard_error: float | None = None
    z: float | None = None
    agrees: bool | None = None
    detectable_share: float | None = None
    n: int = 0
    variant: str | None = None
    layer: int | None = None
    device: int | None = None
    no_closed_form: str | None = None


def compared(row: Compared, values: Array, mean: float, variance: float | None = None) -> Compared:
    """The row with its values' mean beside the closed form's. variance: of one value; None if it is not known."""
    found = agreement.compared([Sample(values, mean, variance)])
    return replace(
        row,
        expected=mean,
        simulated=found.simulated,
        standard_error=found.standard_error,
        z=found.z,
        agrees=found.is_equal,
    )


def short(policy: str, n_rounds: int, n_played: int) -> Compared:
    """A run that stalled, diverged or ended before its rounds were through, where closed forms say that it goes on."""
    return Compared(
        policy,
        "n_rounds",
        "rounds",
        expected=float(n_rounds),
        simulated=float(n_played),
        standard_error=0.0,
        agrees=False,
        n=1,
    )


def judged(rows: list[Compared]) -> list[Compared]:
    """With a verdict each: the family of all comparisons shares one chance of a false alarm (Bonferroni)."""
    n = sum(row.z is not None for row in rows)
    threshold = float(stats.norm.isf(FAMILY_ERROR / max(1, n) / 2))
    return [_judged(row, threshold) for row in rows]


def _judged(row: Compared, threshold: float) -> Compared:
    if row.z is None:  # nothing varies, or there is nothing to compare with
        return row
    assert row.expected is not None
    assert row.standard_error is not None
    share = threshold * row.standard_error / abs(row.expected) if row.expected else None
    return replace(row, agrees=abs(row.z) <= threshold, detectable_share=share)


def as_json(rows: list[Compared]) -> list[dict[str, Any]]:
    """Without what does not concern a row."""
    return [{name: value for name, value in asdict(row).items() if value is not None} for row in rows]
