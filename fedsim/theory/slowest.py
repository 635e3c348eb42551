"""The server asks fixed devices for fixed numbers of whole steps over all layers, and waits for the slowest of them.

With A_u the arrival (download, n_u local steps, upload) of device u:
    E[T] = integral over t > 0 of (1 - prod_u P(A_u <= t)),   u over those asked
Who is asked for how much is the same in every round, so that all but the time is certain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedsim.facts import Array, IntArray
from fedsim.theory.counts import waiting
from fedsim.theory.fleet import Expectation, Fleet, of_time
from fedsim.theory.rounds import Answers, events, one, participations, per_device, per_layer
from fedsim.theory.steps import DeviceTimes, task_times
from fedsim.theory.times import RandomTime, certain


def slowest(parts: list[tuple[int, DeviceTimes]]) -> RandomTime:
    """When all devices of all parts have arrived; a part: local steps, and when so many have arrived."""
    steps = parts[0][1].steps
    if all(steps.is_discrete and len(steps.kinks(n)) == 1 for n, _ in parts):
        return certain(max(float(times.mean_s(n).max()) for n, times in parts))
    n_in_group = np.concatenate([times.n_in_group for _, times in parts])
    kinks = sorted({kink for n, times in parts for kink in times.kinks_s(n)})

    def missing(t_s: Array) -> Array:
        return np.concatenate([times.survival(n, t_s) for n, times in parts], axis=1)

    return waiting(int(n_in_group.sum()), n_in_group, missing, kinks, is_discrete=steps.is_discrete)


def of_fleet(fleet: Fleet, n_steps: IntArray) -> RandomTime:
    """Seconds until the last of those asked has arrived; n_steps: `[device]`, 0 is not asked.

    Raises NoClosedForm where the fleet's times have no closed law.
    """
    parts = []
    for n in np.unique(n_steps[n_steps > 0]).tolist():
        mine = n_steps == n
        part = replace(
            fleet, unit_s=fleet.unit_s[mine], download_s=fleet.download_s[mine], upload_s=fleet.upload_s[mine]
        )
        computed, upload_s = task_times(part)
        parts.append((n, computed.later(upload_s)))
    return slowest(parts)


def answers_of(fleet: Fleet, n_steps: Callable[[], IntArray], weight_sum: Callable[[], float]) -> Answers:
    """What a round should have on average, each quantity when it is asked for.

    n_steps: of each device, 0 if it is not asked, `[device]`. weight_sum: of each layer, over those asked.
    """
    n_layers, model_bytes = fleet.n_layers, float(fleet.shape.suffix_bytes[-1])
    nothing = np.zeros(n_layers)

    def asked() -> Array:
        return (n_steps() > 0).astype(np.float64)

    def n_asked() -> float:
        return float(asked().sum())

    def rows() -> Array:
        """Trained in a round, `[device]`."""
        own = n_steps()
        return own * fleet.n_rows if fleet.has_even_steps else fleet.rows_before(own)

    def mean_steps() -> list[Expectation]:
        own = n_steps().astype(np.float64)
        return one("n_steps", own.sum() / n_asked(), 0.0) + per_device("n_steps", own, np.zeros(len(own)))

    return {
        "round_s": lambda: [of_time("round_s", of_fleet(fleet, n_steps()))],
        "n_contributions": lambda: one("n_contributions", n_asked(), 0.0),
        "is_empty": lambda: one("is_empty", 0.0, 0.0),
        "inverse_n_contributions": lambda: one("inverse_n_contributions", 1.0 / n_asked(), 0.0),
        "n_contributors": lambda: per_layer("n_contributors", nothing + n_asked(), nothing),
        "is_layer_empty": lambda: events("is_layer_empty", nothing),
        "weight_sum": lambda: per_layer("weight_sum", nothing + weight_sum(), nothing),
        "n_steps": mean_steps,
        "participation": lambda: participations(asked()),
        "used_flops": lambda: one("used_flops", float(rows().sum() * fleet.shape.step_flops[-1]), 0.0),
        "downloaded_bytes": lambda: one("downloaded_bytes", n_asked() * model_bytes, 0.0),
        "uploaded_bytes": lambda: one("uploaded_bytes", n_asked() * model_bytes, 0.0),
    }
