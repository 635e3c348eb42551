"""Write the stored timelines anew, from the repository's root: `python -m tests.golden.regenerate`.

Only after a change of the clock that is meant; then read the difference line by line.
"""

from __future__ import annotations

from tests.golden.timelines import FOLDER, POLICIES, timeline


def main() -> None:
    for kind in POLICIES:
        (FOLDER / f"{kind}.txt").write_text(timeline(kind), encoding="utf-8")


if __name__ == "__main__":
    main()
