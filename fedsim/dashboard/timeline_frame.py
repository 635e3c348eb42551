"""One round as rows: what each device did when, from the tables `tasks` and `milestones`; no colours, no Plotly.

    facts = round_facts(run, 12)          # when it began, how long it took, what ended its last wait
    frame = timeline_frame(run, 12)       # one row per segment of a device's time
    missing(run)                          # a sentence where the run did not record all of that; else ""
    rounds_to_show(run, 6)                # which rounds are worth a look

Only the round's own rows are read from disk, so that any round of a long run can be shown on demand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fedsim.facts import Array, BadInput, BoolArray, IntArray
from fedsim.statistics.reading import Run
from fedsim.statistics.words import digits, format_s, plural

COLUMNS = ("device", "row", "phase", "doing", "step", "layer", "start_s", "end_s", "ordinal", "outcome", "words")
PHASES = ("download", "compute", "upload", "dropped", "waiting")

_LOST = ("dropped", "cancelled", "empty")  # outcomes of tasks of which nothing enters the model
_DOING = np.array(["download", "compute", "upload", "waiting"])
_DOWNLOAD, _COMPUTE, _UPLOAD, _WAITING = range(len(_DOING))


@dataclass(frozen=True)
class RoundFacts:
    """A closed round. start_s: on the clock; the other seconds count from there.

    decided_s, decided_by, decided_n: the end of its last wait as in `rounds.parquet`; "" and NaN without one.
    """

    label: str
    seed: int
    number: int
    start_s: float
    length_s: float
    n_sent: int
    n_contributions: int
    decided_s: float
    decided_by: str
    decided_n: float


def round_facts(run: Run, number: int) -> RoundFacts:
    """Of the round with this number. Raises BadInput if the run closed no such round."""
    if not 0 <= number < len(run.rounds):
        n = len(run.rounds)
        choice = f"choose from 0 to {n - 1}" if n else "it closed none"
        raise BadInput(f"{run.folder}: there is no round {number}; {choice}")
    one = run.rounds.iloc[number]
    start_s = float(one["start_s"])
    return RoundFacts(
        label=run.label,
        seed=run.seed,
        number=number,
        start_s=start_s,
        length_s=float(one["end_s"]) - start_s,
        n_sent=int(one["n_sent"]),
        n_contributions=int(one["n_contributions"]),
        decided_s=float(one["decided_s"]) - start_s,
        decided_by=str(one["decided_by"]) if isinstance(one["decided_by"], str) else "",
        decided_n=float(one["decided_n"]),
    )


def missing(run: Run) -> str:
    """What of a timeline this run did not record, and what to do about it, in a sentence; "" if nothing."""
    if not (run.folder / "tasks.parquet").exists():
        return "This run kept no tasks; set record_tasks: true and run it again (--again) to see its rounds."
    if not (run.folder / "milestones.parquet").exists():
        return "This run did not time its steps and layers; run it again (--again) to see them."
    return ""


def rounds_to_show(run: Run, n: int) -> list[int]:
    """At most `n` rounds: the longest, the shortest, the middle one by length, the first, the last, then evenly spread.

    In this order, each once. Rounds that took no time are left out.
    """
    length_s = (run.rounds["end_s"] - run.rounds["start_s"]).to_numpy(np.float64)
    rounds = np.flatnonzero(length_s > 0)
    if not len(rounds):
        return []
    by_length = rounds[np.argsort(length_s[rounds], kind="stable")]
    first = [by_length[-1], by_length[0], by_length[len(by_length) // 2], rounds[0], rounds[-1]]
    n_spread = min(n + len(first), len(rounds))  # enough of them, though some are among the first
    spread = rounds[np.linspace(0, len(rounds) - 1, n_spread).round().astype(np.int64)]
    return [int(number) for number in dict.fromkeys([*first, *spread])][:n]


def timeline_frame(run: Run, number: int) -> pd.DataFrame:
    """What devices did in the round, one row per segment: `COLUMNS`. Empty where no tasks were recorded.

    device, ordinal: whose, and the how-manieth of its tasks. row: place of the device among those of the round, from 0:
    by when its work was done, those of whom nothing enters the model last. phase: of `PHASES`; dropped is all the time
    given to tasks that never enter the model, and in others the work under way that was lost when they were stopped.
    doing: download, compute, upload or waiting, dropped or not. step: from 0, -1 where it is none; layer: from 0 at the
    input, -1 for a whole step or none; a step's first layer follows its forward pass. start_s, end_s: from the round's
    start and cut off at its ends, for servers that do not wait send tasks in one round and get them back in another.
    outcome: of the task. words: what to say of the segment.
    """
    facts, tasks = round_facts(run, number), run.tasks_within_round(number)
    if tasks is None or tasks.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    own = _Tasks(tasks.sort_values(["device", "ordinal"], ignore_index=True), facts, run)
    passed = _Passed(run.milestones_of_round(number, int(tasks["round"].max())), own, facts.start_s)
    pieces = pd.concat([own.around_the_work(), passed.segments(own)], ignore_index=True)
    pieces["start_s"] = np.maximum(pieces["start_s"], 0.0)
    pieces["end_s"] = np.minimum(pieces["end_s"], facts.length_s)
    pieces = pieces[pieces["end_s"] > pieces["start_s"]]
    task = pieces["task"].to_numpy(np.int64)
    is_lost = (pieces["is_lost"].to_numpy(np.bool_) | own.is_lost[task]) & (pieces["doing"] != _WAITING).to_numpy()
    doing = _DOING[pieces["doing"].to_numpy(np.int64)]
    frame = pd.DataFrame(
        {
            "device": own.device[task],
            "row": own.rows(passed)[task],
            "phase": np.where(is_lost, "dropped", doing),
            "doing": doing,
            **{name: pieces[name].to_numpy() for name in ("step", "layer", "start_s", "end_s")},
            "ordinal": own.ordinal[task],
            "outcome": own.outcome[task],
        }
    )
    frame["words"] = _words(
        frame,
        np.asarray(own.words(np.where(own.is_over, passed.n_more_layers, 0), passed.n_steps), dtype=object)[task],
        run.layer_names,
    )
    return frame.sort_values(["row", "start_s"], ignore_index=True, kind="stable")


class _Tasks:
    """The round's tasks as columns `[task]`, by device and ordinal; seconds from the round's start, NaN: never."""

    def __init__(self, tasks: pd.DataFrame, facts: RoundFacts, run: Run) -> None:
        self.facts, self.n_layers = facts, len(run.layer_names)
        self.device, self.ordinal = (tasks[name].to_numpy(np.int64) for name in ("device", "ordinal"))
        self.outcome = tasks["outcome"].to_numpy(object)
        self.n_steps, self.depth = (tasks[name].to_numpy(np.int64) for name in ("n_steps", "depth"))
        self.asked_steps = tasks["asked_steps"].to_numpy(np.int64) if "asked_steps" in tasks else None
        self.sent_s, self.downloaded_s, self.computed_s, self.arrived_s = (
            tasks[name].to_numpy(np.float64) - facts.start_s
            for name in ("sent_s", "downloaded_s", "computed_s", "arrived_s")
        )
        self.ended_s = self._ended_s(tasks, run)
        self.is_lost = np.isin(self.outcome, _LOST)
        self.work_end_s = np.where(np.isnan(self.computed_s), self.ended_s, self.computed_s)
        self.key = self.device << 32 | self.ordinal

    def _ended_s(self, tasks: pd.DataFrame, run: Run) -> Array:
        if "ended_s" in tasks:
            return np.asarray(tasks["ended_s"].to_numpy(np.float64) - self.facts.start_s)
        # Older runs: the end of the round in which it was settled, or of the run.
        ends_s = np.append(run.rounds["end_s"].to_numpy(np.float64), run.simulated_s)
        ended_s = ends_s[np.minimum(tasks["round"].to_numpy(np.int64), len(ends_s) - 1)]
        return np.asarray(ended_s - self.facts.start_s)

    @property
    def is_over(self) -> BoolArray:
        """Whether the task was settled by the round's end."""
        return np.asarray((self.ended_s <= self.facts.length_s) & (self.outcome != "open"))

    def around_the_work(self) -> pd.DataFrame:
        """Downloads, uploads, and the time without anything to do: task, doing, start_s, end_s."""
        has_model, is_sending = ~np.isnan(self.downloaded_s), ~np.isnan(self.computed_s) & (self.outcome != "empty")
        rest_s = np.where(np.isnan(self.arrived_s), np.where(is_sending, self.ended_s, self.work_end_s), self.arrived_s)
        is_last = np.append(self.device[1:] != self.device[:-1], True)
        is_first = np.roll(is_last, 1)
        next_s = np.where(is_last, np.inf, np.roll(self.sent_s, -1))
        download = _spans(_DOWNLOAD, self.sent_s, np.where(has_model, self.downloaded_s, self.ended_s))
        upload = _spans(_UPLOAD, self.computed_s, rest_s).loc[is_sending]
        before = _spans(_WAITING, np.full(len(rest_s), -np.inf), self.sent_s).loc[is_first]
        spans: list[pd.DataFrame] = [download, upload, before, _spans(_WAITING, rest_s, next_s)]
        return pd.concat(spans)

    def rows(self, passed: _Passed) -> IntArray:
        """The place of each task's device, `[task]`."""
        devices, first = np.unique(self.device, return_index=True)
        n_alive = np.zeros(len(devices), dtype=np.int64)
        of = np.searchsorted(devices, self.device)
        np.add.at(n_alive, of, ~self.is_lost)
        done_s = np.where(np.isnan(self.computed_s), np.inf, self.computed_s)
        keys = (
            devices,
            passed.last_s[first],
            -passed.n_more_layers[first],
            -self.n_steps[first],
            done_s[first],
            n_alive == 0,
        )
        place = np.empty(len(devices), dtype=np.int64)
        place[np.lexsort(keys)] = np.arange(len(devices))
        return place[of]

    def words(self, n_more_layers: IntArray, n_steps_passed: IntArray) -> list[str]:
        """What became of each task, in a sentence without its full stop."""
        is_over = self.is_over
        n_steps = np.where(is_over, self.n_steps, n_steps_passed).tolist()
        asked = np.full(len(n_steps), -1) if self.asked_steps is None else self.asked_steps
        whose = zip(self.device.tolist(), self.ordinal.tolist(), strict=True)
        progress = zip(n_steps, asked.tolist(), n_more_layers.tolist(), self.depth.tolist(), strict=True)
        endings = [self._ending(i) if over else "still under way at the round's end" for i, over in enumerate(is_over)]
        return [
            f"device {device}, task {ordinal}: {self._progress(*done)}; {ending}"
            for (device, ordinal), done, ending in zip(whose, progress, endings, strict=True)
        ]

    def _progress(self, n_steps: int, asked: int, n_more: int, depth: int) -> str:
        if n_steps == 0 and (n_more or asked == 1) and depth > 0:
            return f"{depth} of {plural(self.n_layers, 'layer')}"
        steps = plural(n_steps, "step") if asked < 0 else f"{n_steps} of {plural(asked, 'step')}"
        return f"{steps}, then {plural(n_more, 'layer')}" if n_more else steps

    def _ending(self, i: int) -> str:
        if self.outcome[i] == "empty":
            return f"stopped {_when(self.computed_s[i])} with nothing complete"
        if self.outcome[i] == "cancelled":
            return f"cancelled {_when(self.ended_s[i])}"
        is_through = self.asked_steps is None or self.n_steps[i] == self.asked_steps[i]
        ending = (
            f"{'done' if is_through else 'stopped'} {_when(self.computed_s[i])}, arrived {_when(self.arrived_s[i])}"
        )
        return f"{ending}, not used" if self.outcome[i] == "dropped" else ending


class _Passed:
    """The steps and layers that the tasks finished, `[milestone]`, task after task, with what follows from them `[task]`.

    last_s: the last one of each task; NaN if there is none. n_steps: whole ones by the round's end. n_more_layers: in the
    end, after the whole steps.
    """

    def __init__(self, rows: pd.DataFrame | None, tasks: _Tasks, start_s: float) -> None:
        n_tasks = len(tasks.key)
        self.are_timed = rows is not None
        columns: Any = (
            {name: [] for name in ("device", "ordinal", "step", "layer", "ended_s")} if rows is None else rows
        )
        device, ordinal, step, layer = (
            np.asarray(columns[name], dtype=np.int64) for name in ("device", "ordinal", "step", "layer")
        )
        # Their own order within a task is that of time; equal times stay as they are.
        key = device << 32 | ordinal
        at = np.searchsorted(tasks.key, key)
        is_of_them = tasks.key[np.minimum(at, n_tasks - 1)] == key  # others were sent after the round
        order = np.flatnonzero(is_of_them)[np.argsort(at[is_of_them], kind="stable")]
        self.task, self.step, self.layer = at[order], step[order], layer[order]
        self.ended_s = np.asarray(columns["ended_s"], dtype=np.float64)[order] - start_s
        is_last = np.append(self.task[1:] != self.task[:-1], True)[: len(self.task)]
        self.last_s = np.full(n_tasks, np.nan)
        self.last_s[self.task[is_last]] = self.ended_s[is_last]
        is_whole, is_by_then = self.layer < 0, self.ended_s <= tasks.facts.length_s
        self.n_steps = np.bincount(self.task[is_whole & is_by_then], minlength=n_tasks)
        self.n_more_layers = np.bincount(
            self.task[~is_whole & (self.step == tasks.n_steps[self.task])], minlength=n_tasks
        )

    def segments(self, tasks: _Tasks) -> pd.DataFrame:
        """The work, cut where something was finished: task, doing, step, layer, start_s, end_s, is_lost."""
        is_first = np.append(True, self.task[1:] != self.task[:-1])[: len(self.task)]
        begin_s = np.where(is_first, tasks.downloaded_s[self.task], np.roll(self.ended_s, 1))
        done = _spans(_COMPUTE, begin_s, self.ended_s).assign(task=self.task, step=self.step, layer=self.layer)
        # What was under way after that is lost if the device was stopped; without rows either nothing was finished, or
        # it was not timed (an older run, a depth law).
        has_rows = ~np.isnan(self.last_s)
        rest = _spans(_COMPUTE, np.where(has_rows, self.last_s, tasks.downloaded_s), tasks.work_end_s)
        rest["is_lost"] = ~np.isnan(tasks.computed_s) & self.are_timed & (has_rows | (tasks.depth == 0))
        rest["step"] = np.where(self.are_timed, tasks.n_steps, -1)
        return pd.concat([done, rest[~np.isnan(tasks.downloaded_s)]])


def _spans(doing: int, start_s: Array, end_s: Array) -> pd.DataFrame:
    """One segment per task, that of no step."""
    columns = {"task": np.arange(len(start_s)), "doing": doing, "step": -1, "layer": -1, "start_s": start_s}
    return pd.DataFrame(columns | {"end_s": end_s, "is_lost": False})


def _when(seconds: float) -> str:
    return f"at {format_s(seconds)}" if seconds >= 0 else f"{format_s(-seconds)} before the round"


def _words(frame: pd.DataFrame, of_task: Any, layer_names: tuple[str, ...]) -> list[str]:
    """The task's sentence, and in it what is seen here."""
    columns = zip(
        of_task,
        frame["doing"],
        frame["phase"],
        *(frame[name].tolist() for name in ("step", "layer", "start_s", "end_s")),
        strict=True,
    )
    return [
        f"{task}; here {_here(doing, phase, step, layer, layer_names)}, {digits(start_s)} to {format_s(end_s)}"
        for task, doing, phase, step, layer, start_s, end_s in columns
    ]


def _here(doing: str, phase: str, step: int, layer: int, layer_names: tuple[str, ...]) -> str:
    words = {"download": "downloading", "upload": "uploading", "waiting": "waiting", "compute": "computing"}[doing]
    if layer >= 0:
        words = f"step {step + 1}, layer {layer_names[layer]}"
    elif step >= 0:
        words = f"step {step + 1}"
    return f"{words} (dropped)" if phase == "dropped" else words
