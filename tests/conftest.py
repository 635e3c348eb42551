"""What the tests share: Hypothesis tries the same examples every time, and one scenario that runs in a blink."""

from __future__ import annotations

import copy
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch

import pytest
from hypothesis import settings

# Every seed is written down; a slow moment of a shared machine is no failure.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.load_profile("fixed")

TINY = {
    "name": "tiny",
    "fleet": {"n_devices": 5, "compute": {"step_s": 1.0}},
    "data": {"kind": "gaussian_blobs", "n_samples": 100, "n_features": 4, "n_classes": 3},
    "model": {"kind": "mlp", "widths": [6, 5, 4]},
    "training": {"local_steps": 2, "batch_size": 8},
    "policies": [{"kind": "fedavg"}],
    "evaluation": {"every_s": 2.0},
    "stop": {"n_rounds": 3},
}


@pytest.fixture(scope="session")
def tiny():
    """A function that gives a scenario as `fedsim.from_dict` reads it: five devices, four layers, three rounds.

    Its arguments replace whole sections. Five devices hold 16 of 80 training rows each: two even batches an epoch.
    """

    def scenario(**changes):
        return copy.deepcopy({**TINY, **changes})

    return scenario
