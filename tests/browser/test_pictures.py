"""Pictures that a browser drew, both ways: their sizes, and what is in them."""

from __future__ import annotations

import importlib.util
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import plotly.graph_objects as go
import pytest

from fedsim.dashboard import chromium, figures, frames, pictures
from fedsim.dashboard.palette import styles
from fedsim.statistics.reading import read_scenario
from tests.run_folders import climb, write_run

HOSTILE = "<script>window.harm = 1</script><b>salf</b>"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> dict[str, go.Figure]:
    folder = tmp_path_factory.mktemp("runs") / "demo"
    for position, label in enumerate(["fedavg", "stsyn(k=15)", HOSTILE]):
        for seed in range(3):
            write_run(folder, label, seed, climb(20 + 4 * position + seed), kind=label, position=position)
    runs = read_scenario(folder)
    looks = styles((run.label, run.kind) for run in runs)
    return {
        "accuracy": figures.curve(frames.curve_frame(runs, over="time_s"), looks, targets=[0.9]),
        "layers": figures.layer_contributors(frames.layers_frame(runs), looks),
    }


@pytest.fixture(params=["kaleido", "chromium"])
def engine(request, monkeypatch) -> Iterator[str]:
    if request.param == "kaleido":
        pytest.importorskip("kaleido", reason="kaleido is not installed (extra pictures)")
        monkeypatch.setattr(pictures, "with_chromium", None)
    else:
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "kaleido" else find_spec(name))
    return request.param


def size_of_png(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", content[16:24])


def sheets_of(path: Path) -> list[tuple[float, float]]:
    """Width and height of each page, in points."""
    found = re.findall(rb"/MediaBox ?\[ ?([-\d.]+) ([-\d.]+) ([-\d.]+) ([-\d.]+) *\]", path.read_bytes())
    return [(float(right) - float(left), float(top) - float(bottom)) for left, bottom, right, top in found]


@pytest.mark.parametrize(("width", "inches"), [("single", 3.4), ("double", 7.0)])
def test_pictures_for_paper_have_the_stated_sizes(drawn, engine, tmp_path, width, inches):
    paths = pictures.write_pictures(drawn, tmp_path, ["png", "svg", "pdf"], style="paper", width=width)
    assert [path.name for path in paths] == [f"{name}.{form}" for name in drawn for form in ("png", "svg", "pdf")]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for name in drawn:
        svg = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        width_in, height_in = (float(svg.attrib[side]) / 96 for side in ("width", "height"))
        assert width_in == pytest.approx(inches)
        assert size_of_png(tmp_path / f"{name}.png") == (round(300 * inches), round(300 * height_in))
        assert sheets_of(tmp_path / f"{name}.pdf") == [pytest.approx((72 * inches, 72 * height_in), abs=1e-3)]


def test_no_background_is_painted_for_paper(drawn, engine, tmp_path):
    """Every rectangle as large as the plot is fully transparent; on the screen the sheet is white."""
    for style in ("paper", "screen"):
        pictures.write_pictures(drawn, tmp_path / style, ["svg"], style=style)
    for name in drawn:
        (paper_rects, screen_rects) = (
            [
                one.attrib
                for one in ElementTree.parse(tmp_path / style / f"{name}.svg").iter()
                if one.tag.endswith("rect")
            ]
            for style in ("paper", "screen")
        )
        large = [one for one in paper_rects if float(one.get("width", 0)) > 150 and "fill" in one.get("style", "")]
        assert large
        assert all("fill-opacity: 0;" in one["style"] for one in large)
        assert any("fill: rgb(255, 255, 255); fill-opacity: 1" in one.get("style", "") for one in screen_rects)


def test_a_pdf_holds_lines_and_no_pixels(drawn, engine, tmp_path):
    """Hatches too, which a browser would print as coarse pictures."""
    (path,) = pictures.write_pictures({"layers": drawn["layers"]}, tmp_path, ["pdf"], style="paper")
    content = path.read_bytes()
    assert content.startswith(b"%PDF-")
    assert b"/Subtype /Image" not in content


def test_a_name_is_text_in_a_picture(drawn, engine, tmp_path):
    (path,) = pictures.write_pictures({"accuracy": drawn["accuracy"]}, tmp_path, ["svg"], style="paper")
    tree = ElementTree.parse(path)
    words = {"".join(one.itertext()) for one in tree.iter() if one.tag.endswith("text")}
    assert HOSTILE in words
    assert not [one for one in tree.iter() if one.tag.endswith("script")]


def test_a_screen_picture_has_two_pixels_for_one(engine, tmp_path):
    figure = go.Figure(go.Scatter(y=[1, 2]), layout={"width": 333, "height": 251})
    (path,) = pictures.write_pictures({"a": figure}, tmp_path, ["png"])
    assert size_of_png(path) == (666, 502)


def test_twenty_figures_need_one_browser(drawn, monkeypatch, tmp_path):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "kaleido" else find_spec(name))
    opened = []
    open_page = chromium.open_page
    monkeypatch.setattr(chromium, "open_page", lambda browser: opened.append(browser) or open_page(browser))
    paths = pictures.write_pictures({f"f{i}": drawn["layers"] for i in range(20)}, tmp_path, ["svg", "pdf"])
    assert (len(paths), len(opened)) == (40, 1)


def test_a_script_that_throws_is_one_line():
    browser = chromium.find_browser()
    with pytest.raises(chromium.BrowserError, match=r"^Error: no$"), chromium.open_page(browser) as page:
        page.run("throw new Error('no')")


def test_a_picture_can_be_made_inside_a_running_event_loop(engine, tmp_path):
    """As a notebook has one."""
    import asyncio

    async def cell() -> list[Path]:
        return pictures.write_pictures({"a": go.Figure(go.Scatter(y=[1, 2]))}, tmp_path, ["svg"])

    assert [path.name for path in asyncio.run(cell())] == ["a.svg"]
