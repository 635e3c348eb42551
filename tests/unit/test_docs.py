"""What README and docs say is still so: their links lead somewhere, their scenarios load, made pages are as the code is."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer

import fedsim
from fedsim import cli
from fedsim.commands import reference
from fedsim.commands.new import new
from fedsim.facts import BadInput
from fedsim.scenario import shelves

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "fedsim").rglob("*.md"),
    ]
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
# Those that have a page: a policy just put on the shelf needs nothing else, and the exam names those that must have one.
POLICIES = sorted(path.stem for path in (ROOT / "docs/explanation/policies").glob("[a-z]*.md"))
MADE = reference.pages()
COMMANDS = typer.main.get_command(cli.app).commands


def name_of(page):
    return str(page.relative_to(ROOT))


def without_code(text):
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def fenced(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {reference.slug(heading) for heading in headings}


def blocks(language):
    return [
        pytest.param(page, text, id=f"{name_of(page)}-{i}")
        for page in PAGES
        for i, text in enumerate(fenced(page, language))
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    for target in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_a_link_that_leads_nowhere_would_be_seen():
    assert LINK.findall("see [this](docs/none.md#there), and ![a picture](no.png)") == ["docs/none.md#there"]


@pytest.mark.parametrize("kind", POLICIES)
def test_every_policy_has_a_page_that_names_its_departures_and_links_its_parameters(kind):
    text = (ROOT / f"docs/explanation/policies/{kind}.md").read_text(encoding="utf-8")
    assert "## Departs from the paper / unknown" in text
    assert f"(../../reference/shelves.md#{kind})" in text


@pytest.mark.parametrize("kind", POLICIES)
def test_the_readme_lists_every_policy(kind):
    assert f"(docs/explanation/policies/{kind}.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_every_scenario_in_the_docs_loads(page, text, tmp_path, monkeypatch):
    """Blocks marked `yaml` are whole scenarios; parts of one carry no mark."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "patient", raising=False)
    new("policy", "patient", tmp_path)  # the tutorial's
    for file in ("split.npz", "partition.npz", "weights.npz"):  # the how-to's; what is in them is asked later
        (tmp_path / file).touch()
    (tmp_path / "scenario.yaml").write_text(text, encoding="utf-8")
    assert fedsim.load(tmp_path / "scenario.yaml").contenders


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_every_piece_of_python_in_the_docs_can_be_parsed(page, text):
    ast.parse(text if not text.startswith(" ") else f"class Policy:\n{text}")


def sections(page):
    """Heading -> text under it; what stands before the first heading is under ''."""
    parts = re.split(r"^(#{1,3} .*)$", page, flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[::2], strict=True))


@pytest.mark.parametrize("name", MADE)
def test_a_made_page_is_as_the_code_is(name):
    """If not: python -m fedsim.commands.reference docs/reference. A kind that the page does not have yet is no error."""
    page, made = sections((ROOT / "docs/reference" / name).read_text(encoding="utf-8")), sections(MADE[name])
    assert page == {heading: text for heading, text in made.items() if heading in page}


@pytest.mark.parametrize("kind", POLICIES)
def test_the_reference_names_every_parameter_of_every_policy(kind):
    section = MADE["shelves.md"].split(f"### {kind}\n")[1].split("\n### ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [
        f.name for f in fields(shelves.item("policies", kind))
    ]


def test_a_parameters_meaning_is_what_the_docstring_says_after_its_name():
    assert "| `over_selected` | whole number ≥ 0 | `0` | devices asked in addition |" in MADE["shelves.md"]


def test_the_reference_pages_go_into_a_folder_that_exists(tmp_path):
    reference.main([str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys.md", "shelves.md"]
    with pytest.raises(BadInput, match="is not a folder"):
        reference.main([str(tmp_path / "nowhere")])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_page_names_every_command_and_option(command):
    page = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    options = [option for each in COMMANDS[command].params for option in each.opts if option.startswith("--")]
    assert f"| `fedsim {command}" in page
    assert [option for option in options if f"| `{option}" not in page] == []


def test_every_page_of_the_docs_can_be_reached_from_the_readme():
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = LINK.findall(without_code(page.read_text(encoding="utf-8")))
        todo += [(page.parent / link.split("#")[0]).resolve() for link in links if link.split("#")[0]]
    assert {name_of(page) for page in (ROOT / "docs").rglob("*.md")} <= {name_of(page) for page in seen}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_the_make_targets_that_the_readme_and_contributing_name_exist(target):
    said = subprocess.run(["make", "--dry-run", target], capture_output=True, text=True, check=False, cwd=ROOT)
    assert said.returncode == 0, said.stderr
