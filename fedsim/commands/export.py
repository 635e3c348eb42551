"""Copy finished runs to an experiment tracker: which runs, and into what."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from fedsim.facts import BadInput
from fedsim.statistics.reading import Run, broken_folders, read_run, read_scenario
from fedsim.statistics.words import plural
from fedsim.trackers.points import step_unit, tracked

OUT = {"tensorboard": "tensorboard", "mlflow": "mlruns", "wandb": "."}
"""Each tracker, and the folder that it gets if none is named."""


def read(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The finished runs in these folders of runs or scenarios, and why others are left out, a line each."""
    runs, left_out = [], []
    for folder in folders:
        if (folder / "manifest.json").is_file():
            runs.append(read_run(folder))
            continue
        found = read_scenario(folder) if folder.is_dir() else []
        if not found:
            raise BadInput(
                f"{folder} holds no finished runs; give a scenario's folder of results, such as runs/quickstart, or a "
                f"run's, such as runs/quickstart/fedavg/seed-0"
            )
        runs += found
        left_out += broken_folders(folder, known=found)
    return runs, left_out


def export(runs: Sequence[Run], to: str, out: Path | None) -> str:
    """Write the runs for the tracker `to`, into the folder `out`; one line that says what was done and what to do next."""
    if to not in OUT:
        raise BadInput(f"--to is {to!r}, which is unknown; choose one of {', '.join(OUT)}")
    found = [tracked(run) for run in runs]
    name, n = Counter(run.name for run in found).most_common(1)[0]
    if n > 1:
        raise BadInput(f"{n} of these runs are called {name}; export them one after the other, into different --out")
    if find_spec(to) is None:
        raise BadInput(f"{to} is not installed; pip install 'fedsim-clock[{to}]'")
    folder = Path(OUT[to]) if out is None else out
    how = importlib.import_module(f"fedsim.trackers.{to}").write(found, folder, step_unit(found))
    return f"{plural(len(found), 'run')} exported. Look at {'it' if len(found) == 1 else 'them'} with: {how}"
