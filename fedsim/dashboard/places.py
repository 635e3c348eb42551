"""Markup of a figure's place, and what the page's script needs to fill it: title, controls, legend, plot, caption, data."""

from __future__ import annotations

from typing import Any

import pandas as pd

from fedsim.dashboard.drawing import Control, Drawing, Place, csv
from fedsim.dashboard.markup import swatch, text
from fedsim.dashboard.palette import Styles

SEPARATOR = "|"


def place_markup(place: Place, looks: Styles) -> str:
    """A figure element. The first view's title and caption stand in it, for those who read without scripts."""
    shown = place.first
    controls = "".join(_control(control, i, place) for i, control in enumerate(place.controls))
    controls = f'<div class="controls">{controls}</div>' if controls else ""
    exact = f' <a class="data" href="#{text(place.name)}" data-csv="exact">exact expectation (CSV)</a>'
    return (
        f'<figure id="place-{text(place.name)}"><h3 aria-live="polite">{text(shown.title)}</h3>'
        f"{controls}{_legend(place, looks)}"
        f'<div class="plot" id="{text(place.name)}" role="img" aria-label="{text(shown.title)}"></div>'
        f'<figcaption><span class="words">{text(shown.caption)}</span> '
        f'<a class="data" href="#{text(place.name)}" data-csv="frame">data (CSV)</a>'
        f"{exact if any(view.exact is not None and len(view.exact) for view in place.views.values()) else ''}"
        "</figcaption></figure>"
    )


def place_data(place: Place) -> dict[str, Any]:
    """The views of a place for the script, keyed by the controls' values."""
    return {SEPARATOR.join(values): _view(drawing) for values, drawing in place.views.items()}


def _control(control: Control, i: int, place: Place) -> str:
    chosen, own = next(iter(place.views))[i], f"{text(place.name)}-control-{i}"
    label = f'<label for="{own}">{text(control.label)}</label>'
    if control.kind == "slider":
        values = [value for value, _ in control.options]
        at, listed = values.index(chosen), text(SEPARATOR.join(values))
        words = text(dict(control.options)[chosen])
        return (
            f'<span class="control slider">{label}<input type="range" id="{own}" min="0" max="{len(values) - 1}" '
            f'value="{at}" data-control="{i}" data-values="{listed}" aria-valuetext="{words}"><output>{words}</output></span>'
        )
    options = "".join(
        f'<option value="{text(value)}"{" selected" if value == chosen else ""}>{text(words)}</option>'
        for value, words in control.options
    )
    return f'<span class="control">{label}<select id="{own}" data-control="{i}">{options}</select></span>'


def _legend(place: Place, looks: Styles) -> str:
    """Boxes that take policies off and on; none where a figure is not about policies."""
    columns = [view.frame["policy"] for view in place.views.values() if "policy" in view.frame]
    labels = [str(label) for label in dict.fromkeys(label for column in columns for label in column.unique())]
    has_traces = any((trace.meta or {}).get("policy") for view in place.views.values() for trace in view.figure.data)
    if not labels or not has_traces:
        return ""
    boxes = "".join(
        f'<label><input type="checkbox" checked data-policy="{text(label)}">{swatch(looks[label])} {text(label)}</label>'
        for label in labels
    )
    return f"<fieldset><legend>Policies shown</legend>{boxes}</fieldset>"


def _view(drawing: Drawing) -> dict[str, Any]:
    plain = drawing.figure.to_plotly_json()
    frames = {"frame": drawing.frame, "exact": pd.DataFrame() if drawing.exact is None else drawing.exact}
    data = {key: written for key, frame in frames.items() if len(frame) and (written := csv(frame)) is not None}
    words = {"title": drawing.title, "caption": drawing.caption, "name": drawing.name, "csv": data}
    return words | {"data": _rounded(plain["data"]), "layout": _rounded(plain["layout"])}


def _rounded(value: Any) -> Any:
    """Plain values, numbers to six digits: what an eye can tell, at half the size."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
