"""What every shipped scenario must pass: it says what it asks, it reads, and what can run here runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fedsim
from fedsim.run import simulate
from fedsim.scenario.json_schema import json_schema
from fedsim.scenario.read import load_variants

FILES = sorted((Path(__file__).parents[2] / "scenarios").glob("*.yaml"))
EVERY_SCENARIO = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
EMBEDDED = ("digits", "gaussian_blobs", "quadratic")  # data that come with the package


def test_there_are_scenarios():
    assert len(FILES) >= 1


@EVERY_SCENARIO
def test_a_scenario_opens_with_its_question_its_source_and_its_run_time(file):
    opening = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        opening.append(line.removeprefix("#").strip())
    said = " ".join(opening)
    positions = [re.search(rf"\b{word}: \S", said) for word in ("Question", "Source", "Run time")]
    assert all(positions), said
    assert [p.start() for p in positions] == sorted(p.start() for p in positions)
    assert "?" in said


@EVERY_SCENARIO
def test_a_scenario_reads_and_is_named_like_its_file(file):
    for variant, loaded in load_variants(file):
        assert loaded.scenario.name == (file.stem if variant is None else f"{file.stem}-{variant}")


@EVERY_SCENARIO
def test_a_scenario_uses_only_keys_that_its_schema_knows(file):
    known = set(json_schema()["properties"])
    assert all(set(loaded.source.values) <= known for _, loaded in load_variants(file))


@EVERY_SCENARIO
def test_a_scenario_whose_data_are_here_runs_three_rounds(file):
    """Every policy, under the first seed, with the scenario's own settings."""
    for _, loaded in load_variants(file):
        values = loaded.resolved()
        if values["data"]["kind"] not in EMBEDDED:
            pytest.skip(f"{values['data']['kind']} does not come with the package")
        stop = {**values["stop"], "n_rounds": 3}
        runs_three_rounds(fedsim.from_dict({**values, "stop": stop, "seeds": values["seeds"][:1]}))


def runs_three_rounds(loaded):
    for contender in loaded.contenders:
        result = simulate(loaded, contender, loaded.scenario.seed_sets[0])
        assert result.manifest["outcome"]["kind"] == "finished"
        assert result.manifest["outcome"]["round"] == 3
        assert result.tables["rounds"]["n_contributions"].sum() > 0
        if loaded.scenario.train:
            accuracy = result.manifest["final"]["accuracy"]
            assert loaded.scenario.data.kind == "quadratic" if accuracy is None else 0.0 <= accuracy <= 1.0
