"""Which policy reaches a target soonest, and how sure that is.

Times are sustained times to accuracy. Only seeds that every policy has run are compared (the same weather for all).
A claim needs at least 10 seeds and a policy that alone may be the best (`best.py`); fewer seeds get "no claim".
Definitions stand in the modules that compute them; the wording in `sentences.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedsim.facts import BoolArray
from fedsim.statistics import ranking, sentences
from fedsim.statistics.best import may_be_best
from fedsim.statistics.reading import Run
from fedsim.statistics.results import Comparison, PolicyResult
from fedsim.statistics.speed_up import SpeedUp, speed_up
from fedsim.statistics.survival import common_horizon_s, median_s, restricted_s
from fedsim.statistics.time_to_accuracy import first_crossing_s, sustained_s

N_SEEDS_FOR_A_CLAIM = 10
ERROR_SHARE = 0.05


@dataclass(frozen=True)
class _Observed:
    """One run and one target: sustained and first time (None: censored), and how long the run was followed, seconds."""

    sustained_s: float | None
    first_s: float | None
    followed_s: float


def compare(runs: Sequence[Run], target: float, n_targets: int = 1) -> Comparison:
    """The policies of `runs` at one target accuracy, best first, with one sentence that sums them up.

    n_targets: how many targets are compared side by side; the error share of a claim, 5 %, is divided among them.
    Where the runs cannot be compared, `results` is empty and the sentence says why.
    """
    labels = list(dict.fromkeys(run.label for run in runs))
    obstacle = _obstacle(runs)
    if obstacle:
        return Comparison(target, (), (), None, (), obstacle)
    seeds = sorted(set.intersection(*({run.seed for run in runs if run.label == label} for label in labels)))
    if not seeds:
        return Comparison(target, (), (), None, (), sentences.no_common_seed(labels))
    observed = _observe(runs, target)
    results = _results({label: [observed[label, seed] for seed in seeds] for label in labels})
    reference = _reference(results)
    results = tuple(replace(result, speed_up=_speed_up(result, reference)) for result in results)
    contenders = _contenders(results, ERROR_SHARE / n_targets)
    lead = _speed_up(results[0], results[1]) if len(results) > 1 else None
    comparison = Comparison(
        target, tuple(seeds), results, reference.label if reference else None, contenders, "", lead=lead
    )
    sentence = sentences.verdict(comparison, enough_seeds=N_SEEDS_FOR_A_CLAIM)
    sooner = _told_apart(results, ERROR_SHARE / n_targets, runs[0].grid_step_s or 0.0)
    if len(seeds) >= N_SEEDS_FOR_A_CLAIM and len(contenders) == 1:
        sooner[0, 1:] = True  # the comparison with the best asks less than one of all pairs, and finds more
    placed = replace(
        comparison,
        sentence=sentence,
        places=tuple(ranking.places(sooner)),
        ties=tuple(ranking.ties([result.label for result in results], sooner)),
    )
    return replace(placed, ranking=sentences.not_told_apart(placed, enough_seeds=N_SEEDS_FOR_A_CLAIM))


def compare_targets(runs: Sequence[Run]) -> list[Comparison]:
    """A comparison for each of the scenario's targets, in its order."""
    targets = list(dict.fromkeys(target for run in runs for target in run.targets))
    return [compare(runs, target, n_targets=len(targets)) for target in targets]


def headline(comparisons: Sequence[Comparison]) -> Comparison | None:
    """The comparison to tell first: the highest target that some run reached, else the lowest; None if there is none."""
    by_target = sorted(comparisons, key=lambda c: c.target)
    reached = [c for c in by_target if any(result.n_reached for result in c.results)]
    return reached[-1] if reached else (by_target[0] if by_target else None)


def _obstacle(runs: Sequence[Run]) -> str | None:
    """Why these runs cannot be compared, in words; None if they can."""
    if not runs:
        return sentences.NO_RUNS
    if all(run.evaluations.empty for run in runs):
        return sentences.NOTHING_TRAINED
    if all(run.outcome == "diverged" for run in runs):
        return sentences.ALL_DIVERGED
    if any((run.grid_step_s or run.every_n_rounds) is None or run.sustain_s is None for run in runs):
        return sentences.NO_GRID
    cadences = {(run.grid_step_s or 0.0, run.every_n_rounds or 0, run.sustain_s or 0.0) for run in runs}
    if len(cadences) == 1:
        return None
    return sentences.different_grids(
        [step_s for step_s, _, _ in cadences if step_s], [n_rounds for _, n_rounds, _ in cadences if n_rounds]
    )


def _observe(runs: Sequence[Run], target: float) -> dict[tuple[str, int], _Observed]:
    longest_s = max(run.followed_s for run in runs)
    observed = {}
    for run in runs:
        time_s = run.evaluations["time_s"].to_numpy(np.float64)
        accuracy = run.evaluations["accuracy"].to_numpy(np.float64)
        # A run that broke down would never have got there: it counts as followed for as long as any run was.
        broke_down = run.outcome in ("diverged", "stalled")
        observed[run.label, run.seed] = _Observed(
            sustained_s(time_s, accuracy, target, run.sustain_s or 0.0, run.followed_s),
            first_crossing_s(time_s, accuracy, target),
            longest_s if broke_down else run.followed_s,
        )
    return observed


def _results(observed: dict[str, list[_Observed]]) -> tuple[PolicyResult, ...]:
    """The policies best first: by median, then by restricted mean, then as in the scenario."""
    everyone = [o for row in observed.values() for o in row]
    horizon_s = common_horizon_s([o.followed_s for o in everyone], [o.sustained_s is None for o in everyone])
    results = []
    for label, row in observed.items():
        reached = tuple(o.sustained_s for o in row)
        followed = tuple(o.followed_s for o in row)
        first = tuple(o.first_s for o in row)
        restricted = restricted_s(reached, horizon_s)
        results.append(
            PolicyResult(label, reached, first, followed, median_s(reached, followed), tuple(restricted), horizon_s)
        )
    return tuple(sorted(results, key=lambda r: (np.inf if r.median_s is None else r.median_s, r.restricted_mean_s)))


def _reference(results: Sequence[PolicyResult]) -> PolicyResult | None:
    """The slowest policy that reached the target under every seed; if only the best did, the slowest of all; none, if nobody did."""
    if len(results) < 2 or not any(result.n_reached for result in results):
        return None
    others = [result for result in results[1:] if result.reached_always]
    return others[-1] if others else results[-1]


def _speed_up(result: PolicyResult, reference: PolicyResult | None) -> SpeedUp | None:
    if reference is None or result.label == reference.label:
        return None
    return speed_up(result.reached_s, reference.reached_s, result.followed_s, reference.followed_s)


def _contenders(results: Sequence[PolicyResult], error_share: float) -> tuple[str, ...]:
    """Labels of the policies that may be the best; without a test (few seeds, a time of zero), all of them.

    Tested on the logarithm of the restricted times. The policy with the smallest median always stays in: a verdict
    against it would contradict the table beside the sentence.
    """
    restricted = np.array([result.restricted_s for result in results])
    if restricted.shape[1] < N_SEEDS_FOR_A_CLAIM or (restricted <= 0).any():
        return tuple(result.label for result in results)
    stays = may_be_best(np.log(restricted), error_share)
    return tuple(result.label for i, result in enumerate(results) if stays[i] or i == 0)


def _told_apart(results: Sequence[PolicyResult], error_share: float, grid_step_s: float) -> BoolArray:
    """Whether the first policy is told to be sooner than the second, `[policy, policy]`; nobody, where a time is zero."""
    times = np.array(
        [[f if r is None else r for r, f in zip(one.reached_s, one.followed_s, strict=True)] for one in results]
    )
    if times.min() <= 0:
        return np.zeros((len(results), len(results)), dtype=np.bool_)
    # A time is late by anything up to a step of the grid: uniform, of variance step^2 / 12.
    rounding = float(((grid_step_s / times) ** 2).mean()) / 12
    is_known = np.array([one.reached_always for one in results])
    return ranking.told_apart(np.log(times), is_known, error_share, rounding)
