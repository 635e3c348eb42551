"""One colour and dash per policy, the same in every figure, table and line.

Source of the hues: Okabe and Ito, Color universal design (2008), told apart under the common colour-vision deficiencies.
Policies of different kinds differ in hue; settings of one kind share it and differ in dash.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

INK = "ink"
"""The hue that is black on a light page and white on a dark one."""

HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
PATTERNS = ("", "/", ".", "x", "\\", "-")
STROKES = ("", "7 4", "2 3", "7 3 2 3", "11 4", "11 3 2 3")


@dataclass(frozen=True)
class Style:
    """How a policy is drawn. hue: "#rrggbb" or INK; dash: index into DASHES, PATTERNS (bars) and STROKES (swatches)."""

    hue: str
    dash: int = 0

    @property
    def colour(self) -> str:
        """A colour for figures that know no theme: INK becomes a grey visible on both."""
        return "#7F7F7F" if self.hue == INK else self.hue

    def faded(self, opacity: float) -> str:
        """The colour as "rgba(...)"."""
        red, green, blue = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({red},{green},{blue},{opacity:g})"


Styles = Mapping[str, Style]


def styles(policies: Iterable[tuple[str, str]]) -> dict[str, Style]:
    """A style for each label; `policies` are (label, kind) in the scenario's order."""
    kinds: dict[str, list[str]] = {}
    for label, kind in dict(policies).items():
        kinds.setdefault(kind, []).append(label)
    return {
        label: Style(HUES[i % len(HUES)], (i // len(HUES) + j) % len(DASHES))
        for i, labels in enumerate(kinds.values())
        for j, label in enumerate(labels)
    }
