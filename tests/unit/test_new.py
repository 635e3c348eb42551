"""What `fedsim new` writes works as it is."""

from __future__ import annotations

import sys

import pytest

from fedsim.commands.new import new
from fedsim.facts import BadInput
from fedsim.scenario import shelves
from fedsim.scenario.read import load


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("my_policy", "my_model"):
        sys.modules.pop(name, None)


class OneRoundServer:
    """Records the verbs; stops the story when a round is over."""

    def __init__(self, contributions):
        self.told, self.contributions = [], contributions

    def sample(self):
        return [0, 1, 2]

    def send(self, devices, task):
        self.told.append(("send", devices, task.n_steps))

    def wait(self, jobs, condition):
        self.told.append(("wait", condition.n))
        yield

    def take(self, jobs):
        return self.contributions

    def cancel(self, jobs):
        self.told.append(("cancel",))

    def aggregate(self, contributions, weights):
        self.told.append(("aggregate", weights.tolist()))
        raise GeneratorExit


def test_a_new_policy_waits_for_the_k_fastest_and_averages_them(contributions):
    assert new("policy", "my_policy").read_text().count("\n") < 50
    policy = shelves.build("policies", "my_policy:MyPolicy", {"k": 2, "local_steps": 3})
    server = OneRoundServer(contributions)
    with pytest.raises(GeneratorExit):
        list(policy.rounds(server))
    assert server.told == [
        ("send", [0, 1, 2], 3),
        ("wait", 2),
        ("cancel",),
        ("aggregate", [[0.5, 0.5], [0.5, 0.5]]),
    ]


@pytest.fixture
def contributions():
    """Two whole contributions to a model of two layers."""
    import numpy as np

    from fedsim.facts import Contributions

    two = np.array([0, 1])
    return Contributions(
        device=two,
        ordinal=two,
        version=np.zeros(2, dtype=int),
        n_steps=np.array([3, 3]),
        partial_depth=np.zeros(2, dtype=int),
        task_depth=np.array([2, 2]),
        n_samples=np.array([4, 4]),
        arrived_s=np.zeros(2),
        n_layers=2,
    )


def test_a_new_policy_objects_to_more_devices_than_there_are():
    class Setting:
        n_devices = 4

    new("policy", "my_policy")
    policy = shelves.build("policies", "my_policy:MyPolicy", {"k": 5})
    assert policy.problems(Setting()) == ["k is 5 but the fleet has 4 devices; choose 1..4"]


def test_a_new_model_is_a_chain_with_one_output_per_class():
    import torch

    new("model", "my_model")
    chain = shelves.build("models", "my_model:build", {"width": 8}).build((1, 4, 4), 3)
    assert [name for name, _ in chain.named_children()] == ["first", "second", "last"]
    assert chain(torch.zeros(2, 1, 4, 4)).shape == (2, 3)


def test_a_new_scenario_can_be_read_and_is_short():
    path = new("scenario", "my_scenario")
    assert 20 <= len(path.read_text().splitlines()) <= 30
    loaded = load(path)
    assert [each.label for each in loaded.contenders] == ["fedavg", "stsyn"]
    assert (loaded.scenario.name, loaded.data.__class__.__name__) == ("my_scenario", "Digits")


def test_the_usage_written_in_a_new_file_is_the_usage_that_works(folder):
    scenario = new("scenario", "my_scenario")
    text = new("policy", "my_policy").read_text()
    usage = text[text.index("      - kind: my_policy") : text.index("k: 5")].replace("      - ", "  - ") + "k: 5\n"
    entry = usage.replace("        k:", "    k:")
    scenario.write_text(scenario.read_text().replace("policies:\n", f"policies:\n{entry}"))
    assert load(scenario).contenders[0].policy.k == 5


def test_a_file_that_exists_is_left_as_it_is(folder):
    (folder / "my_policy.py").write_text("precious")
    with pytest.raises(BadInput, match=r"my_policy\.py exists and is left as it is; choose another name"):
        new("policy", "my_policy")
    assert (folder / "my_policy.py").read_text() == "precious"


@pytest.mark.parametrize(
    ("what", "name", "said"),
    [
        ("policy", "2fast", "must be letters, digits and '_', a letter first, such as my_policy"),
        ("policy", "my-policy", "must be letters, digits and '_'"),
        ("model", "../x", "must be letters, digits and '_'"),
        ("scenario", "", "must be letters, digits and '_'"),
        ("policy", "class", "must be letters, digits and '_'"),
        ("policy", "random", "random is the name of an installed Python module"),
        ("dataset", "x", "'dataset' cannot be made; choose one of: policy, scenario, model"),
    ],
)
def test_a_name_that_could_not_be_used_is_refused_and_nothing_written(folder, what, name, said):
    with pytest.raises(BadInput) as refused:
        new(what, name)
    assert said in str(refused.value)
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_missing_is_refused(folder):
    with pytest.raises(BadInput, match="cannot be written: no such file or directory"):
        new("scenario", "x", folder / "nowhere")
