"""The planner: the numbers of `fedsim plan` and of a run, piece by piece, and the scenario file of what is on the screen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fedsim
from fedsim import cli
from fedsim.commands import plan as planning
from fedsim.commands.plan import plan
from fedsim.commands.planned import planned
from fedsim.commands.planner import Planner
from fedsim.commands.planner_starts import BUILT_IN
from fedsim.commands.scenario_text import as_yaml, short
from fedsim.dashboard.live.planner_parts import text_of, value_of
from fedsim.dashboard.plan_page import plan_page
from fedsim.facts import BadInput
from fedsim.scenario.read import load, load_variants

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.name for path in (ROOT / "scenarios").glob("*.yaml"))
SCENARIO = {
    "name": "small",
    "fleet": {
        "n_devices": 6,
        "compute": {
            "step_s": 1.0,
            "device_factor": {"kind": "lognormal", "sigma": 0.5},
            "task_factor": {"kind": "pareto", "shape": 2.5, "minimum": 0.6},
        },
        "uplink": {"rate_bits_per_s": 1e5},
    },
    "model": {"kind": "mlp", "widths": [6, 5]},
    "data": {"kind": "gaussian_blobs", "n_samples": 120, "n_features": 4, "n_classes": 2},
    "training": {"local_steps": 3, "batch_size": 16, "batches": "with_replacement"},
    "policies": [
        {"kind": "fedavg"},
        {"kind": "k_sync", "k": 3},
        {"kind": "salf", "deadline_s": 0.7},
        {"kind": "drop_stragglers", "deadline_s": 4.0},
        {"kind": "fednova", "budget_s": 4.0},
    ],
    "seeds": [1],
    "stop": {"n_rounds": 10},
    "train": False,
}
TURNED = {
    "fleet/n_devices": 8,
    "fleet/compute/step_s": 0.7,
    "fleet/compute/device_factor/sigma": 0.9,
    "fleet/compute/task_factor": "exponential",
    "fleet/uplink/rate_bits_per_s": 33_300.0,
    "policies/0/local_steps": 2,
    "policies/1/k": 5,
    "policies/2/deadline_s": 1.3,
    "policies/4/budget_s": 2.2,
}


def planner(**changes):
    return Planner(lambda: {"small": {**SCENARIO, **changes}})


def ended(arguments):
    with pytest.raises(SystemExit) as end:
        cli.main([str(a) for a in arguments])
    return end.value.code or 0


def whole(a_planner, values, **asked):
    screen = a_planner.screen("small", values, **asked)
    assert screen.is_whole
    return screen


# ---- the numbers ----------------------------------------------------------------------------------------------------


def test_every_curve_is_that_of_fedsim_plan_for_the_file_that_the_button_writes(tmp_path, capsys):
    here = planner()
    path = tmp_path / "small.yaml"
    path.write_text(here.scenario_text("small", TURNED), encoding="utf-8")
    assert ended(["plan", path, "--json"]) == 0
    there = json.loads(capsys.readouterr().out)
    stated = [
        ("local_steps", 2),
        ("k", 5),
        ("deadline_s", 1.3),
        ("deadline_s", 4.0),
        ("local_steps", 3),
        ("budget_s", 2.2),
    ]
    assert [(one["setting"], one["stated"]) for one in there] == stated
    curves = json.loads(json.dumps(planning.as_json(here.curves("small", TURNED))))
    assert [{"scenario": "small-what-if", **one} for one in curves] == there


def test_the_table_is_what_a_run_of_the_scenario_expects(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(SCENARIO), encoding="utf-8")  # JSON is YAML
    assert ended(["run", path, "--out", tmp_path]) == 0
    here = Planner.of_folder(tmp_path)
    assert here.starts() == ["small"]
    for row in whole(here, {}).rows:
        file = tmp_path / "small" / row.label / "seed-1" / "expected.json"
        means = {
            one["quantity"]: one["mean"] for one in json.loads(file.read_text()) if not {"layer", "device"} & set(one)
        }
        for measure in ("round_s", "n_contributions", "n_steps", "used_flops", "uploaded_bytes"):
            assert getattr(row.point, measure) == means[measure]


def test_what_is_shown_piece_by_piece_is_what_is_shown_at_once():
    by_piece, seen = planner(), []
    while not seen or not seen[-1].is_whole:
        seen.append(by_piece.screen("small", TURNED, setting="k", within_s=0.0))
    assert len(seen) > 10
    assert "used_flops" in seen[0].rows[0].pending
    assert seen[0].curves == ()
    at_once = whole(planner(), TURNED, setting="k")
    assert seen[-1].curves == at_once.curves
    assert [row.point for row in seen[-1].rows] == [row.point for row in at_once.rows]


def test_turning_one_policy_asks_nothing_about_the_others(monkeypatch):
    here, asked = planner(), []
    whole(here, {}, setting="deadline_s")
    ask = planning.asked
    monkeypatch.setattr(planning, "asked", lambda kind, *rest: asked.append(kind) or ask(kind, *rest))
    whole(here, {"policies/1/k": 4}, setting="deadline_s")
    assert set(asked) == {"k_sync"}


def test_what_is_dear_waits_until_the_rest_is_shown():
    here = planner()
    first = here.screen("small", {}, [1], within_s=60.0)
    assert first.rows[0].point.round_s is not None
    assert "n_steps" in first.rows[0].pending
    assert here.screen("small", {}, [1], within_s=60.0).is_whole


def test_the_law_of_a_round_is_a_distribution_with_the_stated_mean():
    for row in whole(planner(), {}).rows:
        t_s, share = row.times
        assert (np.diff(t_s) > 0).all()
        assert (np.diff(share) >= 0).all()
        assert share[0] < 0.01
        assert share[-1] >= 0.995 - 1e-9
        # By the steps of the drawn line: the tail beyond it holds half a per cent of the rounds.
        drawn_s = float(np.diff(share) @ t_s[1:])
        assert drawn_s <= row.point.round_s * 1.05


def test_a_law_in_place_of_the_stated_one_has_its_mean():
    here = planner()
    luck = next(one for one in here.settings("small") if one.key == "fleet/compute/task_factor")
    assert next(iter(luck.choices)) == luck.stated == "pareto, shape 2.5 (as stated)"
    for name in luck.choices:
        turned = fedsim.from_dict(json.loads(json.dumps(_written(here, {"fleet/compute/task_factor": name}))))
        law = turned.scenario.fleet.compute.task_factor
        assert (1.0 if law is None else law.mean) == pytest.approx(1.0, rel=1e-12)


def _written(a_planner, values, shown=None):
    from fedsim.scenario.yaml_lines import parse

    return parse(a_planner.scenario_text("small", values, shown)).values


# ---- controls -------------------------------------------------------------------------------------------------------


def test_only_what_is_stated_is_offered():
    assert [one.key for one in planner().settings("small")] == [
        "fleet/n_devices",
        "fleet/compute/step_s",
        "fleet/uplink/rate_bits_per_s",
        "fleet/compute/device_factor/sigma",
        "fleet/compute/task_factor",
        "policies/0/local_steps",
        "policies/1/k",
        "policies/2/deadline_s",
        "policies/3/deadline_s",
        "policies/3/local_steps",
        "policies/4/budget_s",
    ]


def test_another_number_of_devices_is_not_offered_where_something_is_listed_device_by_device():
    listed = planner(policies=[{"kind": "fedpmt", "depths": [1, 1, 2, 2, 3, 3]}])
    assert "fleet/n_devices" not in [one.key for one in listed.settings("small")]


def test_devices_of_one_width_are_turned_together_from_what_is_stated():
    """Half becomes a quarter and a quarter one eighth, not both of them one eighth."""
    narrow = planner(policies=[{"kind": "heterofl", "rates": [1.0, 0.5, 0.5, 0.25, 0.25, 0.25]}])
    keys = [one.key for one in narrow.settings("small") if one.policy == 0]
    assert keys == [*(f"policies/0/rates/={rate}" for rate in (0.25, 0.5, 1.0)), "policies/0/local_steps"]
    turned = {"policies/0/rates/=0.5": 0.25, "policies/0/rates/=0.25": 0.125}
    entry = _written(narrow, turned)["policies"][0]
    assert entry["rates"] == [1.0, 0.25, 0.25, 0.125, 0.125, 0.125]
    there = Planner(lambda: {"small": {**SCENARIO, "policies": [entry]}})
    assert whole(narrow, turned).rows[0].point == whole(there, {}).rows[0].point
    assert whole(narrow, turned).rows[0].point != whole(narrow, {}).rows[0].point


@pytest.mark.parametrize(
    ("values", "at", "said"),
    [
        ({"fleet/n_devices": 2}, ("policies", 1, "k"), "choose 1..2"),
        ({"policies/1/k": 60}, ("policies", 1, "k"), "choose 1..6"),
        ({"policies/1/k": 2.5}, ("policies", 1, "k"), "whole number"),
        ({"fleet/compute/step_s": -1.0}, ("fleet", "compute", "step_s"), "greater than 0"),
        ({"fleet/compute/task_factor": "magic"}, ("fleet", "compute", "task_factor"), "no choice"),
        ({"fleet/n_devices": 2_000}, ("data", "partition"), "use fewer devices"),
        ({"policies/9/k": 1}, (), "cannot be turned here"),
    ],
)
def test_what_no_scenario_may_state_is_refused_at_its_place(values, at, said):
    with pytest.raises(BadInput, match=said.replace(".", r"\.")) as refused:
        planner().screen("small", values)
    assert refused.value.at == at


def test_a_policy_that_is_not_shown_refuses_nothing():
    assert planner().screen("small", {"fleet/n_devices": 2}, [0]).rows[0].point.round_s > 0


@pytest.mark.parametrize("text", ["", "  ", "abc", "1,5", None])
def test_a_box_without_a_number_is_refused_at_its_control(text):
    box = planner().settings("small")[1]
    with pytest.raises(BadInput, match="write one, for example 1") as refused:
        value_of(box, text)
    assert refused.value.at == ("fleet", "compute", "step_s")


def test_a_box_shows_and_means_the_unit_beside_it():
    box = next(one for one in planner().settings("small") if one.key == "fleet/uplink/rate_bits_per_s")
    assert (text_of(box), box.unit) == ("0.1", "Mbit/s")
    assert value_of(box, "2.5") == 2_500_000.0
    assert value_of(box, "0.1") == box.stated


# ---- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHIPPED)
def test_a_scenario_is_written_as_what_it_was(name, tmp_path):
    for i, (_, loaded) in enumerate(load_variants(ROOT / "scenarios" / name)):
        path = tmp_path / f"{i}.yaml"
        path.write_text(as_yaml(short(loaded), "Question: ?", {}), encoding="utf-8")
        assert load(path).resolved() == loaded.resolved()


def test_a_file_of_the_planner_passes_check_and_has_what_was_turned(tmp_path):
    path = tmp_path / "what-if.yaml"
    path.write_text(planner().scenario_text("small", TURNED), encoding="utf-8")
    assert ended(["check", path]) == 0
    found = load(path)
    assert (found.scenario.name, found.scenario.train) == ("small-what-if", False)
    assert (found.scenario.fleet.n_devices, found.contenders[1].policy.k) == (8, 5)
    assert "turned; in small k was 3" in path.read_text()


def test_policies_that_are_not_ticked_are_not_written():
    assert [entry["kind"] for entry in _written(planner(), {}, [0, 2])["policies"]] == ["fedavg", "salf"]


def test_a_label_stays_unless_it_may_name_what_has_been_turned():
    named = [{"kind": "k_sync", "k": 3, "label": "three: <b>"}, {"kind": "k_sync", "k": 2, "label": "yes"}]
    entries = _written(planner(policies=named), {"policies/1/k": 4})["policies"]
    assert entries == [{"kind": "k_sync", "k": 3, "label": "three: <b>"}, {"kind": "k_sync", "k": 4}]


def test_a_scenario_that_trains_is_written_as_one_that_trains():
    trains = planner(train=True, evaluation={"every_s": 1.0}, record_updates=True)
    written = _written(trains, {})
    assert "train" not in written
    assert written["record_updates"] is True


# ---- where it starts ------------------------------------------------------------------------------------------------


def test_without_runs_it_starts_from_the_one_that_is_built_in(tmp_path):
    (tmp_path / "broken" / "fedavg" / "seed-1").mkdir(parents=True)
    (tmp_path / "broken" / "fedavg" / "seed-1" / "manifest.json").write_text("{")
    here = Planner.of_folder(tmp_path)
    assert here.starts() == [BUILT_IN["name"]]
    assert here.screen(BUILT_IN["name"], {}, [0], within_s=0.0).rows[0].point.round_s > 0


def test_two_starts_on_equal_fleets_keep_their_numbers_apart():
    wider = {**SCENARIO, "model": {"kind": "mlp", "widths": [60, 50]}}
    both = Planner(lambda: {"small": SCENARIO, "wider": wider})
    first, second = (both.screen(name, {}, [0]).rows[0].point.uploaded_bytes for name in both.starts())
    assert second > 10 * first


def test_scenarios_that_come_or_change_while_somebody_looks_are_taken_up(tmp_path):
    here = Planner.of_folder(tmp_path)
    assert here.starts() == [BUILT_IN["name"]]
    for n_devices in (6, 9):
        run = tmp_path / "small" / "fedavg" / "seed-1"
        run.mkdir(parents=True, exist_ok=True)
        fleet = {**SCENARIO["fleet"], "n_devices": n_devices}
        (run / "manifest.json").write_text(json.dumps({"scenario": {**SCENARIO, "fleet": fleet}}))
        assert here.starts() == ["small"]
        assert here.screen("small", {}, [0]).rows[0].point.n_contributions == n_devices


def test_a_scenario_that_cannot_be_read_is_refused_by_name():
    with pytest.raises(BadInput, match=r"small: .*bogus"):
        planner(bogus=1).settings("small")


def test_no_torch_is_needed_to_plan(tmp_path):
    whole(planner(), {})  # remembers the model's shape
    script = (
        "import sys\nfrom fedsim.commands.planner import Planner\n"
        f"here = Planner(lambda: {{'small': {SCENARIO | {'train': True, 'evaluation': {'every_s': 1.0}}!r}}})\n"
        "here.screen('small', {'policies/1/k': 4}, setting='k')\nhere.scenario_text('small', {})\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True)


# ---- what `fedsim plan` says of what it does not know ---------------------------------------------------------------


def test_plan_says_why_a_measure_has_no_number_on_the_page_and_in_the_terminal(capsys):
    from rich.console import Console

    uneven = {"data": {**SCENARIO["data"], "n_samples": 150}, "training": {"batch_size": 16}}
    loaded = fedsim.from_dict({**SCENARIO, **uneven, "policies": [{"kind": "stsyn", "k": 3}]})
    curves = plan(loaded)
    assert all(point.round_s is not None and point.n_contributions is None for point in curves[0].points)
    why = "needs local steps of equal numbers of rows; some device's last batch is smaller"
    assert curves[0].points[0].reasons["n_contributions"] == why
    tables, advice = planned(curves)
    Console(width=180).print(*tables)
    said = capsys.readouterr().out
    page = plan_page("small", curves, advice)
    for where in (said, page.replace("&#x27;", "'")):
        assert "none (1)" in where
        assert f"(1) No number: {why}." in where
        assert "left out along k" in where
