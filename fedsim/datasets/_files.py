"""Finding, reading and checking the files of data sets; not a data set. Nothing here unpickles anything."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsim.facts import BadInput

Bytes = npt.NDArray[np.uint8]
_OPENERS: dict[str, Any] = {"": open, ".gz": gzip.open, ".xz": lzma.open}
_MOST_BYTES = 2**28  # no file of a shelf data set unpacks to more; a bomb stops here


class AbsentData(BadInput):
    """The files are in none of the places where they are looked for."""


def data_folder(data_dir: Path | None) -> Path | None:
    """`data_dir`, else $FEDSIM_DATA, else None. Raises BadInput if that is no folder."""
    named = data_dir or (Path(os.environ["FEDSIM_DATA"]) if os.environ.get("FEDSIM_DATA") else None)
    if named is not None and not named.is_dir():
        origin = "data_dir" if data_dir else "$FEDSIM_DATA"
        raise BadInput(
            f"{origin} is {named}, which is not a folder; name the folder that holds the data sets", at=("data",)
        )
    return named


def find(names: Sequence[str], folders: Iterable[Path]) -> dict[str, Path] | None:
    """The path of each file in the first folder that has any of them, plain, .gz or .xz; None if no folder has one.

    Raises BadInput if that folder lacks others.
    """
    for folder in folders:
        paths = {name: path for name in names if (path := _packed(folder / name))}
        if len(paths) == len(names):
            return paths
        if paths:
            lacking = ", ".join(name for name in names if name not in paths)
            raise BadInput(f"{folder} lacks {lacking}; put it there", at=("data",))
    return None


def absent(kind: str, names: Sequence[str], folder: Path | None, reason: str) -> AbsentData:
    """The error that says which files are wanted where."""
    looked_in = f"are not in {folder}" if folder else "have no folder (neither data_dir nor $FEDSIM_DATA is set)"
    return AbsentData(
        f"the files of {kind} {looked_in}, and {reason}; put {', '.join(names)} (or packed: .gz, .xz) into "
        f"{folder or 'DATA'}/{kind}, and name {folder or 'DATA'} as data_dir or in $FEDSIM_DATA",
        at=("data",),
    )


def content(path: Path) -> bytes:
    """All bytes of a file, unpacked. Raises BadInput that names it if it is damaged."""
    try:
        with _OPENERS[path.suffix if path.suffix in _OPENERS else ""](path, "rb") as stream:
            read: bytes = stream.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as damage:
        raise damaged(path, str(damage)) from None
    if len(read) > _MOST_BYTES:
        raise damaged(path, f"it unpacks to more than {_MOST_BYTES} bytes")
    return read


def check_sha256(read: bytes, wanted: str, path: Path | str) -> None:
    """Raises BadInput if the unpacked bytes are not the published ones."""
    if hashlib.sha256(read).hexdigest() != wanted:
        raise damaged(path, "its checksum is not that of the original")


def damaged(path: Path | str, why: str) -> BadInput:
    """The error for a file that is there but cannot be what it should be."""
    return BadInput(f"{path} is damaged ({why}); put the original file there", at=("data",))


def standardised(pixels: Bytes, mean: float, std: float) -> npt.NDArray[np.float32]:
    """(pixel / 255 - mean) / std, in float32."""
    # A table of the 256 values: one gather, and every pixel is rounded once.
    table = ((np.arange(256) / 255 - mean) / std).astype(np.float32)
    return table[pixels]


def _packed(path: Path) -> Path | None:
    names = (path.with_name(path.name + ending) for ending in _OPENERS)
    return next((candidate for candidate in names if candidate.is_file()), None)
