"""What every file of the policies shelf must pass; and what those that are shipped here must have besides.

A policy that somebody puts on the shelf passes without being named anywhere. One that this repository ships is named in
SHIPPED: it has a scenario, a page, and words for the parameters that do not fit.
"""

from __future__ import annotations

import importlib
import inspect
import io
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tokenize
from dataclasses import MISSING, FrozenInstanceError, fields, is_dataclass
from pathlib import Path
from typing import ClassVar, get_origin, get_type_hints

import pytest
import yaml

import fedsim.policies
from fedsim.delays import Exponential
from fedsim.facts import BatchPlan
from fedsim.scenario import shelves
from fedsim.timing.fleet import Compute, Fleet, Link
from fedsim.timing.foresight import Foresight
from fedsim.timing.weather import Weather
from fedsim.training.settings import Training
from tests.fakes import FakeLearner, FakeServer, equal_layers

ROOT = Path(__file__).parents[2]
SHELF = sorted(m.name for m in pkgutil.iter_modules(fedsim.policies.__path__) if not m.name.startswith("_"))
EVERY_POLICY = pytest.mark.parametrize("kind", SHELF)
SHIPPED = {
    "drop_stragglers": {"deadline_s": 5.0},
    "embracingfl": {"depths": [1, 2, 3]},
    "fedasync": {"staleness_weighting": "hinge"},
    "fedavg": {},
    "fedbuff": {"buffer_size": 2},
    "feddrop": {"deadline_s": 5.0},
    "fedlama": {},
    "fednova": {"local_steps": [1, 2, 3]},
    "fedpmt": {"budget_s": 2.0},
    "flanp": {"n_first": 1, "norm_below": 1000.0},
    "heterofl": {"rates": [1.0, 0.5, 0.25]},
    "k_sync": {"k": 2},
    "salf": {"deadline_s": 1.25},
    "stsyn": {"k": 2},
}
EVERY_SHIPPED_POLICY = pytest.mark.parametrize("kind", SHIPPED)


def public_classes(kind):
    module = importlib.import_module(f"fedsim.policies.{kind}")
    return [
        c
        for c in vars(module).values()
        if isinstance(c, type) and c.__module__ == module.__name__ and c.__name__[0] != "_"
    ]


def examined(kind):
    """The policy with parameters that make sense; of one that is not known here, the required ones are 1."""
    policy = public_classes(kind)[0]
    required = [f.name for f in fields(policy) if f.default is MISSING and f.default_factory is MISSING]
    return shelves.build("policies", kind, SHIPPED.get(kind, dict.fromkeys(required, 1)))


def setting(n_devices=3, compute=None, **links):
    """Three devices and three equal layers, as a policy sees them before the first event."""
    fleet = Fleet(n_devices=n_devices, compute=compute or Compute(step_s=1.0), **links)
    plan = BatchPlan(equal_layers(n_devices).n_parameters, None)
    return Foresight(Weather(fleet, equal_layers(3), plan, fleet_seed=1, clock_seed=1))


# ---- every policy ---------------------------------------------------------------------------------------------------


@EVERY_POLICY
def test_a_policy_file_holds_one_frozen_class_that_cites_its_source(kind):
    (policy,) = public_classes(kind)
    assert is_dataclass(policy)
    assert policy.__doc__
    assert not policy.__doc__.startswith(f"{policy.__name__}("), "that one the dataclass wrote itself"
    assert get_origin(get_type_hints(policy)["source"]) is ClassVar, "source is no parameter"
    assert len(policy.source) > 20
    with pytest.raises(FrozenInstanceError):
        examined(kind).anything = 1


@EVERY_POLICY
def test_the_file_opens_with_the_papers_pseudo_code(kind):
    """At least two lines, indented under the prose."""
    said = importlib.import_module(f"fedsim.policies.{kind}").__doc__
    assert re.search(r"\n\n    \S.*\n    \s*\S", said), said


@EVERY_POLICY
def test_the_story_is_short(kind):
    """Comments, docstrings and blank lines are free."""
    source = inspect.getsource(importlib.import_module(f"fedsim.policies.{kind}"))
    assert n_code_lines(source) <= 90


def n_code_lines(source):
    code = set()
    free = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_docstring = token.type == tokenize.STRING and token.line.lstrip().startswith(('"""', 'r"""'))
        if token.type not in free and not is_docstring:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code)


def test_code_lines_are_counted_without_words():
    assert (
        n_code_lines(
            '"""Says\nmuch."""\n\n# more\nx = (1,\n     2)  # and more\n\ndef f():\n    """Words."""\n    return x\n'
        )
        == 4
    )


@EVERY_POLICY
def test_parameters_that_carry_a_unit_say_so(kind):
    """A float is seconds or a share or a factor, and its name says which; or it is a training setting of that name."""
    settings = {f.name for f in fields(Training)}
    for name, hint in get_type_hints(public_classes(kind)[0]).items():
        if name in settings:
            continue
        if hint is float or getattr(hint, "__origin__", None) is float:
            assert name.endswith(
                ("_s", "_bytes", "_bits_per_s", "_share", "_factor", "_rate", "_flops", "_exponent")
            ), name


@EVERY_POLICY
def test_a_policy_is_content_with_parameters_that_make_sense(kind):
    assert examined(kind).problems(setting()) == []


@EVERY_POLICY
def test_a_policy_plays_its_story_to_the_end(kind):
    """Ten rounds on the fake server, three devices of different speed; somebody is heard."""
    learner = FakeLearner([1.0, 2.0, 3.0])
    server = FakeServer(learner, [0.5, 1.0, 1.5], n_rounds=10, horizon_s=1000.0)
    assert server.play(examined(kind)) == "finished"
    assert len(server.ends_s) == 10
    assert server.ends_s[-1] > 0
    assert learner.newest > 0, "no aggregate changed the model"


@EVERY_POLICY
def test_a_policy_keeps_no_state_between_two_runs(kind):
    """One instance serves every seed, in any process: the same story twice."""
    policy = examined(kind)
    told = []
    for _ in range(2):
        learner = FakeLearner([1.0, 2.0, 3.0])
        FakeServer(learner, [0.5, 1.0, 1.5], n_rounds=5, horizon_s=1000.0).play(policy)
        told.append(learner.requests)
    assert told[0] == told[1]


# ---- those that are shipped -----------------------------------------------------------------------------------------


def scenarios_with(kind):
    files = sorted((ROOT / "scenarios").glob("*.yaml"))
    values = {file.name: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}
    return [name for name, each in values.items() if any(entry["kind"] == kind for entry in each["policies"])]


@EVERY_SHIPPED_POLICY
def test_a_shipped_policy_is_on_the_shelf_and_has_a_scenario_of_its_name(kind):
    assert kind in SHELF
    assert f"{kind}.yaml" in scenarios_with(kind)


@EVERY_SHIPPED_POLICY
def test_a_shipped_policy_has_a_page_that_names_its_paper_and_where_it_departs_from_it(kind):
    page = (ROOT / "docs" / "explanation" / "policies" / f"{kind}.md").read_text(encoding="utf-8")
    assert re.search(r"^## Departs from the paper", page, re.MULTILINE)
    assert set(re.findall(r"arXiv \d+\.\d+", public_classes(kind)[0].source)) <= set(
        re.findall(r"arXiv \d+\.\d+", page)
    )
    assert f"`scenarios/{kind}.yaml`" in page


@EVERY_SHIPPED_POLICY
def test_a_shipped_policys_parameters_stand_in_the_reference(kind):
    shelf = (ROOT / "docs" / "reference" / "shelves.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^### {kind}\n(.*?)(?=^##|\Z)", shelf, re.MULTILINE | re.DOTALL)
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [f.name for f in fields(public_classes(kind)[0])]


REDRAWN = Link(rate_bits_per_s=Exponential(mean=1e6), redrawn="task")
MISFITS = [
    ("fedavg", {"n_sampled": 4}, {}, "n_sampled + over_selected is 4 but the fleet has 3 devices; choose at most 3"),
    ("fedavg", {"n_sampled": 2, "over_selected": 2}, {}, "n_sampled + over_selected is 4 but the fleet has 3 devices"),
    ("fedavg", {"over_selected": 1}, {}, "over_selected is 1 but n_sampled is not stated; state how many"),
    ("fedasync", {"concurrency": 4}, {}, "concurrency is 4 but the fleet has 3 devices; choose 1..3"),
    ("fedasync", {"staleness_exponent": 0.5}, {}, "staleness_exponent is for staleness_weighting: polynomial; choose"),
    (
        "fedasync",
        {"staleness_weighting": "constant", "hinge_start": 4},
        {},
        "hinge_start is for staleness_weighting: hi",
    ),
    ("fedbuff", {"concurrency": 4}, {}, "concurrency is 4 but the fleet has 3 devices; choose 1..3"),
    ("drop_stragglers", {"n_sampled": 4}, {}, "n_sampled is 4 but the fleet has 3 devices; choose 1..3"),
    ("k_sync", {"k": 4}, {}, "k is 4 but the fleet has 3 devices; choose 1..3"),
    ("stsyn", {"k": 4}, {}, "k is 4 but the fleet has 3 devices; choose 1..3"),
    ("salf", {"n_sampled": 4}, {}, "n_sampled is 4 but the fleet has 3 devices; choose 1..3"),
    ("salf", {"rule": "inverse_probability", "p_l": "none"}, {}, "rule is inverse_probability but p_l is none; choose"),
    ("salf", {}, {"downlink": REDRAWN}, "p_l is oracle, which needs transfer times that are fixed for each device"),
    ("fedpmt", {"depths": [1, 2, 3]}, {}, "state exactly one of budget_s and depths"),
    ("fedpmt", {"budget_s": None}, {}, "state exactly one of budget_s and depths"),
    ("fedpmt", {"budget_s": None, "depths": [1, 2]}, {}, "depths has 2 numbers but the fleet has 3 devices; give one"),
    ("fedpmt", {"budget_s": None, "depths": [1, 2, 4]}, {}, "depths holds 4 but the model has 3 layers; choose 0..3"),
    ("fedpmt", {"budget_s": 0.1}, {}, "budget_s is 0.1 but the output layer alone takes the fastest device 1.67 s"),
    ("fedpmt", {"budget_s": None, "depths": [0, 0, 0]}, {}, "depths"),
    ("fednova", {"local_steps": None}, {}, "local_steps and budget_s are two ways to say the same; state exactly one"),
    ("fednova", {"budget_s": 2.0}, {}, "local_steps and budget_s are two ways to say the same; state exactly one"),
    (
        "fednova",
        {"local_steps": [1, 2]},
        {},
        "local_steps has 2 numbers but the fleet has 3 devices; give one per device",
    ),
    ("flanp", {"n_first": 4}, {}, "n_first is 4 but the fleet has 3 devices; choose 1..3"),
    ("flanp", {"norm_below": None}, {}, "norm_below and stages are two ways to end a stage; state exactly one of them"),
    ("heterofl", {"rates": None}, {}, "state exactly one of rates, budget_s and within_memory"),
    ("heterofl", {"budget_s": 2.0}, {}, "state exactly one of rates, budget_s and within_memory"),
    ("heterofl", {"rates": [1.0, 0.5]}, {}, "rates has 2 numbers but the fleet has 3 devices; give one per device"),
    ("heterofl", {"n_sampled": 4}, {}, "n_sampled is 4 but the fleet has 3 devices; choose 1..3"),
    ("heterofl", {"levels": [0.5]}, {}, "levels are to choose from under budget_s and within_memory, but rates are"),
    ("heterofl", {"rates": None, "budget_s": 0.3}, {}, "budget_s is 0.3 but device 0 (3 in all) is too weak"),
    ("heterofl", {"rates": None, "within_memory": True}, {}, "within_memory is true but the fleet does not say"),
    (
        "heterofl",
        {"rates": None, "within_memory": True},
        {"memory_bytes": (100.0, 50.0, 20.0)},  # three parameters and three activations of four bytes: 24
        "within_memory is true but device 2 (1 in all) is too weak for the least of the levels, 0.0625",
    ),
    ("heterofl", {"rates": None, "budget_s": 9.0, "assignment": "dynamic"}, {}, "assignment is dynamic but each"),
    ("feddrop", {"deadline_s": None}, {}, "state exactly one of kept_shares and deadline_s"),
    ("feddrop", {"kept_shares": [1.0, 0.5, 0.5]}, {}, "state exactly one of kept_shares and deadline_s"),
    (
        "feddrop",
        {"deadline_s": None, "kept_shares": [1.0, 0.5]},
        {},
        "kept_shares has 2 numbers but the fleet has 3 devices; give one per device",
    ),
    ("feddrop", {"deadline_s": 0.2}, {}, "deadline_s is 0.2 but with 1/20 of the units device 0 (3 in all) misses"),
    ("feddrop", {}, {"downlink": REDRAWN}, "deadline_s needs the mean seconds of a round, but they have infinite mean"),
    ("fedlama", {"n_sampled": 4}, {}, "n_sampled is 4 but the fleet has 3 devices; choose 1..3"),
    (
        "fedlama",
        {"relaxed": [0, 3]},
        {},
        "relaxed names layer 3 but the model has 3 layers; choose among 0..2, from the in",
    ),
    (
        "fedlama",
        {"relaxed": [0], "rule": "literal"},
        {},
        "relaxed is stated, so no layer is chosen; leave out rule, crossing",
    ),
    ("embracingfl", {"n_sampled": 4}, {}, "n_sampled is 4 but the fleet has 3 devices; choose 1..3"),
    (
        "embracingfl",
        {"depths": None},
        {},
        "depths, capacity_shares, memory_bytes are all left out; state one: depths or",
    ),
    (
        "embracingfl",
        {"capacity_shares": [1, 1, 1]},
        {},
        "depths and capacity_shares are all stated; state one: depths or",
    ),
    ("embracingfl", {}, {"memory_bytes": (100.0,) * 3}, "depths and memory_bytes are all stated; state one: depths or"),
    (
        "embracingfl",
        {"depths": [1, 3]},
        {},
        "depths has 2 numbers but the fleet has 3 devices; give one number per device",
    ),
    ("embracingfl", {"depths": [1, 2, 4]}, {}, "depths holds 4 but the model has 3 layers; choose 1..3"),
    (
        "embracingfl",
        {"depths": [1, 2, 2]},
        {},
        "depths lets no device train more than 2 of 3 layers; let one train them all",
    ),
    (
        "embracingfl",
        {"depths": None, "capacity_shares": [1.0, 0.3, 0.6]},  # a layer is a third
        {},
        "capacity_shares of device 1 is too little to train even the output layer; give it more",
    ),
    (
        "embracingfl",
        {"depths": None},
        {"memory_bytes": (24.0, 7.0, 16.0)},
        "memory_bytes of device 1 is too little to train",
    ),
    (
        "embracingfl",
        {"depths": None},
        {"memory_bytes": (23.0, 8.0, 16.0)},
        "memory_bytes lets no device train more than 2 of",
    ),
    ("flanp", {"stages": [3]}, {}, "norm_below and stages are two ways to end a stage; state exactly one of them"),
]


@pytest.mark.parametrize(("kind", "changes", "fleet", "words"), MISFITS)
def test_a_shipped_policy_says_in_words_what_does_not_fit(kind, changes, fleet, words):
    policy = shelves.build("policies", kind, {**SHIPPED[kind], **changes})
    (problem,) = policy.problems(setting(**fleet))
    assert problem.startswith(words)


def test_every_shipped_policy_is_shown_a_misfit():
    assert {kind for kind, *_ in MISFITS} == set(SHIPPED)


# ---- one more on the shelf ------------------------------------------------------------------------------------------

FIRST_K = '''"""first_k: the `k` uploads that come first are averaged; everybody else goes on and is heard later.

    everybody starts
    each round: wait for k uploads; x := x + mean of their changes; those k start again
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from fedsim import weights
from fedsim.facts import Jobs, Task
from fedsim.protocols import Rounds, Server, Setting, arrivals


@dataclass(frozen=True)
class FirstK:
    """k: uploads that the server waits for."""

    k: Annotated[int, Ge(1)]
    source: ClassVar[str] = "made up for this exam; K-async SGD is its serious cousin"

    def problems(self, setting: Setting) -> list[str]:
        return [] if self.k <= setting.n_devices else [f"k is {self.k}; choose 1..{setting.n_devices}"]

    def rounds(self, server: Server) -> Rounds:
        jobs = server.send(server.sample(), Task(n_steps=2))
        while True:
            yield from server.wait(jobs, arrivals(self.k))
            arrived = server.take(jobs)
            server.aggregate(arrived, weights.mean(arrived))
            left = jobs.where(~np.isin(jobs.device, arrived.device))
            jobs = Jobs.concatenate([left, server.send(arrived.device, Task(n_steps=2))])
'''
FIRST_K_SCENARIO = """name: first_k
fleet: {n_devices: 6, compute: {step_s: 1.0, task_factor: {kind: exponential}}}
data: {kind: gaussian_blobs, n_samples: 300, n_features: 4, n_classes: 3}
model: {kind: mlp, widths: [8]}
policies: [{kind: fedavg}, {kind: first_k, k: 2}]
evaluation: {targets: [0.5]}
stop: {simulated_s: 30}
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the package and its exams with one file more on the shelf, and a way to run Python in it."""
    folder = tmp_path_factory.mktemp("checkout")
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(fedsim.__file__).parent, folder / "fedsim", ignore=leave)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=leave)
    (folder / "fedsim" / "policies" / "first_k.py").write_text(FIRST_K, encoding="utf-8")
    (folder / "first_k.yaml").write_text(FIRST_K_SCENARIO, encoding="utf-8")

    def python(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return folder, python


def test_a_new_policy_is_one_file_of_under_forty_lines():
    assert len(FIRST_K.splitlines()) < 40


def test_a_new_policy_is_listed_with_its_first_line(checkout):
    listed = checkout[1]("-m", "fedsim.cli", "list")
    assert "first_k: the `k` uploads that come first are averaged" in listed


def test_a_new_policy_runs_and_is_reported(checkout):
    folder, python = checkout
    said = python("-m", "fedsim.cli", "run", "first_k.yaml", "--out", "runs")
    assert "first_k" in said
    results = folder / "runs" / "first_k"
    assert (results / "first_k" / "seed-0" / "rounds.parquet").is_file()
    assert "first_k" in (results / "report.html").read_text(encoding="utf-8")
    assert "first_k" in (results / "summary.csv").read_text(encoding="utf-8")


def test_a_new_policy_passes_this_exam(checkout):
    """All that is asked of every policy is asked of it, and it passes."""
    exam = ("-m", "pytest", "-p", "no:cacheprovider", "--import-mode=importlib", "tests/exams/test_policies.py")
    said = checkout[1](*exam, "-k", "first_k", "-v", "-c", os.devnull, "--rootdir", ".")
    n_asked = sum(EVERY_POLICY.mark in getattr(each, "pytestmark", []) for each in globals().values())
    assert n_asked > 5
    assert said.count("[first_k] PASSED") == n_asked
