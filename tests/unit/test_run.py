"""One run: what is refused before it, where it is evaluated, and what makes it a different run."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fedsim
from fedsim.delays import Classes, Constant, Gamma
from fedsim.facts import BatchPlan
from fedsim.run import check, fingerprint, simulate
from fedsim.timing.fleet import Compute, Fleet, Link
from fedsim.timing.weather import Weather
from tests.fakes import equal_layers


@pytest.mark.parametrize("horizon_s", [1.7, 2.0, 0.3])
def test_the_last_evaluation_is_at_the_horizon_however_the_grid_rounds(tiny, horizon_s):
    """200 x (1.7 / 200) is more than 1.7 in the last bit."""
    loaded = fedsim.from_dict(
        tiny(policies=[{"kind": "k_sync", "k": 1}], stop={"simulated_s": horizon_s}, evaluation={"n_points": 200})
    )
    times_s = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0]).tables["evaluations"]["time_s"]
    assert len(times_s) == 201
    assert times_s[-1] == horizon_s


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA, so asking for it is no mistake")
def test_every_policys_own_settings_are_checked_before_the_first_run(tiny):
    policies = [{"kind": "k_sync", "k": 1}, {"kind": "k_sync", "k": 2, "training": {"device": "cuda"}}]
    with pytest.raises(fedsim.ScenarioError, match="device is cuda but torch finds none"):
        check(fedsim.from_dict(tiny(policies=policies)))


@pytest.mark.parametrize("law", [Constant(0.0), Classes((0.0, 1.0), (0.5, 0.5))])
def test_work_that_could_take_no_time_is_refused(law):
    with pytest.raises(ValueError, match="step_factor can be 0"):
        Compute(step_s=1.0, step_factor=law)
    with pytest.raises(ValueError, match="rate_bits_per_s can be 0"):
        Link(rate_bits_per_s=law)


def test_a_changed_rule_in_code_of_ones_own_is_a_different_run(tiny, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "own_rule_of_mine.py"
    text = (
        "from dataclasses import dataclass\nfrom typing import ClassVar\n\n\n@dataclass(frozen=True)\nclass Mine:\n"
        "    source: ClassVar[str] = 'mine'\n\n    def problems(self, setting):\n        return []\n\n"
        "    def rounds(self, server):\n        yield\n"
    )
    file.write_text(text)
    loaded = fedsim.from_dict(tiny(policies=[{"kind": "own_rule_of_mine:Mine"}]))
    before = fingerprint(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])
    assert fingerprint(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0]) == before
    file.write_text(text + "# another rule\n")
    assert fingerprint(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0]) != before


def test_persistent_luck_is_drawn_once_for_the_fleet_and_not_at_every_message():
    plan = BatchPlan(np.ones(8, dtype=np.int64), None)
    weather = Weather(Fleet(8, uplink=Link(Gamma(shape=2.0))), equal_layers(2), plan, 1, 1)
    first = weather._persistent(weather.fleet.uplink.rate_bits_per_s, "uplink.rate")
    assert weather._persistent(weather.fleet.uplink.rate_bits_per_s, "uplink.rate") is first
