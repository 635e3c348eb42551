"""What a figure is on the report: a drawing with its words, the place where it stands, the material it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import pandas as pd
import plotly.graph_objects as go

from fedsim.dashboard import frames
from fedsim.dashboard.device_frames import DeviceTime, device_times
from fedsim.dashboard.palette import Styles, styles
from fedsim.statistics.comparison import compare_targets, headline
from fedsim.statistics.reading import Run
from fedsim.statistics.results import Comparison
from fedsim.statistics.summary import summary

_MOST_CSV_ROWS = 5_000  # a curve has 4,000 points


@dataclass(frozen=True)
class Drawing:
    """A figure with what stands around it. frame: what it draws; exact: the closed forms drawn over that, if any."""

    name: str
    title: str
    caption: str
    figure: go.Figure
    frame: pd.DataFrame
    exact: pd.DataFrame | None = None


@dataclass(frozen=True)
class Control:
    """What chooses between drawings. options: (value, words) each."""

    label: str
    options: Sequence[tuple[str, str]]
    kind: Literal["select", "slider"] = "select"


@dataclass(frozen=True)
class Place:
    """Where a figure stands. views: a drawing for each choice of the controls' values; the first one is shown first."""

    name: str
    views: Mapping[tuple[str, ...], Drawing]
    controls: tuple[Control, ...] = ()

    @classmethod
    def of(cls, drawing: Drawing) -> Place:
        """With a single drawing."""
        return cls(drawing.name, {(): drawing})

    @property
    def first(self) -> Drawing:
        return next(iter(self.views.values()))


@dataclass(frozen=True)
class Material:
    """The runs, and what was found about them that several figures need."""

    runs: Sequence[Run]
    styles: Styles
    comparisons: Sequence[Comparison]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Material:
        return cls(runs, styles((run.label, run.kind) for run in runs), compare_targets(runs))

    @cached_property
    def first(self) -> Comparison | None:
        """The comparison to tell first."""
        return headline(self.comparisons)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The summary of each run."""
        return summary(self.runs)

    @cached_property
    def device_times(self) -> dict[Run, DeviceTime]:
        """What the devices did with their time."""
        return device_times(self.runs)

    @cached_property
    def axes(self) -> list[str]:
        """Cumulative columns of the evaluations."""
        return frames.axes_of(self.runs)

    @cached_property
    def labels(self) -> list[str]:
        """Policies, best first at the headline target."""
        ranked = [result.label for result in self.first.results] if self.first else []
        return list(dict.fromkeys([*ranked, *(run.label for run in self.runs)]))

    @cached_property
    def targets(self) -> list[float]:
        return sorted({target for run in self.runs for target in run.targets})


def csv(frame: pd.DataFrame) -> str | None:
    """A frame as the page offers it; None if it is too long for a page, and stands in the run folder anyway."""
    if len(frame) > _MOST_CSV_ROWS:
        return None
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
