"""What lies in a folder of runs: scenarios, and in each the runs that are finished, in progress or broken.

A run is `<scenario>/<policy folder>/seed-<k>/`, while it goes `.seed-<k>.partial/` beside it; the folder given may also be
one scenario's. Manifests are read first and tables only when asked for. A folder is read again only when one of its files
has changed (name, size or time), so that looking again costs little. Only what was found by looking has an id: an id is
looked up and never made into a path.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import pandas as pd

from fedsim.facts import BadInput
from fedsim.statistics import reading
from fedsim.statistics.journal import STARTED, label_of, read_started
from fedsim.statistics.reading import COLUMNS, BrokenRunError, Run

State = Literal["finished", "in_progress", "broken"]
Signature = tuple[tuple[str, int, int], ...]
"""Of a folder: name, nanoseconds of the last change and size of each file."""

_MAGIC = b"PAR1"  # a Parquet file begins and ends with it


@dataclass(frozen=True)
class Entry:
    """One folder of a run. facts: its manifest, or as much of it as a run in progress has told; empty if unreadable.

    reason: why it is broken, else "". changed_s: when its newest file changed, on a real clock, seconds since 1970.
    """

    id: str
    scenario: str
    folder: Path
    state: State
    label: str
    seed: int
    facts: dict[str, Any] = field(repr=False)
    reason: str
    changed_s: float
    signature: Signature = field(repr=False)

    @property
    def policy_id(self) -> str:
        """Of its policy's folder; shared by the policy's seeds."""
        return self.id.rpartition("/")[0]

    @property
    def kind(self) -> str:
        return str(_policy(self.facts).get("kind", self.label))

    @property
    def position(self) -> int:
        """The policy's place in the scenario, from 0."""
        position = self.facts.get("position")
        return position if isinstance(position, int) else 0

    @property
    def has_tasks(self) -> bool:
        """Whether single tasks were recorded."""
        return any(name == "tasks.parquet" for name, _, _ in self.signature)


@dataclass
class Catalogue:
    """Looks into one folder, as often as asked, and remembers what has not changed. Safe to use from several threads."""

    folder: Path
    _entries: dict[str, Entry] = field(default_factory=dict)
    _curves: dict[str, tuple[Signature, Run]] = field(default_factory=dict)
    _refused: dict[str, tuple[Signature, str]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def look(self) -> tuple[Entry, ...]:
        """Every run's folder, by scenario, then by the policies' order, then by seed.

        Raises BadInput if the folder itself is gone.
        """
        with self._lock:
            self._entries = {entry.id: entry for entry in self._found()}
            for gone in set(self._curves) - set(self._entries):
                self._curves.pop(gone, None)
            return tuple(self._entries.values())

    def entry(self, run_id: str) -> Entry | None:
        """What was last found under this id; None if nothing was."""
        return self._entries.get(run_id)

    def curves(self, entries: Iterable[Entry]) -> tuple[list[Run], list[str]]:
        """The finished ones of these with their manifests and evaluations alone, and why some cannot be read.

        Their other tables are frames without columns: whoever asks for one of those fails at once.
        """
        runs, reasons = [], []
        for entry in entries:
            if entry.state != "finished":
                continue
            try:
                runs.append(self._curve(entry))
            except BrokenRunError as error:
                self._refused[entry.id] = (entry.signature, str(error))
                reasons.append(str(error))
        return runs, reasons

    def whole(self, run_id: str) -> Run:
        """A finished run with all its tables. Raises BadInput if there is none of this id, or if it is broken."""
        entry = self.entry(run_id)
        if entry is None or entry.state != "finished":
            raise BadInput(f"There is no finished run {run_id!r} here; choose one of the list.")
        return reading.read_run(entry.folder)

    # ---- looking --------------------------------------------------------------------------------------------------

    def _found(self) -> list[Entry]:
        try:
            found = [
                self._entry(scenario, policy, folder)
                for scenario, policies in _scenarios(self.folder)
                for policy in policies
                for folder in _run_folders(policy)
            ]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BadInput(f"{self.folder} is not a folder; give the folder that holds your runs") from error
        kept = [entry for entry in found if entry is not None]
        return sorted(kept, key=lambda e: (e.scenario, e.position, e.policy_id, e.seed, e.id))

    def _entry(self, scenario: str, policy: Path, folder: Path) -> Entry | None:
        """None if it vanished while being looked at: a run that has just been finished is there under its other name."""
        run_id = f"{scenario}/{policy.name}/{folder.name}"
        try:
            signature, changed_s = _signature(folder)
        except (FileNotFoundError, NotADirectoryError):
            return None
        known, refused = self._entries.get(run_id), self._refused.get(run_id)
        is_refused = refused is not None and refused[0] == signature
        if known is not None and known.signature == signature and not is_refused:
            return known
        state: State
        if refused is not None and is_refused:
            state, facts, reason = "broken", {} if known is None else known.facts, refused[1]
        else:
            state, facts, reason = _state(folder, signature)
        label = label_of(facts) or policy.name
        seed = facts.get("seed")
        seed = seed if isinstance(seed, int) else _seed_in(folder.name)
        return Entry(run_id, scenario, folder, state, label, seed, facts, reason, changed_s, signature)

    def _curve(self, entry: Entry) -> Run:
        known = self._curves.get(entry.id)
        if known is None or known[0] != entry.signature:
            known = (entry.signature, read_curve(entry.folder))
            self._curves[entry.id] = known
        return known[1]


def read_curve(folder: Path) -> Run:
    """A finished run with its manifest and evaluations alone; the frames of its other tables have no columns.

    Raises BrokenRunError.
    """
    manifest = _whole_manifest(folder)
    evaluations = reading.read_table(folder, "evaluations", COLUMNS["evaluations"])
    nothing = pd.DataFrame()
    return Run(folder, manifest, rounds=nothing, layers=nothing, classes=nothing, evaluations=evaluations, expected=[])


def policies_of(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """The entries policy by policy, under the id of the policy's folder, in their order."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.policy_id, []).append(entry)
    return found


def _scenarios(folder: Path) -> list[tuple[str, list[Path]]]:
    """Name and policy folders of each scenario; of the folder itself, if policies lie in it."""
    children = _subfolders(folder)
    own = [child for child in children if _run_folders(child)]
    found = [(folder.resolve().name, own)] if own else []
    for child in children:
        if child not in own and (policies := [one for one in _subfolders(child) if _run_folders(one)]):
            found.append((child.name, policies))
    return found


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except PermissionError:
        return []  # what may not be read holds nothing for us


def _run_folders(policy: Path) -> list[Path]:
    try:
        with os.scandir(policy) as entries:
            return sorted(Path(entry.path) for entry in entries if _is_run(entry.name) and entry.is_dir())
    except (PermissionError, FileNotFoundError, NotADirectoryError):
        return []


def _is_run(name: str) -> bool:
    return name.startswith("seed-") or (name.startswith(".seed-") and name.endswith(".partial"))


def is_partial(folder: Path) -> bool:
    """Whether the name is that of a run in progress."""
    return folder.name.startswith(".")


def _seed_in(name: str) -> int:
    digits = name.removeprefix(".").removesuffix(".partial").removeprefix("seed-")
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def _signature(folder: Path) -> tuple[Signature, float]:
    """And when the newest of its files changed, seconds since 1970; of an empty folder, when that was made."""
    with os.scandir(folder) as entries:
        stats = {entry.name: entry.stat() for entry in entries}
    signature = tuple(sorted((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats.items()))
    return signature, max((stat.st_mtime for stat in stats.values()), default=folder.stat().st_mtime)


def _state(folder: Path, signature: Signature) -> tuple[State, dict[str, Any], str]:
    """What a folder is, its facts, and the reason if it is broken."""
    if is_partial(folder):
        return "in_progress", read_started(folder / STARTED), ""
    try:
        manifest = _whole_manifest(folder)
    except BrokenRunError as error:
        return "broken", {}, str(error)
    sizes = {name: size for name, _, size in signature}
    for table in COLUMNS:
        name = f"{table}.parquet"
        if name not in sizes:
            return "broken", manifest, f"{folder}: no {name}, so the run has not finished; run it again (--again)"
        if not _is_whole(folder / name):
            return "broken", manifest, f"{folder}: {name} is cut off; run it again (--again)"
    return "finished", manifest, ""


def _whole_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, with every key that is asked for later. Raises BrokenRunError."""
    manifest = reading.read_manifest(folder)
    nothing = pd.DataFrame()
    run = Run(folder, manifest, rounds=nothing, layers=nothing, classes=nothing, evaluations=nothing, expected=[])
    try:
        _ = (run.label, run.kind, run.seed, run.position, run.outcome, run.simulated_s, run.speed_classes)
        _ = (run.targets, run.grid_step_s, run.every_n_rounds, run.sustain_s, run.layer_names, run.setting)
        _ = (manifest["policy"].get("parameters", {}).keys(), int(manifest["outcome"]["round"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BrokenRunError(f"{folder}: manifest.json lacks or garbles {error}; run it again (--again)") from error
    return manifest


def _is_whole(path: Path) -> bool:
    """Whether it ends as a Parquet file does: one that is still being copied does not."""
    try:
        with path.open("rb") as file:
            file.seek(-len(_MAGIC), os.SEEK_END)
            return file.read() == _MAGIC
    except OSError:
        return False


def _policy(facts: dict[str, Any]) -> dict[str, Any]:
    policy = facts.get("policy")
    return policy if isinstance(policy, dict) else {}
