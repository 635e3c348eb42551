"""The files that a scenario names: a relative path starts from the folder of the scenario file, `~` is the home folder.

So a scenario works from any current folder, and a folder of scenarios can be moved together with its files.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from fedsim.facts import BadInput
from fedsim.scenario.schema import Scenario
from fedsim.scenario.yaml_lines import Location
from fedsim.training.partition import FromFile


def with_paths(scenario: Scenario, folder: Path) -> Scenario:
    """The scenario with absolute paths; BadInput if a named file does not exist.

    data_dir may be missing: whether that matters is for the data set to say.
    """
    data, model = scenario.data, scenario.model
    partition = data.partition
    if isinstance(partition, FromFile):
        partition = replace(partition, path=_file(partition.path, folder, ("data", "partition", "path")))
    new_data = {
        "data_dir": data.data_dir and _absolute(data.data_dir, folder, ("data", "data_dir")),
        "split_file": data.split_file and _file(data.split_file, folder, ("data", "split_file")),
        "partition": partition,
    }
    weights = model.initial_weights and _file(model.initial_weights, folder, ("model", "initial_weights"))
    return scenario.model_copy(
        update={
            "data": data.model_copy(update=new_data),
            "model": model.model_copy(update={"initial_weights": weights}),
        }
    )


def _absolute(path: str, folder: Path, at: Location) -> str:
    try:
        return os.path.abspath(folder / Path(path).expanduser())
    except RuntimeError:
        raise BadInput(f"{at[-1]} is {path!r} but that user's home folder is not known; write it out", at) from None


def _file(path: str, folder: Path, at: Location) -> str:
    absolute = _absolute(path, folder, at)
    if not os.path.isfile(absolute):
        raise BadInput(
            f"{at[-1]} is {path!r} but there is no file {absolute}; paths start from the scenario's folder", at
        )
    return absolute
