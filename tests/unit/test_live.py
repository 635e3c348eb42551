"""The live dashboard without a browser: whom it answers, what it refuses, which settings differ, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from fedsim.cli import main
from fedsim.dashboard.live import chooser, settings_figures
from fedsim.dashboard.live.app import make_app
from fedsim.dashboard.live.desk import choice, parsed, written
from fedsim.dashboard.live.settings_frame import (
    ROUND_S,
    Measure,
    cells,
    differing,
    measures,
    most_told,
    outcomes,
    settings_of,
)
from fedsim.dashboard.palette import styles
from fedsim.facts import BadInput
from fedsim.statistics.catalogue import Catalogue
from tests.run_folders import climb, write_run

TO_90 = Measure("time@0.9", "time to 90 %", 0.9)
HOSTILE = "<img src=x onerror=alert(1)>%{y}"


def state(folder: Path, changes: dict, of: str = "policy") -> Path:
    """Let a run's manifest state these settings, by dotted path in its policy's parameters or in its scenario."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for dotted, value in changes.items():
        part = manifest["policy"]["parameters"] if of == "policy" else manifest["scenario"]
        *parents, last = dotted.split(".")
        for name in parents:
            part = part.setdefault(name, {})
        part[last] = value
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.fixture
def runs(tmp_path):
    """stsyn with two values of k and two of deadline_s, two seeds each; (k=9, deadline 2) never gets to 90 %."""
    folder, position = tmp_path / "runs", 0
    for k in (5, 9):
        for deadline_s in (1.0, 2.0):
            for seed in (1, 2):
                reached = None if (k, deadline_s) == (9, 2.0) else 10 + k + int(10 * deadline_s)
                run = write_run(
                    folder / "demo",
                    f"stsyn(k={k}, {deadline_s})",
                    seed,
                    climb(reached),
                    kind="stsyn",
                    position=position,
                )
                state(run, {"k": k, "deadline_s": deadline_s, "label": f"stsyn {position}", "kind": "stsyn"})
            position += 1
    return folder


def read(folder):
    catalogue = Catalogue(folder)
    found, reasons = catalogue.curves(catalogue.look())
    assert reasons == []
    return found


# ---- whom it answers --------------------------------------------------------------------------------------------------


@pytest.fixture
def client(runs):
    return make_app(runs).server.test_client()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8050", "localhost:1", "LOCALHOST", "[::1]:8050", "[::1]", "127.0.0.2:80"]
)
def test_it_answers_to_the_names_of_this_machine(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8050", "127.0.0.1.evil.example", "localhost.evil", "10.0.0.1", ""]
)
def test_it_refuses_every_other_name_so_that_no_other_page_can_read_the_runs(client, host):
    for path in ("/", "/_dash-layout", "/assets/look.css"):
        assert client.get(path, headers={"Host": host}).status_code in (400, 403)


def test_asked_to_serve_others_it_answers_to_any_name(runs):
    client = make_app(runs, only_loopback=False).server.test_client()
    assert client.get("/", headers={"Host": "runs.example"}).status_code == 200


def test_a_page_may_load_nothing_from_elsewhere_and_names_nothing_there(client):
    page = client.get("/", headers={"Host": "localhost"})
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    for word in ("http://", "https://", "//cdn"):
        assert word not in page.text


def asked(client, output, **values):
    """The answer of the callback that has this output."""
    headers = {"Host": "localhost"}
    (one,) = [each for each in client.get("/_dash-dependencies", headers=headers).json if output in each["output"]]
    names = [name.rsplit(".", 1) for name in one["output"].strip(".").split("...")]
    body = {
        "output": one["output"],
        "outputs": [{"id": name, "property": part} for name, part in names],
        **{
            key: [
                {"id": each["id"], "property": each["property"], "value": values.get(each["id"])} for each in one[key]
            ]
            for key in ("inputs", "state")
        },
        "changedPropIds": [],
    }
    answer = client.post("/_dash-update-component", json=body, headers=headers)
    assert answer.status_code == 200
    return answer.json["response"]


@pytest.mark.parametrize("run_id", ["../../etc", "/etc/passwd", "demo/policy-0/../policy-0/seed-1", "", 7])
def test_an_id_that_is_not_in_the_catalogue_is_refused_in_words(client, run_id):
    client.get("/_dash-layout", headers={"Host": "localhost"})
    answer = asked(client, "timeline-round-picture.figure", **{"timeline-run": run_id, "timeline-round": 0})
    assert answer["timeline-answer"]["children"].startswith("There is no finished run")


@pytest.mark.parametrize(
    ("number", "says"), [(99, "This run closed 3 rounds"), (-1, "This run closed"), (None, "This run closed")]
)
def test_a_round_that_a_run_did_not_close_is_refused_in_words(client, number, says):
    client.get("/_dash-layout", headers={"Host": "localhost"})
    values = {"timeline-run": "demo/policy-0/seed-1", "timeline-round": number}
    assert asked(client, "timeline-round-picture.figure", **values)["timeline-answer"]["children"].startswith(says)


def test_choices_that_nobody_can_make_on_the_page_choose_nothing(client):
    values = {
        "runs-scenarios": ["demo", "../.."],
        "runs-policies": ["x", "../../etc"],
        "runs-seeds": [99],
        "runs-over": "x",
        "runs-of": "y",
    }
    assert asked(client, "runs-answer.children", **values)["runs-answer"]["children"].startswith("Nothing is chosen")


def test_runs_without_a_curve_say_so_and_keep_their_table(tmp_path):
    write_run(tmp_path / "demo", "fedavg", 1, [])
    client = make_app(tmp_path).server.test_client()
    values = {
        "runs-scenarios": ["demo"],
        "runs-policies": ["demo/policy-0"],
        "runs-over": "time_s",
        "runs-of": "accuracy",
    }
    answer = asked(client, "runs-answer.children", **values)
    assert answer["runs-ranking"]["children"].startswith("These runs have no accuracy to draw")
    assert answer["runs-curve-figure"]["hidden"] is True
    assert "not evaluated" in json.dumps(answer["runs-table"])


def test_runs_of_other_settings_stand_side_by_side_without_a_claim_and_with_what_hinders_it(tmp_path):
    for scenario, step_s in (("one", 10.0), ("two", 5.0)):
        write_run(tmp_path / scenario, "fedavg", 1, climb(20), grid_step_s=step_s)
    client = make_app(tmp_path).server.test_client()
    ids = ["one/policy-0", "two/policy-0"]
    values = {"runs-scenarios": ["one", "two"], "runs-policies": ids, "runs-over": "time_s", "runs-of": "accuracy"}
    answer = asked(client, "runs-answer.children", **values)
    assert "no claim is made" in answer["runs-answer"]["children"]
    assert answer["runs-ranking"]["children"].startswith("These runs were evaluated differently (every 5 s and 10 s")


def test_scenarios_that_differ_in_name_alone_are_compared(tmp_path):
    for scenario, reached in (("one", 10), ("two", 20)):
        for seed in (1, 2):
            write_run(tmp_path / scenario, "fedavg", seed, climb(reached + seed))
    client = make_app(tmp_path).server.test_client()
    ids = ["one/policy-0", "two/policy-0"]
    values = {"runs-scenarios": ["one", "two"], "runs-policies": ids, "runs-over": "time_s", "runs-of": "accuracy"}
    assert "one · fedavg reached 90 %" in asked(client, "runs-answer.children", **values)["runs-answer"]["children"]


def test_the_address_names_policies_only_where_some_are_taken_off(client):
    client.get("/_dash-layout", headers={"Host": "localhost"})
    every = [f"demo/policy-{i}" for i in range(4)]
    for policies, says in ((every, "?scenario=demo"), (every[1:2], "?scenario=demo&policy=demo%2Fpolicy-1")):
        values = {"runs-scenarios": ["demo"], "runs-policies": policies, "runs-over": "time_s", "runs-of": "accuracy"}
        assert asked(client, "runs-answer.children", **values)["runs-query"]["data"] == says


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match="is not a folder"):
        make_app(tmp_path / "missing")


def test_what_a_page_shows_survives_its_address():
    query = {"scenario": ["a b", "<x>&=?"], "policy": [], "seed": ["1"], "over": None, "y": ""}
    assert parsed(written(query)) == {"scenario": ["a b", "<x>&=?"], "seed": ["1"], "y": [""]}
    assert parsed(None) == {}


@pytest.mark.parametrize(
    ("past_s", "words"),
    [(-5, "just now"), (59, "just now"), (420, "7 min ago"), (7_300, "2 h ago"), (90_000, "1 day ago")],
)
def test_how_long_ago_something_changed_is_said_in_words(past_s, words):
    assert chooser.ago(1e9 - past_s, 1e9) == words


# ---- which settings differ --------------------------------------------------------------------------------------------


def test_the_settings_that_differ_are_found_and_names_labels_and_seeds_are_none(runs):
    assert differing([settings_of(run) for run in read(runs)]) == ["policy.deadline_s", "policy.k"]


def test_a_setting_of_the_fleet_is_called_by_its_path_in_the_scenario(runs):
    state(runs / "demo" / "policy-0" / "seed-1", {"fleet.compute.step_s": 2.0}, of="scenario")
    state(runs / "demo" / "policy-0" / "seed-2", {"fleet.compute.step_s": 1.0}, of="scenario")
    assert "fleet.compute.step_s" in differing([settings_of(run) for run in read(runs)])


def test_a_law_differs_from_none_and_from_a_number_by_its_kind(runs):
    for seed, law in ((1, None), (2, {"kind": "pareto", "shape": 1.5})):
        state(runs / "demo" / "policy-0" / f"seed-{seed}", {"fleet.task_factor": law}, of="scenario")
    settings = [settings_of(run) for run in read(runs)]
    assert [one.get("fleet.task_factor") for one in settings[:2]] == ["none", "pareto"]
    assert "fleet.task_factor" in differing(settings)
    assert "fleet.task_factor.shape" not in differing(settings)  # only one run has it


def test_training_is_that_of_the_policy_not_of_the_scenario(runs):
    run = runs / "demo" / "policy-0" / "seed-1"
    state(run, {"training.learning_rate": 0.1}, of="scenario")
    state(run, {"training.learning_rate": 0.4})
    assert settings_of(read(runs)[0])["training.learning_rate"] == 0.4


def test_the_map_has_the_median_over_seeds_and_says_where_the_target_was_not_reached(runs):
    found = read(runs)
    frame = cells(found, [settings_of(run) for run in found], "policy.k", "policy.deadline_s", TO_90)
    told = {(row.x, row.y): (row.value, row.words, row.n_runs) for row in frame.itertuples()}
    assert told[5.0, 1.0] == (250.0, "250 s", 2)
    assert told[5.0, 2.0] == (350.0, "350 s", 2)
    assert np.isnan(told[9.0, 2.0][0])
    assert told[9.0, 2.0][1:] == ("not within 600 s", 2)


def test_where_half_got_there_a_cell_is_not_called_not_reached_and_where_fewer_did_it_says_how_many(tmp_path):
    for seed, reached in enumerate([10, 20, None, None, None]):
        state(write_run(tmp_path / "demo", "a", seed, climb(reached)), {"k": 1, "j": 1})
    found = read(tmp_path)
    settings = [settings_of(run) for run in found]
    (row,) = cells(found, settings, "policy.k", "policy.j", TO_90).itertuples()
    assert (row.words, row.is_censored) == ("not within 600 s (2 of 5 runs got there)", True)
    (row,) = cells(found[:3], settings[:3], "policy.k", "policy.j", TO_90).itertuples()
    assert (row.words, row.value, row.is_censored) == ("200 s", 200.0, False)


def test_a_run_that_diverged_counts_as_followed_as_long_as_any(tmp_path):
    write_run(tmp_path / "demo", "a", 1, climb(10))
    write_run(tmp_path / "demo", "b", 1, climb(None)[:5], position=1, outcome="diverged")
    assert outcomes(read(tmp_path), TO_90)["followed_s"].tolist() == [600.0, 600.0]


def test_runs_that_trained_nothing_are_judged_by_their_rounds(tmp_path):
    write_run(tmp_path / "demo", "a", 1, [], round_s=[2.0, 4.0])
    found = read(tmp_path)
    assert measures(found) == [ROUND_S]
    assert outcomes(found, ROUND_S)["value"].tolist() == [3.0]


def test_the_map_that_is_shown_first_is_that_of_the_settings_that_most_runs_have():
    settings = [{"rare": i, "a": i % 2, "b": i} if i < 2 else {"a": i % 2, "b": i} for i in range(6)]
    assert set(most_told(settings, ["rare", "a", "b"])) == {"a", "b"}
    assert most_told(settings, ["rare", "a", "b"], "rare")[0] == "rare"
    assert most_told([{"a": 1}, {"a": 2}], ["a"]) == ("a", "")


def test_a_cell_that_was_not_reached_is_hatched_and_labelled_on_the_map(runs):
    found = read(runs)
    frame = cells(found, [settings_of(run) for run in found], "policy.k", "policy.deadline_s", TO_90)
    heat, area, words = settings_figures.heat_map(frame, "policy.k", "policy.deadline_s", TO_90).data
    assert heat.z[1][1] is None  # k = 9, deadline 2 s: second column, second row
    assert area.fillpattern.shape == "/"
    assert (words.x[0], words.y[0], words.text[0]) == (1, 1, "not within<br>600 s")


def test_names_from_files_are_text_in_every_figure_of_settings(tmp_path):
    for seed in (1, 2):
        run = write_run(tmp_path / "demo", HOSTILE, seed, climb(10 * seed), kind=HOSTILE)
        state(run, {"k": f"{HOSTILE}{seed}", HOSTILE.replace(".", "_"): seed})
    found = read(tmp_path)
    settings, looks = [settings_of(run) for run in found], styles([(HOSTILE, HOSTILE)])
    keys = differing(settings)
    assert len(keys) == 2
    drawn = [
        settings_figures.heat_map(cells(found, settings, keys[0], keys[1], TO_90), keys[0], keys[1], TO_90),
        *(settings_figures.points(found, settings, key, TO_90, looks) for key in keys),
        settings_figures.parallel(found, settings, keys, [TO_90], looks),
    ]
    for figure in drawn:
        for trace in figure.data:
            trace.meta = None  # for scripts, as it is; never shown
        assert "<img" not in figure.to_json().replace("\\u003c", "<")


def test_a_choice_over_several_scenarios_names_each_policy_once(runs):
    write_run(runs / "other", "fedavg", 1, climb(5))
    entries = Catalogue(runs).look()
    own = choice(entries, ["demo", "other"])
    assert len(set(own.names.values())) == len(own.names) == 5
    assert set(own.names.values()) == set(own.looks)


# ---- the command ------------------------------------------------------------------------------------------------------


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["dashboard", *arguments])
    said = capsys.readouterr()
    assert end.value.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_a_folder_that_is_not_there_is_refused_in_one_line(capsys, tmp_path):
    assert "is not a folder; give the folder that holds your runs" in refused(capsys, str(tmp_path / "missing"))


def test_a_port_that_is_taken_is_refused_in_one_line(capsys, runs):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        said = refused(capsys, str(runs), "--port", str(other.getsockname()[1]))
    assert "Address already in use; choose another port with --port" in said


def test_a_host_that_is_not_this_machine_is_refused_in_one_line(capsys, runs):
    assert "--host 192.0.2.1" in refused(capsys, str(runs), "--port", "0", "--host", "192.0.2.1")


def test_it_says_where_it_listens_and_ends_with_ctrl_c_without_a_traceback(runs):
    command = [sys.executable, "-m", "fedsim", "dashboard", str(runs), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        address = next(word for word in server.stdout.readline().split() if word.startswith("http://127.0.0.1:"))
        with urllib.request.urlopen(address, timeout=60) as page:
            assert page.status == 200
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=60)
    assert server.returncode == 130
    assert (out.strip(), err) == ("", "")
