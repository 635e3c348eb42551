"""Playing small scenarios in this process: the tables that they leave, and the weights that they learn."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fedsim import from_dict
from fedsim.records import RunBook
from fedsim.run import World, simulate
from fedsim.timing.server import SimServer


def tables(values):
    """The tables of the scenario's first policy under its first seed, as data frames by name."""
    loaded = from_dict(values)
    result = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])
    assert result.manifest["outcome"]["kind"] == "finished", result.manifest["outcome"]
    return {name: pd.DataFrame(columns) for name, columns in result.tables.items()}


def learned(values, policy=None, wrapped=lambda learner: learner):
    """The global model after the scenario's rounds, one float64 vector; with its loss on the test rows at the end.

    policy: in place of the scenario's first. wrapped: puts something between the clock and the learner.
    """
    loaded = from_dict(values)
    contender, seeds = loaded.contenders[0], loaded.scenario.seed_sets[0]
    world = World.of(loaded, seeds).planned_for(contender)
    learner = world.learner(loaded, contender, seeds)
    door = wrapped(learner)
    book = RunBook(learner=door, grid=None, n_rounds=loaded.scenario.stop.n_rounds)
    over = SimServer(world.weather, door, book).play(policy or contender.policy)
    assert over.kind == "finished", over
    flat = np.concatenate([weights.numpy().astype(np.float64).ravel() for weights in learner.weights])
    return flat, learner.evaluate().loss
