"""When devices finished their steps and layers, and what ended a round's wait, as the records have it.

Two devices by hand: a step takes them 2 s and 4 s, half of it the forward pass, then layers 3, 2, 1 and 0 in 0.4, 0.3, 0.2
and 0.1 s (twice that on the slow one).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedsim
from fedsim import weights
from fedsim.delays import Exponential
from fedsim.facts import BatchPlan, Task
from fedsim.protocols import arrivals, elapsed, steps, total_steps
from fedsim.run import simulate
from fedsim.statistics.reading import read_run
from fedsim.timing import passed
from fedsim.timing.fleet import Compute, Fleet, Link, UniformDepth
from fedsim.timing.milestones import Progress, Work
from fedsim.timing.weather import Weather
from tests.fakes import equal_layers
from tests.golden import timelines

TWO = {
    "n_devices": 2,
    "compute": {"layer_s": [0.1, 0.2, 0.3, 0.4], "forward_s": 1.0, "device_factor": [1.0, 2.0]},
}


@pytest.fixture
def played(tiny):
    """A function that plays one policy on the two devices and returns the tables as frames."""

    def play(entry=None, policy=None, n_rounds=1, **changes):
        values = tiny(fleet=TWO, policies=[entry or {"kind": "fedavg"}], stop={"n_rounds": n_rounds}, train=False)
        loaded = fedsim.from_dict(values | {"training": {"batches": "with_replacement"}} | changes)
        if policy is not None:
            loaded = loaded.with_policies([policy])
        result = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])
        return {name: pd.DataFrame(columns) for name, columns in result.tables.items()}

    return play


@dataclass(frozen=True)
class Told:
    """Sends `task`, waits for `condition` if there is one, stops and collects.

    caps: steps of each device, if they differ. n_waits: in how many rounds it waits before it only collects.
    """

    task: Task
    condition: object = None
    caps: tuple[int, ...] = ()
    n_waits: int = 99

    source: ClassVar[str] = "this test"

    def problems(self, setting):
        return []

    def rounds(self, server):
        for n in count():
            task = replace(self.task, n_steps=np.array(self.caps)) if self.caps else self.task
            jobs = server.send(server.sample(), task)
            if self.condition is not None and n < self.n_waits:
                yield from server.wait(jobs, self.condition)
                server.stop(jobs)
            arrived = yield from server.collect(jobs)
            server.aggregate(arrived, weights.layer_mean(arrived))


def rows_of(tables, device):
    """(step, layer, seconds rounded to a nanosecond) of the device's milestones, in the table's order."""
    own = tables["milestones"].query("device == @device")
    return [(s, layer, round(t, 9)) for s, layer, t in own[["step", "layer", "ended_s"]].itertuples(index=False)]


# ---- by hand --------------------------------------------------------------------------------------------------------


def test_every_whole_step_has_a_row_and_the_last_one_its_layers(played):
    tables = played({"kind": "fedavg", "local_steps": 2})
    fast = [(0, -1, 2.0), (1, 3, 3.4), (1, 2, 3.7), (1, 1, 3.9), (1, 0, 4.0), (1, -1, 4.0)]
    assert rows_of(tables, 0) == fast
    assert rows_of(tables, 1) == [(step, layer, 2 * ended_s) for step, layer, ended_s in fast]


def test_of_a_stopped_task_the_layers_are_those_of_the_step_under_way(played):
    """At 13.5 s the fast one has six steps and 1.5 s of the next: its output layer. The slow one three and 1.5 s: none."""
    tables = played(policy=Told(Task(n_steps=None, unit="layer"), elapsed(13.5)))
    assert rows_of(tables, 0) == [*((step, -1, 2.0 * (step + 1)) for step in range(6)), (6, 3, 13.4)]
    assert rows_of(tables, 1)[-2:] == [(2, 0, 12.0), (2, -1, 12.0)]
    assert rows_of(tables, 1)[:3] == [(0, -1, 4.0), (1, -1, 8.0), (2, 3, 10.8)]


def test_a_device_that_reached_some_layers_of_its_first_step_has_these_rows_alone(played):
    tables = played({"kind": "salf", "deadline_s": 3.5})
    assert rows_of(tables, 1) == [(0, 3, 2.8), (0, 2, 3.4)]
    assert rows_of(tables, 0)[-1] == (0, -1, 2.0)


def test_a_device_that_was_stopped_with_nothing_complete_has_no_rows(played):
    tables = played({"kind": "salf", "deadline_s": 2.1})
    assert rows_of(tables, 1) == []
    assert tables["tasks"]["outcome"].tolist() == ["empty", "used"]


def test_times_are_those_of_the_clock_and_not_of_the_task(played):
    tables = played({"kind": "fedavg", "local_steps": 1}, n_rounds=3)
    whole = tables["milestones"].query("layer == -1 and device == 0")
    assert whole["ended_s"].tolist() == pytest.approx([2.0, 6.0, 10.0])
    assert whole["ordinal"].tolist() == [0, 1, 2]
    assert whole["round"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("n_steps", "caps", "asked"), [(None, (), [-1, -1]), (5, (), [5, 5]), (1, (3, 4), [3, 4])])
def test_tasks_say_how_many_steps_they_were_asked_for(played, n_steps, caps, asked):
    policy = Told(Task(n_steps=n_steps), elapsed(30.0), caps)
    assert played(policy=policy)["tasks"].sort_values("device")["asked_steps"].tolist() == asked


def test_tasks_say_when_the_server_was_done_with_them(played):
    """The one stopped with nothing at 2.1 s, the other collected then too, when it had long arrived."""
    tables = played({"kind": "drop_stragglers", "deadline_s": 3.0, "local_steps": 1})
    assert tables["tasks"].set_index("device")["ended_s"].to_dict() == {0: 3.0, 1: 3.0}
    tables = played({"kind": "fedbuff", "buffer_size": 2, "local_steps": 1, "concurrency": 2})
    assert sorted(tables["tasks"].query("outcome == 'used'")["ended_s"]) == pytest.approx([2.0, 4.0])


# ---- what ended the wait --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "decided"),
    [
        (elapsed(3.0), (3.0, "deadline", np.nan)),
        (steps(n_jobs=1, n_steps=2), (4.0, "step", 1)),
        (steps(n_jobs=2, n_steps=2), (8.0, "step", 2)),
        (total_steps(4), (6.0, "total_steps", 4)),
        (elapsed(3.0) | steps(n_jobs=1, n_steps=2), (3.0, "deadline", np.nan)),
        (elapsed(5.0) | steps(n_jobs=1, n_steps=2), (4.0, "step", 1)),
        (steps(n_jobs=2, n_steps=9) | elapsed(5.0) | total_steps(2), (4.0, "total_steps", 2)),
        (None, (np.nan, "", np.nan)),
    ],
)
def test_the_condition_that_was_due_first_is_what_decided(played, condition, decided):
    rounds = played(policy=Told(Task(n_steps=None if condition else 1), condition), n_rounds=2)["rounds"]
    for i, start_s in enumerate(rounds["start_s"]):
        at_s, by, n = rounds.loc[i, ["decided_s", "decided_by", "decided_n"]]
        assert by == decided[1]
        np.testing.assert_allclose([at_s - start_s, n], [decided[0], decided[2]], rtol=1e-12)


def test_a_round_without_a_wait_does_not_keep_the_decision_of_the_one_before(played):
    rounds = played(policy=Told(Task(n_steps=1), elapsed(9.0), n_waits=1), n_rounds=3)["rounds"]
    assert rounds["decided_by"].tolist() == ["deadline", "", ""]
    assert rounds["decided_s"].isna().tolist() == [False, True, True]


def test_an_arrival_decides_when_the_last_byte_is_there(played):
    fleet = TWO | {"uplink": {"rate_bits_per_s": 1e300, "latency_s": 0.5}}
    rounds = played({"kind": "k_sync", "k": 1}, fleet=fleet)["rounds"]
    assert rounds[["decided_s", "decided_by", "decided_n"]].to_numpy().tolist() == [[2.5, "arrival", 1.0]]


def test_waiting_for_all_arrivals_is_due_before_a_late_deadline(played):
    rounds = played(policy=Told(Task(n_steps=1), elapsed(99.0) | arrivals(2)))["rounds"]
    assert rounds[["decided_s", "decided_by", "decided_n"]].to_numpy().tolist() == [[4.0, "arrival", 2.0]]


def test_of_several_waits_in_a_round_the_last_one_is_recorded(played):
    """Three single arrivals fill the buffer: at 2, 4 and (the fast one twice) 4 s."""
    rounds = played({"kind": "fedbuff", "buffer_size": 3, "local_steps": 1, "concurrency": 2})["rounds"]
    assert rounds["decided_s"].tolist() == rounds["end_s"].tolist()
    assert rounds["decided_n"].tolist() == [1.0]


# ---- only where tasks are recorded ----------------------------------------------------------------------------------


def test_a_run_that_records_no_tasks_times_no_milestones(played, monkeypatch):
    def never(*_, **__):
        raise AssertionError("milestones were timed for nothing")

    monkeypatch.setattr(passed, "milestones", never)
    assert not {"tasks", "milestones"} & set(played({"kind": "stsyn", "k": 1}, record_tasks=False))
    with pytest.raises(AssertionError, match="for nothing"):
        played({"kind": "stsyn", "k": 1})


# ---- laws -----------------------------------------------------------------------------------------------------------

COMPUTES = {
    "fixed": {"step_s": [1.0, 1.0, 1.5, 1.5, 2.0, 2.0]},
    "per step": {"step_s": 1.0, "step_factor": {"kind": "exponential", "mean": 1.0}},
    "per layer": {"step_s": 1.0, "layer_factor": {"kind": "exponential", "mean": 1.0}},
}
POLICIES = timelines.POLICIES | {"salf on arrival": {"deadline_s": 2.5, "deadline_on": "arrival"}}


@pytest.mark.parametrize("compute", COMPUTES)
@pytest.mark.parametrize("kind", POLICIES)
def test_milestones_say_what_the_tasks_say(kind, compute):
    """Of every task: as many whole steps, its layers from the output, ascending, and nothing after its work had ended."""
    values = timelines.scenario("salf")
    values["fleet"]["compute"] = COMPUTES[compute]
    values["policies"] = [{"kind": kind.split()[0], **POLICIES[kind]}]
    if kind == "salf" and compute == "per layer":
        values["policies"][0]["p_l"] = "none"  # no quadrature
    if kind == "salf on arrival" and compute != "fixed":
        values["policies"][0]["p_l"] = "none"
    values["training"]["batch_size"] = 8  # 20 rows: 8, 8 and 4
    loaded = fedsim.from_dict(values)
    tables = simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0]).tables
    tasks, milestones = (pd.DataFrame(tables[name]) for name in ("tasks", "milestones"))
    assert (milestones["round"].diff().fillna(0) >= 0).all()
    own = dict(iter(milestones.groupby(["device", "ordinal"])))
    n_layers, n_checked = 4, 0
    for task in tasks.itertuples():
        rows = own.get((task.device, task.ordinal), milestones.head(0))
        n_checked += len(rows)
        whole, layers = rows[rows["layer"] < 0], rows[rows["layer"] >= 0]
        assert whole["step"].tolist() == list(range(task.n_steps))
        assert (rows["ended_s"].diff().dropna() >= 0).all()
        assert (rows["ended_s"] <= np.fmin(task.computed_s, task.ended_s)).all()
        assert (rows["ended_s"] >= task.downloaded_s).all()
        assert (rows["round"] == task.round).all()
        if task.n_steps and task.n_steps == task.asked_steps:
            assert whole["ended_s"].iloc[-1] == task.computed_s
        if layers.empty:
            assert task.depth == 0
            continue
        (step,) = set(layers["step"])
        assert layers["layer"].tolist() == list(range(n_layers - 1, n_layers - 1 - len(layers), -1))
        before_s = task.downloaded_s if step == 0 else whole["ended_s"].iloc[step - 1]
        assert (layers["ended_s"] > before_s).all()
        if step < task.n_steps:
            assert step == task.n_steps - 1
            assert len(layers) == task.depth
            assert layers["ended_s"].iloc[-1] == whole["ended_s"].iloc[-1]
        else:
            assert step == task.n_steps
            assert len(layers) == task.depth or task.n_steps
    assert n_checked == len(milestones)
    assert n_checked


N = 5
LINK = Link(rate_bits_per_s=1e3, latency_s=0.1)
WORKS = {
    "fixed": Compute(step_s=(0.3, 0.7, 1.0, 1.1, 2.3)),
    "per step": Compute(step_s=0.7, step_factor=Exponential()),
    "per layer": Compute(step_s=0.7, layer_factor=Exponential()),
    "depth law": Compute(step_s=0.7, depth_law=UniformDepth()),
}


def work(compute, *, batch_size, ordinal, cap=None):
    plan = BatchPlan(np.array([10, 9, 8, 5, 3]), batch_size)
    fleet = Fleet(N, WORKS[compute], downlink=LINK)
    weather = Weather(fleet, equal_layers(3), plan, fleet_seed=1, clock_seed=2)
    return Work.start(weather, Task(n_steps=cap, unit="layer"), np.arange(N), np.full(N, ordinal))


@pytest.mark.parametrize("compute", ["fixed", "per step", "per layer"])
@settings(max_examples=30)
@given(
    batch_size=st.sampled_from([None, 4]),
    ordinal=st.integers(0, 30),
    stops_s=st.lists(st.floats(0.0, 40.0), min_size=N, max_size=N),
)
def test_a_milestone_is_the_very_moment_at_which_progress_grows(compute, batch_size, ordinal, stops_s):
    """Asked of a fresh job at that moment and one bit before it; also for jobs that were stopped after many steps."""
    of, everyone = work(compute, batch_size=batch_size, ordinal=ordinal), np.arange(N)
    progress = of.progress(everyone, np.array(stops_s))
    rows = passed.milestones(of, everyone, progress, start_s=np.zeros(N), until_s=np.array(stops_s))
    assert len(rows.device) == (progress.n_steps + np.where(progress.partial_depth > 0, progress.partial_depth, 3 * (progress.n_steps > 0))).sum()  # fmt: skip
    fresh = work(compute, batch_size=batch_size, ordinal=ordinal)
    devices = rows.device.astype(np.int64)
    done, before = (fresh.progress(devices, at_s) for at_s in (rows.ended_s, np.nextafter(rows.ended_s, -1)))
    # Layers in all, counting 3 for a whole step. The last layer of a step is the step.
    here = 3 * done.n_steps + done.partial_depth
    is_whole = (rows.layer < 0) | (rows.layer == 0)
    np.testing.assert_array_equal(here, np.where(is_whole, 3 * (rows.step + 1), 3 * rows.step + 3 - rows.layer))
    assert (3 * before.n_steps + before.partial_depth < here).all()


@given(ordinal=st.integers(0, 500))
def test_a_device_that_stops_in_time_for_its_upload_ends_a_whole_task_with_the_step_to_the_bit(ordinal):
    """Two of three layers of an uneven batch: the sum of shares misses the step's end by its last bit now and then."""
    fleet = Fleet(N, Compute(step_s=0.7, task_factor=Exponential()), uplink=LINK)
    weather = Weather(fleet, equal_layers(3), BatchPlan(np.full(N, 3), 7), fleet_seed=1, clock_seed=2)
    task = Task(n_steps=1, unit="layer", depth=2, arrive_within_s=99.0)
    of = Work.start(weather, task, np.arange(N), np.full(N, ordinal))
    progress, computed_s, arrived_s = of.latest_in_time(np.arange(N), 99.0)
    assert progress.n_steps.tolist() == [1] * N
    np.testing.assert_array_equal(computed_s, of.step_end_s(1))
    assert (arrived_s > computed_s).all()


def test_under_a_depth_law_layers_are_not_timed_and_a_whole_step_is_there_when_the_work_ends():
    of, everyone, until_s = work("depth law", batch_size=None, ordinal=0), np.arange(N), np.arange(1.0, N + 1)
    progress = Progress(np.array([1, 0, 0, 1, 0]), np.array([0, 2, 1, 0, 0]), np.zeros(N))
    rows = passed.milestones(of, everyone, progress, start_s=np.full(N, 10.0), until_s=until_s)
    assert rows.device.tolist() == [0, 3]
    assert rows.layer.tolist() == [-1, -1]
    assert rows.ended_s.tolist() == [11.0, 14.0]


# ---- on the disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tiny, tmp_path):
    """A function that runs stsyn on the two devices for six rounds and returns the run's folder."""

    def write(out="runs"):
        entry = {"kind": "stsyn", "k": 1, "local_steps": 2}
        values = tiny(fleet=TWO, policies=[entry], stop={"n_rounds": 6}, train=False)
        return next(fedsim.run(fedsim.from_dict(values), out=tmp_path / out).glob("*/seed-*"))

    return write


def test_one_round_can_be_read_alone(written):
    folder = written()
    run = read_run(folder)
    for name, one in (("tasks", run.tasks_of_round(3)), ("milestones", run.milestones_of_round(3))):
        whole = pd.read_parquet(folder / f"{name}.parquet")
        expected = whole[whole["round"] == 3].reset_index(drop=True)
        assert len(expected)
        pd.testing.assert_frame_equal(one, expected, check_exact=True)


def test_the_tasks_within_a_round_are_those_that_were_under_way_in_it(tiny, tmp_path):
    """Two uploads make a round; the slow device is in the middle of its work when the first one ends."""
    entry = {"kind": "fedbuff", "buffer_size": 2, "local_steps": 3, "concurrency": 2}
    values = tiny(fleet={**TWO, "n_devices": 2}, policies=[entry], stop={"n_rounds": 4}, train=False)
    run = read_run(next(fedsim.run(fedsim.from_dict(values), out=tmp_path).glob("*/seed-*")))
    start_s, end_s = run.rounds.loc[1, ["start_s", "end_s"]]
    tasks = run.tasks
    expected = tasks[(tasks["sent_s"] < end_s) & ((tasks["ended_s"] > start_s) | (tasks["round"] == 1))]
    found = run.tasks_within_round(1)
    assert set(found["round"]) > {1}
    assert sorted(zip(found["device"], found["ordinal"], strict=True)) == sorted(
        zip(expected["device"], expected["ordinal"], strict=True)
    )


def test_the_same_seed_gives_the_same_bytes(written):
    for name in ("tasks", "milestones", "rounds"):
        first, again = (written(out) / f"{name}.parquet" for out in ("first", "again"))
        assert first.read_bytes() == again.read_bytes()


def test_an_older_run_is_read_without_them(written):
    folder = written()
    rounds = pd.read_parquet(folder / "rounds.parquet").drop(columns=["decided_s", "decided_by", "decided_n"])
    rounds.to_parquet(folder / "rounds.parquet")
    (folder / "milestones.parquet").unlink()
    run = read_run(folder)
    assert run.rounds[["decided_s", "decided_by", "decided_n"]].isna().all(axis=None)
    assert run.milestones_of_round(0) is None
    assert len(run.tasks_of_round(0)) == 2
