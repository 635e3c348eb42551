"""Arrays from a .npz file that a user wrote. Never a pickle."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def read_npz(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Every array by its name. Raises OSError if the file cannot be opened, ValueError with the reason if it is damaged."""
    # Opened here: np.load leaves the file open when the archive turns out to be damaged.
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array and no names")
            with archive:
                return {name: archive[name] for name in archive.files}
        except (EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as damage:
            raise ValueError(str(damage)) from None
