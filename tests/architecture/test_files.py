"""How the package's files are written, where no linter looks."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fedsim"
FILES = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
EVERY_FILE = pytest.mark.parametrize("name", FILES)


def tree(name):
    return ast.parse(FILES[name])


def is_public(node):
    return not node.name.startswith("_")


@EVERY_FILE
def test_a_module_says_what_it_is(name):
    said = ast.get_docstring(tree(name))
    assert said
    assert len(said.split()) >= 4


@EVERY_FILE
def test_only_the_command_line_prints(name):
    calls = [node for node in ast.walk(tree(name)) if isinstance(node, ast.Call)]
    prints = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert not prints or name == "cli.py"


@EVERY_FILE
def test_a_public_class_says_what_it_is(name):
    classes = [node for node in tree(name).body if isinstance(node, ast.ClassDef) and is_public(node)]
    assert [each.name for each in classes if not ast.get_docstring(each)] == []


@EVERY_FILE
def test_public_functions_and_methods_name_the_types_of_everything(name):
    """mypy --strict asks for it too; this holds where only the tests run."""
    module = tree(name)
    owners = [module, *(node for node in module.body if isinstance(node, ast.ClassDef))]
    functions = [node for owner in owners for node in owner.body if isinstance(node, ast.FunctionDef)]
    for function in filter(is_public, functions):
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        assert not bare, f"{function.name}({', '.join(bare)}) at line {function.lineno}"
        assert function.returns is not None, f"{function.name} at line {function.lineno}"


@EVERY_FILE
def test_nothing_is_pickled_and_no_luck_is_global(name):
    """Run folders open anywhere; a run draws only addressed luck. (Loading refuses pickles: allow_pickle=False.)"""
    source = FILES[name]
    imported = {alias.name for node in ast.walk(tree(name)) if isinstance(node, ast.Import) for alias in node.names}
    assert not {"pickle", "random", "shelve", "marshal"} & imported
    assert "allow_pickle=True" not in source
    assert "np.random.seed" not in source


@EVERY_FILE
def test_no_file_is_left_to_be_done(name):
    comments = [
        t.string for t in tokenize.generate_tokens(io.StringIO(FILES[name]).readline) if t.type == tokenize.COMMENT
    ]
    assert not [c for c in comments if any(word in c for word in ("TODO", "FIXME", "XXX"))]


def test_there_is_no_drawer_for_everything():
    assert not [name for name in FILES if Path(name).stem in ("utils", "util", "misc", "common")]


def test_folders_are_at_most_two_levels_deep():
    assert max(len(Path(name).parts) for name in FILES) <= 3, "fedsim/<folder>/<folder>/<file>"
