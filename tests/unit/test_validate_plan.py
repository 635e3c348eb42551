"""`fedsim validate` and `fedsim plan`: what they print, what they need, and where a closed form ends."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import fedsim
from fedsim import cli, theory
from fedsim.commands.agreement import sentence
from fedsim.commands.comparing import Compared, compared, judged
from fedsim.commands.plan import Point, knee_of, plan, values_of
from fedsim.commands.validate import DETECTABLE_SHARE, rounds_needed
from fedsim.delays import Exponential, Gamma, Mixture
from fedsim.expectations import expected, fleet_of
from fedsim.run import World
from fedsim.theory import registry
from fedsim.timing.book import RunOver
from fedsim.timing.server import SimServer

SCENARIO = {
    "name": "small",
    "fleet": {"n_devices": 6, "compute": {"step_s": 1.0, "task_factor": {"kind": "exponential"}}},
    "model": {"kind": "mlp", "widths": [6, 5]},
    "data": {"kind": "gaussian_blobs", "n_samples": 120, "n_features": 4, "n_classes": 2},
    "training": {"local_steps": 3, "batch_size": 16, "batches": "with_replacement"},
    "policies": [{"kind": "fedavg"}, {"kind": "k_sync", "k": 3}, {"kind": "salf", "deadline_s": 0.7}],
    "seeds": [1],
    "stop": {"n_rounds": 10},
    "train": False,
}


def world(**changes):
    loaded = fedsim.from_dict({**SCENARIO, **changes})
    return loaded, World.of(loaded, loaded.scenario.seed_sets[0]).planned_for(loaded.contenders[0])


def written(tmp_path, values):
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
    return path


def ended(arguments):
    with pytest.raises(SystemExit) as end:
        cli.main([str(a) for a in arguments])
    return end.value.code or 0


# ---- validate -------------------------------------------------------------------------------------------------------


def test_validate_prints_each_quantity_and_says_that_they_agree(tmp_path, capsys):
    assert ended(["validate", written(tmp_path, SCENARIO), "--rounds", 300]) == 0
    said = capsys.readouterr().out
    assert "quantities agree" in said
    assert "DISAGREES" not in said


def test_validate_as_json_and_any_number_of_processes_give_the_same(tmp_path, capsys):
    path = written(tmp_path, SCENARIO)
    assert ended(["validate", path, "--rounds", 200, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"policy", "quantity", "unit", "expected", "simulated", "standard_error", "agrees"} <= set(rows[0])
    assert {row["policy"] for row in rows} == {"fedavg", "k_sync", "salf"}
    assert all(row["agrees"] for row in rows)
    assert ended(["validate", path, "--rounds", 200, "--json", "--jobs", 2]) == 0
    assert json.loads(capsys.readouterr().out) == rows


def test_validate_ends_with_1_where_something_disagrees(tmp_path, monkeypatch):
    monkeypatch.setattr(Exponential, "draw", lambda self, u: -1.3 * np.log1p(-u))
    assert ended(["validate", written(tmp_path, SCENARIO), "--rounds", 300]) == 1


def test_what_has_no_closed_form_is_listed_with_the_assumption_and_is_no_disagreement(tmp_path, capsys):
    link = {"rate_bits_per_s": 1e9, "latency_s": {"kind": "exponential", "mean": 0.1}, "redrawn": "task"}
    values = {**SCENARIO, "fleet": {**SCENARIO["fleet"], "uplink": link}, "policies": [{"kind": "fedavg"}]}
    assert ended(["validate", written(tmp_path, values), "--rounds", 100, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row.get("no_closed_form") for row in rows if row["quantity"] == "round_s"} == {
        "needs transfer times that are fixed for each device; got a link redrawn for each task"
    }


@pytest.mark.parametrize("command", [["validate", "--rounds", "100"], ["plan"]])
def test_neither_imports_torch_where_nothing_is_trained(tmp_path, command):
    path = written(tmp_path, SCENARIO)
    fedsim.from_dict(SCENARIO)
    world()  # remembers the model's shape
    script = (
        "import sys\nfrom fedsim import cli\n"
        f"try:\n    cli.main({[command[0], str(path), *command[1:]]!r})\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True)


def test_as_many_rounds_are_played_as_it_takes_to_see_one_per_cent():
    loaded, here = world()
    found = expected(loaded.contenders[0], here.weather)
    n, time = rounds_needed(found), next(one for one in found if one.quantity == "round_s")
    assert 4.0 * np.sqrt(time.variance / n) < DETECTABLE_SHARE * time.mean < 7.0 * np.sqrt(time.variance / n)


def test_a_family_of_comparisons_is_judged_together():
    """|z| = 3 is refused on its own (p = 0.003) and not among a thousand."""
    alone = Compared("p", "q", "1", expected=1.0, simulated=1.3, standard_error=0.1, z=3.0)
    assert judged([alone])[0].agrees is False
    assert judged([alone] * 1000)[0].agrees is True


def test_what_does_not_vary_must_be_equal():
    row = Compared("p", "q", "1")
    assert compared(row, np.full(9, 0.1 * 3), 0.3, 0.0).agrees is True
    assert compared(row, np.full(9, 0.300001), 0.3, 0.0).agrees is False


def test_a_run_that_ends_before_its_rounds_are_through_is_refused(tmp_path, monkeypatch):
    """A broken clock may not get by with no rounds at all."""
    monkeypatch.setattr(SimServer, "wait", lambda self, jobs, condition: (_ for _ in ()).throw(RunOver("stalled", "x")))
    assert ended(["validate", written(tmp_path, SCENARIO), "--rounds", 100]) == 1


def test_where_nothing_could_be_compared_nothing_is_said_to_agree():
    row = Compared("p", "round_s", "s", no_closed_form="needs luck")
    assert sentence([row]) == "Nothing was compared. 1 quantity without a closed form."


# ---- fleets ---------------------------------------------------------------------------------------------------------


def test_the_fleet_of_theory_is_the_clocks():
    """Two derivations of the same durations."""
    compute = {"flops_per_s": [1e4, 2e4, 3e4, 4e4, 5e4, 6e4], "backward_factor": 3.0, "device_factor": 2.0}
    links = {"uplink": {"rate_bits_per_s": 1e4, "latency_s": 0.1}, "downlink": {"rate_bits_per_s": 3e4}}
    _, here = world(fleet={"n_devices": 6, "compute": compute, **links})
    fleet, everyone, none = fleet_of(here.weather), np.arange(6), np.zeros(6, dtype=np.int64)
    np.testing.assert_allclose(fleet.unit_s, here.weather.unit_s, rtol=1e-14)
    np.testing.assert_allclose(fleet.reach_share, here.weather.reach_cost, rtol=1e-14)
    np.testing.assert_allclose(
        fleet.download_s, here.weather.download_s(everyone, none, here.weather.shape.suffix_bytes[-1]), rtol=1e-14
    )
    for depth in range(4):
        there = here.weather.upload_s(everyone, none, np.full(6, depth), here.weather.shape.suffix_bytes[depth])
        np.testing.assert_allclose(fleet.upload_s[:, depth], there, rtol=1e-14)


def test_smaller_last_batches_leave_the_ends_of_a_fixed_number_of_steps_exact():
    """A device of 20 rows in batches of 16 has steps of 16, 4 and 16 rows: 2.25 full ones."""
    rows = {
        "data": {**SCENARIO["data"], "n_samples": 150},
        "training": {"batch_size": 16},
        "policies": [{"kind": "fedavg", "local_steps": 3}],
    }
    loaded, here = world(**rows)
    assert not here.weather.plan.is_even
    found = {one.quantity: one for one in expected(loaded.contenders[0], here.weather) if one.device is None}
    n_rows = here.weather.plan.rows_before(np.arange(6), np.full(6, 3)) / 16
    slowest = theory.fedavg.round_time(6, 1, 1.0, task_factor=Exponential(), device_factor=n_rows.tolist())
    assert found["round_s"].mean == pytest.approx(slowest.mean_s, rel=1e-12)
    assert found["used_flops"].mean == pytest.approx(float(n_rows.sum()) * 16 * here.weather.shape.step_flops[-1])


def test_where_single_steps_decide_smaller_batches_are_refused():
    rows = {
        "data": {**SCENARIO["data"], "n_samples": 150},
        "training": {"batch_size": 16},
        "policies": [{"kind": "stsyn", "k": 3, "local_steps": 3}],
    }
    loaded, here = world(**rows)
    found = {one.quantity: one for one in expected(loaded.contenders[0], here.weather)}
    assert found["round_s"].mean is not None
    assert "equal numbers of rows" in (found["n_contributions"].reason or "")


def test_a_policy_without_a_file_of_closed_forms_says_so():
    _, here = world()
    [only] = registry.expected("mine", object(), fleet_of(here.weather))
    assert "mine has none" in (only.reason or "")


def test_only_what_is_wanted_is_computed():
    loaded, here = world()
    fleet = fleet_of(here.weather)
    found = registry.expected("k_sync", loaded.contenders[1].policy, fleet, wanted=("round_s",))
    assert [one.quantity for one in found] == ["round_s"]


def test_a_mixture_has_the_moments_and_the_draws_of_its_parts():
    law = Mixture((Exponential(mean=1.0), Gamma(shape=3.0, mean=4.0)), (0.25, 0.75))
    assert law.mean == pytest.approx(3.25)
    assert law.variance == pytest.approx(0.25 * 2 + 0.75 * (16 / 3 + 16) - 3.25**2)
    u = (np.arange(200_000) + 0.5) / 200_000
    drawn = law.draw(u)
    assert drawn.mean() == pytest.approx(law.mean, rel=1e-3)
    for x in (0.3, 2.0, 6.0):
        assert (drawn <= x).mean() == pytest.approx(float(law.cdf(np.array([x]))[0]), abs=1e-4)
        assert float(law.cdf(np.array([x]))[0] + law.survival(np.array([x]))[0]) == pytest.approx(1.0, rel=1e-15)


# ---- plan -----------------------------------------------------------------------------------------------------------


def test_plan_turns_numbers_only_and_not_a_list_of_one_per_device():
    loaded = fedsim.from_dict({**SCENARIO, "policies": [{"kind": "fednova", "local_steps": [1, 2, 3, 4, 5, 6]}]})
    assert plan(loaded) == []
    loaded = fedsim.from_dict({**SCENARIO, "policies": [{"kind": "fednova", "budget_s": 3.0}]})
    assert [curve.setting for curve in plan(loaded)] == ["budget_s"]


def test_plan_turns_each_stated_setting_and_keeps_the_stated_value_among_them(tmp_path, capsys):
    loaded = fedsim.from_dict(SCENARIO)
    curves = plan(loaded)
    assert [(c.policy, c.setting) for c in curves] == [
        ("fedavg", "local_steps"),
        ("k_sync", "k"),
        ("salf", "deadline_s"),
    ]
    assert all(c.stated in [p.value for p in c.points] for c in curves)
    by_k = {p.value: p for p in curves[1].points}
    for k in (1, 3, 6):
        assert by_k[k].round_s == pytest.approx(theory.k_sync.round_time(6, k, 1.0, task_factor=Exponential()).mean_s)
        assert by_k[k].participation_share == pytest.approx(k / 6)
        assert by_k[k].effective_cohort == pytest.approx(k)


def test_plan_writes_tables_a_page_and_says_what_it_cannot_know(tmp_path, capsys):
    assert ended(["plan", written(tmp_path, SCENARIO), "--out", tmp_path]) == 0
    said = capsys.readouterr().out
    assert "Not known from closed forms: accuracy" in said
    page = (tmp_path / "small" / "plan.html").read_text(encoding="utf-8")
    assert "How many devices to wait for?" in page
    assert ended(["plan", written(tmp_path, SCENARIO), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3


def point(round_s, work):
    return Point(round_s, round_s, None, None, None, None, work)


def test_the_knee_is_where_work_falls_behind_seconds():
    assert knee_of([point(t, w) for t, w in ((1, 0), (2, 8), (3, 9), (6, 9.5), (11, 10))]) == 2
    assert knee_of([point(t, 3 * t) for t in (1, 2, 3, 4)]) is None  # in proportion
    assert knee_of([point(2, w) for w in (1, 5, 6)]) is None  # seconds buy nothing
    assert knee_of([point(1, 1), point(2, 2)]) is None


def test_settings_are_turned_within_what_they_may_be():
    assert values_of("k", 2, 3) == [1, 2, 3]
    steps = values_of("local_steps", 5, 10)
    assert steps[0] == 1
    assert {5, 40} <= set(steps)
    assert values_of("deadline_s", 4.0, 10)[0] == pytest.approx(0.5)


def test_a_plan_is_refused_like_a_run(tmp_path, capsys):
    values = {**SCENARIO, "policies": [{"kind": "k_sync", "k": 60}]}
    assert ended(["plan", written(tmp_path, values)]) == 2
    assert "choose 1..6" in capsys.readouterr().err.replace("\n", " ")
