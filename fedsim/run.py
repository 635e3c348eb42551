"""The main path: one policy under one seed; scenario -> clock + learner + policy -> records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import IO, Any, get_args

import numpy as np

from fedsim import expectations
from fedsim.evaluations import Grid
from fedsim.facts import AggregateRequest, Array, BadInput, BatchPlan, ModelShape, Wanted
from fedsim.manifest import of_final, of_learner, of_run
from fedsim.protocols import CanLookAhead, HasFlatWeights, Learner, NoClosedForm
from fedsim.real_time import TimedLearner
from fedsim.records import Progress, RunBook
from fedsim.scenario.contenders import Contender
from fedsim.scenario.read import LoadedScenario
from fedsim.scenario.schema import SeedSet
from fedsim.speed_classes import SpeedClasses
from fedsim.timing.ahead import requests_ahead
from fedsim.timing.foresight import Foresight
from fedsim.timing.server import SimServer
from fedsim.timing.untrained import Untrained
from fedsim.timing.weather import Weather
from fedsim.training import shape_cache
from fedsim.training.batches import plan_of
from fedsim.training.dealing import Dealt, deal_out, with_subset_first


@dataclass(frozen=True)
class RunResult:
    """A run's tables as columns by name, its manifest, and its closed forms (docs/reference/run-folder.md)."""

    tables: dict[str, dict[str, Any]]
    manifest: dict[str, Any]
    expected: list[dict[str, Any]]


def simulate(
    loaded: LoadedScenario,
    contender: Contender,
    seeds: SeedSet,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    journal: IO[str] | None = None,
) -> RunResult:
    """Play one policy's story to its end. Raises ScenarioError on bad input."""
    scenario, began = loaded.scenario, perf_counter()
    with located(loaded, contender):
        world = World.of(loaded, seeds).planned_for(contender)
        world.refuse_problems(contender, train=scenario.train)
        trainer = world.learner(loaded, contender, seeds)
    closed_forms = world.closed_forms(loaded, contender, trainer)
    ready = perf_counter()
    if isinstance(trainer, CanLookAhead):
        trainer.ahead = world.ahead(loaded, contender)
    learner = TimedLearner(trainer)
    label_shares = world.label_shares() if scenario.train else None
    book = RunBook(
        learner=learner,
        grid=_grid(loaded, n_rows=len(world.dealt.data.test_labels)),
        horizon_s=scenario.stop.simulated_s or np.inf,
        n_rounds=scenario.stop.n_rounds,
        at_targets=scenario.stop.at_targets,
        record_tasks=scenario.record_tasks,
        record_updates=scenario.record_updates,
        on_progress=on_progress,
        journal=journal,
        speed=world.speed,
        label_shares=label_shares,
    )
    wanted: frozenset[Wanted] = frozenset({"update_norm", "update_distance"} if scenario.record_updates else ())
    server = SimServer(
        world.weather,
        learner,
        book,
        horizon_s=book.horizon_s,
        wanted=wanted,
        with_milestones=scenario.record_tasks,
    )
    over = server.play(contender.policy)
    final, tables = book.final(), book.tables()
    if scenario.record_tasks:
        tables["devices"] = world.devices()
    real_s = {"setup": ready - began, "total": perf_counter() - ready}
    manifest = of_run(loaded, contender, seeds) | {
        "sustain_s": sustain_s(loaded),
        "outcome": {"kind": over.kind, "reason": over.reason, "round": book.n_closed, "simulated_s": server.now_s},
        "final": of_final(final),
        "layers": world.layers(),
        "speed_classes": world.speed_classes(label_shares),
        "real_s": real_s | {"training": learner.training_s, "evaluation": learner.evaluation_s},
    }
    return RunResult(tables, manifest | of_learner(learner), closed_forms)


@dataclass(frozen=True)
class World:
    """What a policy finds: the data dealt out, the model's shape, the fleet's weather."""

    dealt: Dealt
    shape: ModelShape
    weather: Weather

    @classmethod
    def of(cls, loaded: LoadedScenario, seeds: SeedSet) -> World:
        """The same for every policy. Raises BadInput for data, partitions and models that do not fit."""
        scenario, settings = loaded.scenario, loaded.scenario.data
        n = scenario.fleet.n_devices
        data = loaded.data.load(None if settings.data_dir is None else Path(settings.data_dir), seeds.of("data"))
        shape = shape_cache.shape_of(scenario.model.kind, scenario.model.parameters, lambda: loaded.model, data)
        # Speeds are needed before the data are dealt out (a partition may tie labels to them): plan one full step.
        full_steps = BatchPlan(np.ones(n, dtype=np.int64), None)
        weather = Weather(scenario.fleet, shape, full_steps, seeds.of("fleet"), seeds.of("clock"))
        dealt = deal_out(
            data,
            settings.partition,
            n,
            seed=seeds.of("data"),
            slowness=weather.unit_s,
            split_file=settings.split_file,
            validation_share=settings.validation_share,
            rows=scenario.evaluation.rows,
        )
        if scenario.evaluation.n_rows is not None:
            dealt = replace(dealt, data=with_subset_first(dealt.data, seeds.of("data")))
        return cls(dealt, shape, weather)

    def planned_for(self, contender: Contender) -> World:
        """With the rows of each local step as this policy's settings have them."""
        plan = plan_of(self.dealt.samples, contender.training.batch_size, contender.training.batches)
        return replace(self, weather=replace(self.weather, plan=plan))

    def refuse_problems(self, contender: Contender, *, train: bool) -> None:
        """Raises BadInput with the first thing that is wrong with the policy on this fleet and model."""
        feedback: frozenset[str] = getattr(contender.policy, "feedback", frozenset())
        if unknown := sorted(feedback - set(get_args(Wanted))):
            known = " or ".join(get_args(Wanted))
            raise BadInput(f"feedback names {unknown[0]!r}, which no learner gives; choose {known}")
        if feedback and not train:
            raise BadInput(
                "asks for feedback from training, but train is false; leave it out of a timing-only scenario"
            )
        for problem in contender.policy.problems(Foresight(self.weather)):
            key = problem.split(" ", 1)[0]
            raise BadInput(problem, at=(key,) if key in contender.parameters else ())

    def ahead(self, loaded: LoadedScenario, contender: Contender) -> Sequence[AggregateRequest]:
        """What the learner will be asked, where neither the policy nor the run's end looks at what was learned."""
        stop = loaded.scenario.stop
        if stop.at_targets or loaded.scenario.record_updates:
            return []
        horizon_s = stop.simulated_s or np.inf
        return requests_ahead(self.weather, contender.policy, horizon_s=horizon_s, n_rounds=stop.n_rounds)

    def learner(self, loaded: LoadedScenario, contender: Contender, seeds: SeedSet) -> Learner:
        if not loaded.scenario.train:
            return Untrained(self.shape)
        from fedsim.training import build  # torch: a timing-only run must not pay for it

        chain = build.chain_of(loaded.model, self.dealt.data, init_seed=seeds.of("init"))
        if loaded.scenario.evaluation.targets and not chain.loss.has_classes:
            raise BadInput(
                f"targets are accuracies, but the model {loaded.scenario.model.kind} has no classes and so none; "
                f"leave targets out and stop by simulated_s or n_rounds",
                at=("evaluation", "targets"),
            )
        return build.learner_of(
            chain,
            self.shape,
            self.dealt,
            self.weather.plan,
            contender.training,
            contender.server_optimizer,
            data_seed=seeds.of("data"),
            initial_weights=loaded.scenario.model.initial_weights,
            model=loaded.model,
        )

    def closed_forms(self, loaded: LoadedScenario, contender: Contender, trainer: Learner) -> list[dict[str, Any]]:
        """What expected.json holds."""
        found = expectations.as_json(expectations.expected(contender, self.weather))
        if not isinstance(trainer, HasFlatWeights):
            return found
        stop = loaded.scenario.stop
        try:
            problem = expectations.problem_of(contender, self.dealt, *trainer.flat_weights())
        except NoClosedForm as reason:
            return [*found, {"quantity": "loss", "unit": "1", "no_closed_form": str(reason)}]
        horizon_s = stop.simulated_s or np.inf
        return [*found, expectations.losses(contender, self.weather, problem, stop.n_rounds, horizon_s)]

    @cached_property
    def speed(self) -> SpeedClasses:
        """The same for every policy: by the seconds of a step over equally many rows, whatever batches a policy has."""
        one_row = BatchPlan(np.ones(self.weather.fleet.n_devices, dtype=np.int64), None)
        return SpeedClasses.of(replace(self.weather, plan=one_row).unit_s)

    def label_shares(self) -> Array | None:
        """Label mixes of the speed classes, `[class, label]`; None where there is but one class."""
        if len(self.speed) < 2:
            return None
        return self.speed.label_shares(self.dealt.samples, self.dealt.data.train_labels, self.dealt.data.n_classes)

    def devices(self) -> dict[str, Any]:
        """The table of that name."""
        columns = {"device": np.arange(self.weather.fleet.n_devices), "unit_s": self.weather.unit_s}
        return columns | {"speed_class": self.speed.of_device, "n_samples": self.weather.plan.n_samples}

    def speed_classes(self, label_shares: Array | None) -> list[dict[str, Any]]:
        n_devices, n_samples = self.speed.n_devices, self.speed.sums(self.weather.plan.n_samples)
        columns: dict[str, list[Any]] = {
            "name": list(self.speed.names),
            "unit_s": (self.speed.sums(self.weather.unit_s) / n_devices).tolist(),
            "n_devices": n_devices.tolist(),
            "samples_share": (n_samples / n_samples.sum()).tolist(),
            "label_share": [None] * len(self.speed) if label_shares is None else label_shares.tolist(),
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def layers(self) -> list[dict[str, Any]]:
        columns = zip(self.shape.layer_names, self.shape.n_parameters, self.shape.parameter_bytes, strict=True)
        return [{"name": name, "n_parameters": int(n), "parameter_bytes": int(b)} for name, n, b in columns]


def check(
    loaded: LoadedScenario, contenders: Sequence[Contender] | None = None, seed_sets: Sequence[SeedSet] | None = None
) -> None:
    """Refuse what can be refused before the first event: data, partition, model, and what each policy says.

    contenders, seed_sets: those of the scenario if left out. Raises ScenarioError.
    """
    contenders = loaded.contenders if contenders is None else contenders
    for n, seeds in enumerate(loaded.scenario.seed_sets if seed_sets is None else seed_sets):
        with located(loaded, contenders[0]):
            world = World.of(loaded, seeds)
        for contender in contenders:
            with located(loaded, contender):
                planned = world.planned_for(contender)
                planned.refuse_problems(contender, train=loaded.scenario.train)
                if n == 0:
                    planned.learner(loaded, contender, seeds)


@contextmanager
def located(loaded: LoadedScenario, contender: Contender) -> Iterator[None]:
    """Bad input that names no place in the scenario, or a parameter, belongs to the policy's entry."""
    try:
        yield
    except BadInput as problem:
        top = problem.at[0] if problem.at else None
        in_entry = top not in type(loaded.scenario).model_fields
        at = ("policies", loaded.contenders.index(contender), *problem.at) if in_entry else problem.at
        raise loaded.error(BadInput(str(problem), at)) from None


def sustain_s(loaded: LoadedScenario) -> float | None:
    """How long a target must be held: as stated, or 5 % of the horizon; None if there is neither."""
    stated, horizon_s = loaded.scenario.evaluation.sustain_s, loaded.scenario.stop.simulated_s
    return stated if stated is not None or horizon_s is None else 0.05 * horizon_s


def _grid(loaded: LoadedScenario, n_rows: int) -> Grid | None:
    """n_rows: how many evaluation rows there are."""
    settings, step_s = loaded.scenario.evaluation, loaded.scenario.grid_step_s
    if not loaded.scenario.train:
        return None
    # A subset that holds every row is no subset: then the last evaluation is also the final one.
    subset = None if settings.n_rows is None or settings.n_rows >= n_rows else settings.n_rows
    return Grid(step_s, subset, settings.targets, sustain_s(loaded) or 0.0, settings.every_n_rounds)
