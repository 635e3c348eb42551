"""Figures: a tidy frame of `frames.py` or `budgets.py` in, a Plotly figure out; no state, no files.

In a notebook:

    from fedsim.dashboard import figures, frames
    figures.curve(frames.curve_frame(runs, over="time_s"), over="time_s", targets=[0.9])

styles: a colour and dash per policy (`palette.styles`); left out, each frame gives its policies colours in its own order.
Backgrounds are transparent and greys middling, so that a figure stands on a light or a dark page; `paper.paper` turns one
into a paper's style.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import pandas as pd
import plotly.graph_objects as go

from fedsim.dashboard.figure_parts import (
    BAR_SPACE,
    EDGE_GREY,
    GREY,
    add_band,
    add_bars,
    add_targets,
    base_figure,
    by_policy,
    exact_line,
    exact_marks,
    hover,
    identity,
    line_of,
    named_ticks,
    simulated_line,
    styles_of,
)
from fedsim.dashboard.palette import PATTERNS, Styles
from fedsim.statistics.words import format_s, format_share

__all__ = ["base_figure", "identity", "line_of"]

N_BANDS = 8
"""More bands than this hide one another: then only the medians are drawn."""

_WIDE = 8  # how many times longer the longest run must be for a logarithmic time axis

AXES = {
    "time_s": ("simulated time (s)", "after %{x:.4~g} s"),
    "round": ("rounds", "after %{x} rounds"),
    "uploaded_bytes": ("uploaded by all devices", "with %{x:.3~s}B uploaded"),
    "downloaded_bytes": ("downloaded by all devices", "with %{x:.3~s}B downloaded"),
    "device_flops": ("computed by all devices (FLOPs)", "with %{x:.3~s} FLOPs computed"),
}
"""Title and words of a point for each cumulative column of the evaluations."""

_METRICS = {"accuracy": ("test accuracy", "accuracy %{y:.1%}"), "loss": ("loss (mean over seeds)", "loss %{y:.4~g}")}


def axis_words(over: str) -> tuple[str, str]:
    """An axis' title and the words of a point on it; a column that is not known here speaks for itself."""
    name, _, unit = over.rpartition("_")
    plain = f"{name.replace('_', ' ')} ({unit})" if name else over
    return AXES.get(over, (plain, f"at {plain} %{{x:.4~g}}"))


def curve(
    frame: pd.DataFrame,
    styles: Styles | None = None,
    *,
    over: str = "time_s",
    of: str = "accuracy",
    targets: Sequence[float] = (),
    reached: pd.DataFrame | None = None,
    expected: pd.DataFrame | None = None,
) -> go.Figure:
    """Accuracy (median) or loss (mean) against a cumulative column, with its band over seeds.

    frame: `frames.curve_frame(runs, over, of)`. targets: dotted, labelled at the right edge, accuracy only. reached:
    `budgets.reached_frame(comparisons)`, rings where a policy reached a target, over seconds only. expected: the exact
    loss, `frames.expected_loss_frame(runs, over)`, dashed over the simulated one.
    """
    looks, (x_title, at) = styles_of(frame, styles), axis_words(over)
    y_title, value = _METRICS[of]
    ends = frame.groupby("policy")[over].max()
    is_wide = over == "time_s" and of == "accuracy" and 0 < ends.min() * _WIDE <= ends.max()
    figure = base_figure(f"{x_title}, logarithmic" if is_wide else x_title, y_title)
    under = frozenset() if expected is None else frozenset(expected["policy"])
    _add_curves(figure, frame, over, of, looks, under, f"{value} {at}")
    for label, rows in by_policy(expected) if expected is not None and len(expected) else []:
        points = {"x": rows[over].tolist(), "y": rows["loss"].tolist()}
        figure.add_scatter(
            **points, **exact_line(label, looks[label]) | hover(label, f"exact expectation: {value} {at}")
        )
    if over not in ("time_s", "round"):
        figure.update_xaxes(tickformat="~s", ticksuffix="B" if over.endswith("_bytes") else "")
    if is_wide:  # on a straight axis the soonest policies would share a few pixels; time 0 falls off a logarithmic one
        figure.update_xaxes(type="log", dtick="D2")
    if of == "accuracy":
        add_targets(figure, targets, [format_share(target) for target in targets])
        if reached is not None and over == "time_s":
            _add_reached(figure, reached, looks)
        return figure.update_yaxes(tickformat=".0%").update_xaxes(rangemode="tozero")
    drawn = frame["low"] if expected is None or expected.empty else pd.concat([frame["low"], expected["loss"]])
    if drawn.min() > 0 and frame["loss"].max() >= _WIDE * frame["loss"].min():
        figure.update_yaxes(type="log", dtick="D2", title={"text": f"{y_title}, logarithmic"})
    return figure.update_xaxes(rangemode="tozero")


def accuracy_at_budget(frame: pd.DataFrame, styles: Styles | None = None) -> go.Figure:
    """Each policy's accuracy when the time is up, a point with its range over seeds; hollow where its runs had ended.

    frame: the rows of one budget of `budgets.budget_frame(runs)`.
    """
    looks, figure = styles_of(frame, styles), base_figure("test accuracy", "")
    labels = [str(label) for label in frame["policy"]]
    for place, row in enumerate(frame.to_dict("records")):
        label, is_over = str(row["policy"]), bool(row["has_ended"])
        words = f"%{{x:.1%}} ({row['low']:.1%} to {row['high']:.1%} over seeds)"
        words += f" when its runs had ended, after {format_s(row['known_s'])}" if is_over else ""
        error = {"type": "data", "symmetric": False, "thickness": 3, "width": 0, "color": looks[label].faded(0.5)}
        error |= {"array": [row["high"] - row["accuracy"]], "arrayminus": [row["accuracy"] - row["low"]]}
        marker = {"size": 12, "color": looks[label].colour, "symbol": "circle-open" if is_over else "circle"}
        point = {"x": [row["accuracy"]], "y": [place], "mode": "markers", "error_x": error}
        figure.add_scatter(
            **point,
            marker=marker | {"line": {"width": 3, "color": looks[label].colour}},
            **identity(label, looks[label]),
            **hover(label, words),
        )
    ticks = {"tickvals": list(range(len(labels))), "ticktext": [escape(label) for label in labels]}
    figure.update_yaxes(tickmode="array", **ticks, range=[len(labels) - 0.5, -0.5], showgrid=False)
    figure.update_layout(height=120 + 34 * len(labels))
    return figure.update_xaxes(tickformat=".0%", range=[0, 1])


def pareto_front(frame: pd.DataFrame, styles: Styles | None = None) -> go.Figure:
    """The best accuracy so far of every policy against seconds, thin; those that no policy has sooner, bold.

    frame: `budgets.front_frame(runs)`.
    """
    looks, figure = (
        styles_of(frame, styles),
        base_figure("simulated time (s), logarithmic", "best median accuracy so far"),
    )
    for label, rows in by_policy(frame):
        line = {"shape": "hv", "width": 1, **line_of(looks[label])}
        words = "%{y:.1%} after %{x:.4~g} s; another policy has it sooner"
        points = {"x": rows["time_s"].tolist(), "y": rows["accuracy"].tolist(), "mode": "lines", "line": line}
        figure.add_scatter(**points, opacity=0.5, **identity(label, looks[label]), **hover(label, words))
    for label, rows in by_policy(frame[frame["is_front"]]):
        marker = {"size": 8, "color": looks[label].colour}
        words = "%{y:.1%} after %{x:.4~g} s; no policy has it sooner"
        points = {"x": rows["time_s"].tolist(), "y": rows["accuracy"].tolist(), "mode": "markers", "marker": marker}
        figure.add_scatter(**points, **identity(label, looks[label]), **hover(label, words))
    return figure.update_xaxes(type="log", dtick="D2").update_yaxes(tickformat=".0%")


def round_times(frame: pd.DataFrame, law: pd.DataFrame | None = None, styles: Styles | None = None) -> go.Figure:
    """The share of rounds that took at most so long, on a logarithmic axis; the closed form dashed over it.

    frame, law: `frames.round_times_frame(runs)`, `frames.round_law_frame(runs)`.
    """
    looks, figure = (
        styles_of(frame, styles),
        base_figure("round time (s), logarithmic", "share of rounds at most so long"),
    )
    laws = [] if law is None else by_policy(law)
    under = {label for label, _ in laws}
    for label, rows in by_policy(frame):
        points = {"x": rows["round_s"].tolist(), "y": rows["share"].tolist()}
        line = simulated_line(label, looks[label], is_under=label in under)
        figure.add_scatter(**points, **line, **hover(label, "%{y:.1%} of rounds took at most %{x:.4~g} s"))
    for label, rows in laws:
        points = {"x": rows["round_s"].tolist(), "y": rows["share"].tolist()}
        words = "exact expectation: %{y:.1%} of rounds take at most %{x:.4~g} s"
        figure.add_scatter(**points, **exact_line(label, looks[label]), **hover(label, words))
    # One tick a decade and at 2 and 5: Plotly's own choice drops the decade from ticks like "2".
    return figure.update_xaxes(type="log", dtick="D2").update_yaxes(range=[0, 1.02], tickformat=".0%")


def layer_contributors(frame: pd.DataFrame, styles: Styles | None = None) -> go.Figure:
    """Mean contributors per round and layer, bars side by side, closed forms as diamonds. frame: `frames.layers_frame(runs)`."""
    looks, figure = (
        styles_of(frame, styles),
        base_figure("layer, from the input to the output", "devices per round (mean)"),
    )
    words = "%{y:.4~g} devices a round (mean) reach layer %{customdata}"
    width = add_bars(figure, frame, "layer", "n_contributors", "layer_name", looks, words)
    for i, (label, rows) in enumerate(by_policy(frame)):
        known = rows[rows["expected"].notna()]
        if len(known):
            centre = (i + 0.5) * width - BAR_SPACE / 2
            figure.add_scatter(x=(known["layer"] + centre).tolist(), y=known["expected"].tolist(), **exact_marks(label))
    return named_ticks(figure, frame, "layer", "layer_name").update_yaxes(rangemode="tozero")


def who_was_heard(frame: pd.DataFrame, styles: Styles | None = None) -> go.Figure:
    """Each speed class's share of the updates, bars side by side, over a line at its share of the devices.

    frame: `device_frames.heard_frame(runs)`, not empty.
    """
    looks, figure = styles_of(frame, styles), base_figure("speed class", "share of the updates that were used")
    words = "%{y:.1%} of the updates came from the %{customdata}"
    add_bars(figure, frame, "place", "update_share", "speed_class", looks, words)
    classes = frame.drop_duplicates("place").sort_values("place")
    edges = [(place - BAR_SPACE / 2, place + BAR_SPACE / 2, None) for place in classes["place"]]
    heights = [(share, share, None) for share in classes["device_share"]]
    line = {"mode": "lines", "line": {"width": 2, "color": EDGE_GREY}, "connectgaps": False}
    figure.add_scatter(
        x=[x for edge in edges for x in edge],
        y=[y for height in heights for y in height],
        hovertemplate="%{y:.1%} of the devices<extra></extra>",
        name="share of the devices",
        meta={"is_ink": True},
        **line,
    )
    named_ticks(figure, frame, "place", "speed_class")
    return figure.update_yaxes(rangemode="tozero", tickformat=".0%")


def served(frame: pd.DataFrame, styles: Styles | None = None) -> go.Figure:
    """The final model's accuracy on each speed class's label mix, a point with its range over seeds.

    frame: `device_frames.served_frame(runs)`, not empty.
    """
    looks, figure = styles_of(frame, styles), base_figure("speed class", "accuracy on the class's labels")
    policies = by_policy(frame)
    for i, (label, rows) in enumerate(policies):
        offset = BAR_SPACE * ((i + 0.5) / len(policies) - 0.5)
        error = {"type": "data", "symmetric": False, "thickness": 3, "width": 0, "color": looks[label].faded(0.5)}
        error |= {
            "array": (rows["high"] - rows["accuracy"]).tolist(),
            "arrayminus": (rows["accuracy"] - rows["low"]).tolist(),
        }
        points = {"x": (rows["place"] + offset).tolist(), "y": rows["accuracy"].tolist(), "error_y": error}
        marker = {"size": 10, "color": looks[label].colour}
        words = "accuracy %{y:.1%} on the labels of the %{customdata}"
        figure.add_scatter(
            **points,
            mode="markers",
            marker=marker,
            customdata=[escape(str(name)) for name in rows["speed_class"]],
            **identity(label, looks[label]),
            **hover(label, words),
        )
    return named_ticks(figure, frame, "place", "speed_class").update_yaxes(tickformat=".0%")


def time_shares(frame: pd.DataFrame) -> go.Figure:
    """What devices did with the time: a bar per policy, by phase.

    frame: `device_frames.time_shares_frame(runs)`, not empty.
    """
    figure = base_figure("share of the devices' time", "")
    labels = [str(label) for label in frame["policy"].unique()]
    for phase, (colour, pattern) in PHASES.items():
        rows = frame[frame["phase"] == phase]
        if rows.empty:
            continue
        figure.add_bar(
            x=rows["share"].tolist(),
            y=[labels.index(str(label)) for label in rows["policy"]],
            customdata=[escape(str(label)) for label in rows["policy"]],
            orientation="h",
            name=PHASE_WORDS[phase],
            marker={"color": colour, "pattern": {"shape": pattern}, "line": {"width": 1, "color": GREY}},
            hovertemplate="%{customdata}: %{x:.1%} of the devices' time " + f"{PHASE_WORDS[phase]}<extra></extra>",
            meta={"phase": phase},
        )
    ticks = {"tickvals": list(range(len(labels))), "ticktext": [escape(label) for label in labels]}
    figure.update_yaxes(tickmode="array", **ticks, range=[len(labels) - 0.5, -0.5], showgrid=False)
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    figure.update_layout(barmode="stack", height=150 + 34 * len(labels), legend=legend, margin={"t": 48})
    return figure.update_xaxes(tickformat=".0%", range=[0, 1])


PHASES = {
    "download": ("#A9BCD0", ""),
    "compute": ("#6B63B5", ""),
    "upload": ("#4A6078", ""),
    "dropped": ("#9A9A9A", PATTERNS[1]),
    "waiting": ("rgba(0,0,0,0)", ""),
}
"""Fill and pattern of each phase of a device, everywhere."""

PHASE_WORDS = {
    "download": "downloading",
    "compute": "computing",
    "upload": "uploading",
    "dropped": "spent on work that was dropped",
    "waiting": "waiting",
}


def _add_curves(
    figure: go.Figure, frame: pd.DataFrame, over: str, of: str, looks: Styles, under: frozenset[str], words: str
) -> None:
    """Lines with their bands. under: policies that have a closed form drawn over their line."""
    policies, shape = by_policy(frame), "hv" if of == "accuracy" else "linear"
    # All bands before all lines: a later band must not veil an earlier line.
    for label, rows in policies if len(policies) <= N_BANDS else []:
        if rows["n_seeds"].iloc[0] > 1:
            add_band(figure, rows, over, label, looks[label], shape)
    middle = "median" if of == "accuracy" else "mean"
    for label, rows in policies:
        n_seeds = int(rows["n_seeds"].iloc[0])
        of_seeds = f" ({middle} of {n_seeds} seeds)" if n_seeds > 1 else ""
        points = {"x": rows[over].tolist(), "y": rows[of].tolist()}
        line = simulated_line(label, looks[label], shape, is_under=label in under)
        figure.add_scatter(**points, **line, **hover(label, words + of_seeds))


def _add_reached(figure: go.Figure, reached: pd.DataFrame, looks: Styles) -> None:
    """Rings on the target lines at the median time to each target."""
    for label, rows in by_policy(reached):
        if label not in looks:
            continue
        marker = {"symbol": "circle-open", "size": 11, "color": looks[label].colour, "line": {"width": 2}}
        points = {"x": rows["time_s"].tolist(), "y": rows["target"].tolist(), "mode": "markers", "marker": marker}
        words = "%{y:.0%} reached and kept after %{x:.4~g} s (median)"
        figure.add_scatter(**points, **identity(label, looks[label]), **hover(label, words))
