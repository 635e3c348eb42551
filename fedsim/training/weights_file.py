"""Initial weights from a file, so that other code can start from the same numbers. Never a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedsim.facts import Array, BadInput
from fedsim.training.npz_file import read_npz


def read_weights(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays of a .npz or .safetensors file as float64 tensors: the names and shapes of `wanted`, no others.

    Raises BadInput at ("model", "initial_weights") that names the first array that is missing, misshapen, not finite or
    left over.
    """
    arrays = _read(path)
    for name, tensor in wanted.items():
        _check(arrays.get(name), tensor, f"{path}: {name}")
    if left_over := [name for name in arrays if name not in wanted]:
        raise _bad(f"{path}: the model has no parameter {left_over[0]}; it has {', '.join(wanted)}")
    return arrays


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix not in {".npz", ".safetensors"}:
        raise _bad(f"{path} is neither .npz nor .safetensors; write one array per parameter into one of these")
    try:
        if path.suffix == ".safetensors":
            return {name: tensor.to(torch.float64) for name, tensor in load_file(path).items()}
        # Through float64, which holds every float32 exactly, so that byte order and precision do not matter.
        return {name: torch.from_numpy(_real(array, name)) for name, array in read_npz(path).items()}
    except FileNotFoundError:
        raise _bad(f"there is no weights file {path}") from None
    except (OSError, ValueError, TypeError, SafetensorError) as damage:
        raise _bad(f"{path} cannot be read ({damage}); write it again") from None


def _real(array: npt.NDArray[Any], name: str) -> Array:
    if array.dtype.kind not in "fiu":  # NumPy would read numbers out of text, and drop an imaginary part
        raise ValueError(f"{name} holds {array.dtype.name} values, not real numbers")
    return array.astype(np.float64)


def _check(array: Tensor | None, wanted: Tensor, where: str) -> None:
    if array is None:
        raise _bad(f"{where} is missing; give an array of shape {tuple(wanted.shape)}")
    if array.shape != wanted.shape:
        raise _bad(f"{where} has shape {tuple(array.shape)} but the model's has {tuple(wanted.shape)}")
    if not torch.isfinite(array.to(wanted.dtype)).all():
        raise _bad(f"{where} holds a number that is not finite in {wanted.dtype}")


def _bad(message: str) -> BadInput:
    return BadInput(message, at=("model", "initial_weights"))
