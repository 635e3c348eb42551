"""A scenario made in Python, in the values that a file could hold."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from fedsim.facts import BadInput
from fedsim.scenario.yaml_lines import MAX_DEPTH


def plain_values(value: Any, depth: int = 0) -> Any:
    """Python values as a file would hold them; BadInput for what no file can say."""
    if depth > MAX_DEPTH:
        raise BadInput(f"nested more than {MAX_DEPTH} deep; a scenario needs fewer than ten levels")
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, dict):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise BadInput(f"the key {bad[0]!r} must be text")
        return {key: plain_values(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(inner, depth + 1) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise BadInput(
        f"{value!r} is a {type(value).__name__}, which a scenario cannot hold; use numbers, text, lists and dicts"
    )
