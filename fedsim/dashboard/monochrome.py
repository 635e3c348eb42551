"""Marks that survive black and white: dashes for lines, hatches for bars, symbols for markers.

Works on traces as Plotly's JSON has them, in place; a trace belongs to the policy that it is about, or to its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fedsim.dashboard.palette import HUES

DASHES = (
    *("solid", "6px,2px", "1.5px,1.5px", "6px,2px,1.5px,2px", "12px,3px", "3px,3px", "12px,2px,1.5px,2px"),
    *("6px,2px,1.5px,2px,1.5px,2px", "1.5px,4px", "12px,2px,4px,2px", "9px,6px", "4px,1.5px,1.5px,1.5px,1.5px,1.5px"),
)
"""Of a figure's lines, told apart without colour; after twelve they begin again."""

HATCHES = ("", "/", "x", ".", "\\", "-", "+", "|")
SYMBOLS = ("circle", "square", "triangle-up", "cross", "x", "star", "triangle-down", "pentagon")

_DISTINCT_GREY = 0.2  # of the way from black to white


def set_dashes(traces: Sequence[dict[str, Any]]) -> None:
    """A dash for each owner of lines, unless those on the screen differ already."""
    owners = {
        owner: [trace for trace in own if not is_pale(trace)] or own
        for owner, own in _by_owner([trace for trace in traces if _is_line(trace)]).items()
    }
    on_screen = [own[0]["line"].get("dash", "solid") for own in owners.values()]
    if len(set(on_screen)) == len(on_screen):
        return
    free = list(DASHES)
    for (owner, own), dash in zip(owners.items(), on_screen, strict=True):
        chosen = _of_hue(own[0], free) if owner else dash
        if chosen in free:
            free.remove(chosen)
        for trace in own:
            # A second line of the same policy that differed on the screen goes on to differ.
            if trace is own[0] or trace["line"].get("dash", "solid") == dash:
                trace["line"]["dash"] = chosen
        free = free or list(DASHES)


def _of_hue(trace: dict[str, Any], free: Sequence[str]) -> str:
    """The dash at its hue's place in the palette, so that a policy keeps it from figure to figure; else the next free one."""
    # `inked` has made that hue black.
    hues = [*HUES[:-1], "#000000"]
    colour = trace["line"].get("color")
    wanted = DASHES[hues.index(colour)] if colour in hues else ""
    return wanted if wanted in free else free[0]


def set_hatches(traces: Sequence[dict[str, Any]]) -> None:
    """Hatch the bars of each owner whose grey and hatch on the screen are like those of one before."""
    owners = list(_by_owner([trace for trace in traces if trace.get("type") in ("bar", "histogram")]).values())
    first = [own[0].setdefault("marker", {}) for own in owners]
    if any(not isinstance(marker.get("color", ""), str) for marker in first):
        return  # coloured bar by bar: the colour is a quantity of its own
    looks = [(grey_of(marker.get("color", "")), _hatch(marker)) for marker in first]
    free = [hatch for hatch in HATCHES if hatch not in {hatch for _, hatch in looks}] or list(HATCHES)
    for i, own in enumerate(owners):
        if not any(_is_alike(looks[i], look) for look in looks[:i]):
            continue
        looks[i] = (looks[i][0], free.pop(0))
        free = free or list(HATCHES)
        for trace in own:
            marker = trace.setdefault("marker", {})
            marker["pattern"] = {"shape": looks[i][1], "size": 4, "solidity": 0.35}
            marker.setdefault("line", {"width": 0.75, **({"color": marker["color"]} if "color" in marker else {})})


def _hatch(marker: dict[str, Any]) -> str:
    return str(marker.get("pattern", {}).get("shape") or "")


def _is_alike(a: tuple[float | None, str], b: tuple[float | None, str]) -> bool:
    """Whether two bars differ in nothing that black and white keeps. An unknown colour counts as like any other."""
    is_same_grey = a[0] is None or b[0] is None or abs(a[0] - b[0]) < _DISTINCT_GREY
    return a[1] == b[1] and is_same_grey


def set_symbols(traces: Sequence[dict[str, Any]]) -> None:
    """A symbol for each owner of bare markers, closed forms (in ink) left as they are."""
    bare = [trace for trace in traces if trace.get("mode") == "markers" and trace.get("type", "scatter") == "scatter"]
    owners = _by_owner([t for t in bare if not (isinstance(t.get("meta"), dict) and t["meta"].get("is_ink"))])
    symbols = [own[0].get("marker", {}).get("symbol", "circle") for own in owners.values()]
    if any(not isinstance(symbol, str) for symbol in symbols) or len(set(symbols)) == len(symbols):
        return
    for i, own in enumerate(owners.values()):
        for trace in own:
            is_open = str(trace.get("marker", {}).get("symbol", "")).endswith("-open")
            trace.setdefault("marker", {})["symbol"] = SYMBOLS[i % len(SYMBOLS)] + ("-open" if is_open else "")


def grey_of(colour: str) -> float | None:
    """How light "#rrggbb" or "rgb(...)" is without its hue, 0 black to 1 white; None for colours by name.

    Source: luma of ITU-R BT.601.
    """
    if re.fullmatch(r"#[0-9A-Fa-f]{6}", colour):
        channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    elif found := re.match(r"rgba?\((\d+), *(\d+), *(\d+)", colour):
        channels = [int(channel) for channel in found.groups()]
    else:
        return None
    red, green, blue = channels
    return (0.299 * red + 0.587 * green + 0.114 * blue) / 255


def whose(trace: dict[str, Any]) -> str:
    """The policy that a trace belongs to, or its name."""
    meta = trace.get("meta")
    return str((meta.get("policy") if isinstance(meta, dict) else None) or trace.get("name") or "")


def is_pale(trace: dict[str, Any]) -> bool:
    """Whether a trace is drawn so that what lies over it is seen."""
    return float(trace.get("opacity", 1.0)) <= 0.5


def _is_line(trace: dict[str, Any]) -> bool:
    """Whether a line is seen; the edges of a band have none."""
    is_drawn = trace.get("type", "scatter") in ("scatter", "scattergl") and "lines" in trace.get("mode", "lines")
    return is_drawn and trace.get("line", {}).get("width", 2) > 0


def _by_owner(traces: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    owners: dict[str, list[dict[str, Any]]] = {}
    for trace in traces:
        owners.setdefault(whose(trace), []).append(trace)
    return owners
