"""Small run folders made by hand, for tests of what reads them.

Curves and rounds are given as plain numbers, so that a test can state what must come out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

GRID_STEP_S = 10.0
LAYERS = ("input", "output")


def write_run(
    scenario_folder: Path,
    label: str,
    seed: int,
    accuracy: Sequence[float],
    *,
    kind: str = "fedavg",
    position: int = 0,
    targets: Sequence[float] = (0.9,),
    sustain_s: float | None = 20.0,
    grid_step_s: float | None = GRID_STEP_S,
    round_s: Sequence[float] = (1.0, 2.0, 4.0),
    n_contributors: Sequence[int] = (2, 4),
    outcome: str = "finished",
    with_tasks: bool = False,
    expected: Sequence[dict[str, Any]] | None = None,
    simulated_s: float | None = 600.0,
) -> Path:
    """A finished run: `accuracy[i]` evaluated at i * grid_step_s (10 s), rounds of `round_s`, two layers.

    Each round uploads 100 bytes, downloads 300, spends 1,000 FLOPs and uses 750 of them; by evaluation i there were
    i * 100 bytes up. expected: what stands in expected.json; no such file if left out. simulated_s: where the scenario
    stops, None if it stops by rounds.
    """
    folder = scenario_folder / f"policy-{position}" / f"seed-{seed}"
    folder.mkdir(parents=True)
    step_s = grid_step_s or GRID_STEP_S
    end_s = pd.Series(round_s, dtype="float64").cumsum()
    n_rounds, n_points = len(round_s), len(accuracy)
    rounds = {"round": range(n_rounds), "start_s": end_s - pd.Series(round_s, dtype="float64"), "end_s": end_s}
    rounds |= {"version": range(1, n_rounds + 1), "n_sent": 4, "n_contributions": n_contributors[-1]}
    rounds |= {"uploaded_bytes": 100, "downloaded_bytes": 300, "device_flops": 1000.0, "used_flops": 750.0}
    layers = [
        {"round": r, "layer": layer, "n_contributors": n, "weight_sum": 1.0}
        for r in range(n_rounds)
        for layer, n in enumerate(n_contributors)
    ]
    points = pd.Series(range(n_points), dtype="float64")
    evaluations = {"time_s": points * step_s, "version": range(n_points), "round": range(n_points)}
    evaluations |= {"accuracy": list(map(float, accuracy)), "loss": 1.0, "uploaded_bytes": points * 100}
    evaluations |= {"downloaded_bytes": points * 300, "device_flops": points * 1000}
    tables = {
        "rounds": pd.DataFrame(rounds),
        "layers": pd.DataFrame(layers, columns=["round", "layer", "n_contributors", "weight_sum"]),
        "evaluations": pd.DataFrame(evaluations),
    }
    if with_tasks:
        tables["tasks"] = _tasks()
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet")
    if expected is not None:
        (folder / "expected.json").write_text(json.dumps(list(expected)), encoding="utf-8")
    end = max(float(end_s.iloc[-1]) if n_rounds else 0.0, (n_points - 1) * step_s)
    manifest = _manifest(scenario_folder.name, label, kind, seed, position, targets, grid_step_s, sustain_s)
    manifest["outcome"] = {"kind": outcome, "reason": "", "round": n_rounds, "simulated_s": end}
    manifest["scenario"]["stop"]["simulated_s"] = simulated_s
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def add_classes(
    folder: Path,
    n_used: Sequence[Sequence[int]],
    *,
    n_steps: Sequence[Sequence[int]] | None = None,
    weight_sum: Sequence[Sequence[float]] | None = None,
    n_devices: Sequence[int] = (2, 2),
    names: Sequence[str] = ("fastest", "slowest"),
    label_share: Sequence[Sequence[float]] | None = None,
    label_accuracy: Sequence[float | None] | None = None,
    change_norm: Sequence[float] = (0.6, 0.2),
    staleness: float = 0.0,
    wasted_bytes: float = 25.0,
) -> Path:
    """Give a run what newer ones have: `n_used[round][class]`; steps and weights are the same if left out.

    A class's step takes 1, 2, ... s; change_norm: of each layer in every round. Returns the folder.
    """
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["speed_classes"] = [
        {
            "name": name,
            "unit_s": i + 1.0,
            "n_devices": n_devices[i],
            "samples_share": n_devices[i] / sum(n_devices),
            "label_share": None if label_share is None else list(label_share[i]),
        }
        for i, name in enumerate(names)
    ]
    final = {"accuracy": 0.5, "loss": 1.0, "label_accuracy": label_accuracy and list(label_accuracy)}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"final": final}), encoding="utf-8")
    index = pd.MultiIndex.from_product([range(len(n_used)), range(len(names))], names=["round", "speed_class"])
    counts = {"n_used": n_used, "n_steps": n_steps or n_used, "weight_sum": weight_sum or n_used}
    columns = {name: [value for row in rows for value in row] for name, rows in counts.items()}
    pd.DataFrame(columns, index=index).reset_index().to_parquet(folder / "classes.parquet")
    rounds, layers = (pd.read_parquet(folder / f"{name}.parquet") for name in ("rounds", "layers"))
    waste = {"wasted_uploaded_bytes": wasted_bytes, "wasted_downloaded_bytes": 2 * wasted_bytes}
    rounds.assign(staleness_mean=staleness, staleness_max=staleness, **waste).to_parquet(folder / "rounds.parquet")
    layers.assign(change_norm=[change_norm[layer] for layer in layers["layer"]]).to_parquet(folder / "layers.parquet")
    return folder


def climb(reached_at: int | None, n_points: int = 61, target: float = 0.9) -> list[float]:
    """An accuracy that rises in a straight line to `target` at evaluation `reached_at` and stays; None: halfway only."""
    if reached_at is None:
        return [target / 2 * i / n_points for i in range(n_points)]
    return [target * min(1.0, i / reached_at) if reached_at else target for i in range(n_points)]


def _tasks() -> pd.DataFrame:
    """Two tasks that were used and one that was dropped: phases of 1, 4 and 2 s, and of 1, 8 and 2 s."""
    return pd.DataFrame(
        {
            "device": [0, 1, 2],
            "ordinal": 0,
            "round": 2,
            "version": 0,
            "n_steps": [2, 2, 1],
            "depth": 2,
            "outcome": ["used", "used", "dropped"],
            "sent_s": [0.0, 0.0, 0.0],
            "downloaded_s": [1.0, 1.0, 1.0],
            "computed_s": [5.0, 9.0, 99.0],
            "arrived_s": [7.0, 11.0, float("nan")],
        }
    )


def _manifest(
    scenario: str,
    label: str,
    kind: str,
    seed: int,
    position: int,
    targets: Sequence[float],
    grid_step_s: float | None,
    sustain_s: float | None,
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "scenario": {
            "name": scenario,
            "fleet": {"n_devices": 4},
            "stop": {"simulated_s": 600.0, "n_rounds": None},
            "evaluation": {"targets": list(targets), "sustain_s": sustain_s, "every_s": grid_step_s, "n_points": 60},
        },
        "policy": {"kind": kind, "label": label, "parameters": {}},
        "seed": seed,
        "seeds": {"init": seed, "data": seed, "fleet": seed, "clock": seed},
        "grid_step_s": grid_step_s,
        "sustain_s": sustain_s,
        "layers": [{"name": name, "n_parameters": 10, "parameter_bytes": 40} for name in LAYERS],
        "versions": {"fedsim": "0.1.0"},
        "machine": {"n_cores": 2},
        "position": position,
    }


def begin_run(
    scenario_folder: Path, label: str, seed: int, *, kind: str = "fedavg", position: int = 0, policy: str | None = None
) -> Path:
    """A run that has just begun: its partial folder with started.json and an empty journal. policy: its folder's name."""
    folder = scenario_folder / (policy or f"policy-{position}") / f".seed-{seed}.partial"
    folder.mkdir(parents=True)
    facts = _manifest(scenario_folder.name, label, kind, seed, position, (0.9,), GRID_STEP_S, 20.0)
    (folder / "started.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "journal.jsonl").touch()
    return folder


def journal_line(number: int, *, accuracy: float | None = None, share: float = 0.5, round_s: float = 10.0) -> str:
    """What the journal says when round `number` is closed, with an evaluation at its end if there is an `accuracy`."""
    end_s = (number + 1) * round_s
    costs = {"uploaded_bytes": 100.0, "downloaded_bytes": 300.0, "device_flops": 1000.0}
    line: dict[str, Any] = {"round": number, "start_s": end_s - round_s, "end_s": end_s, "version": number + 1}
    row = {"time_s": end_s, "version": number + 1, "round": number + 1, "accuracy": accuracy, "loss": 1.0}
    row |= {"accuracy_slowest": None, "accuracy_fastest": None, **costs}
    line |= {"n_contributions": 4, **costs, "share": share, "evaluations": [] if accuracy is None else [row]}
    return json.dumps(line) + "\n"


def add_lines(partial: Path, *lines: str) -> None:
    """Let a run in progress write these into its journal."""
    with (partial / "journal.jsonl").open("a", encoding="utf-8") as journal:
        journal.write("".join(lines))


def finish_run(partial: Path, finished: Path) -> Path:
    """End a run as fedsim does: `finished`, a whole run made elsewhere, becomes its tables, and the folder is renamed."""
    for file in finished.iterdir():
        file.rename(partial / file.name)
    for name in ("journal.jsonl", "started.json"):
        (partial / name).unlink()
    return partial.rename(partial.with_name(partial.name.removeprefix(".").removesuffix(".partial")))
