"""FedLAMA: relaxed layers travel once in phi rounds, the others in each; a round waits for all that it asks.

Source of the rule: Lee, Zhang, Avestimehr, arXiv 2110.10302, Algorithms 1 and 2. For a stated set of relaxed layers with
the share gamma of the model's bytes B, rounds come in cycles of phi:
    first:  B down, (1 - gamma) B up;   in between: (1 - gamma) B both ways;   last: (1 - gamma) B down, B up
    a device's bytes per round, over a cycle, either way: ((1 - gamma) + gamma / phi) B
    n devices are asked anew for each cycle: every device with probability n / M, for all of its rounds
Everything relaxed is FedAvg with phi tau' local steps. What a policy that adapts will relax is training's business: only
what does not depend on it is known then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, Protocol

import numpy as np

from fedsim.facts import Array, BoolArray, IntArray
from fedsim.protocols import NoClosedForm
from fedsim.theory import arrivals
from fedsim.theory.arrivals import kth_arrival
from fedsim.theory.counts import sampled_sum
from fedsim.theory.cycles import Cycle
from fedsim.theory.fleet import Expectation, Fleet, rows_of
from fedsim.theory.published import traffic_share
from fedsim.theory.rounds import Answers, listed, one, per_device, per_layer

_CHOSEN = "needs a stated set of relaxed layers; here training's discrepancies choose them"


def bytes_per_round(layer_bytes: IntArray, relaxed: BoolArray, interval_factor: int) -> float:
    """Bytes of a device in a round, over a cycle, either way; layer_bytes, relaxed: `[layer]`."""
    in_all = float(layer_bytes.sum())
    return in_all * traffic_share(float(layer_bytes[relaxed].sum()) / in_all, interval_factor)


# ---- beside a simulation --------------------------------------------------------------------------------------------


class FedLAMAParameters(Protocol):
    """The policy's parameters, as a scenario names them."""

    @property
    def local_steps(self) -> int: ...
    @property
    def interval_factor(self) -> int: ...
    @property
    def n_sampled(self) -> int | None: ...
    @property
    def relaxed(self) -> tuple[int, ...] | None: ...
    @property
    def crossing(self) -> Literal["excluded", "included"]: ...


def task_steps(policy: FedLAMAParameters, n_layers: int) -> int:
    """Local steps of a task."""
    return policy.local_steps * (policy.interval_factor if _is_all(policy, n_layers) else 1)


def _is_all(policy: FedLAMAParameters, n_layers: int) -> bool:
    return len(set(policy.relaxed or ())) == n_layers


def expected(policy: FedLAMAParameters, fleet: Fleet) -> list[Expectation]:
    """What a round should have on average on this fleet, or why there is no closed form."""
    return listed(answers(policy, fleet))


def answers(policy: FedLAMAParameters, fleet: Fleet) -> Answers:
    """The same, each quantity when it is asked for."""
    n, n_devices = policy.n_sampled or fleet.n_devices, fleet.n_devices
    n_steps = task_steps(policy, fleet.n_layers)
    period = policy.interval_factor
    if period == 1 or _is_all(policy, fleet.n_layers):
        return arrivals.answers_of(fleet, n_steps=n_steps, k=n, n_asked=n)
    relaxed = np.isin(np.arange(fleet.n_layers), policy.relaxed or ())
    layer_bytes = fleet.shape.parameter_bytes
    per_layer_share = np.where(relaxed, 1 / period, 1.0)  # of rounds in which the layer is averaged
    p = np.full(n_devices, n / n_devices)

    def cycle() -> list[Expectation]:
        due_bytes, all_bytes = int(layer_bytes[~relaxed].sum()), int(layer_bytes.sum())
        kinds = [(all_bytes, due_bytes), (due_bytes, due_bytes), (due_bytes, all_bytes)]
        n_times = [1, period - 2, 1]
        taken = [(kind, times) for kind, times in zip(kinds, n_times, strict=True) if times]
        ends = [kth_arrival(_moving(fleet, *kind), n_steps, n, n) for kind, _ in taken]
        return [Cycle(ends, [times for _, times in taken]).round_s()]

    def bytes_of_all() -> float:
        return n * bytes_per_round(layer_bytes, relaxed, period)

    def used_flops() -> list[Expectation]:
        each = rows_of(fleet, n_steps) * float(fleet.shape.step_flops[-1])
        mean, variance = sampled_sum(each, each**2, n)
        return one("used_flops", mean, period * variance)

    def of_layers(quantity: str, values: Array) -> list[Expectation]:
        return per_layer(quantity, values, np.zeros(len(values)))

    def needs_layers(answer: Callable[[], list[Expectation]]) -> Callable[[], list[Expectation]]:
        return answer if policy.relaxed is not None else _chosen

    found: Answers = {
        "round_s": needs_layers(cycle) if _has_links(fleet) else cycle,
        "n_contributions": lambda: one("n_contributions", n, 0.0),
        "is_empty": lambda: one("is_empty", 0.0, 0.0),
        "inverse_n_contributions": lambda: one("inverse_n_contributions", 1.0 / n, 0.0),
        "n_contributors": needs_layers(lambda: of_layers("n_contributors", n * per_layer_share)),
        "is_layer_empty": needs_layers(lambda: of_layers("is_layer_empty", 1.0 - per_layer_share)),
        "weight_sum": needs_layers(lambda: of_layers("weight_sum", per_layer_share)),
        "n_steps": lambda: (
            one("n_steps", n_steps, 0.0) + per_device("n_steps", n_steps * p, period * n_steps**2 * p * (1 - p))
        ),
        "participation": lambda: per_device("participation", p, period * p * (1 - p)),
        "used_flops": used_flops,
        "downloaded_bytes": needs_layers(lambda: one("downloaded_bytes", bytes_of_all(), 0.0)),
        "uploaded_bytes": needs_layers(lambda: one("uploaded_bytes", bytes_of_all(), 0.0)),
    }
    if policy.relaxed is None and policy.crossing == "included":  # then a cycle may also be a single round
        return dict.fromkeys(found, _chosen)
    return {quantity: _in_cycles(answer, period) for quantity, answer in found.items()}


def _in_cycles(answer: Callable[[], list[Expectation]], period: int) -> Callable[[], list[Expectation]]:
    return lambda: [replace(each, period=period) for each in answer()]


def _chosen() -> list[Expectation]:
    raise NoClosedForm(_CHOSEN)


def _has_links(fleet: Fleet) -> bool:
    return not fleet.has_fixed_links or bool(fleet.download_s.any() or fleet.upload_s.any())


def _moving(fleet: Fleet, n_pulled_bytes: int, n_pushed_bytes: int) -> Fleet:
    """The fleet as a task sees it that pulls and pushes so many bytes."""
    if not fleet.has_fixed_links:  # refused as such by whoever asks for times
        return fleet
    down_s, up_s = (
        seconds(np.full(fleet.n_devices, n_bytes))
        for seconds, n_bytes in ((fleet.down_s_of, n_pulled_bytes), (fleet.up_s_of, n_pushed_bytes))
    )
    return replace(fleet, download_s=down_s, upload_s=np.repeat(up_s[:, None], fleet.n_layers + 1, axis=1))
