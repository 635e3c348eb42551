"""Expected loss at a moment of the clock: how wrong is "after t / E[T] rounds", and on which level does luck decide?

    python analysis/loss_on_the_clock.py [--n-seeds 60] [--figure loss_on_the_clock.html]

1. The shortcut reads the expected loss over rounds at t / E[T], with a straight line between two rounds. Beside it stands
   the exact expectation at time t: for FedAvg and K-sync, whose training does not depend on how long rounds take, from
   the laws of the sums of round times (`quadratic_clock`); for STSyn, whose short rounds are short on steps too, from a
   renewal equation (`quadratic_stsyn`); for fixed deadlines the curve over rounds itself, as a staircase.
2. A step of a device takes 1 s on average, with the same law, drawn anew for each step, or once for each task, or once for
   each device and for good. FedAvg, STSyn and SALF train least squares with Hessians and optima of the devices' own; each
   seed has a problem, a fleet and luck of its own. Where the expectation given problem and fleet is known exactly, it
   stands beside the simulated mean.

Losses are excesses over the least loss. Takes about six minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from scipy import stats

import fedsim
from fedsim.dashboard.palette import HUES
from fedsim.delays import Exponential, Lognormal, Pareto
from fedsim.expectations import fleet_of, problem_of
from fedsim.facts import Array
from fedsim.protocols import Law, Learner, NoClosedForm
from fedsim.run import World
from fedsim.scenario.contenders import Contender
from fedsim.scenario.read import LoadedScenario
from fedsim.scenario.schema import SeedSet
from fedsim.theory import learning, quadratic_rounds, quadratic_stsyn
from fedsim.theory.counts import waiting
from fedsim.theory.quadratic import Curve, Quadratic
from fedsim.theory.quadratic_clock import at_fixed_rounds, at_time
from fedsim.theory.steps import times_of
from fedsim.theory.times import RandomTime, certain
from fedsim.timing.book import ClosedJobs, ClosedRound
from fedsim.timing.server import SimServer

# ---- 1. the shortcut ------------------------------------------------------------------------------------------------

N_SHOWN = 40  # rounds
N_COMPUTED = 400  # by then hardly any run of so many mean rounds goes on
LOOKED_AT = (2.5, 10.5, 30.5)  # rounds; the middle of a round of fixed length
MEMORYLESS = Exponential(1.0)


@dataclass(frozen=True)
class Case:
    """A policy on the clock. exact: expected losses at instants, seconds. curve: after rounds."""

    name: str
    problem: Quadratic
    curve: Curve
    round: RandomTime
    exact: Callable[[Array], Array]


@dataclass(frozen=True)
class Found:
    """Excess losses at `rounds`, times in mean rounds. ended: rounds that have ended by then, on average."""

    case: Case
    rounds: Array
    exact: Array
    shortcut: Array
    ended: Array

    @property
    def error(self) -> Array:
        """Of the shortcut, as a share of the exact excess."""
        return self.shortcut / self.exact - 1

    @property
    def lag(self) -> Array:
        """Rounds until the exact expectation is where the shortcut says it is already."""
        return np.interp(-self.shortcut, -self.exact, self.rounds) - self.rounds

    def typical(self, error: Array) -> float:
        """Median of the absolute error until 98 % of the way from the start to the limit is done."""
        limit = self.case.curve.round.steady().loss - least_loss(self.case.problem)
        return float(np.median(np.abs(error[self.exact - limit > 0.02 * (self.exact[0] - limit)])))

    @property
    def later(self) -> Array:
        """Error of the shortcut that starts half a round later."""
        return np.interp(self.rounds - 0.5, self.rounds, self.shortcut) / self.exact - 1


def least_squares(n_devices: int) -> Quadratic:
    """One Hessian, eigenvalues 1 to 1/10; optima of the devices' own, gradient noise; seven parameters in three layers."""
    rng = np.random.default_rng(1)
    axes, _ = np.linalg.qr(rng.standard_normal((7, 7)))
    optima = 0.5 * rng.standard_normal((n_devices, 7))
    hessian = axes @ np.diag(np.geomspace(1.0, 0.1, 7)) @ axes.T
    layers = np.array([0, 0, 0, 1, 1, 2, 2])
    optima -= optima.mean(axis=0)
    return Quadratic.of(n_devices, hessian, start=np.ones(7), rate=0.2, optimum=optima, noise=0.02, layer_of=layers)


def least_loss(problem: Quadratic) -> float:
    return float(problem.loss(problem.minimiser))


def waiting_case(
    name: str, n_devices: int, k: int, local_steps: int, step_s: Law | float = 1.0, task_factor: Law | None = None
) -> Case:
    """The server waits for the k fastest of n_devices to do `local_steps`; the others are cancelled."""
    times = times_of(n_devices, step_s, task_factor)
    round_s = waiting(k, times.n_in_group, lambda t: times.survival(local_steps, t), times.kinks_s(local_steps))
    problem = least_squares(n_devices)
    curve = quadratic_rounds.fedavg(problem, N_COMPUTED, local_steps, n_sampled=k)
    return Case(name, problem, curve, round_s, lambda t_s: at_time(curve.loss, round_s.cdf, t_s).loss)


def stsyn_case(name: str, n_devices: int, k: int) -> Case:
    problem = least_squares(n_devices)
    curve = quadratic_stsyn.stsyn(problem, N_COMPUTED, k, 5, MEMORYLESS)
    round_s = RandomTime(quadratic_stsyn.StsynRound(problem, k, 5).survival)
    return Case(
        name, problem, curve, round_s, lambda t_s: quadratic_stsyn.stsyn_at(problem, t_s, k, 5, MEMORYLESS).loss
    )


def salf_case(name: str, n_devices: int) -> Case:
    """Rounds of 1 s; a device reaches the layers, from the input, with these probabilities."""
    problem = least_squares(n_devices)
    curve = quadratic_rounds.salf(problem, N_COMPUTED, np.array([0.4, 0.6, 0.8]))
    return Case(name, problem, curve, certain(1.0), lambda t_s: at_fixed_rounds(curve.loss, 1.0, t_s))


def cases() -> Iterator[Case]:
    for m in (2, 16, 256):
        yield waiting_case(f"FedAvg, {m} devices, luck per step", m, m, 5, MEMORYLESS)
    for m in (2, 16):
        yield waiting_case(f"FedAvg, {m} devices, luck per task", m, m, 5, task_factor=MEMORYLESS)
    yield waiting_case("FedAvg, 16 devices, Pareto tasks", 16, 16, 5, task_factor=Pareto(shape=2.2, minimum=0.5))
    for k in (1, 8, 16):
        yield waiting_case(f"K-sync, {k} of 16", 16, k, 1, MEMORYLESS)
    for k, m in ((1, 2), (1, 16), (8, 16), (16, 16), (128, 256)):
        yield stsyn_case(f"STSyn, {k} of {m}", m, k)
    yield salf_case("SALF, 16 devices, fixed deadline", 16)


def measured(case: Case) -> Found:
    # Also just before whole rounds: a staircase must not look like a ramp.
    grid = np.arange(0, N_SHOWN + 1e-9, 0.05)
    rounds = np.unique(np.concatenate([grid, np.arange(1, N_SHOWN + 1) - 1e-6]))
    at_s, least, number = rounds * case.round.mean_s, least_loss(case.problem), np.arange(N_COMPUTED + 1.0)
    is_fixed = case.round.variance_s2 == 0
    ended = at_fixed_rounds(number, 1.0, rounds) if is_fixed else at_time(number, case.round.cdf, at_s).loss
    shortcut = np.interp(rounds, number, case.curve.loss) - least
    return Found(case, rounds, case.exact(at_s) - least, shortcut, ended)


def print_shortcut(results: list[Found]) -> None:
    instants = " ".join(f"{t:>6.1f}" for t in LOOKED_AT)
    print("1. The shortcut: expected excess loss read off at t / E[T] rounds, against the exact one at t\n")
    print(
        f"{'':<34}{'':>6} {'error, %':>8} {'':>7} {'':>7}  {'error, %, at rounds':^20}  {'lag, rounds, at rounds':^20}"
    )
    print(
        f"{'':<34}{'CV[T]':>6} {'lowest':>8} {'highest':>7} {'typical':>7}  {instants}  {instants} {'N - n':>6} {'later':>6}"
    )
    for one in results:
        at = np.searchsorted(one.rounds, np.array(LOOKED_AT) - 1e-9)
        error, lag = 100 * one.error, one.lag[at]
        print(
            f"{one.case.name:<34}{one.case.round.sd_s / one.case.round.mean_s:>6.3f} {error.min():>8.1f} {round(error.max(), 1) + 0.0:>7.1f} "
            f"{one.typical(error):>7.1f}  {' '.join(f'{e:>6.1f}' for e in error[at])}  "
            f"{' '.join(f'{r:>6.2f}' for r in lag)} {(one.ended - one.rounds)[at[1]]:>6.2f} {one.typical(100 * one.later):>6.1f}"
        )
    print(
        "\nerror: shortcut / exact - 1; below 0 the shortcut is too hopeful. typical: median of its size until 98 % of the\n"
        "way to the limit is done. lag: how many mean rounds later the exact expectation is where the shortcut puts it.\n"
        f"N - n: rounds ended on average at {LOOKED_AT[1]} mean rounds, less {LOOKED_AT[1]}. later: typical error if the curve is read half a\n"
        "round later, at t / E[T] - 1/2. FedAvg and STSyn: 5 local steps; K-sync: 1."
    )


# ---- 2. the level of luck -------------------------------------------------------------------------------------------

LEVELS = {"step": "per step", "task": "per task", "device": "per device"}
N_DEVICES = 10
LAW = Lognormal(sigma=float(np.sqrt(np.log(2))), median=float(np.sqrt(0.5)))  # mean 1, standard deviation 1
BUDGETS_S = (10.0, 40.0, 150.0)
TARGETS = (0.2, 0.05)
HOLD_S = 7.5
N_PLAYED = 200  # rounds; SALF has 150 of them
FIRST_SEED = 101


def scenario(level: str, n_seeds: int) -> LoadedScenario:
    return fedsim.from_dict(
        {
            "name": f"luck-per-{level}",
            "fleet": {
                "n_devices": N_DEVICES,
                "compute": {
                    "step_s": 1.0,
                    f"{level}_factor": {"kind": "lognormal", "sigma": LAW.sigma, "median": LAW.median},
                },
            },
            "data": {"kind": "quadratic", "n_groups": N_DEVICES, "partition": {"kind": "one_class"}},
            "model": {"kind": "quadratic", "layer_sizes": [3, 2, 2]},
            "training": {
                "local_steps": 5,
                "learning_rate": 0.2,
                "batch_size": 4,
                "batches": "with_replacement",
                "dtype": "float64",
            },
            "policies": [
                {"kind": "fedavg", "label": "FedAvg"},
                {"kind": "stsyn", "label": "STSyn", "k": N_DEVICES // 2},
                {"kind": "salf", "label": "SALF", "deadline_s": 1.0, "wait_out": True},
            ],
            "seeds": list(range(FIRST_SEED, FIRST_SEED + n_seeds)),
            "stop": {"simulated_s": BUDGETS_S[-1] + HOLD_S},
        }
    )


@dataclass
class EveryRound:
    """Loss after each round, up to the horizon; implements `fedsim.timing.book.Book`."""

    learner: Learner
    horizon_s: float
    ends_s: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def before_change(self, now_s: float) -> None: ...

    def jobs_closed(self, jobs: ClosedJobs) -> None: ...

    def round_closed(self, closed: ClosedRound) -> str | None:
        self.add(closed.end_s)
        return "long enough" if closed.end_s > self.horizon_s else None

    def add(self, end_s: float) -> None:
        evaluation = self.learner.evaluate()
        assert evaluation is not None  # a learner that trains evaluates
        self.ends_s.append(end_s)
        self.losses.append(evaluation.loss)


@dataclass(frozen=True)
class Played:
    """One run: excess at each budget and seconds to each target, infinite if not reached; exact: the expected excess.

    Excesses are shares of the one at the start.
    """

    at_budget: Array
    to_target_s: Array
    exact: Array | None


def played(loaded: LoadedScenario, contender: Contender, seeds: SeedSet) -> Played:
    world = World.of(loaded, seeds).planned_for(contender)
    learner = world.learner(loaded, contender, seeds)
    problem = problem_of(contender, world.dealt, *learner.flat_weights())  # type: ignore[attr-defined]
    least = least_loss(problem)
    at_start = float(problem.loss(problem.start)) - least
    try:
        fleet = fleet_of(world.weather)
        curve = learning.after_rounds(contender.kind, contender.policy, fleet, problem, N_PLAYED)
        losses = learning.at_times(contender.kind, contender.policy, fleet, problem, curve.loss, np.array(BUDGETS_S))
        exact = (losses - least) / at_start
    except NoClosedForm:
        exact = None
    book = EveryRound(learner, BUDGETS_S[-1] + HOLD_S)
    book.add(0.0)
    SimServer(world.weather, learner, book).play(contender.policy)
    ends_s, excess = np.array(book.ends_s), (np.array(book.losses) - least) / at_start
    at_budget = excess[np.searchsorted(ends_s, BUDGETS_S, side="right") - 1]
    return Played(at_budget, np.array([reached_s(ends_s, excess, target) for target in TARGETS]), exact)


def reached_s(ends_s: Array, excess: Array, target: float) -> float:
    """The end of the first round from which on the excess stays at most `target` for HOLD_S; infinite if there is none."""
    is_above = excess > target
    next_above_s = np.minimum.accumulate(np.where(is_above, ends_s, np.inf)[::-1])[::-1]
    held = ends_s[(next_above_s - ends_s >= HOLD_S) & ~is_above & (ends_s <= BUDGETS_S[-1])]
    return float(held[0]) if len(held) else np.inf


@dataclass(frozen=True)
class Level:
    """All runs with luck on one level, by policy; runs of one position share their seed."""

    name: str
    runs: dict[str, list[Played]]

    def columns(self, policy: str) -> Array:
        """Excess at each budget, then seconds to each target, at most the last budget, `[seed, measure]`."""
        rows = [np.append(run.at_budget, np.minimum(run.to_target_s, BUDGETS_S[-1])) for run in self.runs[policy]]
        return np.array(rows)

    def ranking(self, measure: int) -> str:
        """Best first; "<" where the paired differences settle the order, "~" where they do not."""
        values = {policy: self.columns(policy)[:, measure] for policy in self.runs}
        order = sorted(values, key=lambda policy: float(values[policy].mean()))
        first, second, last = order
        signs = ["<" if is_settled(values[a] - values[b]) else "~" for a, b in pairwise(order)]
        found = f"{first} {signs[0]} {second} {signs[1]} {last}"
        # Neighbours may be too close to tell apart where the first and the last are not.
        is_wide = signs == ["~", "~"] and is_settled(values[first] - values[last])
        return f"{found}, {first} < {last}" if is_wide else found


MEASURES = (*(f"excess at {t:g} s" for t in BUDGETS_S), *(f"seconds to {target:.0%}" for target in TARGETS))
N_COMPARISONS = 3 * len(LEVELS) * len(MEASURES)  # three pairs of policies


def critical(n: int) -> float:
    """Standard errors that one of N_COMPARISONS paired means exceeds by chance in 5 % of all studies at most."""
    return float(stats.t.isf(0.025 / N_COMPARISONS, n - 1))


def is_settled(differences: Array) -> bool:
    return bool(abs(differences.mean()) > critical(len(differences)) * standard_error(differences))


def standard_error(values: Array) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def level_of(name: str, n_seeds: int) -> Level:
    loaded = scenario(name, n_seeds)
    runs = {c.label: [played(loaded, c, seeds) for seeds in loaded.scenario.seed_sets] for c in loaded.contenders}
    return Level(LEVELS[name], runs)


def print_levels(levels: list[Level]) -> None:
    n = len(next(iter(levels[0].runs.values())))
    print(f"\n\n2. Luck per step, task or device: {N_DEVICES} unlike devices, {n} seeds, mean (standard error)\n")
    print(f"{'luck':<11}{'policy':<8}" + "".join(f"{measure:>19}" for measure in MEASURES) + "   not reached")
    for level in levels:
        for policy, runs in level.runs.items():
            columns = level.columns(policy)
            cells = [f"{v.mean():.3f} ({standard_error(v):.3f})" for v in columns.T[: len(BUDGETS_S)]]
            cells += [f"{v.mean():.1f} ({standard_error(v):.1f})" for v in columns.T[len(BUDGETS_S) :]]
            missed = np.isinf([run.to_target_s for run in runs]).sum(axis=0)
            print(
                f"{level.name:<11}{policy:<8}"
                + "".join(f"{c:>19}" for c in cells)
                + "   "
                + ", ".join(map(str, missed))
            )
            if runs[0].exact is not None:
                exact = np.array([run.exact for run in runs])
                apart = columns[:, : len(BUDGETS_S)] - exact
                cells = [
                    f"{e.mean():.3f} [{a.mean() / standard_error(a):+.1f}]"
                    for e, a in zip(exact.T, apart.T, strict=True)
                ]
                print(f"{'':<11}{'':<8}" + "".join(f"{c:>19}" for c in cells))
    print(f"\n{'ranking, best first':<20}" + "".join(f"{level.name:<42}" for level in levels))
    for i, measure in enumerate(MEASURES):
        print(f"{measure:<20}" + "".join(f"{level.ranking(i):<42}" for level in levels))
    print(
        "\nexcess: loss less the least loss, as a share of that at the start. seconds to: until the excess is at most so much\n"
        f"for {HOLD_S:g} s; a run that is not there by {BUDGETS_S[-1]:g} s counts as {BUDGETS_S[-1]:g} s (not reached: how many, for each target).\n"
        "Below: the exact expectation given each seed's problem and fleet, where it is known, and in brackets how many standard\n"
        f"errors the simulated mean lies above it. '<' is settled: paired by seed, more than {critical(n):.2f} standard errors, which keeps\n"
        f"{N_COMPARISONS} comparisons together at 5 %. '~' is not."
    )


# ---- figure ---------------------------------------------------------------------------------------------------------

DRAWN = {
    "FedAvg, 16 devices, luck per step": "FedAvg 16, per step",
    "FedAvg, 2 devices, luck per task": "FedAvg 2, per task",
    "FedAvg, 16 devices, Pareto tasks": "FedAvg 16, Pareto tasks",
    "K-sync, 1 of 16": "K-sync 1 of 16",
    "STSyn, 8 of 16": "STSyn 8 of 16",
}
PANEL_BUDGETS = (1, 2)


def figure(results: list[Found], levels: list[Level]) -> go.Figure:
    titles = ["Error of reading at t / E[T]", *(f"Excess loss after {BUDGETS_S[i]:g} s" for i in PANEL_BUDGETS)]
    drawn = make_subplots(cols=3, column_widths=[0.46, 0.27, 0.27], subplot_titles=titles, horizontal_spacing=0.085)
    by_name = {one.case.name: one for one in results}
    for (name, short), hue, dash in zip(
        DRAWN.items(), HUES, ("solid", "dash", "dot", "dashdot", "longdash"), strict=False
    ):
        one, line = by_name[name], {"color": hue, "dash": dash, "width": 2}
        drawn.add_scatter(x=one.rounds, y=one.error, name=short, line=line, mode="lines", row=1, col=1)
    looks = zip(levels[0].runs, HUES, ("circle", "square", "diamond"), (-0.08, 0.0, 0.08), strict=False)
    for policy, hue, symbol, aside in looks:
        for col, i in enumerate(PANEL_BUDGETS, start=2):
            values = [level.columns(policy)[:, i] for level in levels]
            drawn.add_scatter(
                x=np.arange(len(levels)) + aside,
                y=[v.mean() for v in values],
                error_y={"array": [2 * standard_error(v) for v in values], "thickness": 1.5},
                mode="lines+markers",
                marker={"symbol": symbol, "size": 9, "color": hue},
                line={"color": hue},
                name=policy,
                legend="legend2",
                showlegend=col == 2,
                row=1,
                col=col,
            )
    drawn.update_xaxes(title="time (mean rounds)", col=1)
    drawn.update_yaxes(title="error, share of the exact excess loss", tickformat=".0%", range=[-0.62, 0.02], col=1)
    shares = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
    for col in (2, 3):
        ticks = {"tickvals": list(range(len(levels))), "ticktext": [level.name for level in levels]}
        drawn.update_xaxes(title="a step's duration is drawn", range=[-0.3, len(levels) - 0.7], col=col, **ticks)
        drawn.update_yaxes(type="log", range=np.log10([0.002, 0.5]).tolist(), tickvals=shares, tickformat="~%", col=col)
    drawn.update_yaxes(title="share of the excess at the start", col=2)
    return drawn.update_layout(
        template="simple_white",
        font={"size": 13},
        width=1100,
        height=520,
        margin={"l": 70, "r": 20, "t": 40, "b": 20},
        legend={"orientation": "h", "yanchor": "top", "y": -0.19, "x": 0.0},
        legend2={"x": 0.79, "y": 1.0, "yanchor": "top"},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--n-seeds", type=int, default=60)
    parser.add_argument("--figure", type=Path, help="HTML file to write the figure to")
    arguments = parser.parse_args()
    results = [measured(case) for case in cases()]
    print_shortcut(results)
    levels = [level_of(name, arguments.n_seeds) for name in LEVELS]
    print_levels(levels)
    if arguments.figure is not None:
        figure(results, levels).write_html(arguments.figure, config={"staticPlot": True})


if __name__ == "__main__":
    main()
