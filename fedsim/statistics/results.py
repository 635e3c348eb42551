"""What a comparison found: facts only; computed in `comparison.py`, worded in `sentences.py`."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.statistics.speed_up import SpeedUp


@dataclass(frozen=True)
class PolicyResult:
    """One policy at one target, `[seed]` in the order of the comparison's seeds.

    reached_s: sustained time to accuracy, None where censored. first_s: first crossing. followed_s: how long the run
    was followed. median_s: Kaplan-Meier median of reached_s. restricted_s: min(time, horizon_s), horizon_s being how
    long every run of the comparison is known (infinite if none is censored). speed_up: over the comparison's
    reference; None for the reference itself.
    """

    label: str
    reached_s: tuple[float | None, ...]
    first_s: tuple[float | None, ...]
    followed_s: tuple[float, ...]
    median_s: float | None
    restricted_s: tuple[float, ...]
    horizon_s: float
    speed_up: SpeedUp | None = None

    @property
    def n_seeds(self) -> int:
        return len(self.reached_s)

    @property
    def n_reached(self) -> int:
        """Seeds under which the target was reached and sustained."""
        return sum(time_s is not None for time_s in self.reached_s)

    @property
    def reached_share(self) -> float:
        return self.n_reached / self.n_seeds

    @property
    def reached_always(self) -> bool:
        return self.n_reached == self.n_seeds

    @property
    def restricted_mean_s(self) -> float:
        """Mean of min(time, horizon_s), seconds."""
        return sum(self.restricted_s) / len(self.restricted_s)

    @property
    def censored_s(self) -> float | None:
        """The shortest follow-up of a censored run, seconds; None if every seed reached the target."""
        pairs = zip(self.reached_s, self.followed_s, strict=True)
        return min((followed for reached, followed in pairs if reached is None), default=None)


@dataclass(frozen=True)
class Comparison:
    """All policies at one target accuracy, best first.

    seeds: those that every policy has run; only they count. reference: the label that speed-ups refer to.
    lead: of the first over the second, if there are two. contenders: labels of the policies that may be the best. sentence: what may be claimed, in words.
    places: first and last place that each policy may have, in the order of results. ties: neighbours that are not told
    apart, labels, two or more at a time; see `ranking`. ranking: what the seeds do not allow to say of places, in words.
    """

    target: float
    seeds: tuple[int, ...]
    results: tuple[PolicyResult, ...]
    reference: str | None
    contenders: tuple[str, ...]
    sentence: str
    places: tuple[tuple[int, int], ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    ranking: str = ""
    lead: SpeedUp | None = None

    @property
    def n_seeds(self) -> int:
        return len(self.seeds)

    def place(self, label: str) -> tuple[int, int] | None:
        """The first and the last place that a policy may have; None if it was not compared."""
        return next(
            (place for result, place in zip(self.results, self.places, strict=True) if result.label == label), None
        )

    def of(self, label: str) -> PolicyResult | None:
        """The result of one policy; None if it was not compared."""
        return next((result for result in self.results if result.label == label), None)
