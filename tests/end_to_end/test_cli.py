"""The command as a user meets it: real processes, real files, exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import fedsim
from fedsim.policies.k_sync import KSync

SMALL = {
    "name": "small",
    "fleet": {"n_devices": 8, "compute": {"step_s": 1.0, "task_factor": {"kind": "exponential"}}},
    "data": {"kind": "digits", "partition": {"kind": "dirichlet", "alpha": 1.0}},
    "model": {"kind": "mlp", "widths": [16]},
    "training": {"local_steps": 2, "learning_rate": 0.3},
    "policies": [
        {"kind": "fedavg"},
        {"kind": "stsyn", "k": 4},
        {"kind": "salf", "deadline_s": 0.8},
    ],
    "seeds": [1, 2],
    "evaluation": {"targets": [0.3], "n_points": 20},
    "stop": {"simulated_s": 20},
}


def scenario_file(folder: Path, **changes: object) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **changes}), encoding="utf-8")
    return path


def fedsim_command(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedsim", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


def digests(folder: Path) -> dict[str, str]:
    """Every table and summary below `folder`; manifests name the machine and are outside byte identity."""
    files = [f for f in sorted(folder.rglob("*")) if f.suffix in {".parquet", ".csv"} or f.name == "summary.json"]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def refusal(*arguments: object, cwd: Path, **environment: str) -> str:
    """The one line with which a command refuses its input."""
    done = fedsim_command(*arguments, cwd=cwd, **environment)
    assert done.stdout == ""
    return refusal_of(done)


def refusal_of(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip()


def test_a_run_leaves_tables_summary_and_report_and_says_where(tmp_path: Path) -> None:
    done = fedsim_command("run", scenario_file(tmp_path), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 seeds: no claim." in done.stdout
    folder = tmp_path / "runs" / "small"
    assert f"Report: {Path('runs/small/report.html')}" in done.stdout
    rows = json.loads((folder / "summary.json").read_text())
    assert [(row["policy"], row["seed"]) for row in rows] == [
        (policy, seed) for policy in ("fedavg", "stsyn", "salf") for seed in (1, 2)
    ]
    wanted = {"policy", "seed", "time_to_accuracy_s", "final_accuracy", "n_rounds", "simulated_s"}
    assert wanted | {"uploaded_bytes", "downloaded_bytes", "device_flops", "used_flops_share"} <= set(rows[0])
    runs = fedsim.read(folder)
    assert len(runs) == 6
    assert (runs[0].rounds["used_flops"] == runs[0].rounds["computed_flops"]).all()
    assert isinstance(fedsim.read(runs[0].folder)[0].evaluations, pd.DataFrame)


def test_a_run_ends_by_saying_where_real_time_went_and_so_does_one_that_was_kept(tmp_path: Path) -> None:
    scenario = scenario_file(tmp_path)
    for _ in ("run", "kept"):
        last = fedsim_command("run", scenario, "--policy", "stsyn", cwd=tmp_path).stdout.splitlines()[-1]
        shares = re.fullmatch(
            r"Real time: \S+ s for 2 runs, of which (\S+) % training, (\S+) % evaluation, (\S+) % all else; "
            r"\S+ s of setup before\.",
            last,
        )
        assert shares, last
        assert sum(map(float, shares.groups())) == pytest.approx(100, abs=1.1)  # three rounded shares
        assert all(float(share) > 0 for share in shares.groups())


def test_of_runs_from_before_real_time_was_kept_nothing_is_said(tmp_path: Path) -> None:
    scenario = scenario_file(tmp_path, seeds=[1], policies=[{"kind": "fedavg"}])
    assert fedsim_command("run", scenario, cwd=tmp_path).returncode == 0
    path = tmp_path / "runs/small/fedavg/seed-1/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["real_s"], manifest["notes"]
    path.write_text(json.dumps(manifest))
    again = fedsim_command("run", scenario, cwd=tmp_path)
    assert again.stdout.splitlines()[-1].startswith("Report: ")
    assert again.stderr == ""


def test_what_a_run_notes_of_itself_is_told_on_the_error_stream_with_its_name(tmp_path: Path) -> None:
    scenario = scenario_file(tmp_path, seeds=[1, 2], policies=[{"kind": "salf", "deadline_s": 0.8}])
    assert fedsim_command("run", scenario, cwd=tmp_path).returncode == 0
    path = tmp_path / "runs/small/salf/seed-2/manifest.json"
    noted = {"notes": ["out of memory: chunks were halved to 32 rows", "fallback: [b]dropout[/b] takes the loop"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | noted))
    kept = fedsim_command("run", scenario, cwd=tmp_path)
    assert kept.stderr.splitlines() == [
        "salf, seed 2: out of memory: chunks were halved to 32 rows; this run is not byte-reproducible",
        "salf, seed 2: fallback: [b]dropout[/b] takes the loop",
    ]
    assert fedsim_command("run", scenario, "--seed", "1", cwd=tmp_path).stderr == ""


def test_a_scenario_may_be_evaluated_by_rounds_from_the_file_to_the_report(tmp_path: Path) -> None:
    scenario = scenario_file(tmp_path, evaluation={"targets": [0.3], "every_n_rounds": 2, "n_rows": 50}, seeds=[1])
    for out, jobs in (("once", 1), ("together", 2)):
        done = fedsim_command("run", scenario, "--out", out, "--jobs", jobs, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "1 seed: no claim. In these runs" in done.stdout
    assert digests(tmp_path / "once") == digests(tmp_path / "together")
    for run in fedsim.read(tmp_path / "once" / "small"):
        assert run.evaluations["time_s"].tolist() == [0.0, *run.rounds["end_s"][1::2]]
        assert run.manifest["grid_step_s"] is None
        assert run.manifest["byte_reproducible"] is True


def test_two_cadences_of_evaluation_are_refused_with_their_line_and_a_remedy(tmp_path: Path) -> None:
    scenario = scenario_file(tmp_path, evaluation={"every_s": 2, "every_n_rounds": 2})
    line = next(n for n, text in enumerate(scenario.read_text().splitlines(), 1) if "evaluation:" in text)
    assert refusal("check", "small.yaml", cwd=tmp_path) == (
        f"small.yaml:{line}: evaluation: evaluate in simulated time or in rounds: keep one of every_s and every_n_rounds"
    )


def test_one_process_or_two_give_the_same_bytes_and_so_does_a_second_run(tmp_path: Path) -> None:
    scenario = scenario_file(tmp_path)
    for out, jobs in (("once", 1), ("twice", 1), ("together", 2)):
        done = fedsim_command("run", scenario, "--out", out, "--jobs", jobs, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    once = digests(tmp_path / "once")
    assert len(once) == 7 * 6 + 2  # seven tables of six runs, and the summaries
    assert digests(tmp_path / "twice") == once
    assert digests(tmp_path / "together") == once


def test_a_finished_run_is_kept_until_its_settings_change_or_it_is_asked_for_again(tmp_path: Path) -> None:
    scenario = scenario_file(tmp_path)
    one = ("run", scenario, "--policy", "fedavg", "--seed", "1")
    manifest = tmp_path / "runs" / "small" / "fedavg" / "seed-1" / "manifest.json"
    assert fedsim_command(*one, cwd=tmp_path).returncode == 0
    first = manifest.stat().st_mtime_ns
    kept = fedsim_command(*one, cwd=tmp_path)
    assert "1 of 1 runs are finished already and kept" in kept.stdout
    assert manifest.stat().st_mtime_ns == first
    assert fedsim_command(*one, "--again", cwd=tmp_path).returncode == 0
    second = manifest.stat().st_mtime_ns
    assert second > first
    scenario_file(tmp_path, stop={"simulated_s": 10})
    assert "kept" not in fedsim_command(*one, cwd=tmp_path).stdout
    assert json.loads(manifest.read_text())["outcome"]["simulated_s"] == 10.0


def test_ctrl_c_leaves_finished_runs_whole_and_the_same_command_goes_on(tmp_path: Path) -> None:
    scenario = scenario_file(tmp_path, stop={"simulated_s": 300}, evaluation={"targets": [0.3], "every_s": 1})
    process = subprocess.Popen(
        [sys.executable, "-m", "fedsim", "run", str(scenario), "--jobs", "2"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    folder = tmp_path / "runs" / "small"
    deadline = time.monotonic() + 100
    while not list(folder.glob("*/seed-*/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.05)  # waits for the first finished run, not for a length of time
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "Interrupted." in errors
    whole = [run.label for run in fedsim.read(folder)]
    assert whole
    kept = fedsim_command("run", scenario, "--policy", whole[0], cwd=tmp_path)
    assert "finished already and kept" in kept.stdout


def test_a_k_beyond_the_fleet_is_refused_with_its_line_and_a_remedy(tmp_path: Path) -> None:
    scenario = scenario_file(tmp_path, policies=[{"kind": "fedavg"}, {"kind": "stsyn", "k": 60}])
    line = next(n for n, text in enumerate(scenario.read_text().splitlines(), 1) if "k: 60" in text)
    wanted = f"small.yaml:{line}: policies[1] (stsyn): k is 60 but the fleet has 8 devices; choose 1..8"
    for command in ("check", "run"):
        assert refusal(command, "small.yaml", cwd=tmp_path) == wanted
    assert not (tmp_path / "runs" / "small" / "stsyn").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": {"kind": "mnist", "data_dir": "nowhere"}}, "nowhere"),
        ({"fleet": {"n_devices": 2000}}, "2000"),
        ({"model": {"kind": "cnn"}}, "cnn needs images"),
        ({"policies": [{"kind": "fedpmt"}]}, "state exactly one of budget_s and depths"),
        ({"policies": [{"kind": "fedpmt", "budget_s": 0.001}]}, "raise it"),
        pytest.param(
            {"training": {"device": "cuda"}},
            "device is cuda but torch finds none",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA"),
        ),
    ],
)
def test_what_only_data_model_or_fleet_can_tell_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    scenario_file(tmp_path, **changes)
    line = refusal("check", "small.yaml", cwd=tmp_path, FEDSIM_DATA=str(tmp_path))
    assert line.startswith("small.yaml:")
    assert says in line


def test_a_damaged_data_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / "mnist" / f"{name}-ubyte.gz").write_bytes(b"\x1f\x8b not really")
    scenario_file(tmp_path, data={"kind": "mnist", "data_dir": "."})
    assert "train-images-idx3-ubyte" in refusal("check", "small.yaml", cwd=tmp_path)


def test_a_diverged_model_ends_its_run_and_not_the_comparison(tmp_path: Path) -> None:
    wild = {"kind": "fedavg", "label": "wild", "training": {"learning_rate": 1e18}}
    scenario = scenario_file(tmp_path, policies=[wild, {"kind": "stsyn", "k": 4}], seeds=[1])
    done = fedsim_command("run", scenario, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "diverged" in done.stdout
    outcomes = {run.label: run.manifest["outcome"] for run in fedsim.read(tmp_path / "runs" / "small")}
    assert outcomes["stsyn"]["kind"] == "finished"
    assert outcomes["wild"]["kind"] == "diverged"
    assert outcomes["wild"]["round"] >= 1
    assert outcomes["wild"]["simulated_s"] > 0


def test_a_policy_object_from_python_runs_in_place_of_the_scenarios_own(tmp_path: Path) -> None:
    loaded = fedsim.from_dict({**SMALL, "seeds": [3]})
    folder = fedsim.run(loaded, policies=[KSync(k=2), KSync(k=5)], out=tmp_path)
    assert [run.label for run in fedsim.read(folder)] == ["k_sync(k=2)", "k_sync(k=5)"]


def test_a_model_of_ones_own_is_named_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Module):\n"
        "    block_names = ('body', 'head')\n\n"
        "    def __init__(self, n_in, n_out, width):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(width, n_out)\n"
        "        self.body = nn.Sequential(nn.Flatten(), nn.Linear(n_in, width), nn.Tanh())\n\n"
        "    def forward(self, x):\n"
        "        return self.head(self.body(x))\n\n\n"
        "def net(input_shape, n_outputs, width: int = 12):\n"
        "    return Net(input_shape[0], n_outputs, width)\n"
    )
    scenario = scenario_file(tmp_path, model={"kind": "mine:net", "width": 9}, seeds=[1])
    done = fedsim_command("run", scenario, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    layers = fedsim.read(tmp_path / "runs" / "small")[0].manifest["layers"]
    assert [(layer["name"], layer["n_parameters"]) for layer in layers] == [("body", 65 * 9), ("head", 100)]


def test_a_name_that_a_browser_would_run_is_text_everywhere(tmp_path: Path) -> None:
    label = "<script>alert(1)</script>"
    scenario = scenario_file(tmp_path, policies=[{"kind": "fedavg", "label": label}], seeds=[1])
    done = fedsim_command("run", scenario, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert label in done.stdout
    assert label not in (tmp_path / "runs" / "small" / "report.html").read_text()


def test_real_images_are_learnt_from(tmp_path: Path) -> None:
    if not os.environ.get("FEDSIM_DATA"):
        pytest.skip("FEDSIM_DATA is not set: no Fashion-MNIST to train on")
    changes = {
        "fleet": {"n_devices": 20, "compute": {"step_s": 1.0, "task_factor": {"kind": "exponential"}}},
        "data": {"kind": "fashion_mnist", "partition": {"kind": "dirichlet", "alpha": 0.3}},
        "model": {"kind": "cnn"},
        "policies": [{"kind": "k_sync", "k": 10}],
        "training": {"learning_rate": 0.1},
        "evaluation": {"every_s": 10, "n_rows": 1000},
        "stop": {"n_rounds": 60},
        "seeds": [1],
    }
    done = fedsim_command("run", scenario_file(tmp_path, **changes), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "runs" / "small" / "summary.json").read_text())
    assert row["final_accuracy"] > 0.5  # ten classes: luck alone gives 0.1


def test_runs_of_other_settings_are_never_compared_with_new_ones(tmp_path: Path) -> None:
    """Their times mean something else: the winner could turn round."""
    both = [{"kind": "k_sync", "k": 2}, {"kind": "k_sync", "k": 6}]
    scenario = scenario_file(tmp_path, policies=both, seeds=[1])
    assert fedsim_command("run", scenario, cwd=tmp_path).returncode == 0
    faster = {"n_devices": 8, "compute": {"step_s": 0.1, "task_factor": {"kind": "exponential"}}}
    scenario_file(tmp_path, policies=both, seeds=[1], fleet=faster)
    done = fedsim_command("run", scenario, "--policy", "k_sync(k=2)", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Left out: runs/small/k_sync(k=6)/seed-1 is a run of other settings" in done.stderr
    assert [row["policy"] for row in json.loads((tmp_path / "runs/small/summary.json").read_text())] == ["k_sync(k=2)"]
    assert "different settings" in refusal("report", "runs/small", cwd=tmp_path)


def test_a_damaged_run_is_named_and_run_anew(tmp_path: Path) -> None:
    scenario = scenario_file(tmp_path, policies=[{"kind": "k_sync", "k": 2}], seeds=[1, 2])
    assert fedsim_command("run", scenario, cwd=tmp_path).returncode == 0
    lost, garbled = (tmp_path / "runs" / "small" / "k_sync" / f"seed-{seed}" / "rounds.parquet" for seed in (1, 2))
    lost.unlink()
    told = fedsim_command("report", "runs/small", cwd=tmp_path)
    assert "Left out: runs/small/k_sync/seed-1: no rounds.parquet" in told.stderr
    assert fedsim_command("run", scenario, cwd=tmp_path).returncode == 0
    assert lost.is_file()
    garbled.write_bytes(b"not a table")
    line = refusal_of(fedsim_command("run", scenario, cwd=tmp_path))
    assert "rounds.parquet cannot be read" in line
    assert "--again" in line


@pytest.mark.parametrize("out", ["afile", "afile/below"])
def test_an_output_folder_that_cannot_be_is_refused_in_one_line(tmp_path: Path, out: str) -> None:
    (tmp_path / "afile").write_text("in the way")
    scenario_file(tmp_path)
    assert "afile" in refusal("run", "small.yaml", "--out", out, cwd=tmp_path)


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_report_on_nothing_is_refused_and_writes_nothing(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    refusal("report", folder, cwd=tmp_path)
    assert not list((tmp_path / "empty").iterdir())


def test_runs_that_all_diverged_are_told_to_learn_more_slowly(tmp_path: Path) -> None:
    scenario = scenario_file(tmp_path, training={"learning_rate": 1e18}, seeds=[1], policies=[{"kind": "fedavg"}])
    assert "Every run diverged" in fedsim_command("run", scenario, cwd=tmp_path).stdout


def test_a_run_writes_its_closed_forms_and_the_report_holds_them_beside_what_was_simulated(tmp_path):
    path = scenario_file(
        tmp_path, data={"kind": "digits"}, policies=[{"kind": "fedavg"}, {"kind": "salf", "deadline_s": 0.8}]
    )
    assert fedsim_command("run", path, cwd=tmp_path).returncode == 0
    found = {run.label: run.expected for run in fedsim.read(tmp_path / "runs" / "small")}
    by_name = {one["quantity"]: one for one in found["fedavg"]}
    slowest_s = 2 * sum(1 / i for i in range(1, 9))  # two steps of the slowest of eight memoryless tasks
    # The mean number of rows of two steps, over devices that are nearly alike, leaves one per cent.
    assert by_name["round_s"]["mean"] == pytest.approx(slowest_s, rel=0.01)
    times_s, shares = zip(*by_name["round_s"]["cdf"], strict=True)
    assert list(times_s) == sorted(times_s)
    assert list(shares) == sorted(shares)
    assert {"correction_factor", "is_layer_empty"} <= {one["quantity"] for one in found["salf"]}
    assert by_name["loss"]["no_closed_form"] == "needs the model quadratic on the data set quadratic"
    report = (tmp_path / "runs" / "small" / "report.html").read_text(encoding="utf-8")
    assert "Is the clock right?" in report
    assert "with a closed form agree" in report


def test_a_run_on_quadratics_writes_the_loss_that_it_then_has(tmp_path):
    """Full batches and everybody waited for: nothing about the loss is random."""
    quadratic = {
        "data": {"kind": "quadratic", "n_groups": 8, "n_parameters": 3, "partition": {"kind": "one_class"}},
        "model": {"kind": "quadratic", "layer_sizes": [2, 1]},
        "training": {"local_steps": 2, "learning_rate": 0.3, "batch_size": "all", "dtype": "float64"},
        "policies": [{"kind": "fedavg"}],
        "evaluation": {"every_n_rounds": 1},
        "stop": {"n_rounds": 6},
    }
    assert fedsim_command("run", scenario_file(tmp_path, **quadratic), cwd=tmp_path).returncode == 0
    for run in fedsim.read(tmp_path / "runs" / "small"):
        [loss] = [one for one in run.expected if one["quantity"] == "loss"]
        np.testing.assert_allclose(run.evaluations["loss"], loss["mean"], rtol=1e-10)
