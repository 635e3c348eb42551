"""`fedsim validate` on servers that never wait: it agrees with what is right, refuses what is not, and judges as often as it says.

Rounds of such servers depend on one another unless cycles are memoryless, so that the judgement itself is tested too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedsim import from_dict
from fedsim.campaign import run as run_all
from fedsim.commands import validate as module
from fedsim.commands.validate import rounds_needed, validate
from fedsim.delays import Gamma
from fedsim.expectations import expected
from fedsim.facts import Array
from fedsim.policies.fedasync import FedAsync
from fedsim.run import World
from fedsim.statistics.agreement import Sample, agreements, batch_means, compared, rounds_to_settle
from fedsim.statistics.reading import read_scenario
from fedsim.theory.asynchronous_rounds import Cycles
from fedsim.timing.live_jobs import LiveJobs
from tests.theory.paths import path
from tests.theory.stories import fleet

MEMORYLESS = {"step_s": [0.5, 1.0, 1.0, 2.0, 4.0], "task_factor": {"kind": "exponential"}}
REGULAR = {"step_s": [0.5, 1.0, 1.0, 2.0, 4.0], "task_factor": {"kind": "gamma", "shape": 4.0}}


def scenario(compute: dict[str, Any], policy: dict[str, Any], **more: Any) -> Any:
    return from_dict(
        {
            "name": "never-waiting",
            "fleet": {"n_devices": 5, "compute": compute},
            "data": {"kind": "gaussian_blobs", "n_samples": 150, "n_features": 4, "n_classes": 2},
            "model": {"kind": "mlp", "widths": []},
            "training": {"batch_size": 10, "batches": "with_replacement"},
            "policies": [policy],
            "seeds": [3],
            "stop": {"n_rounds": 1000},
            "train": False,
            **more,
        }
    )


def rows_of(compute: dict[str, Any], policy: dict[str, Any], n_rounds: int | None = None) -> dict[str, list[Any]]:
    """By quantity."""
    found: dict[str, list[Any]] = {}
    for row in validate([(None, scenario(compute, policy))], n_rounds=n_rounds):
        found.setdefault(row.quantity, []).append(row)
    return found


CASES = [
    (MEMORYLESS, {"kind": "fedasync"}),
    (MEMORYLESS, {"kind": "fedasync", "staleness_weighting": "hinge", "hinge_start": 2}),
    (MEMORYLESS, {"kind": "fedasync", "concurrency": 3}),
    (MEMORYLESS, {"kind": "fedbuff", "buffer_size": 3, "normalise_at": 1.0}),
    (REGULAR, {"kind": "fedasync"}),
    (REGULAR, {"kind": "fedasync", "concurrency": 2}),
    (REGULAR, {"kind": "fedbuff", "buffer_size": 7}),
]


@pytest.mark.parametrize(("compute", "policy"), CASES)
def test_everything_that_has_a_closed_form_agrees(compute: dict[str, Any], policy: dict[str, Any]) -> None:
    found = rows_of(compute, policy, 3000 // policy.get("buffer_size", 1))
    assert [row for rows in found.values() for row in rows if row.agrees is False] == []
    assert {"round_s", "n_contributions", "staleness", "n_steps", "used_flops", "uploaded_bytes"} <= {
        name for name, rows in found.items() if all(row.agrees for row in rows)
    }
    assert "settled_after" not in found


def refused(compute: dict[str, Any], policy: dict[str, Any]) -> set[str]:
    return {name for name, rows in rows_of(compute, policy, 2000).items() if any(row.agrees is False for row in rows)}


def test_a_device_that_pulls_an_outdated_model_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    add = LiveJobs.add
    monkeypatch.setattr(
        LiveJobs,
        "add",
        lambda self, work, devices, version, now_s: add(self, work, devices, max(0, version - 1), now_s),
    )
    assert "staleness" in refused(REGULAR, {"kind": "fedasync"})


def test_weights_of_a_wrong_staleness_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FedAsync, "_discount", lambda self, staleness: (staleness + 2.0) ** -0.5)
    assert refused(MEMORYLESS, {"kind": "fedasync"}) == {"weight_sum"}


def test_cycles_that_are_too_long_by_a_twentieth_are_noticed_in_the_long_run(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Gamma.draw
    monkeypatch.setattr(Gamma, "draw", lambda self, u: 1.05 * draw(self, u))
    assert "round_s" in refused(REGULAR, {"kind": "fedasync"})


def test_a_slot_that_is_left_empty_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four at work where five should be."""
    rounds = FedAsync.rounds
    monkeypatch.setattr(FedAsync, "rounds", lambda self, server: rounds(FedAsync(concurrency=4), server))
    assert {"staleness", "round_s"} <= refused(REGULAR, {"kind": "fedasync"})


def test_a_run_too_short_to_forget_its_start_is_not_judged_by_its_mean() -> None:
    (row,) = rows_of(REGULAR, {"kind": "fedasync"}, 60)["round_s"]
    assert (row.agrees, row.simulated) == (None, None)
    assert "remember the common start" in row.no_closed_form


def test_a_mean_that_rounds_never_settle_to_is_shown_and_not_judged() -> None:
    """Cycles of infinite variance: five steps each, on five devices, at a mean factor of 1.8 / 0.8."""
    heavy = {"step_s": 1.0, "task_factor": {"kind": "pareto", "shape": 1.8}}
    (row,) = rows_of(heavy, {"kind": "fedasync"}, 300)["round_s"]
    assert row.expected == pytest.approx(1.8 / 0.8)
    assert row.agrees is None
    assert "needs cycles of finite variance" in row.no_closed_form


@pytest.mark.parametrize("step_s", [1.0, [0.5, 1.0, 1.0, 2.0, 4.0]])
@pytest.mark.parametrize("policy", [{"kind": "fedasync"}, {"kind": "fedbuff", "buffer_size": 2}])
def test_without_luck_what_is_counted_is_exact_and_what_depends_on_phases_is_not_judged(
    step_s: Any, policy: dict[str, Any]
) -> None:
    found = rows_of({"step_s": step_s}, policy, 300)
    for name in ("n_contributions", "staleness", "uploaded_bytes", "downloaded_bytes", "is_empty"):
        assert all(row.agrees and row.z is None for row in found[name]), name
    (row,) = found["round_s"]
    assert row.expected == pytest.approx(policy.get("buffer_size", 1) / (1 if step_s == 1.0 else 4.75 / 5))
    assert "phases of devices can lock" in row.no_closed_form


def test_as_many_rounds_are_played_as_batches_need_and_no_more_uploads_than_elsewhere_rounds() -> None:
    found = found_in(scenario(REGULAR, {"kind": "fedasync"}))
    settled = next(one.mean for one in found if one.quantity == "settled_after")
    assert rounds_needed(found) == rounds_to_settle(int(settled)) > module.LEAST_ROUNDS
    found = found_in(scenario(MEMORYLESS, {"kind": "fedbuff", "buffer_size": 50}))
    assert rounds_needed(found) == module.MOST_ROUNDS // 50 < module.LEAST_ROUNDS


def found_in(loaded: Any) -> list[Any]:
    world = World.of(loaded, loaded.scenario.seed_sets[0]).planned_for(loaded.contenders[0])
    return expected(loaded.contenders[0], world.weather)


# ---- the judgement --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [Gamma(0.5), Gamma(1.0), Gamma(8.0)], ids=lambda law: f"shape-{law.shape}")
def test_batches_of_a_long_run_refuse_what_is_right_as_rarely_as_they_say(law: Gamma) -> None:
    """150 runs of unequal devices: z spreads no more than a standard normal, up to 4 standard errors, on both sides alike."""
    cycles = Cycles.of(fleet([0.5, 1.0, 2.0], task_factor=law), 1, None, 1)
    settled, mean = cycles.settled_after(), 1 / cycles.throughput_per_s
    z = np.array(
        [
            z_of(
                path(fleet([0.5, 1.0, 2.0], task_factor=law), 1, rounds_to_settle(settled), seed).round_s, settled, mean
            )
            for seed in range(150)
        ]
    )
    assert abs(z.mean()) < 4 / np.sqrt(150)
    assert (z**2).mean() < 1 + 4 * np.sqrt(2 / 150)
    for p in (0.05, 0.01):
        bound = p + 4 * np.sqrt(p * (1 - p) / 150)
        assert max((z > stats.norm.isf(p)).mean(), (z < stats.norm.ppf(p)).mean()) <= bound, p


def z_of(round_s: Array, settled: int, mean: float) -> float:
    means = batch_means(round_s, settled)
    assert means is not None
    z = compared([Sample(means, mean)]).z
    assert z is not None
    return z


def test_batches_leave_the_start_out_and_are_refused_to_a_run_that_has_too_few_rounds() -> None:
    x = np.concatenate([np.full(11, 1e9), np.arange(60.0)])
    means = batch_means(x, 6)
    assert means is not None
    np.testing.assert_array_equal(means, 1 + 3 * np.arange(20.0))
    assert batch_means(x, 7) is None  # batches of three rounds, where the start is remembered for seven
    assert batch_means(np.zeros(19), 0) is None


# ---- in a report ----------------------------------------------------------------------------------------------------


def report_rows(tmp_path: Any, compute: dict[str, Any], **more: Any) -> dict[str, Any]:
    loaded = scenario(compute, {"kind": "fedasync"}, **more)
    run_all(loaded, out=tmp_path)
    return {row.quantity: row for row in agreements(read_scenario(tmp_path / "never-waiting"))}


def test_a_report_compares_the_staleness_exactly_and_says_what_takes_a_longer_run(tmp_path: Any) -> None:
    rows = report_rows(tmp_path, REGULAR)
    assert rows["staleness"].deviation.simulated == 4.0
    assert rows["staleness"].deviation.is_equal
    assert "fedsim validate plays one" in rows["round_s"].reason
    assert rows["uploaded_bytes"].agrees


def test_a_report_compares_the_round_times_of_memoryless_cycles(tmp_path: Any) -> None:
    rows = report_rows(tmp_path, MEMORYLESS, record_tasks=False)
    assert rows["round_s"].agrees
    assert "staleness" not in rows  # it is in the table of tasks alone
