"""Scenarios that the planner may start from: those whose runs lie in a folder, or one that is built in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BUILT_IN: dict[str, Any] = {
    "name": "example",
    "fleet": {
        "n_devices": 50,
        "compute": {
            "step_s": 1.0,
            "device_factor": {"kind": "lognormal", "sigma": 0.5},
            "task_factor": {"kind": "exponential"},
        },
        "uplink": {"rate_bits_per_s": 2e6, "latency_s": 0.05},
        "downlink": {"rate_bits_per_s": 10e6, "latency_s": 0.05},
    },
    "data": {"kind": "digits"},
    "model": {"kind": "mlp", "widths": [64, 64, 64]},
    "training": {"batches": "with_replacement"},
    "policies": [
        {"kind": "fedavg"},
        {"kind": "drop_stragglers", "deadline_s": 8.0},
        {"kind": "k_sync", "k": 25},
        {"kind": "stsyn", "k": 25},
        {"kind": "salf", "deadline_s": 1.0},
        {"kind": "fedpmt", "budget_s": 5.0},
    ],
    "seeds": [1],
    "stop": {"n_rounds": 200},
    "train": False,
}
"""The fleet of scenarios/quickstart.yaml with milder luck, for the clock alone."""


def scenarios_in(folder: Path) -> dict[str, dict[str, Any]]:
    """Scenarios of finished runs, by name: the folder's own, or those of the folders in it.

    A manifest that cannot be read is passed over; the other pages name it.
    """
    found: dict[str, dict[str, Any]] = {}
    for own in (folder, *sorted(each for each in folder.glob("*") if each.is_dir())):
        values = next(filter(None, map(_scenario_of, sorted(own.glob("*/seed-*/manifest.json")))), None)
        if values is not None:
            found.setdefault(str(values["name"]), values)
    return found


def _scenario_of(manifest: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(manifest.read_text(encoding="utf-8"))["scenario"]
        return dict(values) if values["name"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
