"""Each kind of mistake in a scenario file, and the one line that says so."""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass

import pytest

from fedsim.facts import BadInput
from fedsim.scenario.errors import BadInputs, ScenarioError
from fedsim.scenario.read import from_dict, load

GOOD = """\
name: quickstart
fleet:
  n_devices: 50
  compute:
    step_s: {kind: exponential, mean: 1.0}
  uplink: {rate_bits_per_s: 20e6}
data: {kind: digits}
model: {kind: mlp}
train: false
policies:
  - kind: fedavg
  - kind: stsyn
    k: 5
  - kind: stsyn
    k: 10
stop: {simulated_s: 100}
seeds: [0, 1]
training: {batch_size: 16}
evaluation: {targets: [0.8]}
"""


@pytest.fixture
def refusal(tmp_path, monkeypatch):
    """The error line of the good scenario with one piece of text replaced."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def line(old, new):
        assert GOOD.count(old) == 1
        (tmp_path / "quickstart.yaml").write_text(GOOD.replace(old, new), encoding="utf-8")
        with pytest.raises(ScenarioError) as refused:
            load("quickstart.yaml")
        assert str(refused.value).startswith("quickstart.yaml:")
        return str(refused.value).removeprefix("quickstart.yaml:")

    return line


def test_the_scenario_that_the_mistakes_are_made_in_is_good(tmp_path):
    (tmp_path / "good.yaml").write_text(GOOD)
    assert load(tmp_path / "good.yaml").scenario.fleet.uplink.rate_bits_per_s == 20e6


STEP = "step_s: {kind: exponential, mean: 1.0}"
FIRST = "- kind: fedavg"
K5 = "k: 5"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        # wrong types
        ("devices: 50", "devices: '50'", "3: fleet: n_devices is '50' (text) but must be a whole number; take away the quotes"),
        ("devices: 50", "devices: 5_0", "3: fleet: n_devices is '5_0' (text) but must be a whole number; write 50"),
        ("devices: 50", "devices: 50.0", "3: fleet: n_devices is 50.0 but must be a whole number; write 50"),
        ("devices: 50", "devices: [50]", "3: fleet: n_devices is a list but must be a whole number"),
        ("devices: 50", "devices: true", "3: fleet: n_devices is true but must be a whole number"),
        ("devices: 50", "devices:", "3: fleet: n_devices is empty but must be a whole number; give it a value, or delete n_devices"),
        ("train: false", "train: no", "9: train is 'no' (text) but must be true or false; write false"),
        ("seeds: [0, 1]", "seeds: 0", "17: seeds is 0 but must be a list"),
        ("{batch_size: 16}", "16", "18: training is 16 but must be a block of 'key: value' lines"),
        (FIRST, "- fedavg", "11: policies[0] is 'fedavg' (text) but must be a block of 'key: value' lines"),
        (FIRST, "- kind: 3", "11: policies[0]: kind is 3 but must be text"),
        (K5, "k: five", "13: policies[1] (stsyn): k is 'five' (text) but must be a whole number"),
        # unions are one mistake
        ("batch_size: 16", "batch_size: al", "18: training: batch_size is 'al' (text) but must be a whole number or 'all'; did you mean 'all'?"),
        ("batch_size: 16", "batch_size: 0", "18: training: batch_size is 0 but must be at least 1"),
        (STEP, "layer_s: x", "5: fleet.compute: layer_s is 'x' (text) but must be a number or a list"),
        (STEP, "layer_s: [1, -1]", "5: fleet.compute: layer_s[1] is -1 but must be greater than 0"),
        (STEP, "step_s: fast", "5: fleet.compute: step_s is 'fast' (text) but must be a number, a list with a number per device, or a law such as {kind: exponential, mean: 1.0}"),
        # negative and non-finite
        ("devices: 50", "devices: -1", "3: fleet: n_devices is -1 but must be at least 1"),
        ("mean: 1.0", "mean: -1", "5: fleet.compute.step_s (exponential): mean is -1 but must be greater than 0"),
        ("mean: 1.0", "mean: .nan", "5: fleet.compute.step_s (exponential): mean is not a number but must be finite"),
        ("mean: 1.0", "mean: 1e999", "5: fleet.compute.step_s (exponential): mean is infinite but must be finite"),
        ("20e6", "-.inf", "6: fleet.uplink: rate_bits_per_s is infinite but must be finite"),
        ("[0.8]", "[0.8, 1.5]", "19: evaluation: targets[1] is 1.5 but must be less than 1"),
        ("seeds: [0, 1]", "seeds: [0, -1]", "17: seeds[1] is -1 but must be at least 0"),
        ("k: 10", "k: 0", "15: policies[2] (stsyn): k is 0 but must be at least 1"),
        # unknown and missing keys
        ("n_devices", "n_device", "3: fleet: n_device is not a known key; did you mean 'n_devices'?"),
        ("mean: 1.0", "meen: 1.0", "5: fleet.compute.step_s (exponential): meen is not a known key; did you mean 'mean'?"),
        (K5, "k: 5\n    local_step: 3", "14: policies[1] (stsyn): local_step is not a known key; did you mean 'local_steps'?"),
        (K5, "k: 5\n    trainning: {}", "14: policies[1] (stsyn): trainning is not a known key; did you mean 'training'?"),
        (K5, "k: 5\n    training: {learning_rat: 1}", "14: policies[1] (stsyn).training: learning_rat is not a known key; did you mean 'learning_rate'?"),
        (K5, "k: 5\n    training: {learning_rate: 0}", "14: policies[1] (stsyn).training: learning_rate is 0 but must be greater than 0"),
        ("seeds: [0, 1]", "seeds: [0, {seed: 1, int: 3}]", "17: seeds[1]: int is not a known key; did you mean 'init'?"),
        ("seeds:", "colour: red\nseeds:", "17: colour is not a known key; known here: name, fleet, model, data, policies, stop, training, seeds, evaluation, train, record_tasks, record_updates"),
        ("name: quickstart\n", "", "1: name is missing; add 'name: ...'"),
        ("k: 10", "label: ten", "14: policies[2] (stsyn): k is missing; add 'k: ...'"),
        (FIRST, "- {}", "11: policies[0]: kind is missing; add 'kind: ...' ('fedsim list' shows the kinds)"),
        # unknown kinds
        ("exponential", "exponentail", "5: fleet.compute.step_s (exponentail): kind is 'exponentail', which is not known here; did you mean 'exponential'?"),
        ("{kind: exponential, mean: 1.0}", "{mean: 1.0}", "5: fleet.compute.step_s: kind is missing; add one of: constant, exponential, gamma, weibull, lognormal, pareto, uniform, empirical, classes, mixture"),
        (FIRST, "- kind: fedavgg", "11: policies[0] (fedavgg): kind is 'fedavgg', which is no policy known here; did you mean 'fedavg'?"),
        ("kind: mlp", "kind: mpl", "8: model (mpl): kind is 'mpl', which is no model known here; did you mean 'mlp'?"),
        ("kind: digits", "kind: digit", "7: data (digit): kind is 'digit', which is no data set known here; did you mean 'digits'?"),
        ("kind: digits", "kind: digits, partition: {kind: dirichle}", "7: data (digits).partition (dirichle): kind is 'dirichle', which is not known here; did you mean 'dirichlet'?"),
        (K5, "k: 5\n    server_optimizer: {kind: adm}", "14: policies[1] (stsyn).server_optimizer (adm): kind is 'adm' (text) but must be 'sgd' or 'adam'; did you mean 'adam'?"),
        (FIRST, "- kind: nowhere.x", "11: policies[0] (nowhere.x): kind is 'nowhere.x' but there is no module nowhere; looked in {cwd} and among installed packages"),
        # values that do not fit together
        (STEP, "step_s: 1\n    layer_s: 2", "4: fleet.compute: state one of step_s, layer_s, flops_per_s; step_s and layer_s given"),
        (STEP, "step_s: {kind: uniform, low: 2, high: 1}", "5: fleet.compute.step_s (uniform): low is 2 but must lie below high, 1"),
        (STEP, "step_s: [1, 2]", "5: fleet.compute: step_s lists 2 numbers but the fleet has 50 devices; give one per device"),
        ("20e6", "[20e6]", "6: fleet.uplink: rate_bits_per_s lists 1 numbers but the fleet has 50 devices; give one per device"),
        ("devices: 50", "devices: 1e12", "3: fleet: n_devices is 1000000000000 but at most 10000000 devices fit"),
        ("k: 10", "k: 5", "14: policies[2] (stsyn): label is 'stsyn', like that of policies[1]; give them different labels or parameters"),
        (K5, "k: 5\n    label: fedavg", "14: policies[1] (stsyn): label is 'fedavg', like that of policies[0]; give them different labels or parameters"),
        (K5, "k: 5\n    label: FedAvg", "14: policies[1] (stsyn): label is 'FedAvg', like that of policies[0]; give them different labels or parameters"),
        (K5, "k: 5\n    label: ' '", "14: policies[1] (stsyn): label must be one line of at most 200 printable characters; choose a plainer one"),
        (K5, "k: 5\n    label: ''", "14: policies[1] (stsyn): label has 0 characters; give at least 1"),
        (FIRST, "- kind: k_sync\n    k: 3\n    training: {local_steps: 2}", "13: policies[0] (k_sync).training: local_steps has no effect on k_sync, which decides that itself; delete it"),
        (K5, "k: 5\n    local_steps: 2\n    training: {local_steps: 3}", "15: policies[1] (stsyn).training: local_steps is given twice, here and in the entry itself; keep one"),
        ("seeds: [0, 1]", "seeds: [0, {seed: 0, init: 3}]", "17: seeds[1] is 0 again; a seed names a run, so give each once"),
        ("{targets: [0.8]}", "{sustain_s: 101}", "19: evaluation: sustain_s is 101 but the run ends at 100 s (stop.simulated_s); make it shorter"),
        ("{targets: [0.8]}", "{every_s: 1e-6}", "19: evaluation: every_s is 1e-06, so 100 s hold more than 100000 evaluations; make it longer"),
        ("{targets: [0.8]}", "{targets: [0.8, 0.8]}", "19: evaluation: targets[1] is 0.8 again; give each target once"),
        ("{targets: [0.8]}", "{rows: validation}", "19: evaluation: rows is 'validation' but no rows are held out; add validation_share: 0.1 under 'data'"),
        ("100}\nseeds: [0, 1]\ntraining: {batch_size: 16}\nevaluation: {targets: [0.8]}", "100, at_targets: true}", "16: stop: at_targets needs targets to stop at; add evaluation.targets, for example [0.9]"),
        ("{simulated_s: 100}", "{}", "16: stop: state when a run ends: simulated_s, n_rounds, or both"),
        ("name: quickstart", "name: ../x", "1: name is '../x' (text) but must be made of letters, digits, '.', '_' and '-', a letter or digit first"),
        # files
        ("kind: mlp", "kind: mlp, initial_weights: w.npz", "8: model (mlp): initial_weights is 'w.npz' but there is no file {cwd}/w.npz; paths start from the scenario's folder"),
        ("kind: digits", "kind: digits, partition: {kind: file, path: p.npz}", "7: data (digits).partition (file): path is 'p.npz' but there is no file {cwd}/p.npz; paths start from the scenario's folder"),
        ("kind: digits", "kind: digits, data_dir: ~nobody-here/x", "7: data (digits): data_dir is '~nobody-here/x' but that user's home folder is not known; write it out"),
        # the text itself
        ("train: false", "train: false\ntrain: true", "10: train is given twice, first on line 9; keep one"),
        ("[0, 1]", "[0, 1", "17: bad YAML: this '[' is not closed, or a comma is missing in it"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_says_where_and_what(refusal, tmp_path, old, new, line):
    assert refusal(old, new) == line.replace("{cwd}", str(tmp_path))


def test_of_several_mistakes_the_first_by_line_is_told_and_the_others_counted(refusal):
    said = refusal("k: 5\n  - kind: stsyn\n    k: 10\nstop: {", "k: 0\n  - kind: stsyn\n    kk: 1\nstop: {")
    assert said == "13: policies[1] (stsyn): k is 0 but must be at least 1 (and 1 more)"


def test_a_timed_stop_or_a_spacing_is_needed_to_know_when_to_evaluate():
    values = {
        "name": "x",
        "fleet": {"n_devices": 2},
        "model": {"kind": f"{__name__}:Chain"},
        "data": {"kind": f"{__name__}:Rows"},
        "policies": [{"kind": "fedavg"}],
        "stop": {"n_rounds": 3},
    }
    with pytest.raises(ScenarioError) as refused:
        from_dict(values)
    assert str(refused.value) == (
        "<scenario>: evaluation: every_s is missing; say when to evaluate by evaluation.every_s, or give stop.simulated_s"
    )
    assert from_dict({**values, "evaluation": {"every_s": 1}}).scenario.grid_step_s == 1.0
    assert from_dict({**values, "train": False}).scenario.grid_step_s is None


@dataclass(frozen=True)
class Chain:
    def build(self, input_shape, n_outputs):
        raise NotImplementedError


@dataclass(frozen=True)
class Rows:
    def load(self, data_dir, seed):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("quikstart.yaml", "quikstart.yaml: there is no such file; did you mean quickstart.yaml?"),
        ("nowhere/x.yaml", "nowhere/x.yaml: there is no such file; check the path"),
        (".", ".: is a folder; name the scenario file in it"),
        ("a\0b", "a\0b: cannot be read: embedded null byte; check the path"),
        ("empty.yaml", "empty.yaml:1: is empty; 'fedsim new scenario NAME' writes one to start from"),
        ("big.yaml", "big.yaml: holds 10.0 MB, but a scenario has at most 1 MB; is it the right file?"),
    ],
)
def test_a_path_that_leads_to_no_scenario_says_what_is_there(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").write_text(GOOD)
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "big.yaml").write_bytes(b"a: 1\n" * 2_000_000)
    with pytest.raises(ScenarioError) as refused:
        load(name)
    assert str(refused.value) == said


def test_an_unreadable_file_is_told_in_the_words_of_the_system(tmp_path):
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    with pytest.raises(ScenarioError, match=r"loop.yaml: cannot be read: too many (levels of )?symbolic links"):
        load(loop)


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").write_text(GOOD)
    return load("quickstart.yaml")


@pytest.mark.parametrize("at", [("policies", 2, "k"), ("policies", 2)])
def test_a_policys_own_objection_gets_the_line_of_the_parameter_it_names(loaded, at):
    problem = BadInput("k is 60 but the fleet has 50 devices; choose 1..50", at)
    assert str(loaded.error(problem)) == (
        "quickstart.yaml:15: policies[2] (stsyn): k is 60 but the fleet has 50 devices; choose 1..50"
    )


def test_an_objection_to_what_was_left_out_gets_the_line_of_the_block_around_it(loaded):
    problem = BadInput("a device is left without a row; use more data", ("data", "partition"))
    assert str(loaded.error(problem)) == (
        "quickstart.yaml:7: data (digits).partition: a device is left without a row; use more data"
    )


def test_an_error_stays_one_line_whatever_its_message_holds(loaded):
    assert str(loaded.error(BadInput("first\nsecond\u2028third", ()))) == "quickstart.yaml:1: first second third"


@pytest.mark.parametrize(
    "error", [ScenarioError("a.yaml", "k is 0", 3, 2), BadInputs([BadInput("x", ("k",)), BadInput("y")])]
)
def test_errors_travel_between_processes_whole(error):
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert repr(getattr(copy, "problems", None)) == repr(getattr(error, "problems", None))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "a scenario is a dict, as read from a file"),
        ({1: 2}, "the key 1 must be text"),
        ({"name": {1, 2}}, "{1, 2} is a set, which a scenario cannot hold; use numbers, text, lists and dicts"),
        ({"name": "x" * 3}, "fleet is missing; add 'fleet: ...' (and 4 more)"),
    ],
)
def test_python_values_that_are_no_scenario_are_refused_without_a_line(values, said):
    with pytest.raises(ScenarioError) as refused:
        from_dict(values, name="mine")
    assert str(refused.value) == f"mine: {said}"


def test_a_value_that_holds_itself_is_refused():
    values = {"name": "x"}
    values["fleet"] = values
    with pytest.raises(ScenarioError, match="nested more than 50 deep"):
        from_dict(values)
