"""Which pages `fedsim report` writes, and with which pictures."""

from __future__ import annotations

import pytest

from fedsim.commands import reporting
from fedsim.commands.reporting import draw, formats_of, pages
from fedsim.dashboard.report import write_report
from fedsim.facts import BadInput
from fedsim.statistics.reading import broken_folders
from tests.run_folders import climb, write_run


@pytest.fixture
def folder(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "s", "a", seed, climb(20 + seed))
        write_run(tmp_path / "s", "b", seed, climb(30), position=1)
    return tmp_path / "s"


def test_each_scenarios_folder_is_a_page_of_its_own(folder, tmp_path):
    write_run(tmp_path / "t", "c", 0, climb(20))
    first, second = pages([folder, tmp_path / "t"])
    assert (len(first.runs), len(second.runs), first.is_whole) == (6, 1, True)


def test_some_run_folders_make_one_page_of_their_own_and_leave_the_scenarios_alone(folder):
    write_report(folder, pages([folder])[0].runs)
    before = (folder / "report.html").read_bytes()
    (page,) = pages([folder / "policy-0" / "seed-1", folder / "policy-1" / "seed-1"])
    assert [(run.label, run.seed) for run in page.runs] == [("a", 1), ("b", 1)]
    assert (page.folder, page.is_whole) == (folder, False)
    written = write_report(page.folder, page.runs, is_whole=page.is_whole)
    assert written.name == "selection.html"
    assert (folder / "report.html").read_bytes() == before


def test_a_folder_that_is_not_finished_is_named_and_left_out(folder):
    (folder / "policy-0" / "seed-9").mkdir()
    (page,) = pages([folder])
    assert len(page.runs) == 6
    assert page.left_out[0].endswith("seed-9: no manifest.json, so the run has not finished; run it again (--again)")


def test_what_was_read_already_is_not_looked_at_again(folder):
    runs = pages([folder])[0].runs
    (runs[0].folder / "rounds.parquet").unlink()
    assert broken_folders(folder, known=runs) == []
    assert len(broken_folders(folder)) == 1


def test_runs_of_different_settings_are_not_put_on_one_page(folder):
    other = write_run(folder, "c", 0, climb(20), position=2, sustain_s=30.0)
    with pytest.raises(BadInput, match="different settings, which cannot be compared"):
        pages([folder])
    with pytest.raises(BadInput, match="different settings, which cannot be compared"):
        pages([folder / "policy-0" / "seed-1", other])


@pytest.mark.parametrize(("name", "said"), [("nowhere", "is not a folder"), (".", "holds no finished runs")])
def test_a_folder_without_runs_is_refused_with_a_remedy(tmp_path, name, said):
    with pytest.raises(BadInput, match=f"{said}; give a scenario's folder of results"):
        pages([tmp_path / name])


def test_a_style_that_is_none_is_refused(folder):
    with pytest.raises(BadInput, match="--style is 'comic', which is unknown; choose screen or paper"):
        formats_of(png=True, svg=False, pdf=False, style="comic", width="single")
    with pytest.raises(BadInput, match="--width is 'triple', which is unknown; choose single or double"):
        formats_of(png=True, svg=False, pdf=False, style="paper", width="triple")


def test_every_figure_of_the_page_is_drawn_in_the_formats_that_were_asked_for(folder, monkeypatch):
    asked = {}

    def write_pictures(figures, folder, formats, style, width):
        asked.update(figures=figures, folder=folder, formats=formats, style=style, width=width)
        return []

    monkeypatch.setattr(reporting, "write_pictures", write_pictures)
    (page,) = pages([folder])
    draw(page, formats_of(png=True, svg=False, pdf=True, style="paper", width="double"), "paper", "double")
    assert next(iter(asked["figures"])) == "accuracy_over_time_s"
    assert (asked["folder"], asked["formats"]) == (folder / "figures", ["png", "pdf"])
    assert (asked["style"], asked["width"]) == ("paper", "double")
    assert draw(page, [], "screen", "single") == []
