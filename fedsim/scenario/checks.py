"""What can be wrong with a scenario whose every value is fine by itself.

Only what the scenario alone decides: no policy, model or data set is asked, no file is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedsim.facts import BadInput
from fedsim.scenario.schema import Scenario

MAX_DEVICES = 10_000_000
MAX_EVALUATIONS = 100_000


def problems(scenario: Scenario) -> list[BadInput]:
    """Everything that does not fit together, each at its place."""
    return [*_fleet(scenario), *_seeds(scenario), *_evaluation(scenario), *_targets(scenario)]


def _fleet(scenario: Scenario) -> Iterator[BadInput]:
    n_devices = scenario.fleet.n_devices
    if n_devices > MAX_DEVICES:
        yield BadInput(f"n_devices is {n_devices} but at most {MAX_DEVICES} devices fit", ("fleet", "n_devices"))
    for block in ("compute", "uplink", "downlink"):
        for name, values in vars(getattr(scenario.fleet, block) or _Nothing()).items():
            # Lists with an entry per layer are compared with the model, once there is one.
            if isinstance(values, tuple) and name not in ("layer_s", "block_io_s") and len(values) != n_devices:
                message = (
                    f"{name} lists {len(values)} numbers but the fleet has {n_devices} devices; give one per device"
                )
                yield BadInput(message, ("fleet", block, name))
    stated = scenario.fleet.memory_bytes
    if isinstance(stated, tuple) and len(stated) != n_devices:
        message = f"memory_bytes lists {len(stated)} numbers but the fleet has {n_devices} devices; give one per device"
        yield BadInput(message, ("fleet", "memory_bytes"))


class _Nothing:
    """A block that was left out."""


def _seeds(scenario: Scenario) -> Iterator[BadInput]:
    seen: set[int] = set()
    for i, seeds in enumerate(scenario.seed_sets):
        if seeds.seed in seen:
            yield BadInput(f"seeds[{i}] is {seeds.seed} again; a seed names a run, so give each once", ("seeds", i))
        seen.add(seeds.seed)


def _evaluation(scenario: Scenario) -> Iterator[BadInput]:
    if scenario.record_updates and not scenario.train:
        yield BadInput(
            "record_updates is true but train is false, so nothing is updated; drop one", ("record_updates",)
        )
    wanted, horizon_s, grid_step_s = scenario.evaluation, scenario.stop.simulated_s, scenario.grid_step_s
    if scenario.train and grid_step_s is None and wanted.every_n_rounds is None:
        yield BadInput(
            "every_s is missing; say when to evaluate by evaluation.every_s, or give stop.simulated_s", ("evaluation",)
        )
    for name in ("every_s", "sustain_s"):
        value_s = getattr(wanted, name)
        if value_s is not None and horizon_s is not None and value_s > horizon_s:
            message = f"{name} is {value_s:g} but the run ends at {horizon_s:g} s (stop.simulated_s); make it shorter"
            yield BadInput(message, ("evaluation", name))
    if grid_step_s is not None and horizon_s is not None and horizon_s / grid_step_s > MAX_EVALUATIONS:
        message = f"every_s is {grid_step_s:g}, so {horizon_s:g} s hold more than {MAX_EVALUATIONS} evaluations; make it longer"
        yield BadInput(message, ("evaluation", "every_s"))
    if wanted.rows == "validation" and scenario.data.validation_share == 0:
        message = "rows is 'validation' but no rows are held out; add validation_share: 0.1 under 'data'"
        yield BadInput(message, ("evaluation", "rows"))


def _targets(scenario: Scenario) -> Iterator[BadInput]:
    targets = scenario.evaluation.targets
    for i, target in enumerate(targets):
        if target in targets[:i]:
            at: tuple[Any, ...] = ("evaluation", "targets", i)
            yield BadInput(f"targets[{i}] is {target:g} again; give each target once", at)
    if scenario.stop.at_targets and not targets:
        message = "at_targets needs targets to stop at; add evaluation.targets, for example [0.9]"
        yield BadInput(message, ("stop", "at_targets"))
