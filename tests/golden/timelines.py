"""Timelines of the shipped policies as text: who was sent what when, and what became of it.

One fleet for all: six devices, three speeds, task times that are exponential, links that take 0.2 s down and 0.3 s up for
the whole model (1,008 bytes). Nothing is trained; the clock is all that is looked at.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedsim import from_dict
from fedsim.run import simulate

FOLDER = Path(__file__).parent
POLICIES = {
    "fedavg": {"local_steps": 2, "n_sampled": 3, "over_selected": 1},
    "drop_stragglers": {"local_steps": 2, "deadline_s": 3.0},
    "k_sync": {"k": 3},
    "stsyn": {"k": 2, "local_steps": 2},
    "salf": {"deadline_s": 1.25},
    "fedpmt": {"local_steps": 2, "budget_s": 2.5},
    "fedlama": {"local_steps": 2, "interval_factor": 3, "relaxed": [0, 1], "n_sampled": 4},
    "embracingfl": {"local_steps": 2, "depths": [4, 4, 3, 2, 2, 1], "n_sampled": 4},
    "heterofl": {"local_steps": 2, "rates": [1.0, 1.0, 0.5, 0.5, 0.25, 0.25], "assignment": "dynamic", "n_sampled": 4},
    "feddrop": {"local_steps": 2, "deadline_s": 2.25},
    "fednova": {"budget_s": 3.0},
    "flanp": {"n_first": 2, "local_steps": 2, "stages": [1, 1]},
    "fedasync": {"local_steps": 2, "concurrency": 4},
    "fedbuff": {"local_steps": 2, "buffer_size": 3},
}
N_ROUNDS = {"fedasync": 8}  # of one upload each; else 3
COLUMNS = ("sent_s", "downloaded_s", "computed_s", "arrived_s")


def scenario(kind):
    """Four layers of 72, 72, 72 and 36 parameters; 20 training rows on each device, two even batches of 10."""
    return {
        "name": kind,
        "fleet": {
            "n_devices": 6,
            "compute": {"step_s": [1.0, 1.0, 1.5, 1.5, 2.0, 2.0], "task_factor": {"kind": "exponential", "mean": 1.0}},
            "uplink": {"rate_bits_per_s": 40_320, "latency_s": 0.1},
            "downlink": {"rate_bits_per_s": 80_640, "latency_s": 0.1},
        },
        "data": {"kind": "gaussian_blobs", "n_samples": 150, "n_features": 8, "n_classes": 4},
        "model": {"kind": "mlp", "widths": [8, 8, 8]},
        "training": {"batch_size": 10},
        "policies": [{"kind": kind, **POLICIES[kind]}],
        "seeds": [1],
        "stop": {"n_rounds": N_ROUNDS.get(kind, 3)},
        "train": False,
    }


def timeline(kind):
    """The policy's rounds, one line per job; times in seconds on the clock, "-" where that never happened."""
    loaded = from_dict(scenario(kind))
    tables = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0]).tables
    return "\n".join([f"{kind} {POLICIES[kind]}", *_lines(tables["rounds"], tables["tasks"])]) + "\n"


def _lines(rounds, tasks):
    heads = ["device", *COLUMNS, "steps", "depth", "outcome"]
    for i in range(len(rounds["round"])):
        start_s, end_s = rounds["start_s"][i], rounds["end_s"][i]
        yield ""
        yield (
            f"round {i}: {start_s:.6f} ... {end_s:.6f} s, version {rounds['version'][i]}, "
            f"{rounds['n_sent'][i]} sent, {rounds['n_contributions'][i]} contributions"
        )
        yield "".join(f"{head:>13}" for head in heads)
        yield from _jobs(tasks, i)
    if (tasks["round"] == len(rounds["round"])).any():
        yield ""
        yield f"under way after version {rounds['version'][-1]}"
        yield "".join(f"{head:>13}" for head in heads)
        yield from _jobs(tasks, len(rounds["round"]))


def _jobs(tasks, n_round):
    mine = np.flatnonzero(tasks["round"] == n_round)
    yield from (_job(tasks, row) for row in mine[np.lexsort((tasks["ordinal"][mine], tasks["device"][mine]))])


def _job(tasks, row):
    times = ["-" if np.isnan(tasks[name][row]) else f"{tasks[name][row]:.6f}" for name in COLUMNS]
    cells = [tasks["device"][row], *times, tasks["n_steps"][row], tasks["depth"][row], tasks["outcome"][row]]
    return "".join(f"{cell:>13}" for cell in cells)
