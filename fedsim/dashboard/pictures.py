"""Figures as PNG, SVG and PDF files.

Drawn by Kaleido where it is installed (extra `pictures`) and finds a browser, else by a Chromium on the PATH; either way
by Plotly's own script in a browser, one browser for all figures, without a network.

Units: a figure is laid out in CSS pixels, 96 to the inch. An SVG has as many user units, a PDF 72 points for 96 pixels, a
PNG two pixels for one on the screen and 300 to the inch on paper. A PDF carries its letters; an SVG names fonts.
"""

from __future__ import annotations

import asyncio
import base64
import importlib.util
import json
import logging
import os
import re
import struct
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from fedsim.dashboard.hatching import drawn_out
from fedsim.dashboard.paper import (
    LEGEND_BELOW,
    PX_PER_INCH,
    Width,
    inked,
    one_entry_each,
    paper,
    right_of_plot_px,
    without_controls,
)
from fedsim.facts import BadInput

Format = Literal["png", "svg", "pdf"]
PictureStyle = Literal["screen", "paper"]

_PIXELS_PER_PX: Mapping[PictureStyle, float] = {"screen": 2.0, "paper": 300 / PX_PER_INCH}
_SCREEN_PX = (900, 420)  # where a figure states no size of its own
_INK, _GRID = "#1b1b1b", "#e4e4e4"  # the report's, on a light page
_NO_BROWSER = (
    "pictures need a browser to draw them, and none was found; "
    "install Chromium or Chrome (apt install chromium), or pip install 'fedsim-clock[pictures]' and run kaleido_get_chrome"
)


@dataclass(frozen=True)
class _Job:
    """One picture: a figure that states its size, and how many pixels a PNG has for one of its own."""

    figure: go.Figure
    format: Format
    pixels_per_px: float

    @property
    def size_px(self) -> tuple[float, float]:
        return float(self.figure.layout.width), float(self.figure.layout.height)

    @property
    def size_in(self) -> tuple[float, float]:
        width_px, height_px = self.size_px
        return width_px / PX_PER_INCH, height_px / PX_PER_INCH


def write_pictures(
    figures: Mapping[str, go.Figure],
    folder: Path,
    formats: Sequence[Format],
    style: PictureStyle = "screen",
    width: Width = "single",
) -> list[Path]:
    """Write each figure in each format as folder/<name>.<format>; the paths, figure by figure.

    style: "screen" is as in the report, on white; "paper" is `paper.paper`, `width` wide. Each file appears whole or not
    at all. Raises BadInput if there is no browser.
    """
    if wrong := [name for name in figures if not re.fullmatch(r"[\w(][\w .,=()+-]*", name)]:
        raise BadInput(f"{wrong[0]!r} cannot name a file; use letters, digits, '_', '-', '.', '=' and parentheses")
    drawn = {name: paper(one, width) if style == "paper" else on_white(one) for name, one in figures.items()}
    jobs = [_Job(one, form, _PIXELS_PER_PX[style]) for one in drawn.values() for form in formats]
    paths = [folder / f"{name}.{form}" for name in drawn for form in formats]
    if not jobs:
        return []
    pictures = _pictures(jobs)
    folder.mkdir(parents=True, exist_ok=True)
    for path, job, picture in zip(paths, jobs, pictures, strict=True):
        _write_whole(path, _FINISHED[job.format](picture, job))
    return paths


def on_white(figure: go.Figure) -> go.Figure:
    """A new figure as the report shows it on a light page, with a legend."""
    spec = figure.to_plotly_json()
    traces, layout = spec["data"], spec["layout"]
    inked(traces, _INK)
    names = one_entry_each(traces)
    without_controls(layout)
    for key, px in zip(("width", "height"), _SCREEN_PX, strict=True):
        layout.setdefault(key, px)
    layout |= {"paper_bgcolor": "#ffffff", "plot_bgcolor": "#ffffff"}
    layout["font"] = layout.get("font", {}) | {"color": _INK}
    layout["showlegend"] = layout.get("showlegend") is not False and len(names) > 1
    if "y" not in layout.get("legend", {}):
        layout["legend"] = layout.get("legend", {}) | LEGEND_BELOW
    size_px = layout["font"].get("size", 12)
    room_px = {"r": max(layout.get("margin", {}).get("r", 16), right_of_plot_px(layout, size_px))}
    layout["margin"] = layout.get("margin", {}) | room_px
    for name in [key for key in layout if re.fullmatch(r"[xy]axis\d*", key)]:
        layout[name]["gridcolor"] = _GRID
    return go.Figure(spec)


def _pictures(jobs: Sequence[_Job]) -> list[bytes]:
    """Drawn by Kaleido if it is there and finds a browser, else by a Chromium on the PATH."""
    if importlib.util.find_spec("kaleido") is not None:
        from choreographer.errors import ChromeNotFoundError

        with suppress(ChromeNotFoundError):
            return with_kaleido(jobs)
    if sys.platform != "win32":  # there the pipes of `chromium` are laid otherwise
        from fedsim.dashboard.chromium import find_browser

        if (browser := find_browser()) is not None:
            return with_chromium(jobs, browser)
    raise BadInput(_NO_BROWSER)


def with_kaleido(jobs: Sequence[_Job]) -> list[bytes]:
    """Pictures of the jobs, in their order, from one Kaleido. Raises its ChromeNotFoundError if it finds no browser."""
    from choreographer.errors import ChromeNotFoundError

    # What it cannot read from its browser it logs with a traceback, and goes on; what matters is raised.
    logger = logging.getLogger("choreographer")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    # In a thread of its own: a notebook has an event loop already, in which another cannot be run.
    with ThreadPoolExecutor(max_workers=1) as thread:
        try:
            return thread.submit(lambda: asyncio.run(_kaleido_pictures(jobs))).result()
        except ChromeNotFoundError:
            raise
        except Exception as error:
            raise BadInput(f"Kaleido could not draw: {_one_line(error)}; try without it, with Chromium") from error
        finally:
            logger.setLevel(level)


async def _kaleido_pictures(jobs: Sequence[_Job]) -> list[bytes]:
    import kaleido  # type: ignore[import-untyped]

    from fedsim.dashboard.chromium import print_options

    async def picture(browser: Any, job: _Job) -> bytes:
        (width_px, height_px), scale = job.size_px, _scale(job) if job.format == "png" else 1
        options = {"format": _drawn_as(job.format), "width": width_px, "height": height_px, "scale": scale}
        return bytes(await browser.calc_fig(job.figure, opts=options))

    async def printed(tab: Any, svg: bytes, job: _Job) -> bytes:
        # As `chromium.Page.pdf`; Kaleido's own PDFs have hatches of coarse pixels.
        frame = (await tab.send_command("Page.getFrameTree"))["result"]["frameTree"]["frame"]["id"]
        content = {"frameId": frame, "html": _sheet(svg)}
        await tab.send_command("Page.setDocumentContent", params=content)
        answer = await tab.send_command("Page.printToPDF", params=print_options(*job.size_in))
        return base64.b64decode(answer["result"]["data"])

    # Left to itself it asks a server for MathJax.
    async with kaleido.Kaleido(n=1, timeout=60, mathjax=False) as browser:
        drawn = [await picture(browser, job) for job in jobs]
        tab = await browser.create_tab("about:blank") if any(job.format == "pdf" for job in jobs) else None
        return [
            await printed(tab, one, job) if job.format == "pdf" else one for one, job in zip(drawn, jobs, strict=True)
        ]


def with_chromium(jobs: Sequence[_Job], browser: str) -> list[bytes]:
    """Pictures of the jobs, in their order, from one process of the browser at this path."""
    from fedsim.dashboard.chromium import BrowserError, Page, open_page

    def picture(page: Page, job: _Job) -> bytes:
        (width_px, height_px), scale = job.size_px, _scale(job) if job.format == "png" else 1
        options = json.dumps({"format": _drawn_as(job.format), "width": width_px, "height": height_px, "scale": scale})
        spec = f"JSON.parse({json.dumps(job.figure.to_json())})"
        address = str(page.run(f"Plotly.toImage({spec}, {options})"))
        content = address.partition(",")[2]
        return base64.b64decode(content) if job.format == "png" else unquote(content).encode()

    try:
        with open_page(browser) as page:
            page.run(f"{get_plotlyjs()};0")
            drawn = [picture(page, job) for job in jobs]
            return [
                page.pdf(_sheet(one), *job.size_in) if job.format == "pdf" else one
                for one, job in zip(drawn, jobs, strict=True)
            ]
    except (BrowserError, OSError) as error:
        raise BadInput(f"{browser} could not draw: {_one_line(error)}; try another Chromium or Chrome") from error


def _drawn_as(form: Format) -> Format:
    """A PDF is a printed SVG."""
    return "svg" if form == "pdf" else form


def _sheet(svg: bytes) -> str:
    style = "@page { margin: 0 } body { margin: 0 } svg { display: block }"
    return f"<!DOCTYPE html><meta charset='utf-8'><style>{style}</style>{drawn_out(svg).decode()}"


def _scale(job: _Job) -> float:
    """Pixels for one px. A browser cuts 1019.9999 pixels down to 1019, so it is told a hair more."""
    return job.pixels_per_px * (1 + 1e-9)


def _with_resolution(png: bytes, job: _Job) -> bytes:
    """The PNG with the pixels per metre that print it at its size. Source: PNG specification, 11.3.4.3 pHYs."""
    per_metre = round(job.pixels_per_px * PX_PER_INCH / 0.0254)
    content = b"pHYs" + struct.pack(">IIB", per_metre, per_metre, 1)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    end_of_header = 8 + 25  # signature and IHDR
    return png[:end_of_header] + chunk + png[end_of_header:]


def _with_exact_box(pdf: bytes, job: _Job) -> bytes:
    """The PDF with a sheet of the figure's size: browsers round sheets up, to whole points or further.

    The figure stands in the upper left corner. The new box takes as many bytes as the old, since a PDF lists the places
    of its parts; where it does not fit, the sheet stays a point too large.
    """
    boxes = list(re.finditer(rb"/MediaBox ?\[ ?0 0 [\d.]+ ([\d.]+) ?\]", pdf))
    if len(boxes) != 1:
        return pdf
    top, (width_pt, height_pt) = float(boxes[0][1]), (px * 72 / PX_PER_INCH for px in job.size_px)
    box = f"/MediaBox [0 {top - height_pt:.5g} {width_pt:.5g} {top:.6g}".encode()
    n_spaces = len(boxes[0][0]) - len(box) - 1
    return pdf if n_spaces < 0 else pdf[: boxes[0].start()] + box + b" " * n_spaces + b"]" + pdf[boxes[0].end() :]


_FINISHED: Mapping[Format, Callable[[bytes, _Job], bytes]] = {
    "png": _with_resolution,
    "svg": lambda svg, _job: svg,
    "pdf": _with_exact_box,
}


def _write_whole(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _one_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n", 1)[0].rstrip(".")
