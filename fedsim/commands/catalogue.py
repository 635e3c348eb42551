"""What is on the shelves: every kind that a scenario may name, with the first line of its file. Imports none of them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

from fedsim.scenario import shelves


def catalogue() -> dict[str, dict[str, str]]:
    """shelf -> kind -> what it is, in one line (empty for kinds that another package brings)."""
    return {
        shelf: {kind: _first_line(shelf, kind) for kind in shelves.names(shelf)} for shelf in get_args(shelves.Shelf)
    }


def _first_line(shelf: str, kind: str) -> str:
    file = Path(__file__).parent.parent / shelf / f"{kind}.py"
    if not file.is_file():
        return ""
    return (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n", 1)[0]
