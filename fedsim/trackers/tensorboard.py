"""Runs for TensorBoard: one event file each, written anew by every export.

An event has the simulated seconds as its wall time, exactly, and counts them in `step`; its value is a float32, which is
all that TensorBoard keeps. Parameters and results stand under HParams.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedsim.trackers.points import Series, StepUnit, TrackedRun

# A fixed name, so that a second export takes the place of the first; TensorBoard reads what has "tfevents" in its name.
FILE_NAME = "events.out.tfevents.0.fedsim"
_UNIT_WORDS = {"s": "second", "ms": "millisecond", "us": "microsecond"}


def write(runs: Sequence[TrackedRun], folder: Path, unit: StepUnit) -> str:
    """Write every run as folder/<scenario>/<policy>/<seed>/; how to look at them."""
    for run in runs:
        path = folder.joinpath(*run.folders, FILE_NAME)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{os.getpid()}.part")
        try:
            unfinished.write_bytes(b"".join(_record(event.SerializeToString()) for event in _events(run, unit)))
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return f"tensorboard --logdir {folder}"


def _events(run: TrackedRun, unit: StepUnit) -> Iterator[Any]:
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

    yield Event(wall_time=0.0, file_version="brain.Event:2")
    for value in _session(run, unit):
        yield Event(wall_time=0.0, step=0, summary=Summary(value=[value]))
    for one in run.series:
        metadata = _scalar_metadata(one, unit)
        for step, time_s, number in zip(unit.steps(one.time_s), one.time_s, one.values, strict=True):
            value = Summary.Value(tag=one.name, simple_value=float(number), metadata=metadata)
            yield Event(wall_time=float(time_s), step=int(step), summary=Summary(value=[value]))


def _scalar_metadata(one: Series, unit: StepUnit) -> Any:
    from tensorboard.compat.proto.summary_pb2 import SummaryMetadata

    said = f"{one.name}; a step is a {_UNIT_WORDS[unit.name]} of simulated time, the wall time is simulated seconds"
    scalars = SummaryMetadata.PluginData(plugin_name="scalars")
    return SummaryMetadata(plugin_data=scalars, summary_description=said)


def _session(run: TrackedRun, unit: StepUnit) -> Iterator[Any]:
    """Parameters, results that are numbers, the outcome and the unit of steps, as HParams; then that the run is over."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2  # type: ignore[import-untyped]

    start = plugin_data_pb2.SessionStartInfo(group_name=run.name, start_time_secs=0.0)
    results = {name: value for name, value in run.results.items() if name == "outcome" or not isinstance(value, str)}
    for name, value in {**run.parameters, **results, "step_unit": unit.name}.items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, str):
            start.hparams[name].string_value = value
        else:
            start.hparams[name].number_value = value
    is_over = api_pb2.STATUS_SUCCESS if run.results["outcome"] == "finished" else api_pb2.STATUS_FAILURE
    end = plugin_data_pb2.SessionEndInfo(status=is_over, end_time_secs=float(run.results["simulated_s"]))
    for tag, content in (
        (metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=start)),
        (metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end)),
    ):
        yield Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(content), tensor=metadata.NULL_TENSOR)


def _record(content: bytes) -> bytes:
    """One record of the file. Source: TensorFlow, TFRecords format: length, its checksum, content, its checksum."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c  # type: ignore[import-untyped]

    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", masked_crc32c(length)) + content + struct.pack("<I", masked_crc32c(content))
