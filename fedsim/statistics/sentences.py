"""One sentence on the winner that claims no more than the seeds allow.

Fewer seeds than a claim needs: what happened in these runs, under the words "no claim". Enough seeds: a winner only if
it alone may be the best, else who cannot be told apart. Knows results, not how they were computed.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.statistics.reading import Run
from fedsim.statistics.results import Comparison, PolicyResult
from fedsim.statistics.words import digits, format_ratio, format_s, format_share, listed, plural

NO_RUNS = "There are no finished runs here. Run the scenario first: fedsim run SCENARIO."
NOTHING_TRAINED = "Nothing was trained in these runs: the clock ran alone, so there is no accuracy to compare."
ALL_DIVERGED = "Every run diverged: its weights were no longer finite. Lower the learning rates."
NO_GRID = (
    "Times to accuracy are not compared: nothing fixes when to evaluate and how long a target must be held. "
    "Set stop.simulated_s, or evaluation.sustain_s and evaluation.every_s (or every_n_rounds)."
)
NO_TARGET = "No target accuracy is set. Add some to the scenario, for example evaluation.targets: [0.8, 0.9]."
NO_CLASSES = (
    "The model has no classes, so there is no accuracy to compare; the loss stands in each run's table of evaluations."
)


def without_targets(runs: Sequence[Run]) -> str:
    """Why nothing is compared in runs that have no target."""
    if all(run.evaluations.empty for run in runs):
        return NOTHING_TRAINED
    return NO_CLASSES if all(run.evaluations["accuracy"].isna().all() for run in runs) else NO_TARGET


def different_grids(steps_s: Sequence[float], every_n_rounds: Sequence[int]) -> str:
    """Why runs with different grids of evaluations, in seconds or in rounds, or with different sustain times are not compared."""
    steps = [format_s(step_s) for step_s in sorted(set(steps_s))]
    steps += [plural(n_rounds, "round") for n_rounds in sorted(set(every_n_rounds))]
    return (
        f"These runs were evaluated differently (every {listed(steps)}, or with different evaluation.sustain_s) "
        "and are not compared. Run the scenario again into an empty folder."
    )


def by_rounds(every_n_rounds: int) -> str:
    """What to keep in mind where policies are evaluated at moments of their own."""
    when = "every round" if every_n_rounds == 1 else f"every {every_n_rounds} rounds"
    return (
        f"The model was evaluated after {when}, not at moments common to all policies: one with shorter rounds was "
        "evaluated more often, which gives it more chances to be seen at a target and more to be seen below it."
    )


def no_common_seed(labels: Sequence[str]) -> str:
    """Why policies without a seed in common are not compared."""
    return f"{listed(labels)} share no seed and are not compared. Run every policy under the same seeds."


def verdict(comparison: Comparison, enough_seeds: int) -> str:
    """The sentence. `enough_seeds`: how many a claim needs."""
    results, target = comparison.results, format_share(comparison.target)
    best = results[0]
    if not any(result.n_reached for result in results):
        within = format_s(min(result.censored_s or 0.0 for result in results))
        return f"No run reached {target} within {within}. Lower the target or extend stop.simulated_s."
    if len(results) == 1:
        return f"{best.label} {_reached(best, 'reached', target, by_itself=True)}."
    if comparison.n_seeds < enough_seeds:
        return f"{plural(comparison.n_seeds, 'seed')}: no claim. {_what_happened(comparison, target)}"
    if len(comparison.contenders) > 1:
        return _undecided(comparison, target)
    return f"{best.label} {_reached(best, 'reaches', target, by_itself=True)}{_ahead(comparison)}."


def not_told_apart(comparison: Comparison, enough_seeds: int) -> str:
    """What the seeds do not allow to say of the places in this order, beside what the verdict says already.

    Empty where nothing was ranked.
    """
    if len(comparison.results) < 2 or not any(result.n_reached for result in comparison.results):
        return ""
    if comparison.n_seeds == 1:
        return (
            "1 seed does not show how much such times scatter: no place in this order is more than what happened once."
        )
    seeds, n = plural(comparison.n_seeds, "seed"), len(comparison.results)
    if not comparison.ties:
        return f"{seeds} tell each policy from the next, if the times of all of them scatter alike."
    is_said = comparison.n_seeds >= enough_seeds  # who may be the best
    groups = [tie for tie in comparison.ties if not (is_said and set(tie) <= set(comparison.contenders))]
    chains = _chained(groups)
    if not chains or len(chains[0]) < n:
        return f"{seeds} do not tell {listed([_alike(chain) for chain in chains], last='or')}." if chains else ""
    if len(groups[0]) == n:
        return f"{seeds} tell no two of these policies apart."
    return f"{seeds} tell no policy from the next in this order, only some from those further on: see their places."


def _alike(chain: Sequence[str]) -> str:
    """Whom the seeds do not tell apart: "salf from fedpmt", "each of a, b and c from the next"."""
    return f"{chain[0]} from {chain[1]}" if len(chain) == 2 else f"each of {listed(chain)} from the next"


def _chained(ties: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Ties that have a policy in common, joined: each policy of a chain is not told from the next."""
    chains: list[tuple[str, ...]] = []
    for tie in ties:
        if chains and tie[0] in chains[-1]:
            chains[-1] += tuple(label for label in tie if label not in chains[-1])
        else:
            chains.append(tie)
    return chains


def place_words(place: tuple[int, int] | None) -> str:
    """ "1", or "2-4" where the seeds allow several places."""
    if place is None:
        return ""
    first, last = place
    return str(first) if first == last else f"{first}-{last}"


def not_within(result: PolicyResult) -> str:
    """ "not within 600 s (7 of 10 seeds)"; empty if every seed reached the target."""
    if result.censored_s is None:
        return ""
    return f"not within {format_s(result.censored_s)} ({result.n_seeds - result.n_reached} of {_n_seeds(result)})"


def _what_happened(comparison: Comparison, target: str) -> str:
    best = comparison.results[0]
    tied = [r for r in comparison.results if _rank(r) == _rank(best)]
    if len(tied) > 1:
        return f"In these runs {listed([r.label for r in tied])} {_reached(best, 'reached', target)}, equally soon."
    first = " first" if best.reached_always else ""
    return f"In these runs {best.label} {_reached(best, 'reached', target, first=first)}{_sooner(comparison)}."


def _reached(result: PolicyResult, verb: str, target: str, *, first: str = "", by_itself: bool = False) -> str:
    """ "reached 90 % after 212 s (median)", or in how many of the seeds."""
    of_seeds = f" of {_n_seeds(result)}" if by_itself else ""
    median = f" (median{of_seeds})" if result.n_seeds > 1 else (" (1 seed)" if by_itself else "")
    if result.reached_always and result.median_s is not None:
        comma = "," if first else ""
        return f"{verb} {target}{first}{comma} after {format_s(result.median_s)}{median}"
    share = f"{verb} {target} in {result.n_reached} of {_n_seeds(result)}"
    return share if result.median_s is None else f"{share}, after {format_s(result.median_s)} (median)"


def _sooner(comparison: Comparison) -> str:
    """ ", 2.6 times sooner than fedavg (2.2-3.1)", or a bound, or nothing where no ratio can be given."""
    speed_up = comparison.results[0].speed_up
    reference = comparison.of(comparison.reference or "")
    if speed_up is None or speed_up.factor is None or reference is None or speed_up.factor <= 1:
        return ""
    if speed_up.bound == "at_least":
        return f", at least {digits(speed_up.factor)} times sooner than {reference.label}, {not_within(reference)}"
    if speed_up.bound != "exact":
        return ""
    factor, _, interval = format_ratio(speed_up.factor, speed_up.low, speed_up.high).partition(" ")
    return f", {factor} times sooner than {reference.label}{interval and f' {interval}'}"


def _ahead(comparison: Comparison) -> str:
    """ ", 1.3 times sooner than k_sync, the next (1.2-1.4), and 12 times sooner than fedavg (10-16)"."""
    lead, sooner = comparison.lead, _sooner(comparison)
    second = comparison.results[1].label
    if not sooner or lead is None or lead.bound != "exact" or lead.factor is None or second == comparison.reference:
        return sooner
    factor, _, interval = format_ratio(lead.factor, lead.low, lead.high).partition(" ")
    return (
        f", {factor} times sooner than {second}, the next{interval and f' {interval}'}, and {sooner.removeprefix(', ')}"
    )


def _undecided(comparison: Comparison, target: str) -> str:
    names = list(comparison.contenders)
    told = f"{names[0]} from {listed(names[1:], last='or')}"
    tied = [result for result in comparison.results if result.label in names]
    medians = [
        f"more than {format_s(r.censored_s or 0.0)}" if r.median_s is None else format_s(r.median_s) for r in tied
    ]
    seeds = plural(comparison.n_seeds, "seed")
    return f"Cannot tell {told} with {seeds}: their medians to {target} are {listed(medians)}."


def _n_seeds(result: PolicyResult) -> str:
    return plural(result.n_seeds, "seed")


def _rank(result: PolicyResult) -> tuple[float | None, float]:
    return result.median_s, result.restricted_mean_s
