"""Who may import whom (the contracts stand in pyproject.toml), and what a run that trains nothing never pays for."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fedsim"
FILES = sorted(PACKAGE.rglob("*.py"))


def linted(folder):
    """Whether every contract is kept by the package in `folder`, and what was said."""
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))",
    ]
    done = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=120)
    return done.returncode == 0, done.stdout + done.stderr


def test_every_import_contract_is_kept():
    is_kept, said = linted(ROOT)
    assert is_kept, said


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("facts.py", "from fedsim import weights", "Imports point down"),
        ("timing/clock.py", "from fedsim.training import settings", "Imports point down"),
        ("policies/fedavg.py", "from fedsim.policies import stsyn", "One policy does not know another"),
        ("policies/fedavg.py", "import torch", "A policy knows neither the clock nor the trainer"),
        ("policies/fedavg.py", "import simpy", "Only the clock imports SimPy"),
        ("datasets/digits.py", "import torch", "Only the trainer and the models import torch"),
        ("statistics/survival.py", "from fedsim.timing import book", "Statistics read run folders"),
        ("dashboard/figures.py", "from fedsim import run", "The dashboard imports nothing that simulates"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(tmp_path, file, line, contract):
    shutil.copytree(PACKAGE, tmp_path / "fedsim", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "fedsim" / file).open("a", encoding="utf-8") as broken:
        broken.write(f"\n{line}\n")
    is_kept, said = linted(tmp_path)
    assert not is_kept
    assert any(each.startswith(contract) and "BROKEN" in each for each in said.splitlines()), said


def imported_names(file):
    """Every dotted name that the file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}".replace("np.", "numpy.")


@pytest.mark.parametrize("file", sorted((PACKAGE / "policies").glob("*.py")), ids=lambda file: file.stem)
def test_a_policy_draws_no_luck_of_its_own(file):
    """Else two policies would not meet the same weather. External packages are one module to import-linter: read here."""
    forbidden = ("numpy.random", "random", "secrets", "time", "datetime", "fedsim.randomness")
    names = list(imported_names(file))
    assert not [name for name in names if any(name == f or name.startswith(f"{f}.") for f in forbidden)]


@pytest.mark.parametrize(
    "line", ["import numpy.random", "from numpy import random", "x = np.random.rand()", "import random"]
)
def test_drawing_luck_would_be_noticed(tmp_path, line):
    (tmp_path / "unlucky.py").write_text(f"{line}\n")
    with pytest.raises(AssertionError):
        test_a_policy_draws_no_luck_of_its_own(tmp_path / "unlucky.py")


# ---- what is not imported ------------------------------------------------------------------------------------------


def loaded_modules(code, **environment):
    """The top-level modules that a fresh interpreter has loaded after running the code from the repository's root."""
    tell = "\nimport sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    found = subprocess.run(
        [sys.executable, "-c", code + tell],
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    return set(json.loads(found.stdout.splitlines()[-1]))


def test_importing_fedsim_imports_neither_torch_nor_pandas_nor_plotly():
    assert not {"torch", "pandas", "plotly", "sklearn"} & loaded_modules("import fedsim")


def test_a_timing_only_run_imports_no_torch_once_the_models_shape_is_known(tiny, tmp_path):
    """The second process finds in the cache what the first has measured."""
    (tmp_path / "clock.yaml").write_text(json.dumps({**tiny(), "train": False}))  # JSON is YAML
    code = f"""
import fedsim
from fedsim.run import simulate
loaded = fedsim.load({str(tmp_path / "clock.yaml")!r})
result = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])
assert result.manifest["outcome"]["round"] == 3
"""
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert "torch" in loaded_modules(code, **cache)
    assert "torch" not in loaded_modules(code, **cache)


def test_drawing_a_report_imports_no_torch():
    assert "torch" not in loaded_modules("import fedsim.dashboard.report, fedsim.statistics.summary")
