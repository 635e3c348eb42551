"""Progress of many runs at once: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich import progress as bars
from rich.console import Console
from rich.markup import escape

from fedsim.campaign import Pair
from fedsim.records import Progress


class RunProgress:
    """One line per running job: label, seed, simulated seconds, rounds, accuracy, time left.

    Used as a context manager; `tell` is what `campaign.run_pairs` calls.
    """

    def __init__(self, console: Console, todo: Sequence[Pair]) -> None:
        self._console = console
        self._bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=20),
            bars.TextColumn("{task.fields[facts]}"),
            bars.TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[tuple[str, int], bars.TaskID] = {}
        self._all = self._bars.add_task(f"{len(todo)} runs", total=len(todo), facts="")
        self._share: dict[tuple[str, int], float] = {}
        self._said: dict[tuple[str, int], int] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def tell(self, label: str, seed: int, progress: Progress) -> None:
        """Show how far a run is."""
        run = (label, seed)
        accuracy = "" if progress.accuracy is None else f", accuracy {progress.accuracy:.3f}"
        facts = f"{progress.simulated_s:.4g} s, {progress.n_rounds} rounds{accuracy}"
        self._share[run] = progress.share
        if self._console.is_terminal:
            self._draw(run, facts, progress.share)
        elif int(4 * progress.share) > self._said.get(run, 0):  # a line per quarter of a run
            self._said[run] = int(4 * progress.share)
            self._console.print(f"{escape(label)}, seed {seed}: {progress.share:.0%} ({facts})", highlight=False)

    def _draw(self, run: tuple[str, int], facts: str, share: float) -> None:
        if run not in self._tasks:
            for old, task in list(self._tasks.items()):
                if self._share[old] >= 1.0:
                    self._bars.remove_task(task)
                    del self._tasks[old]
            self._tasks[run] = self._bars.add_task(f"{escape(run[0])}, seed {run[1]}", total=1.0, facts=facts)
        self._bars.update(self._tasks[run], completed=share, facts=facts)
        self._bars.update(self._all, completed=sum(self._share.values()))
