"""A run that is under way, read while it grows."""

from __future__ import annotations

import os

import numpy as np
import pytest

import fedsim
from fedsim import records
from fedsim.campaign import pairs
from fedsim.manifest import of_run
from fedsim.run import simulate
from fedsim.statistics import journal
from fedsim.statistics.journal import Follower
from tests.run_folders import add_lines, begin_run, finish_run, journal_line, write_run


@pytest.fixture
def partial(tmp_path):
    return begin_run(tmp_path / "demo", "fedavg", 1)


def seen(folder):
    follower = Follower(folder)
    follower.look()
    return follower


def test_a_run_that_has_just_begun_says_what_it_is_and_that_nothing_has_happened(partial):
    follower = seen(partial)
    assert follower.facts["policy"]["label"] == "fedavg"
    assert (follower.n_rounds, follower.share, follower.accuracy, len(follower.evaluations)) == (0, 0.0, None, 0)


def test_each_look_reads_what_was_added_and_nothing_twice(partial):
    follower = Follower(partial)
    for number in range(3):
        add_lines(partial, journal_line(number, accuracy=0.1 * number, share=0.25 * number))
        follower.look()
        follower.look()
        assert (follower.n_rounds, follower.simulated_s) == (number + 1, 10.0 * (number + 1))
        assert follower.share == 0.25 * number
    assert follower.evaluations["time_s"].tolist() == [10.0, 20.0, 30.0]
    assert follower.accuracy == pytest.approx(0.2)


def test_only_the_new_bytes_are_read(partial, monkeypatch):
    add_lines(partial, *(journal_line(number, accuracy=0.5) for number in range(50)))
    follower = seen(partial)
    taken = []
    monkeypatch.setattr(follower, "_take", taken.append)
    follower.look()
    assert taken == []
    add_lines(partial, journal_line(50))
    follower.look()
    assert taken == [journal_line(50).strip().encode()]


@pytest.mark.parametrize("cut", [1, 30, -1])
def test_a_half_written_line_waits_for_its_end(partial, cut):
    line = journal_line(1, accuracy=0.4)
    add_lines(partial, journal_line(0, accuracy=0.3), line[:cut])
    follower = seen(partial)
    assert (follower.n_rounds, follower.accuracy, follower.problem) == (1, 0.3, "")
    add_lines(partial, line[cut:])
    follower.look()
    assert (follower.n_rounds, follower.accuracy, follower.problem) == (2, 0.4, "")


def test_a_number_that_is_none_is_nan_and_no_accuracy(partial):
    line = journal_line(0, accuracy=0.5).replace('"accuracy": 0.5', '"accuracy": null')
    add_lines(partial, line)
    follower = seen(partial)
    assert follower.accuracy is None
    assert np.isnan(follower.evaluations["accuracy"]).tolist() == [True]


@pytest.mark.parametrize(
    "line", ["no json\n", "{}\n", "[]\n", '{"round": 1, "end_s": 2, "share": 0.1, "evaluations": [{}]}\n']
)
def test_a_line_that_is_none_of_ours_is_named_and_the_others_still_count(partial, line):
    add_lines(partial, journal_line(0), line, journal_line(1))
    follower = seen(partial)
    assert "journal.jsonl:2: " in follower.problem
    assert follower.n_rounds == 2


def test_a_run_that_is_begun_again_is_read_from_its_start(partial):
    add_lines(partial, *(journal_line(number, accuracy=0.5) for number in range(5)))
    follower = seen(partial)
    (partial / "journal.jsonl").unlink()
    add_lines(partial, journal_line(0, accuracy=0.1))
    follower.look()
    assert (follower.n_rounds, follower.accuracy, len(follower.evaluations)) == (1, 0.1, 1)


def test_what_was_read_stays_when_the_run_is_finished_and_its_folder_renamed(partial, tmp_path):
    add_lines(partial, journal_line(0, accuracy=0.3))
    follower = seen(partial)
    finish_run(partial, write_run(tmp_path / "elsewhere", "fedavg", 1, [0.1, 0.2]))
    follower.look()
    assert (follower.n_rounds, follower.accuracy) == (1, 0.3)


def test_a_folder_whose_files_are_not_there_yet_is_no_fault(tmp_path):
    folder = tmp_path / ".seed-1.partial"
    folder.mkdir()
    follower = seen(folder)
    assert (follower.facts, follower.n_rounds, follower.problem) == ({}, 0, "")
    (folder / "started.json").write_text('{"policy": {"la', encoding="utf-8")
    follower.look()
    assert follower.facts == {}


def test_a_run_without_a_new_line_for_two_minutes_is_silent(partial):
    add_lines(partial, journal_line(0))
    os.utime(partial / "journal.jsonl", (1_000.0, 1_000.0))
    follower = seen(partial)
    assert follower.silent_s(1_000.0 + journal.SILENT_S - 1) is None
    assert follower.silent_s(1_000.0 + 420.0) == 420.0


def test_the_names_of_its_files_are_those_that_runs_write():
    assert (journal.JOURNAL, journal.STARTED) == (records.JOURNAL, records.STARTED)


def test_followed_to_its_end_a_run_has_told_what_its_tables_hold(tiny, tmp_path):
    """A real run: what the journal says of rounds and evaluations is what stands in the tables."""
    loaded = fedsim.from_dict(tiny(policies=[{"kind": "k_sync", "k": 1}], seeds=[1], stop={"n_rounds": 6}))
    (pair,) = pairs(loaded, tmp_path)
    folder = records.partial_folder(pair.folder)
    records.write_start(folder, of_run(loaded, pair.contender, pair.seeds))
    follower, n_rounds = Follower(folder), []

    def watch(_):
        follower.look()
        n_rounds.append(follower.n_rounds)

    with (folder / records.JOURNAL).open("w", encoding="utf-8", buffering=1) as lines:
        result = simulate(loaded, pair.contender, pair.seeds, on_progress=watch, journal=lines)
    follower.look()
    rounds, evaluations = result.tables["rounds"], result.tables["evaluations"]
    assert n_rounds[:6] == [0, 1, 2, 3, 4, 5]  # told just before the line is written
    assert (follower.n_rounds, follower.simulated_s) == (6, rounds["end_s"][-1])
    told = follower.evaluations
    for name in told:
        np.testing.assert_array_equal(told[name], np.asarray(evaluations[name], dtype=np.float64)[: len(told)])
    assert len(told) > 0
