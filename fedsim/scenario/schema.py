"""The scenario as it is written: one pydantic model, unknown keys refused.

`policies`, `model` and `data` name a file on an open shelf by `kind`; the other keys beside it are that file's
parameters (see `shelves.py`). Everything else is spelled out here or in the engine that it belongs to.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedsim.delays import Positive
from fedsim.timing.fleet import Fleet
from fedsim.training.partition import AnyPartition, Iid
from fedsim.training.settings import ServerOptimizer, Training

Seed = Annotated[int, Ge(0), Lt(2**63)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class _Entry(BaseModel):
    """A `kind` with its parameters beside it."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)

    kind: str

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class ModelEntry(_Entry):
    """A model from the shelf, or a dotted path to a function of your own that builds one.

    initial_weights: a .npz or .safetensors file with an array per parameter; drawn from the init seed if left out.
    """

    initial_weights: str | None = None


class DataEntry(_Entry):
    """A data set from the shelf and how it is dealt out.

    data_dir: folder that holds it; $FEDSIM_DATA if left out.
    split_file: .npz with index arrays `train` and `test` into the data set's rows (training rows first).
    validation_share: share of the training rows held out, for evaluation.rows: validation.
    """

    data_dir: str | None = None
    partition: AnyPartition = Iid()
    split_file: str | None = None
    validation_share: Annotated[float, Ge(0), Lt(1)] = 0.0


class PolicyEntry(_Entry):
    """A policy from the shelf. label: its name in results, made from its parameters if left out.

    training: settings that this policy overrides.
    """

    label: Annotated[str, MinLen(1)] | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    server_optimizer: ServerOptimizer | None = None


class SeedSet(_Strict):
    """The four seeds of a run; those left out equal `seed`, which also names the run.

    init: initial weights. data: split, partition and batches. fleet: persistent speeds and links. clock: what is drawn
    for each task, step and layer, and which devices are sampled.
    """

    seed: Seed
    init: Seed | None = None
    data: Seed | None = None
    fleet: Seed | None = None
    clock: Seed | None = None

    def of(self, purpose: Literal["init", "data", "fleet", "clock"]) -> int:
        own = getattr(self, purpose)
        return self.seed if own is None else int(own)


class EvaluationSettings(_Strict):
    """When the global model is evaluated: on a grid of simulated time common to all policies, or by rounds.

    every_s: the grid's spacing; stop.simulated_s / n_points if left out.
    n_points: evaluations over the horizon, where neither every_s nor every_n_rounds is stated.
    every_n_rounds: evaluate at 0 and at the end of every so manieth round instead, at times that differ between
    policies; not beside every_s. rows: which rows: "test", or "validation".
    n_rows: evaluate on a fixed subset of so many rows, and on all of them at the end.
    targets: accuracies for time to accuracy. sustain_s: how long a target must be held; 5 % of the horizon if left out.
    """

    every_s: Positive | None = None
    n_points: Annotated[int, Ge(1), Le(100_000)] = 200
    every_n_rounds: Annotated[int, Ge(1)] | None = None
    rows: Literal["test", "validation"] = "test"
    n_rows: Annotated[int, Ge(1)] | None = None
    targets: tuple[Annotated[float, Gt(0), Lt(1)], ...] = ()
    sustain_s: Positive | None = None

    @model_validator(mode="after")
    def _one_cadence(self) -> EvaluationSettings:
        if self.every_s is not None and self.every_n_rounds is not None:
            raise ValueError("evaluate in simulated time or in rounds: keep one of every_s and every_n_rounds")
        return self


class StopRules(_Strict):
    """A run ends at whichever comes first.

    simulated_s: the horizon, simulated seconds. n_rounds: aggregates. at_targets: when every target has been sustained.
    """

    simulated_s: Positive | None = None
    n_rounds: Annotated[int, Ge(1)] | None = None
    at_targets: bool = False

    @model_validator(mode="after")
    def _some_end(self) -> StopRules:
        if self.simulated_s is None and self.n_rounds is None:
            raise ValueError("state when a run ends: simulated_s, n_rounds, or both")
        return self


class Scenario(_Strict):
    """Everything that decides a comparison.

    name: of the folder of results. train: false runs the clock alone: the same data dealt out, the same times, no
    accuracy. record_tasks: keep a row for every job, and the
    moments at which it finished steps and layers (tasks.parquet, milestones.parquet). record_updates: keep the squared norm of every
    device's update, layer by layer, and its squared distance from the aggregate (updates.parquet; doubles the training).
    seeds: runs per policy; a number stands for all four.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    fleet: Fleet
    model: ModelEntry
    data: DataEntry
    policies: Annotated[tuple[PolicyEntry, ...], MinLen(1)]
    stop: StopRules
    training: Training = Training()
    seeds: Annotated[tuple[Seed | SeedSet, ...], MinLen(1)] = (0,)
    evaluation: EvaluationSettings = EvaluationSettings()
    train: bool = True
    record_tasks: bool = True
    record_updates: bool = False

    @property
    def seed_sets(self) -> tuple[SeedSet, ...]:
        return tuple(s if isinstance(s, SeedSet) else SeedSet(seed=s) for s in self.seeds)

    @property
    def grid_step_s(self) -> float | None:
        """Seconds between evaluations; None if nothing fixes them, or if they go by rounds."""
        if self.evaluation.every_s is not None:
            return self.evaluation.every_s
        if self.evaluation.every_n_rounds is not None:
            return None
        return None if self.stop.simulated_s is None else self.stop.simulated_s / self.evaluation.n_points
