"""fedsim: which straggler policy reaches my accuracy soonest, on which fleet, and why should I believe it?

import fedsim
folder = fedsim.run(fedsim.load("scenarios/quickstart.yaml"))
runs = fedsim.read(folder)          # pandas frames: runs[0].evaluations, .rounds, .layers, .tasks
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.campaign import run
from fedsim.scenario.errors import ScenarioError
from fedsim.scenario.read import from_dict, load

if TYPE_CHECKING:
    from fedsim.statistics.reading import Run

__all__ = ["ScenarioError", "from_dict", "load", "read", "run"]


def read(folder: Path | str) -> list[Run]:
    """The finished runs in a run folder, or in a scenario's folder (sorted by policy, then seed)."""
    from fedsim.statistics.reading import read_run, read_scenario  # pandas: not needed to import fedsim

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; give a run's folder or a scenario's, such as runs/quickstart"
        )
    return [read_run(folder)] if (folder / "manifest.json").is_file() else read_scenario(folder)
