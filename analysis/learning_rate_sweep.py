"""Which learning rate suits each policy of a scenario best, under an equal search budget?

    python analysis/learning_rate_sweep.py scenarios/quickstart.yaml --jobs 2

Every policy gets the same rates, the same seeds (none of the scenario's own) and the same stop rules. Rates are judged
on a validation split of the training rows, never on the test set: mean over seeds of the sustained time to the highest
target, a run that never gets there counting as the horizon; ties go to the higher final accuracy. Prints the table and
the `training:` line for each policy.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import fedsim
from fedsim.statistics.summary import summarise

RATES = (0.05, 0.1, 0.2, 0.4, 0.8)
SEEDS = (101, 102)


def trials(path: Path) -> dict:
    """The scenario with one entry per policy and rate, evaluated on held-out training rows."""
    loaded = fedsim.load(path)
    values = loaded.resolved()
    entries = []
    for entry in values["policies"]:
        for rate in RATES:
            training = {**entry["training"], "learning_rate": rate}
            entries.append({**entry, "label": f"{entry['label']} @ {rate}", "training": training})
    data = {**values["data"], "validation_share": 0.2}
    evaluation = {**values["evaluation"], "rows": "validation"}
    return {**values, "policies": entries, "seeds": list(SEEDS), "data": data, "evaluation": evaluation}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    values = trials(arguments.scenario)
    horizon_s, target = values["stop"]["simulated_s"], max(values["evaluation"]["targets"])
    with tempfile.TemporaryDirectory() as folder:
        runs = fedsim.read(fedsim.run(fedsim.from_dict(values), out=folder, n_jobs=arguments.jobs))
        found: dict[str, list[dict]] = {}
        for run in runs:
            found.setdefault(run.label, []).append(summarise(run))
    best: dict[str, tuple[float, float, str]] = {}
    print(f"{'policy @ rate':<36} {'mean s to ' + format(target, '.0%'):>16} {'accuracy':>9}")
    for label, rows in found.items():
        reached = [row["time_to_accuracy_s"][str(target)] for row in rows]
        mean_s = sum(horizon_s if s is None else s for s in reached) / len(reached)
        accuracy = sum(row["final_accuracy"] for row in rows) / len(rows)
        print(f"{label:<36} {mean_s:>16.1f} {accuracy:>9.3f}")
        policy, rate = label.rsplit(" @ ", 1)
        best[policy] = min(best.get(policy, (float("inf"), 0.0, "")), (mean_s, -accuracy, rate))
    for policy, (_, _, rate) in best.items():
        print(f"{policy}: training: {{learning_rate: {rate}}}")


if __name__ == "__main__":
    main()
