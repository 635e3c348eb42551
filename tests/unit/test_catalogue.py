"""What lies in a folder of runs: finished, in progress, broken."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from fedsim.dashboard.live.desk import choice, policy_names, token
from fedsim.facts import BadInput
from fedsim.statistics import catalogue as catalogues
from fedsim.statistics.catalogue import Catalogue
from fedsim.statistics.reading import read_run
from tests.run_folders import add_lines, begin_run, climb, finish_run, journal_line, write_run


@pytest.fixture
def runs(tmp_path):
    """Two scenarios: demo with two policies under two seeds, other with one run."""
    folder = tmp_path / "runs"
    for position, label in enumerate(["fedavg", "stsyn(k=5)"]):
        for seed in (1, 2):
            write_run(folder / "demo", label, seed, climb(20), kind=label.partition("(")[0], position=position)
    write_run(folder / "other", "salf", 7, climb(10), kind="salf")
    return folder


def states(folder):
    return {entry.id: entry.state for entry in Catalogue(folder).look()}


def test_every_run_is_found_by_scenario_policy_and_seed(runs):
    found = Catalogue(runs).look()
    assert [(e.scenario, e.label, e.seed, e.state) for e in found] == [
        ("demo", "fedavg", 1, "finished"),
        ("demo", "fedavg", 2, "finished"),
        ("demo", "stsyn(k=5)", 1, "finished"),
        ("demo", "stsyn(k=5)", 2, "finished"),
        ("other", "salf", 7, "finished"),
    ]


def test_the_folder_of_one_scenario_will_do(runs):
    assert {entry.scenario for entry in Catalogue(runs / "demo").look()} == {"demo"}
    assert len(Catalogue(runs / "demo").look()) == 4


def test_an_empty_folder_holds_nothing_and_a_missing_one_is_refused_in_one_line(tmp_path):
    assert Catalogue(tmp_path).look() == ()
    with pytest.raises(BadInput, match=r"is not a folder; give the folder that holds your runs$"):
        Catalogue(tmp_path / "missing").look()


def test_files_and_folders_that_are_no_runs_are_passed_over(runs):
    (runs / "report.html").write_text("x")
    (runs / "demo" / "summary.json").write_text("x")
    (runs / "notes" / "deeper").mkdir(parents=True)
    (runs / "demo" / "policy-0" / "seed-x.txt").write_text("x")
    assert len(Catalogue(runs).look()) == 5


def test_a_run_in_progress_is_there_with_what_it_has_told(runs):
    begin_run(runs / "demo", "salf", 3, kind="salf", position=2)
    (going,) = (entry for entry in Catalogue(runs).look() if entry.state == "in_progress")
    assert (going.id, going.label, going.kind, going.seed, going.position) == (
        "demo/policy-2/.seed-3.partial",
        "salf",
        "salf",
        3,
        2,
    )


def test_one_that_has_told_nothing_yet_is_called_after_its_folders(runs):
    (runs / "demo" / "policy-9" / ".seed-12.partial").mkdir(parents=True)
    (going,) = (entry for entry in Catalogue(runs).look() if entry.state == "in_progress")
    assert (going.label, going.seed) == ("policy-9", 12)


def test_a_run_that_is_being_finished_is_never_missing_and_never_broken(runs, tmp_path):
    """Its tables are written while it is partial, journal and started.json vanish, the folder is renamed."""
    catalogue = Catalogue(runs)
    partial = begin_run(runs / "demo", "salf", 3, kind="salf", position=2)
    whole = write_run(tmp_path / "elsewhere", "salf", 3, climb(10), kind="salf", position=2)
    add_lines(partial, journal_line(0))
    moments = []
    for file in sorted(whole.iterdir()):
        moments.append(
            [entry.state for entry in catalogue.look() if entry.label == "salf" and entry.scenario == "demo"]
        )
        shutil.copy(file, partial)
    for name in ("journal.jsonl", "started.json"):
        (partial / name).unlink()
        own = [entry.state for entry in catalogue.look() if entry.policy_id == "demo/policy-2"]
        moments.append(own)
    partial.rename(partial.with_name("seed-3"))
    moments.append([entry.state for entry in catalogue.look() if entry.policy_id == "demo/policy-2"])
    assert moments == [["in_progress"]] * (len(moments) - 1) + [["finished"]]


# ---- broken ones ----------------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def without(*keys):
    def change(folder):
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        inner = manifest
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]
        path.write_text(json.dumps(manifest))

    return change


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"schema'), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "written in format None"),
        (lambda folder: (folder / "layers.parquet").unlink(), "no layers.parquet"),
        (lambda folder: cut(folder / "evaluations.parquet"), "evaluations.parquet is cut off"),
        (without("policy"), "manifest.json lacks or garbles 'policy'"),
        (without("scenario", "evaluation"), "manifest.json lacks or garbles 'evaluation'"),
        (without("outcome", "round"), "manifest.json lacks or garbles 'round'"),
        (lambda folder: shutil.rmtree(folder) or folder.mkdir(), "no manifest.json"),
    ],
)
def test_a_broken_folder_is_listed_with_its_reason_and_the_others_stand(runs, breaks, reason):
    breaks(runs / "demo" / "policy-0" / "seed-1")
    found = Catalogue(runs).look()
    (broken,) = (entry for entry in found if entry.state == "broken")
    assert broken.id == "demo/policy-0/seed-1"
    assert reason in broken.reason
    assert "\n" not in broken.reason
    assert len(found) == 5


def test_a_table_that_looks_whole_and_is_not_is_found_when_it_is_read_and_then_listed(runs):
    table = runs / "demo" / "policy-0" / "seed-1" / "evaluations.parquet"
    table.write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    catalogue = Catalogue(runs)
    read, reasons = catalogue.curves(catalogue.look())
    assert (len(read), len(reasons)) == (4, 1)
    assert "evaluations.parquet cannot be read" in reasons[0]
    assert [e.reason for e in catalogue.look() if e.state == "broken"] == reasons


def test_a_broken_run_that_is_run_again_is_whole(runs, tmp_path):
    folder = runs / "demo" / "policy-0" / "seed-1"
    catalogue = Catalogue(runs)
    (folder / "evaluations.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    catalogue.curves(catalogue.look())
    shutil.rmtree(folder)
    write_run(tmp_path / "again", "fedavg", 1, climb(5)).rename(folder)
    assert states(runs)["demo/policy-0/seed-1"] == "finished"
    entries = catalogue.look()
    assert entries[0].state == "finished"
    assert len(catalogue.curves(entries)[0]) == 5


# ---- looking again --------------------------------------------------------------------------------------------------


def test_looking_again_reads_only_what_has_changed(runs, monkeypatch):
    catalogue = Catalogue(runs)
    catalogue.curves(catalogue.look())
    read = []
    monkeypatch.setattr(catalogues, "_whole_manifest", read.append)
    monkeypatch.setattr(catalogues, "read_curve", read.append)
    catalogue.curves(catalogue.look())
    assert read == []


def test_a_run_that_was_written_anew_is_read_anew(runs, tmp_path):
    catalogue = Catalogue(runs)
    before = catalogue.curves(catalogue.look())[0][0]
    folder = runs / "demo" / "policy-0" / "seed-1"
    shutil.rmtree(folder)
    write_run(tmp_path / "again", "fedavg", 1, climb(5)).rename(folder)
    after = catalogue.curves(catalogue.look())[0][0]
    assert before.evaluations["accuracy"].iloc[10] < after.evaluations["accuracy"].iloc[10]


def test_a_curve_is_the_runs_own_and_its_other_tables_cannot_be_mistaken_for_empty_ones(runs):
    catalogue = Catalogue(runs)
    (curve, *_), _ = catalogue.curves(catalogue.look())
    whole = read_run(runs / "demo" / "policy-0" / "seed-1")
    assert curve.manifest == whole.manifest
    assert curve.evaluations.equals(whole.evaluations)
    with pytest.raises(KeyError):
        curve.rounds["end_s"]


def test_nothing_outside_the_folder_is_read_by_an_id(runs, tmp_path):
    outside = write_run(tmp_path / "secret", "fedavg", 1, climb(5))
    catalogue = Catalogue(runs)
    catalogue.look()
    assert catalogue.whole("demo/policy-0/seed-1").seed == 1
    for run_id in ("../secret/policy-0/seed-1", str(outside), "demo/policy-0/../policy-0/seed-1", ""):
        with pytest.raises(BadInput, match="There is no finished run"):
            catalogue.whole(run_id)


# ---- what a page chooses of them ------------------------------------------------------------------------------------


def test_the_token_changes_when_a_run_is_finished_and_not_while_it_grows(runs, tmp_path):
    catalogue = Catalogue(runs)
    partial = begin_run(runs / "demo", "salf", 3, position=2)
    begun = token(catalogue.look())
    add_lines(partial, journal_line(0))
    assert token(catalogue.look()) == begun
    finish_run(partial, write_run(tmp_path / "elsewhere", "salf", 3, climb(10), position=2))
    assert token(catalogue.look()) != begun


def test_a_choice_is_of_what_is_there_and_ignores_the_rest(runs):
    entries = Catalogue(runs).look()
    own = choice(entries, ["demo", "no such"], ["demo/policy-0", "../../etc"], [2, 99])
    assert [entry.id for entry in own.entries] == ["demo/policy-0/seed-2"]
    assert len(choice(entries, ["demo"]).entries) == 4
    assert choice(entries, ["demo"], [], None).entries == ()


def test_a_policy_keeps_its_colour_whatever_else_is_ticked(runs):
    entries = Catalogue(runs).look()
    everything, one = choice(entries, ["demo"]), choice(entries, ["demo"], ["demo/policy-1"])
    assert everything.looks["stsyn(k=5)"] == one.looks["stsyn(k=5)"]


def test_one_more_scenario_leaves_the_colours_of_those_ticked_before_as_they_are(runs):
    write_run(runs / "another", "salf", 1, climb(5), kind="salf")
    entries = Catalogue(runs).look()
    alone, more = choice(entries, ["demo"]), choice(entries, ["demo", "another"])
    for label in ("fedavg", "stsyn(k=5)"):
        assert more.looks[f"demo · {label}"] == alone.looks[label]


def test_policies_of_one_label_are_told_apart_by_their_scenario_or_folder(runs):
    write_run(runs / "other", "fedavg", 1, climb(5), position=3)
    write_run(runs / "other", "fedavg", 1, climb(5), position=4)
    names = policy_names(Catalogue(runs).look())
    assert names["demo/policy-0"] == "demo · fedavg"
    assert names["other/policy-3"] == "other · fedavg (policy-3)"
    assert len(set(names.values())) == len(names)


def test_a_folder_that_may_not_be_read_is_passed_over(runs, monkeypatch):
    closed, scan = str(runs / "other"), os.scandir

    def scandir(path):
        if str(path) == closed:
            raise PermissionError(13, "closed", closed)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert {entry.scenario for entry in Catalogue(runs).look()} == {"demo"}
