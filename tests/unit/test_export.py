"""Runs in trackers: every number is there, at its simulated time, once; read back by the trackers' own readers."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedsim.cli import main
from fedsim.commands.export import export, read
from fedsim.trackers.points import step_unit, tracked
from tests.run_folders import add_classes, climb, write_run

GRID_S = 0.25  # no whole seconds
ROUND_S = (1.1, 0.0, 2.3)  # the second round ends when the first does


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two seeds of a policy and one of another; NaN in between, and a target that one of them never reaches."""
    folder = tmp_path / "runs" / "demo"
    shared = {"grid_step_s": GRID_S, "sustain_s": 1.0, "round_s": ROUND_S}
    for seed, reached_at in enumerate([20, None]):
        write_run(folder, "salf", seed, climb(reached_at), kind="salf", **shared)
    run = write_run(folder, "../<odd> label", 0, [0.1, float("nan"), 1 / 3], kind="odd", position=1, **shared)
    add_classes(run, [[2, 2]] * 3, staleness=0.5)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["policy"]["parameters"] = {"k": 15, "rate": 0.1, "quick": True, "none": None, "list": [1, 2.5]}
    (run / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def runs(folder):
    return read([folder])[0]


def wanted(run) -> dict[str, list[tuple[float, float]]]:
    """Name -> (seconds, value) of all finite numbers of a run's tables, straight from its frames."""
    rounds = run.rounds.assign(round_s=run.rounds["end_s"] - run.rounds["start_s"]).drop(columns=["round", "start_s"])
    found = {}
    for table, rows, time in (("evaluations", run.evaluations, "time_s"), ("rounds", rounds, "end_s")):
        for column in rows.drop(columns=time):
            values = pd.to_numeric(rows[column], errors="coerce")
            known = rows[time][np.isfinite(values)], values[np.isfinite(values)]
            if len(known[0]):
                found[f"{table}/{column}"] = list(zip(*(part.astype(float).tolist() for part in known), strict=True))
    return found


# ---- what trackers are told ------------------------------------------------------------------------------------------


def test_every_finite_number_of_the_tables_is_told_at_its_time(runs):
    for run in runs:
        told = {one.name: list(zip(one.time_s, one.values, strict=True)) for one in tracked(run).series}
        assert told == wanted(run)
    assert {"evaluations/accuracy", "evaluations/uploaded_bytes", "rounds/round_s", "rounds/n_contributions"} <= set(
        told
    )
    assert len(told["evaluations/accuracy"]) == 2  # of three, one NaN


def test_a_run_of_the_clock_alone_has_rounds_alone(tmp_path):
    run = write_run(tmp_path / "demo", "timed", 0, [], sustain_s=None, grid_step_s=None)
    assert {one.name.partition("/")[0] for one in tracked(read([run])[0][0]).series} == {"rounds"}
    for to in ("tensorboard", "mlflow"):
        pytest.importorskip(to, reason=f"{to} is not installed (extra {to})")
        assert export(read([run])[0], to, tmp_path / to).startswith("1 run exported.")


def test_parameters_are_flat_and_results_say_what_was_not_reached(runs):
    reached, never, odd = (tracked(run) for run in runs)
    assert odd.parameters["policy.k"] == 15
    assert odd.parameters["policy.none"] == "null"
    assert odd.parameters["policy.list"] == "[1, 2.5]"
    assert odd.parameters["fleet.n_devices"] == 4
    assert reached.results["time_to_accuracy_s@0.9"] == 20 * GRID_S
    assert never.results["time_to_accuracy_s@0.9"] == "not within 15 s"
    assert (never.results["outcome"], never.parameters["seed"]) == ("finished", 1)
    assert odd.name == "demo/../<odd> label/seed-0"


@pytest.mark.parametrize(
    ("grid_s", "round_s", "unit"),
    [(2.0, 3.0, "s"), (2.0, 3.5, "ms"), (0.001, 1.0, "ms"), (0.0001, 1.0, "us"), (1e-9, 1.0, "us")],
)
def test_a_step_is_the_coarsest_unit_that_keeps_moments_apart(tmp_path, grid_s, round_s, unit):
    run = write_run(tmp_path / "demo", "a", 0, [0.1, 0.2, 0.3], grid_step_s=grid_s, round_s=[round_s] * 3)
    found = [tracked(run) for run in read([run])[0]]
    assert step_unit(found).name == unit


def test_one_unit_serves_all_runs_of_an_export(tmp_path):
    for position, grid_s in enumerate([2.0, 0.5]):
        write_run(tmp_path / "demo", f"{position}", 0, [0.1, 0.2], grid_step_s=grid_s, position=position)
    assert step_unit([tracked(run) for run in read([tmp_path / "demo"])[0]]).name == "ms"


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


def accumulated(folder: Path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed (extra tensorboard)",
    )
    found = {}
    for path in sorted({file.parent for file in folder.rglob("*tfevents*")}):
        found[str(path.relative_to(folder))] = accumulator.EventAccumulator(str(path), {"scalars": 0, "tensors": 0})
        found[str(path.relative_to(folder))].Reload()
    return found


def in_float32(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(time_s, float(np.float32(value))) for time_s, value in points]


def test_tensorboard_reads_every_number_back_as_float32_at_exactly_its_second(runs, tmp_path):
    export(runs, "tensorboard", tmp_path / "tb")
    found = accumulated(tmp_path / "tb")
    assert len(found) == 3
    for run, name in zip(runs, ["demo/salf/seed-0", "demo/salf/seed-1", None], strict=True):
        own = found[name] if name else next(one for key, one in found.items() if "salf" not in key)
        scalars = {tag: own.Scalars(tag) for tag in own.Tags()["scalars"]}
        assert {tag: [(e.wall_time, e.value) for e in events] for tag, events in scalars.items()} == {
            tag: in_float32(points) for tag, points in wanted(run).items()
        }
        assert all(e.step == round(1_000 * e.wall_time) for events in scalars.values() for e in events)


def test_an_odd_label_stays_inside_the_tensorboard_folder(runs, tmp_path):
    export(runs, "tensorboard", tmp_path / "tb")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "tb"]
    assert [path.name for path in (tmp_path / "tb").iterdir()] == ["demo"]


def test_a_second_export_to_tensorboard_doubles_nothing(runs, tmp_path):
    export(runs, "tensorboard", tmp_path / "tb")
    before = {path: path.read_bytes() for path in (tmp_path / "tb").rglob("*") if path.is_file()}
    export(runs, "tensorboard", tmp_path / "tb")
    assert {path: path.read_bytes() for path in (tmp_path / "tb").rglob("*") if path.is_file()} == before


def test_tensorboard_knows_parameters_results_and_the_unit_of_steps(runs, tmp_path):
    export(runs, "tensorboard", tmp_path / "tb")
    metadata = pytest.importorskip("tensorboard.plugins.hparams.metadata", reason="no tensorboard (extra tensorboard)")
    found = accumulated(tmp_path / "tb")
    content = found["demo/salf/seed-0"].SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    session = metadata.parse_session_start_info_plugin_data(content)
    assert session.group_name == "demo/salf/seed-0"
    assert session.hparams["policy.kind"].string_value == "salf"
    assert session.hparams["fleet.n_devices"].number_value == 4
    assert session.hparams["time_to_accuracy_s@0.9"].number_value == 5.0
    assert session.hparams["step_unit"].string_value == "ms"
    said = found["demo/salf/seed-0"].SummaryMetadata("evaluations/accuracy").summary_description
    assert "a step is a millisecond of simulated time" in said


# ---- MLflow ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(monkeypatch):
    """MLflow's own client on a folder of files; runs of the experiment demo by name."""
    pytest.importorskip("mlflow", reason="mlflow is not installed (extra mlflow)")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    def read_store(folder: Path):
        client = MlflowClient(tracking_uri=folder.resolve().as_uri())
        found = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
        return client, {one.info.run_name: one for one in found}

    return read_store


def test_mlflow_reads_every_number_back_exactly(runs, tmp_path, stored):
    export(runs, "mlflow", tmp_path / "mlruns")
    client, found = stored(tmp_path / "mlruns")
    assert set(found) == {"demo/salf/seed-0", "demo/salf/seed-1", "demo/../<odd> label/seed-0"}
    for run in runs:
        own = found[tracked(run).name]
        times = {"evaluations/time_s", "rounds/end_s"}
        assert set(own.data.metrics) == {*wanted(run), *times}
        for name, points in wanted(run).items():
            # In the order of the table; a moment may come twice.
            history = sorted(client.get_metric_history(own.info.run_id, name), key=lambda metric: metric.step)
            assert [metric.value for metric in history] == [value for _, value in points]
            assert [metric.step for metric in history] == [round(1_000 * time_s) for time_s, _ in points]
            assert [metric.timestamp for metric in history] == [round(1_000 * time_s) for time_s, _ in points]
        for name, column in (("evaluations/time_s", run.evaluations["time_s"]), ("rounds/end_s", run.rounds["end_s"])):
            history = client.get_metric_history(own.info.run_id, name)
            assert sorted(metric.value for metric in history) == sorted(column)


def test_mlflow_knows_parameters_tags_and_that_a_run_is_over(runs, tmp_path, stored):
    export(runs, "mlflow", tmp_path / "mlruns")
    _, found = stored(tmp_path / "mlruns")
    data, info = found["demo/salf/seed-1"].data, found["demo/salf/seed-1"].info
    assert (data.params["policy.kind"], data.params["fleet.n_devices"], data.params["seed"]) == ("salf", "4", "1")
    assert (data.tags["outcome"], data.tags["step_unit"]) == ("finished", "ms")
    assert data.tags["time_to_accuracy_s at 0.9"] == "not within 15 s"
    assert (info.status, info.start_time, info.end_time) == ("FINISHED", 1, 15_000)


def test_a_second_export_to_mlflow_takes_the_place_of_the_first(runs, tmp_path, stored):
    for _ in range(2):
        export(runs, "mlflow", tmp_path / "mlruns")
    client, found = stored(tmp_path / "mlruns")
    everything = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    assert len(everything) == len(found) == 3
    history = client.get_metric_history(found["demo/salf/seed-0"].info.run_id, "evaluations/accuracy")
    assert len(history) == 61


def test_the_environment_is_as_before(runs, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed (extra mlflow)")
    monkeypatch.setenv("DO_NOT_TRACK", "mine")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    export(runs[:1], "mlflow", tmp_path / "mlruns")
    assert os.environ["DO_NOT_TRACK"] == "mine"
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ


# ---- Weights & Biases ------------------------------------------------------------------------------------------------


def wandb_records(folder: Path) -> dict[str, list]:
    """Run name -> its offline records, in the order of writing. Source of the format: LevelDB's log, after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        content, at, part, records = path.read_bytes(), 7, b"", []
        while at + 7 <= len(content):
            left = 32_768 - at % 32_768
            n, kind = struct.unpack("<HB", content[at + 4 : at + 7]) if left >= 7 else (0, 0)
            if kind == 0:
                at += left
                continue
            part, at = part + content[at + 7 : at + 7 + n], at + 7 + n
            if kind in (1, 4):
                records.append(Record.FromString(part))
                part = b""
        name = next(one.run.display_name for one in records if one.WhichOneof("record_type") == "run")
        assert name not in found
        found[name] = records
    return found


def test_wandb_keeps_every_number_exactly_over_simulated_seconds(runs, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed (extra wandb)")
    for _ in range(2):  # the second takes the place of the first
        export(runs, "wandb", tmp_path / "out")
    found = wandb_records(tmp_path / "out")
    assert set(found) == {tracked(run).name for run in runs}
    for run in runs:
        told: dict[str, list[tuple[float, float]]] = {}
        for record in found[tracked(run).name]:
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for name, value in items.items():
                if not name.startswith("_") and name != "time_s":
                    told.setdefault(name, []).append((items["time_s"], value))
        assert told == wanted(run)


# ---- the command -----------------------------------------------------------------------------------------------------


def refused(capsys, *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["export", *map(str, arguments)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_single_runs_and_whole_scenarios_can_be_exported(folder, tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra tensorboard)")
    with pytest.raises(SystemExit) as ended:
        main(["export", str(folder / "policy-0" / "seed-1"), "--to", "tensorboard", "--out", str(tmp_path / "one")])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"1 run exported. Look at it with: tensorboard --logdir {tmp_path / 'one'}\n"
    assert list(accumulated(tmp_path / "one")) == ["demo/salf/seed-1"]


def test_an_unfinished_run_of_a_scenario_is_named_and_left_out(folder, tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra tensorboard)")
    (folder / "policy-0" / "seed-1" / "rounds.parquet").unlink()
    with pytest.raises(SystemExit):
        main(["export", str(folder), "--to", "tensorboard", "--out", str(tmp_path / "tb")])
    said = capsys.readouterr()
    assert said.err.startswith("Left out: ")
    assert said.out.startswith("2 runs exported.")


def test_bad_input_is_one_line(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert (
        refused(capsys, folder, "--to", "comet")
        == "--to is 'comet', which is unknown; choose one of tensorboard, mlflow, wandb"
    )
    assert "holds no finished runs" in refused(capsys, tmp_path / "empty", "--to", "mlflow")
    assert "holds no finished runs" in refused(capsys, tmp_path / "nowhere", "--to", "mlflow")
    twice = refused(capsys, folder, folder / "policy-0" / "seed-0", "--to", "mlflow")
    assert twice.startswith("2 of these runs are called demo/salf/seed-0; ")


@pytest.mark.parametrize("to", ["tensorboard", "mlflow", "wandb"])
def test_a_tracker_that_is_missing_is_asked_for_in_one_line(folder, tmp_path, capsys, monkeypatch, to):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("fedsim.commands.export.find_spec", lambda name: None if name == to else find_spec(name))
    assert refused(capsys, folder, "--to", to) == f"{to} is not installed; pip install 'fedsim-clock[{to}]'"


def test_no_tracker_is_imported_unless_asked_for():
    code = "import sys, fedsim.cli, fedsim.commands.export, fedsim.trackers.mlflow, fedsim.trackers.tensorboard, fedsim.trackers.wandb; print(sorted({'mlflow', 'tensorboard', 'wandb'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
