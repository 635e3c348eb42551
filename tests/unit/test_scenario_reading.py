"""What a good scenario holds once it is read."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import pytest
from annotated_types import Ge

from fedsim.delays import Exponential
from fedsim.facts import BadInput
from fedsim.scenario.errors import ScenarioError
from fedsim.scenario.read import from_dict, load
from fedsim.training.settings import ServerOptimizer

HERE = __name__


@dataclass(frozen=True)
class Patient:
    k: Annotated[int, Ge(1)]
    local_steps: Annotated[int, Ge(1)] = 5
    law: Exponential | None = None
    source: ClassVar[str] = "nobody"

    def problems(self, setting):
        return []

    def rounds(self, server):
        yield


@dataclass(frozen=True)
class Chain:
    widths: tuple[int, ...] = (4, 4)

    def build(self, input_shape, n_outputs):
        raise NotImplementedError


@dataclass(frozen=True)
class Rows:
    n_rows: int = 100

    def load(self, data_dir, seed):
        raise NotImplementedError


def scenario(**changes):
    return {
        "name": "x",
        "fleet": {"n_devices": 3},
        "model": {"kind": f"{HERE}:Chain"},
        "data": {"kind": f"{HERE}:Rows", "n_rows": 50},
        "policies": [{"kind": f"{HERE}:Patient", "k": 2}],
        "stop": {"simulated_s": 100},
        **changes,
    }


def policies(*entries):
    return from_dict(scenario(policies=[{"kind": f"{HERE}:Patient", **entry} for entry in entries])).contenders


def test_an_entry_is_its_policy_with_the_parameters_beside_its_kind():
    (contender,) = policies({"k": 2, "law": {"kind": "exponential", "mean": 3}})
    assert contender.policy == Patient(k=2, law=Exponential(mean=3.0))
    assert contender.parameters == {"k": 2, "law": {"kind": "exponential", "mean": 3}}
    assert contender.label == f"{HERE}:Patient"


def test_labels_tell_two_settings_apart_by_everything_that_differs():
    found = policies(
        {"k": 2},
        {"k": 3},
        {"k": 3, "label": "mine"},
        {"k": 3, "training": {"learning_rate": 0.5}},
        {"k": 3, "server_optimizer": {"kind": "adam"}},
    )
    tails = [each.label.removeprefix(f"{HERE}:Patient") for each in found]
    assert tails[0] == "(k=2,learning_rate=0.1,server_optimizer=none)"
    assert tails[2] == "mine"
    assert tails[3] == "(k=3,learning_rate=0.5,server_optimizer=none)"
    assert tails[4].startswith("(k=3,learning_rate=0.1,server_optimizer=adam(learning_rate=1,")


def test_a_policy_takes_local_steps_from_the_training_settings_that_hold_for_it():
    values = scenario(training={"local_steps": 7})
    kind = values["policies"][0]
    values["policies"] = [kind, {**kind, "training": {"local_steps": 8}}, {**kind, "local_steps": 9}]
    found = from_dict(values).contenders
    assert [each.policy.local_steps for each in found] == [7, 8, 9]
    assert [each.training.local_steps for each in found] == [7, 8, 9]


def test_a_policy_with_another_way_to_state_its_work_is_given_no_local_steps():
    """FedNova's may be left out for a budget; whoever wrote neither is told so, and not given five."""
    values = scenario(training={"local_steps": 7})
    values["policies"] = [{"kind": "fednova", "budget_s": 2.0}, {"kind": "fednova", "local_steps": 9}]
    assert [each.policy.local_steps for each in from_dict(values).contenders] == [None, 9]
    values["policies"] = [{"kind": "fednova", "training": {"local_steps": 8}}]
    with pytest.raises(ScenarioError, match="local_steps has no effect on fednova"):
        from_dict(values)


def test_a_policy_that_asks_for_the_devices_momentum_takes_it_from_the_training_settings_that_hold_for_it():
    values = scenario(training={"momentum": 0.5})
    nova = {"kind": "fednova", "local_steps": 2}
    values["policies"] = [nova, {**nova, "training": {"momentum": 0.9}}, {**nova, "momentum": 0.0}]
    found = from_dict(values).contenders
    assert [each.policy.momentum for each in found] == [0.5, 0.9, 0.0]
    assert [each.training.momentum for each in found] == [0.5, 0.9, 0.5]


def test_an_entry_overrides_only_the_training_settings_that_it_names():
    values = scenario(training={"learning_rate": 0.5, "batch_size": "all"})
    values["policies"][0] |= {"training": {"learning_rate": 1}, "server_optimizer": {"kind": "adam"}}
    (contender,) = from_dict(values).contenders
    assert (contender.training.learning_rate, contender.training.batch_size) == (1.0, "all")
    assert contender.server_optimizer == ServerOptimizer(kind="adam")


def test_a_dangerous_label_is_kept_and_its_folder_is_harmless():
    first, second = policies({"k": 2, "label": "<script>alert(1)</script>"}, {"k": 2, "label": "../x"})
    assert first.label == "<script>alert(1)</script>"
    assert not set("<>/.\\") & set(first.folder + second.folder)


def test_model_and_data_are_instances_of_the_shelf():
    loaded = from_dict(scenario(model={"kind": f"{HERE}:Chain", "widths": [8]}))
    assert loaded.model == Chain(widths=(8,))
    assert loaded.data == Rows(n_rows=50)


def test_their_parameters_are_checked_when_the_scenario_is_read():
    with pytest.raises(ScenarioError) as refused:
        from_dict(scenario(model={"kind": f"{HERE}:Chain", "widths": 8}))
    assert str(refused.value) == f"<scenario>: model ({HERE}:Chain): widths is 8 but must be a list"


def test_without_training_the_model_is_checked_when_it_is_asked_for():
    loaded = from_dict(scenario(train=False, model={"kind": f"{HERE}:Chain", "widths": 8}))
    with pytest.raises(ScenarioError, match="widths is 8 but must be a list"):
        _ = loaded.model


@pytest.mark.parametrize("changes", [{}, {"train": False}, {"seeds": [0, {"seed": 5, "clock": 1}]}])
def test_a_resolved_scenario_is_json_and_reads_back_as_itself(changes):
    entry = {"kind": f"{HERE}:Patient", "k": 2}
    entries = [entry, {**entry, "training": {"local_steps": 8}, "server_optimizer": {"kind": "adam"}}]
    loaded = from_dict(
        scenario(policies=entries, fleet={"n_devices": 2, "uplink": {"rate_bits_per_s": [1, 2]}}, **changes)
    )
    resolved = json.loads(json.dumps(loaded.resolved(), allow_nan=False))
    again = from_dict(resolved)
    assert again.resolved() == resolved
    assert [(c.label, c.policy, c.training) for c in again.contenders] == [
        (c.label, c.policy, c.training) for c in loaded.contenders
    ]


def test_a_resolved_scenario_has_every_default_and_all_four_seeds():
    resolved = from_dict(scenario(seeds=[4])).resolved()
    assert resolved["model"]["widths"] == [4, 4]
    assert resolved["data"]["n_rows"] == 50
    assert resolved["policies"][0]["law"] is None
    assert resolved["policies"][0]["training"]["learning_rate"] == 0.1
    assert resolved["seeds"] == [{"seed": 4, "init": 4, "data": 4, "fleet": 4, "clock": 4}]


def test_a_loaded_scenario_travels_between_processes():
    loaded = from_dict(scenario())
    _ = loaded.model  # also once it has been built
    assert pickle.loads(pickle.dumps(loaded)) == loaded


def test_numpy_values_tuples_and_paths_are_taken_as_what_a_file_would_say(tmp_path):
    values = scenario(seeds=(np.int64(3),))
    values["fleet"] = {"n_devices": np.int64(2), "compute": {"step_s": np.array([1.0, 2.0])}}
    values["data"]["data_dir"] = tmp_path
    loaded = from_dict(values)
    assert loaded.scenario.fleet.compute.step_s == (1.0, 2.0)
    assert loaded.scenario.data.data_dir == str(tmp_path)


def test_a_files_paths_start_from_its_own_folder_wherever_one_stands(tmp_path, monkeypatch):
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "weights.npz").touch()
    values = scenario(model={"kind": f"{HERE}:Chain", "initial_weights": "weights.npz"})
    values["data"] |= {"data_dir": "../data", "split_file": "~/split.npz"}
    (tmp_path / "scenarios" / "x.yaml").write_text(json.dumps(values))  # JSON is YAML
    (tmp_path / "split.npz").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    found = load(Path("scenarios") / "x.yaml").scenario
    assert found.model.initial_weights == str(tmp_path / "scenarios" / "weights.npz")
    assert found.data.data_dir == str(tmp_path / "data")
    assert found.data.split_file == str(tmp_path / "split.npz")


def test_policies_made_in_python_take_the_place_of_the_scenarios():
    found = from_dict(scenario()).with_policies([Patient(k=1), Patient(k=3)]).contenders
    assert [(each.label, each.policy.k) for each in found] == [("Patient(k=1)", 1), ("Patient(k=3)", 3)]


def test_what_is_said_about_a_policy_made_in_python_points_to_no_other_policys_line(tmp_path):
    (tmp_path / "x.yaml").write_text(json.dumps(scenario(), indent=1))
    loaded = load(tmp_path / "x.yaml")
    problem = BadInput("k is 9 but the fleet has 3 devices; choose 1..3", ("policies", 0))
    assert f"policies[0] ({HERE}:Patient): k is 9" in str(loaded.error(problem))
    error = loaded.with_policies([Patient(k=9)]).error(problem)
    assert "policies[0] (Patient): k is 9" in str(error)
    assert loaded.error(problem).line == error.line + 3 == loaded.source.lines["policies",] + 3


def test_the_same_policy_twice_is_refused():
    with pytest.raises(ScenarioError, match=r"label is 'Patient', like that of policies\[0\]"):
        from_dict(scenario()).with_policies([Patient(k=1), Patient(k=1)])


def test_a_timing_only_scenario_is_read_without_importing_torch(tmp_path):
    values = scenario(model={"kind": "mlp"}, data={"kind": "digits"}, policies=[{"kind": "fedavg"}], train=False)
    (tmp_path / "x.yaml").write_text(json.dumps(values))
    code = "import sys; from fedsim.scenario.read import load; load(sys.argv[1]).resolved(); sys.exit('torch' in sys.modules)"
    path = [entry or os.getcwd() for entry in sys.path]
    start = f"import sys; sys.path[:] = {path!r}; {code}"
    subprocess.run([sys.executable, "-c", start, str(tmp_path / "x.yaml")], check=True, timeout=60)
