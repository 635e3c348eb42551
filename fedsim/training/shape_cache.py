"""Model shapes remembered on disk, so that timing-only runs and closed forms need not import torch (1.4 s).

Kept in `$XDG_CACHE_HOME/fedsim/shapes` (default `~/.cache`), keyed by the model's kind, parameters and input shape and
by the bytes of the code that measures it. Only shipped models are remembered: other code may change unnoticed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.facts import LabelledData, ModelShape

_MODELS = Path(__file__).parent.parent / "models"
_INTEGER = {"n_parameters", "parameter_bytes", "n_activations", "n_kept_activations"}


def shape_of(kind: str, parameters: dict[str, Any], model: Callable[[], Any], data: LabelledData) -> ModelShape:
    """The shape of this model on this data set; `model` gives the shelf's instance and is called only if needed."""

    @functools.cache
    def narrower(rate: float, convolutions: bool) -> ModelShape:
        from fedsim.training.build import narrowed

        part = functools.cache(lambda: narrowed(model(), rate, convolutions=convolutions))
        return _of(kind, {**parameters, "narrowed to": [rate, convolutions]}, part, data)

    return replace(_of(kind, parameters, model, data), narrower=narrower)


def _of(kind: str, parameters: dict[str, Any], model: Callable[[], Any], data: LabelledData) -> ModelShape:
    if not (_MODELS / f"{kind}.py").is_file():
        return _measured(model, data)
    address = [kind, parameters, list(data.input_shape), data.n_classes]
    text = json.dumps(address, sort_keys=True) + _code_digest()
    file = _folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    remembered = _read(file)
    if remembered is not None:
        return remembered
    shape = _measured(model, data)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        _write(file, shape)
    return shape


def _measured(model: Callable[[], Any], data: LabelledData) -> ModelShape:
    from fedsim.training.build import shape_of as measure

    return measure(model(), data)


@functools.cache
def _code_digest() -> str:
    files = [*sorted(_MODELS.glob("*.py")), *(Path(__file__).with_name(name) for name in ("layers.py", "flops.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedsim" / "shapes"


def _read(file: Path) -> ModelShape | None:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        names = tuple(values.pop("layer_names"))
        columns: dict[str, Any] = {
            k: np.array(v, dtype=np.int64 if k in _INTEGER else np.float64) for k, v in values.items()
        }
        return ModelShape(layer_names=names, **columns)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(file: Path, shape: ModelShape) -> None:
    columns = {
        k: v.tolist() for k, v in vars(shape).items() if isinstance(v, np.ndarray) and k in ModelShape.__annotations__
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as beside:
        json.dump({"layer_names": list(shape.layer_names)} | columns, beside)
    os.replace(beside.name, file)
