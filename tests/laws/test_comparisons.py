"""A comparison's runs know nothing of each other."""

from __future__ import annotations

import pytest

import fedsim

FIRST = {"kind": "stsyn", "k": 2}
OTHERS = [{"kind": "k_sync", "k": 3}, {"kind": "salf", "deadline_s": 1.0}, {"kind": "fedavg", "n_sampled": 3}]


def written(tiny, folder, **changes):
    """Every table that the scenario leaves, as bytes by path."""
    compute = {"step_s": 1.0, "task_factor": {"kind": "exponential"}}
    values = tiny(fleet={"n_devices": 5, "compute": compute}, policies=[FIRST], seeds=[3])
    found = fedsim.run(fedsim.from_dict({**values, **changes}), out=folder)
    return {path.relative_to(found): path.read_bytes() for path in sorted(found.rglob("*.parquet"))}


@pytest.mark.parametrize(
    "changes", [{"policies": [*OTHERS, FIRST]}, {"seeds": [5, 3, 4]}, {"policies": [FIRST, *OTHERS], "seeds": [3, 0]}]
)
def test_adding_a_policy_or_a_seed_leaves_the_tables_of_the_others(tiny, tmp_path, changes):
    alone, together = written(tiny, tmp_path / "alone"), written(tiny, tmp_path / "together", **changes)
    assert len(alone) == 7, "rounds, tasks, milestones, layers, classes, devices and evaluations"
    assert len(together) > len(alone)
    for path, content in alone.items():
        assert together[path] == content, path


def test_every_seed_and_every_policy_leaves_tables_of_its_own(tiny, tmp_path):
    """So that the law above compares something: no two runs are alike."""
    found = written(tiny, tmp_path, policies=[FIRST, *OTHERS], seeds=[3, 4])
    tasks = [content for path, content in found.items() if path.name == "tasks.parquet"]
    assert len(set(tasks)) == len(tasks) == 8
