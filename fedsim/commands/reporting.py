"""Which pages `fedsim report` writes: one for each scenario's folder, one for a choice of run folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from fedsim.dashboard.drawings import drawings
from fedsim.dashboard.paper import Width
from fedsim.dashboard.pictures import Format, PictureStyle, write_pictures
from fedsim.facts import BadInput
from fedsim.statistics.reading import Run, broken_folders, read_run, read_scenario

_EXAMPLE = "give a scenario's folder of results, such as runs/quickstart, or run folders in it"


@dataclass(frozen=True)
class Page:
    """A page to write. folder: the scenario's; is_whole: made of all its runs, with a summary beside it."""

    folder: Path
    runs: list[Run]
    left_out: list[str]
    is_whole: bool


def pages(folders: Sequence[Path]) -> list[Page]:
    """What these folders ask for, in their order. Raises BadInput."""
    found = [_of_scenario(folder) for folder in folders if not _is_run(folder)]
    chosen: dict[Path, list[Path]] = {}
    for folder in filter(_is_run, folders):
        chosen.setdefault(folder.resolve().parent.parent, []).append(folder)
    found += [
        _checked(Page(parent, [read_run(run) for run in own], [], is_whole=False)) for parent, own in chosen.items()
    ]
    return found


def _is_run(folder: Path) -> bool:
    return (folder / "manifest.json").is_file()


def _of_scenario(folder: Path) -> Page:
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder; {_EXAMPLE}")
    runs = read_scenario(folder)
    page = Page(folder, runs, broken_folders(folder, known=runs), is_whole=True)
    if not runs:
        raise BadInput(f"{folder} holds no finished runs; {_EXAMPLE}")
    return _checked(page)


def _checked(page: Page) -> Page:
    if len({run.setting for run in page.runs}) > 1:
        raise BadInput(
            f"{page.folder} holds runs of different settings, which cannot be compared; run the scenario again, "
            f"or move the old runs away"
        )
    return page


# ---- pictures -------------------------------------------------------------------------------------------------------


def formats_of(*, png: bool, svg: bool, pdf: bool, style: str, width: str) -> list[Format]:
    """The formats that were asked for. Raises BadInput for a style or a width that is none."""
    for name, value, known in (("--style", style, get_args(PictureStyle)), ("--width", width, get_args(Width))):
        if value not in known:
            raise BadInput(f"{name} is {value!r}, which is unknown; choose {' or '.join(known)}")
    wanted: list[tuple[bool, Format]] = [(png, "png"), (svg, "svg"), (pdf, "pdf")]
    return [name for is_wanted, name in wanted if is_wanted]


def draw(page: Page, formats: Sequence[Format], style: str, width: str) -> list[Path]:
    """Every figure of the page as it is first shown, in a folder `figures` beside it; the paths. Raises BadInput."""
    if not formats:
        return []
    figures = {drawing.name: drawing.figure for drawing in drawings(page.runs)}
    return write_pictures(figures, page.folder / "figures", formats, cast(PictureStyle, style), cast(Width, width))
