"""The file name is the registry; a path reaches code that is on no shelf."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from fedsim.facts import BadInput
from fedsim.scenario import shelves
from fedsim.scenario.errors import BadInputs

POLICY = """
from dataclasses import dataclass
from typing import Annotated, ClassVar
from annotated_types import Ge

@dataclass(frozen=True)
class Patient:
    k: Annotated[int, Ge(1)]
    weights: tuple[float, ...] = ()
    source: ClassVar[str] = "nobody"
    def problems(self, setting): return []
    def rounds(self, server): yield

@dataclass(frozen=True)
class _Helper:
    x: int = 0
"""

MODELS = """
from typing import Annotated
from annotated_types import Ge

def build(input_shape, n_outputs, width: Annotated[int, Ge(1)] = 4, *, names=["a"]):
    return (input_shape, n_outputs, width, names)

def build_any(input_shape, n_outputs, width: int = 4, **others):
    return (width, others)

class Net:
    def __init__(self, input_shape, n_outputs, depth: int):
        self.depth = depth

def unreadable(input_shape, n_outputs, width: "NoSuchType" = 4): ...

def too_short(input_shape): ...
"""

FILES = {
    "mylab/__init__.py": "",
    "mylab/patient.py": POLICY,
    "mylab/nets.py": MODELS,
    "mylab/two.py": POLICY + POLICY.replace("Patient", "Second"),
    "mylab/nothing.py": "x = 1",
    "mylab/thawed.py": POLICY.replace("(frozen=True)", ""),
    "mylab/taken.py": POLICY.replace("weights:", "label:"),
    "mylab/needs.py": "import no_such_package",
    "mylab/leaves.py": "raise SystemExit(3)",
    "mylab/wrong.py": "def (:\n",
    "mylab/strange.py": POLICY.replace("k: Annotated[int, Ge(1)]", "k: 'NoSuchType'"),
}


@pytest.fixture(autouse=True)
def mylab(tmp_path, monkeypatch):
    """A package of the user's in the current folder."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "mylab"]:
        del sys.modules[name]


@pytest.fixture
def patient_shelf(tmp_path, monkeypatch):
    """The shelf of policies with one more file on it, which is all that a new policy needs."""
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "patient.py").write_text(POLICY)
    (tmp_path / "shelf" / "_helpers.py").write_text("raise RuntimeError")
    package = importlib.import_module("fedsim.policies")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "shelf")])
    yield
    sys.modules.pop("fedsim.policies.patient", None)


def refusal(shelf, kind, parameters=None):
    with pytest.raises(BadInput) as refused:
        shelves.build(shelf, kind, parameters or {})
    return str(refused.value)


@pytest.mark.usefixtures("patient_shelf")
def test_a_file_on_the_shelf_is_a_kind():
    assert "patient" in shelves.names("policies")
    assert "_helpers" not in shelves.names("policies")
    policy = shelves.build("policies", "patient", {"k": 3, "weights": [1, 0.5]})
    assert type(policy).__module__ == "fedsim.policies.patient"
    assert policy == type(policy)(k=3, weights=(1.0, 0.5))


def test_an_installed_package_adds_a_kind_by_an_entry_point(monkeypatch, mylab):
    monkeypatch.syspath_prepend(mylab)
    entry = EntryPoint(name="lab_patient", value="mylab.patient:Patient", group="fedsim.policies")
    monkeypatch.setattr(shelves, "entry_points", lambda group, name=None: [entry] if group == entry.group else [])
    assert "lab_patient" in shelves.names("policies")
    assert "lab_patient" not in shelves.names("models")
    assert shelves.build("policies", "lab_patient", {"k": 3}).k == 3


@pytest.mark.parametrize("kind", ["mylab.patient", "mylab.patient:Patient", "mylab.patient.Patient"])
def test_a_path_names_a_module_with_one_class_or_the_class_itself(kind):
    assert shelves.build("policies", kind, {"k": 3}).k == 3


@pytest.mark.parametrize("kind", ["mylab.nets:build", "mylab.nets.build"])
def test_a_model_may_be_a_plain_function_with_checked_parameters(kind):
    model = shelves.build("models", kind, {"width": 8})
    assert model.build((1, 28, 28), 10) == ((1, 28, 28), 10, 8, ["a"])
    assert pickle.loads(pickle.dumps(model)) == model
    assert refusal("models", kind, {"width": 0}) == "width is 0 but must be at least 1"
    assert refusal("models", kind, {"widht": 8}) == "widht is not a known key; did you mean 'width'?"


def test_a_function_that_takes_any_keyword_gets_them_all():
    model = shelves.build("models", "mylab.nets:build_any", {"width": 8, "colour": "red"})
    assert model.build((2,), 3) == (8, {"colour": "red"})
    assert refusal("models", "mylab.nets:build_any", {"width": "x"}) == "width is 'x' (text) but must be a whole number"


def test_a_model_may_be_a_class_that_is_built_like_a_function():
    assert shelves.build("models", "mylab.nets:Net", {"depth": 2}).build((2,), 3).depth == 2


def test_every_wrong_parameter_is_found():
    with pytest.raises(BadInputs) as refused:
        shelves.build("policies", "mylab.patient", {"k": 0, "weights": ["x"]})
    assert [each.at for each in refused.value.problems] == [("k",), ("weights", 0)]


@pytest.mark.parametrize(
    ("shelf", "kind", "said"),
    [
        ("policies", "no_such", "kind is 'no_such', which is no policy known here"),
        ("policies", "_helpers", "kind is '_helpers', which is no policy known here"),
        ("policies", "mylab.no_such", "kind names no_such, but mylab holds no such name"),
        ("policies", "mylab.patient:Patiemt", "holds no such name; did you mean 'Patient'?"),
        ("policies", "mylab.patient.Patient.k", "there is no module mylab.patient.Patient; looked in "),
        ("policies", "no_lab.x", "there is no module no_lab; looked in "),
        ("policies", "../x", "must be a path such as mylab.policies.foo or mylab.nets:build"),
        ("policies", "mylab:", "must be a path such as"),
        ("policies", "mylab.two", "must define one public class but defines Patient, Second;"),
        ("policies", "mylab.nothing", "must define one public class but defines none;"),
        ("policies", "mylab.thawed", "must be a frozen dataclass; put @dataclass(frozen=True) above it"),
        ("policies", "mylab.taken", "whose parameter label is a key of every entry; rename it"),
        ("policies", "mylab.needs", "fails when imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ("policies", "mylab.leaves", "fails when imported: SystemExit: 3"),
        ("policies", "mylab.wrong", "fails when imported: SyntaxError:"),
        ("policies", "mylab.strange", "the parameter types of Patient cannot be read: "),
        (
            "policies",
            "mylab.nets:build",
            "which is no policy; that is a frozen dataclass with problems(...) and rounds(",
        ),
        ("datasets", "mylab.patient", "which is no data set; that is a frozen dataclass with load(...)"),
        (
            "models",
            "mylab.nets:too_short",
            "which is no model; that is a frozen dataclass with build(...), or a function",
        ),
        ("models", "mylab.nets:unreadable", "the parameter types of unreadable cannot be read: "),
        ("models", "builtins:iter", "which is no model;"),
    ],
)
def test_a_kind_that_cannot_be_used_says_why_in_one_line(shelf, kind, said):
    message = refusal(shelf, kind, {"k": 1} if shelf == "policies" else {})
    assert said in message
    assert len(message.splitlines()) == 1


def test_a_file_of_the_users_does_not_stand_in_for_pythons_own(mylab):
    (mylab / "statistics.py").write_text("raise RuntimeError")
    shelves.build("policies", "mylab.patient", {"k": 3})
    code = (
        "import fedsim.scenario.shelves as s; s.item('policies', 'mylab.patient'); import statistics; statistics.mean"
    )
    subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"], check=True, timeout=60
    )


def test_another_name_of_a_policy_is_the_policy_itself(monkeypatch):
    """And a file of that name would come first."""
    assert shelves.aliases("policies") == {"inclusivefl": "embracingfl"}
    same = shelves.build("policies", "inclusivefl", {"depths": [1]})
    assert same == shelves.build("policies", "embracingfl", {"depths": [1]})
    assert shelves.kind_named("policies", "inclusivefl") == "embracingfl", "results and closed forms are of that name"
    assert "inclusivefl" not in shelves.names("policies"), "listed once"
    assert refusal("policies", "inclusivfl").endswith("did you mean 'inclusivefl'?")
    monkeypatch.setattr(shelves, "names", lambda shelf: ["embracingfl", "inclusivefl"])
    assert shelves.kind_named("policies", "inclusivefl") == "inclusivefl"


def test_naming_policies_does_not_import_torch():
    code = (
        "import sys; from fedsim.scenario import read, shelves; "
        "[shelves.item('policies', name) for name in shelves.names('policies')]; "
        "sys.exit(len({'torch', 'sklearn'} & set(sys.modules)))"
    )
    path = [entry for entry in sys.path if entry]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:] = {path!r}; {code}"], check=True, timeout=60)
