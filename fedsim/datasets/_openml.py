"""Data sets downloaded once through scikit-learn from OpenML and kept as .npz in the user's cache; not a data set."""

from __future__ import annotations

import os
import socket
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fedsim.datasets._files import Bytes, damaged

_TIMEOUT_S = 10.0
_ONCE = {"n_retries": 1, "delay": 0.1}  # the fewest it takes: one more try, at once


def downloaded(name: str, *, version: int) -> tuple[Bytes, Bytes]:
    """Pixels `[row, pixel]` and labels `[row]` of a data set on OpenML, from the cache if it was fetched before.

    Raises OSError with the reason where it cannot be had, BadInput if the cached file is damaged.
    """
    kept = _cache_folder() / f"{name}-{version}.npz"
    if not kept.is_file():
        pixels, labels = _fetch(name, version)
        _keep(kept, pixels, labels)
        return pixels, labels
    try:
        # Opened here: np.load leaves the file open when the archive turns out to be damaged.
        with kept.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return archive["pixels"].astype(np.uint8), archive["labels"].astype(np.uint8)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as why:
        raise damaged(kept, f"{why}; or delete it, to download it again") from None


def _fetch(name: str, version: int) -> tuple[Bytes, Bytes]:
    from sklearn.datasets import fetch_openml

    try:
        with _short_timeout(), warnings.catch_warnings(action="ignore"):  # it warns of a retry; the error says enough
            found = fetch_openml(name, version=version, as_frame=False, parser="liac-arff", cache=False, **_ONCE)
        return found.data.astype(np.uint8), found.target.astype(np.uint8)
    except Exception as why:  # no network, a proxy's page, a checksum, a server's whim: the user's remedy is the same
        raise OSError(f"OpenML did not deliver {name} ({why})") from None


@contextmanager
def _short_timeout() -> Iterator[None]:
    # fetch_openml takes no timeout of its own; without one a silent firewall would hold the run for minutes.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _keep(path: Path, pixels: Bytes, labels: Bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            np.savez_compressed(part, pixels=pixels, labels=labels)
        os.replace(part.name, path)  # a reader never sees half a file
    except OSError:
        return  # a cache that cannot be written costs another download, not the run


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "fedsim"
