"""The text of a scenario file, whatever the path leads to: a folder, a device, 10 MB, bytes that are no text."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from fedsim.scenario.errors import BadYaml

MAX_BYTES = 1_000_000


def read_text(path: Path) -> str:
    """The text of a file of at most `MAX_BYTES`; BadYaml if it cannot be read, is too long or is not UTF-8."""
    try:
        if path.is_dir():
            raise BadYaml("is a folder; name the scenario file in it")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            size = max(path.stat().st_size, len(content)) / 1e6
            raise BadYaml(
                f"holds {size:.1f} MB, but a scenario has at most {MAX_BYTES / 1e6:.0f} MB; is it the right file?"
            )
    except BadYaml:
        raise
    except FileNotFoundError:
        raise BadYaml(f"there is no such file{_similar_file(path)}") from None
    except (OSError, ValueError) as problem:  # a path that holds NUL is a ValueError
        reason = (getattr(problem, "strerror", None) or str(problem)).lower()
        raise BadYaml(f"cannot be read: {reason}; check the path") from None
    return decode(content)


def _similar_file(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return "; check the path"
    close = get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else "; check the path"


def decode(content: bytes) -> str:
    """The text of UTF-8 bytes, byte-order mark removed; BadYaml with the line of the first byte that is not."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        raise BadYaml("is not UTF-8 text; save it with that encoding", line) from None
