"""Files of pictures: what is refused, how they are written, and what is done to them; no browser is started here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import struct
import sys
import zlib

import plotly.graph_objects as go
import pytest

from fedsim.dashboard import pictures
from fedsim.facts import BadInput

LINE = go.Figure(go.Scatter(y=[1, 2], name="a"))
JOB = pictures._Job(go.Figure(layout={"width": 326.4, "height": 264}), "pdf", 3.125)


@pytest.fixture
def without_kaleido(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "kaleido" else find_spec(name))


@pytest.fixture
def without_browser(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)


def png_of(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"rest"


def test_without_a_browser_one_line_says_how_to_get_one(tmp_path, without_kaleido, without_browser):
    with pytest.raises(
        BadInput, match=r"install Chromium or Chrome .*pip install 'fedsim-clock\[pictures\]'"
    ) as refused:
        pictures.write_pictures({"a": LINE}, tmp_path / "out", ["png"])
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_where_kaleido_finds_no_browser_chromium_draws(tmp_path, monkeypatch):
    errors = pytest.importorskip("choreographer.errors", reason="kaleido is not installed")

    def refuse(_jobs):
        raise errors.ChromeNotFoundError

    monkeypatch.setattr(pictures, "with_kaleido", refuse)
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/bin/{name}" if name == "google-chrome" else None)
    monkeypatch.setattr(
        pictures, "with_chromium", lambda jobs, browser: [f"<svg>{browser}</svg>".encode() for _ in jobs]
    )
    (path,) = pictures.write_pictures({"a": LINE}, tmp_path, ["svg"])
    assert path.read_text(encoding="utf-8") == "<svg>/bin/google-chrome</svg>"


def test_a_browser_that_fails_is_one_line(tmp_path, without_kaleido, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name, **_: "/bin/true")
    with pytest.raises(BadInput, match=r"^/bin/true could not draw: it ended by itself; try another") as refused:
        pictures.write_pictures({"a": LINE}, tmp_path, ["png"])
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes")
def test_a_browser_that_says_nothing_is_given_up_and_ended(tmp_path):
    from fedsim.dashboard.chromium import BrowserError, open_page

    silent, pid = tmp_path / "silent", tmp_path / "pid"
    lines = ["import os, pathlib, signal", f"pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))", "signal.pause()"]
    silent.write_text("\n".join([f"#!{sys.executable}", *lines]))
    silent.chmod(0o755)
    with pytest.raises(BrowserError, match=r"no answer within 3 s"), open_page(str(silent), timeout_s=3):
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden", "a\nb", "-flag"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(BadInput, match="cannot name a file"):
        pictures.write_pictures({name: LINE}, tmp_path, ["png"])


def test_no_figures_need_no_browser(tmp_path, without_kaleido, without_browser):
    assert pictures.write_pictures({}, tmp_path, ["png"]) == []
    assert pictures.write_pictures({"a": LINE}, tmp_path, []) == []


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    """The part that was written is gone too."""
    path = tmp_path / "a.svg"
    path.write_bytes(b"old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        pictures._write_whole(path, b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["a.svg"]
    assert path.read_bytes() == b"old"


def test_a_png_says_how_many_pixels_an_inch_has():
    marked = pictures._with_resolution(png_of(1020, 825), JOB)
    at = marked.index(b"pHYs")
    per_metre_x, per_metre_y, unit = struct.unpack(">IIB", marked[at + 4 : at + 13])
    assert (per_metre_x, per_metre_y, unit) == (11811, 11811, 1)  # 300 / 0.0254
    assert struct.unpack(">I", marked[at + 13 : at + 17])[0] == zlib.crc32(marked[at : at + 13])
    assert marked.replace(marked[at - 4 : at + 17], b"") == png_of(1020, 825)


def test_a_sheet_gets_the_figures_size_without_moving_a_byte():
    """The figure stands at the top, so the lower edge goes up: 199.2 - 198 points."""
    before = b"%PDF /MediaBox [0 0 245.03999 199.199997] rest"
    after = pictures._with_exact_box(before, JOB)
    assert after.startswith(b"%PDF /MediaBox [0 1.2 244.8 199.2")
    assert len(after) == len(before)
    assert after.endswith(b"] rest")


@pytest.mark.parametrize("pdf", [b"no box", b"/MediaBox [0 0 246 199]", 2 * b"/MediaBox [0 0 245.03999 198.59999]"])
def test_a_pdf_that_is_laid_out_otherwise_is_left_alone(pdf):
    assert pictures._with_exact_box(pdf, JOB) == pdf


def test_on_the_screen_a_picture_is_white_with_dark_text():
    given = go.Figure([{"y": [1], "name": "a"}, {"y": [2], "name": "b"}], layout={"font": {"color": "#888888"}})
    drawn = pictures.on_white(given)
    assert (drawn.layout.paper_bgcolor, drawn.layout.plot_bgcolor) == ("#ffffff", "#ffffff")
    assert drawn.layout.font.color == "#1b1b1b"
    assert drawn.layout.showlegend
    assert given.layout.font.color == "#888888"
    assert given.layout.paper_bgcolor is None
