"""A whole scenario: every policy under every seed, in one process or several, with the same bytes either way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from queue import Empty
from typing import Any, TypeVar

from fedsim import records
from fedsim.manifest import fingerprint, of_run
from fedsim.protocols import Policy
from fedsim.records import Progress
from fedsim.run import check, simulate
from fedsim.scenario.contenders import Contender
from fedsim.scenario.read import LoadedScenario
from fedsim.scenario.schema import SeedSet

T = TypeVar("T")
Tell = Callable[[str, int, Progress], None]
"""Called with (policy label, seed, how far that run is)."""


@dataclass(frozen=True)
class Pair:
    """One run of a scenario: a policy, a seed and its folder. is_done: the same run lies there, finished."""

    contender: Contender
    seeds: SeedSet
    folder: Path
    is_done: bool


def pairs(loaded: LoadedScenario, out: Path | str) -> list[Pair]:
    """Every policy under every seed, in the scenario's order."""
    found = []
    for contender in loaded.contenders:
        for seeds in loaded.scenario.seed_sets:
            folder = Path(out) / loaded.scenario.name / contender.folder / f"seed-{seeds.seed}"
            is_done = records.fingerprint_of(folder) == fingerprint(loaded, contender, seeds)
            found.append(Pair(contender, seeds, folder, is_done))
    return found


def run_pairs(loaded: LoadedScenario, todo: Sequence[Pair], *, n_jobs: int = 1, tell: Tell | None = None) -> None:
    """Run these; each becomes a run folder as soon as it is finished. n_jobs: processes, one torch thread each.

    Everything is checked before the first of them starts. Raises ScenarioError.
    """
    if not todo:
        return
    check(loaded, _distinct(pair.contender for pair in todo), _distinct(pair.seeds for pair in todo))
    if n_jobs == 1 or len(todo) < 2:
        for pair in todo:
            _run_pair(loaded, pair, tell)
        return
    context = get_context("spawn")  # a forked child would inherit torch's locks
    with context.Manager() as manager, ProcessPoolExecutor(min(n_jobs, len(todo)), mp_context=context) as pool:
        messages = manager.Queue()
        waiting = {pool.submit(_run_in_worker, loaded, pair, messages) for pair in todo}
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_EXCEPTION)
                _pass_on(messages, tell)
                for future in done:
                    future.result()
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def run(
    scenario: LoadedScenario,
    policies: Sequence[Policy] | None = None,
    *,
    out: Path | str = "runs",
    n_jobs: int = 1,
    again: bool = False,
) -> Path:
    """Run a scenario, or these policy objects in place of its own; returns the folder that holds its runs.

    A finished run of the same settings is kept as it is unless `again`. Writes run folders only; `fedsim report FOLDER`
    makes summary and report of them. Raises ScenarioError on bad input.
    """
    if n_jobs < 1:
        raise ValueError(f"n_jobs is {n_jobs}; run in at least one process")
    if policies is not None and not policies:
        raise ValueError("policies is empty; give at least one, or leave it out for those of the scenario")
    loaded = scenario if policies is None else scenario.with_policies(policies)
    run_pairs(loaded, [pair for pair in pairs(loaded, out) if again or not pair.is_done], n_jobs=n_jobs)
    return Path(out) / loaded.scenario.name


def _distinct(items: Iterable[T]) -> list[T]:
    """Without repetitions, in the order given."""
    found: list[T] = []
    for item in items:
        if item not in found:
            found.append(item)
    return found


def _run_pair(loaded: LoadedScenario, pair: Pair, tell: Tell | None) -> None:
    def on_progress(progress: Progress) -> None:
        if tell is not None:
            tell(pair.contender.label, pair.seeds.seed, progress)

    partial = records.partial_folder(pair.folder)
    records.write_start(partial, of_run(loaded, pair.contender, pair.seeds))
    # A line is on the disk as soon as its round is closed: somebody may be watching.
    with (partial / records.JOURNAL).open("w", encoding="utf-8", buffering=1) as journal:
        result = simulate(loaded, pair.contender, pair.seeds, on_progress=on_progress, journal=journal)
    records.write(pair.folder, partial, result.tables, result.manifest, result.expected)
    outcome, final = result.manifest["outcome"], result.manifest["final"]
    on_progress(Progress(outcome["simulated_s"], outcome["round"], final["accuracy"] if final else None, 1.0))


def _run_in_worker(loaded: LoadedScenario, pair: Pair, messages: Any) -> None:
    _run_pair(loaded, pair, lambda *message: messages.put(message))


def _pass_on(messages: Any, tell: Tell | None) -> None:
    while True:
        try:
            message = messages.get_nowait()
        except Empty:
            return
        if tell is not None:
            tell(*message)
