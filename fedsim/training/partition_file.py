"""A partition that someone else made: row numbers per device, from a .npz or .json file. Never a pickle."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.facts import BadInput, IntArray
from fedsim.training.npz_file import read_npz

_AT = ("data", "partition")


def read_partition(path: Path, n_rows: int, n_devices: int) -> list[IntArray]:
    """The row numbers of each device as the file has them, `[device][row]`.

    Raises BadInput at ("data", "partition") that names the device, for a missing or damaged file, a wrong number of
    devices, a device without data, and a row that is outside 0 ... n_rows-1 or dealt twice.
    """
    dealt = _read(path)
    if len(dealt) != n_devices:
        raise BadInput(f"{path} deals to {len(dealt)} devices but the fleet has {n_devices}; make them agree", _AT)
    holder = np.full(n_rows, -1, dtype=np.int64)
    for device, rows in enumerate(dealt):
        _check_rows(rows, f"{path}: device {device}", n_rows)
        taken = rows[holder[rows] >= 0]
        if len(taken) or len(np.unique(rows)) < len(rows):
            twice = int(taken[0]) if len(taken) else int(np.flatnonzero(np.bincount(rows) > 1)[0])
            also = f"device {holder[twice]} holds it too" if holder[twice] >= 0 else "twice on this device"
            raise BadInput(f"{path}: device {device} holds row {twice}, {also}; deal every row once", _AT)
        holder[rows] = device
    return [rows.astype(np.int64) for rows in dealt]


def _check_rows(rows: Any, where: str, n_rows: int) -> None:
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise BadInput(f"{where} has no plain list of whole row numbers; write one integer array per device", _AT)
    if rows.size == 0:
        raise BadInput(f"{where} is left without data; give it at least one row or take it out of the fleet", _AT)
    outside = rows[(rows < 0) | (rows >= n_rows)]
    if outside.size:
        raise BadInput(f"{where} holds row {outside[0]} but the training rows are 0..{n_rows - 1}", _AT)


def _read(path: Path) -> list[Any]:
    """The arrays of a file, `[device]`, unchecked."""
    if path.suffix not in {".npz", ".json"}:
        raise BadInput(f"{path} is neither .npz nor .json; write one index array per device into one of these", _AT)
    try:
        return _read_json(path) if path.suffix == ".json" else _numbered(read_npz(path), path)
    except FileNotFoundError:
        raise BadInput(f"there is no partition file {path}", _AT) from None
    except BadInput:
        raise
    except (OSError, ValueError, RecursionError) as damage:
        raise BadInput(f"{path} cannot be read ({damage}); write it again", _AT) from None


def _read_json(path: Path) -> list[Any]:
    dealt = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(dealt, list) or not all(isinstance(rows, list) for rows in dealt):
        raise BadInput(f"{path} is not a list of lists; write [[rows of device 0], [rows of device 1], ...]", _AT)
    return [_as_array(rows, device, path) for device, rows in enumerate(dealt)]


def _as_array(rows: list[Any], device: int, path: Path) -> Any:
    # JSON has true and 1.0; NumPy would mix them with whole numbers without a word.
    if any(type(row) is not int or abs(row) >= 2**63 for row in rows):
        raise BadInput(f"{path}: device {device} has no plain list of whole row numbers", _AT)
    return np.asarray(rows, dtype=np.int64)


def _numbered(arrays: Mapping[str, Any], path: Path) -> list[Any]:
    """The arrays in the order of the numbers that end their names, which must be 0, 1, 2, ..."""
    matches = {name: re.fullmatch(r"\D*(\d{1,9})", name) for name in arrays}
    number = {name: int(match[1]) for name, match in matches.items() if match}
    if sorted(number.values()) != list(range(len(arrays))):
        raise BadInput(
            f"the arrays of {path} are not numbered 0, 1, 2, ... by device; name them arr_0, arr_1, ...", _AT
        )
    return [arrays[name] for name in sorted(number, key=lambda name: number[name])]
