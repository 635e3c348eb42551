"""`fedsim validate`: simulate many rounds of each policy on the clock alone and hold each quantity beside its closed form.

A comparison is made on independent rounds of one fleet, conditional on that fleet's persistent factors. How many rounds
are played follows from the closed forms' own variances, before anything is compared, so that a mean off by 1 % would be
found. Rounds of a server that never waits depend on one another: their means in the long run are compared by those of
batches (`fedsim.statistics.agreement`). A scenario that trains is also compared by its losses (`validate_training.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
from scipy import stats

from fedsim.commands.comparing import Compared, compared, judged, short
from fedsim.commands.validate_training import N_REPLICAS, compare_training
from fedsim.expectations import expected
from fedsim.facts import Array, IntArray
from fedsim.run import World, located
from fedsim.scenario.contenders import Contender
from fedsim.scenario.read import LoadedScenario
from fedsim.statistics.agreement import FAMILY_ERROR, batch_means, in_cycles, rounds_to_settle
from fedsim.theory.fleet import Expectation
from fedsim.timing.book import ClosedJobs, ClosedRound
from fedsim.timing.server import SimServer
from fedsim.timing.untrained import Untrained

DETECTABLE_SHARE = 0.01  # of a mean: what must be found if it is off by that much
LEAST_ROUNDS, MOST_ROUNDS = 2_000, 50_000
_FIXED_ROUNDS = 200
_MOST_DEVICES = 200  # of which each is kept apart
_PLANNED_COMPARISONS = 3_000  # for the number of rounds, which is fixed before anything is compared
_QUARTILES = (0.25, 0.5, 0.75)
_MEANS = ("s", "devices", "steps", "FLOPs", "bytes")  # units of quantities that are means and not probabilities


def validate(
    scenarios: Sequence[tuple[str | None, LoadedScenario]],
    *,
    n_rounds: int | None = None,
    n_replicas: int = N_REPLICAS,
    n_jobs: int = 1,
    tell: Callable[[str, int], None] = lambda *_: None,
) -> list[Compared]:
    """Every quantity of every policy, on the fleet of the first seed of each (variant, scenario).

    n_rounds: of each policy on the clock alone; as many as the closed forms ask for if left out. n_replicas: of a
    scenario that trains. tell: (label, rounds) when one is through.
    """
    todo = [(variant, loaded, i) for variant, loaded in scenarios for i in range(len(loaded.contenders))]
    found: list[list[Compared]] = []
    for (_, loaded, i), rows in zip(
        todo, _mapped(_compare, [(*one, n_rounds, n_replicas) for one in todo], n_jobs), strict=True
    ):
        tell(loaded.contenders[i].label, rows[0].n)
        found.append(rows)
    return judged([row for rows in found for row in rows])


def _mapped(
    function: Callable[[tuple[Any, ...]], list[Compared]], items: list[tuple[Any, ...]], n_jobs: int
) -> Iterator[list[Compared]]:
    if n_jobs == 1 or len(items) == 1:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(min(n_jobs, len(items)), mp_context=get_context("forkserver")) as pool:
        yield from pool.map(function, items)


def _compare(item: tuple[str | None, LoadedScenario, int, int | None, int]) -> list[Compared]:
    variant, loaded, i, n_rounds, n_replicas = item
    contender, seeds = loaded.contenders[i], loaded.scenario.seed_sets[0]
    with located(loaded, contender):
        world = World.of(loaded, seeds).planned_for(contender)
        world.refuse_problems(contender, train=loaded.scenario.train)
    found = expected(contender, world.weather)
    rows = _of_rounds(world, contender, found, n_rounds or rounds_needed(found))
    if loaded.scenario.train:
        rows += compare_training(loaded, contender, seeds, world, n_replicas)
    return [replace(row, variant=variant) for row in rows]


def _of_rounds(world: World, contender: Contender, found: Sequence[Expectation], n_rounds: int) -> list[Compared]:
    """What the clock alone can tell. A run that ends before its rounds are through is refused as such."""
    label = contender.label
    if all(one.mean is None for one in found):  # nothing to play for
        return [_without(Compared(label, one.quantity, one.unit), one) for one in found]
    tally = play(world, contender, n_rounds)
    if tally.n_closed < n_rounds:
        return [short(label, n_rounds, tally.n_closed)]
    settled = _settled_after(found)
    return [row for one in found for row in comparisons(label, one, tally, settled) if one is not settled]


def _settled_after(found: Iterable[Expectation]) -> Expectation | None:
    """After how many rounds the start is forgotten, where rounds depend on one another; else None."""
    return next((one for one in found if one.quantity == "settled_after"), None)


def _without(row: Compared, one: Expectation) -> Compared:
    return replace(row, layer=one.layer, device=one.device, no_closed_form=one.reason or "is not kept by the simulator")


def rounds_needed(found: Iterable[Expectation]) -> int:
    """Rounds after which a mean that is off by 1 % would be refused, from the closed forms' variances."""
    threshold = float(stats.norm.isf(FAMILY_ERROR / _PLANNED_COMPARISONS / 2))
    found = list(found)
    is_fixed = not any(one.variance != 0.0 for one in found if one.mean is not None)
    most = float(_FIXED_ROUNDS if is_fixed else LEAST_ROUNDS)
    for one in found:
        if one.mean and one.variance and one.unit in _MEANS and one.device is None:
            most = max(most, one.variance * (threshold / (DETECTABLE_SHARE * one.mean)) ** 2)
    if (settled := _settled_after(found)) is not None:
        # Nobody waits: each upload takes as long to play as a round does elsewhere.
        n_uploads = next((one.mean or 1.0 for one in found if one.quantity == "n_contributions"), 1.0)
        most = min(max(most, rounds_to_settle(int(settled.mean or 0))), MOST_ROUNDS // n_uploads)
    cycle = max((one.period for one in found), default=1)
    return int(np.ceil(min(most, MOST_ROUNDS) / cycle)) * cycle


# ---- rounds ---------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What each round came to; implements `fedsim.timing.book.Book`. Columns are `[round]`, matrices `[round, ...]`."""

    n_rounds: int
    n_devices: int
    n_layers: int
    n_closed: int = 0
    rounds: dict[str, Array] = field(default_factory=dict)
    n_contributors: Array = field(init=False)
    weight_sum: Array = field(init=False)
    n_steps: Array = field(init=False)
    participation: Array = field(init=False)
    n_begun: IntArray = field(init=False)  # jobs that pulled this version
    n_ended: IntArray = field(init=False)  # jobs that were over when this round closed

    def __post_init__(self) -> None:
        names = (
            "round_s",
            "n_steps",
            "n_contributions",
            "n_sent",
            "used_flops",
            "uploaded_bytes",
            "downloaded_bytes",
            "device_flops",
        )
        self.rounds = {name: np.zeros(self.n_rounds) for name in names}
        self.n_contributors = np.zeros((self.n_rounds, self.n_layers))
        self.weight_sum = np.zeros((self.n_rounds, self.n_layers))
        n_kept = self.n_devices if self.n_devices <= _MOST_DEVICES else 0  # a matrix of a million devices fits nowhere
        self.n_steps = np.zeros((self.n_rounds, n_kept), dtype=np.float32)
        self.participation = np.zeros((self.n_rounds, n_kept), dtype=bool)
        self.n_begun, self.n_ended = np.zeros((2, self.n_rounds + 1), dtype=np.int64)

    def before_change(self, now_s: float) -> None: ...

    def jobs_closed(self, jobs: ClosedJobs) -> None:
        np.add.at(self.n_begun, jobs.version, 1)
        self.n_ended[self.n_closed] += len(jobs.version)
        if self.n_closed == self.n_rounds:
            return  # under way when the last round closed
        now = self.n_closed
        self.rounds["n_steps"][now] += jobs.n_steps.sum()
        if self.n_steps.size:
            self.n_steps[now, jobs.device] += jobs.n_steps
        for name in ("uploaded_bytes", "downloaded_bytes", "device_flops"):
            self.rounds[name][now] += getattr(jobs, name).sum()

    def round_closed(self, closed: ClosedRound) -> str | None:
        now = self.n_closed
        self.rounds["round_s"][now] = closed.end_s - closed.start_s
        self.rounds["n_contributions"][now] = len(closed.contributions)
        self.rounds["n_sent"][now] = closed.n_sent
        self.rounds["used_flops"][now] = closed.used_flops
        self.n_contributors[now] = closed.contributions.holds_layer.sum(axis=0)
        self.weight_sum[now] = closed.weights.sum(axis=0)
        if self.participation.size:
            self.participation[now, closed.contributions.device] = True
        self.n_closed += 1
        return "enough rounds" if self.n_closed == self.n_rounds else None

    def values(self, one: Expectation) -> Array | None:
        """The quantity in each round, `[round]`; None if it is not kept."""
        n, layer, device = self.rounds["n_contributions"], one.layer, one.device
        if one.quantity == "correction_factor":
            found = self.weight_sum[:, layer][self.n_contributors[:, layer] > 0]
            return found if len(found) else None
        if layer is not None:
            by_layer = {
                "n_contributors": self.n_contributors,
                "is_layer_empty": self.n_contributors == 0,
                "weight_sum": self.weight_sum,
            }
            return np.asarray(by_layer[one.quantity][:, layer], dtype=np.float64)
        if device is not None:
            by_device = {"n_steps": self.n_steps, "participation": self.participation}[one.quantity]
            return np.asarray(by_device[:, device], dtype=np.float64) if by_device.size else None
        derived: dict[str, Callable[[], Array]] = {
            "staleness": lambda: np.cumsum(self.n_begun - self.n_ended)[:-1] / n,  # see statistics/agreement.py
            "is_empty": lambda: np.equal(n, 0.0),
            "inverse_n_contributions": lambda: np.divide(1.0, n, out=np.zeros(len(n)), where=n > 0),
            "n_steps": lambda: self.rounds["n_steps"] / self.rounds["n_sent"],
        }
        column = derived[one.quantity]() if one.quantity in derived else self.rounds.get(one.quantity)
        return None if column is None else np.asarray(column, dtype=np.float64)


def play(world: World, contender: Contender, n_rounds: int) -> Tally:
    """So many rounds of the policy's story, without training; fewer if it ends before."""
    weather = world.weather
    tally = Tally(n_rounds, weather.fleet.n_devices, weather.shape.n_layers)
    SimServer(weather, Untrained(weather.shape), tally).play(contender.policy)
    return tally


# ---- comparisons ----------------------------------------------------------------------------------------------------


def comparisons(label: str, one: Expectation, tally: Tally, settled: Expectation | None = None) -> Iterator[Compared]:
    """The mean of a quantity, the spread of a count or a time, and points of a time's cdf.

    settled: the rounds that remember the start, where a mean without a variance is that of the long run.
    """
    row = Compared(label, one.quantity, one.unit, n=tally.n_rounds, layer=one.layer, device=one.device)
    by_round = tally.values(one)
    if one.mean is None or by_round is None:
        yield _without(row, one)
        return
    values = in_cycles(by_round, one.period)  # rounds of one cycle depend on each other
    if not len(values):
        yield replace(row, no_closed_form=f"needs a whole cycle of {one.period} rounds; got {tally.n_rounds}")
        return
    if settled is not None and one.variance is None:
        yield _in_the_long_run(replace(row, n=tally.n_rounds), one.mean, by_round, settled)
        return
    if one.time is not None and one.variance is None:
        reason = "needs a finite variance; a mean over rounds would not settle"
        yield replace(row, expected=one.mean, no_closed_form=reason)
    else:
        yield compared(row, values, one.mean, None if one.variance is None else one.variance / one.period)
    # A spread that comes from hardly any round cannot be estimated from the others.
    is_seen = bool(one.variance) and values.std() > 0.1 * np.sqrt((one.variance or 0.0) / one.period)
    if is_seen and one.variance and one.unit in ("s", "devices") and one.device is None:
        squared = replace(row, quantity=f"{one.quantity} variance", unit=f"{one.unit}^2")
        yield compared(squared, one.period * (values - one.mean) ** 2, one.variance)
    if one.time is None or one.variance == 0.0:
        return
    for p in _QUARTILES:
        at_s = one.time.quantile_s(p)
        before, reached = one.time.cdf(np.array([at_s * (1 - 1e-9), at_s])).tolist()
        if reached - before < 1e-6:  # at a jump of the law the clock's own rounding would decide
            in_time = replace(row, quantity=f"P({one.quantity} <= {at_s:.6g} s)", unit="1")
            yield compared(in_time, in_cycles((by_round <= at_s).astype(np.float64), one.period), reached)


def _in_the_long_run(row: Compared, mean: float, values: Array, settled: Expectation) -> Compared:
    if settled.mean is None:
        return replace(row, expected=mean, no_closed_form=settled.reason)
    means = batch_means(values, int(settled.mean))
    if means is None:
        reason = f"needs more than {len(values)} rounds: the first {settled.mean:.0f} remember the common start"
        return replace(row, expected=mean, no_closed_form=reason)
    return compared(row, means, mean)
