"""The page of runs in progress: they appear, grow and are finished without a reload."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from time import time
from typing import Any

import numpy as np
import plotly.graph_objects as go
from dash import Dash, Input, Output, State, dcc, html
from dash.exceptions import PreventUpdate

from fedsim.dashboard.figures import base_figure, identity, line_of
from fedsim.dashboard.frames import N_POINTS, thinned
from fedsim.dashboard.live.desk import Choice, Query, choice
from fedsim.dashboard.live.parts import Cell, blank, figure_box, policy, table
from fedsim.dashboard.live.watching import Watch, Watched
from fedsim.statistics.catalogue import Catalogue
from fedsim.statistics.words import format_count, format_s, format_share, plural

PATH, NAME = "/watch", "Watch"

_CAPTION = "A line a run, in its policy's colour; a dot at the end of those that are still going."


def layout(catalogue: Catalogue, query: Query) -> list[Cell]:  # noqa: ARG001  # a page's signature; nothing to choose here
    """The page; its first picture comes with the first look."""
    return [
        html.P(id="watch-answer", className="answer"),
        html.Div(id="watch-table"),
        figure_box("watch-curve", caption_id="watch-caption"),
        dcc.Store(id="watch-seen", data=""),
        # Beside the frame's own beat, so that the page is filled at once.
        dcc.Interval(id="watch-tick", interval=1_500),
    ]


def register(app: Dash, catalogue: Catalogue) -> None:
    """What happens at each beat: nothing, unless something has changed."""
    watch = Watch(catalogue)

    @app.callback(
        Output("watch-answer", "children"),
        Output("watch-table", "children"),
        Output("watch-curve", "figure"),
        Output("watch-curve-title", "children"),
        Output("watch-curve-figure", "hidden"),
        Output("watch-caption", "children"),
        Output("watch-seen", "data"),
        Input("watch-tick", "n_intervals"),
        State("watch-seen", "data"),
    )
    def look(_: int, seen: str) -> Any:
        watched, entries = watch.look(time())
        now = "\n".join(["looked", *(one.version for one in watched)])
        if now == seen:
            raise PreventUpdate  # sent as nothing at all
        own = choice(entries, [one.entry.scenario for one in watched])
        figure = curves(watched, own)
        title = f"Test {'accuracy' if _has_accuracy(watched) else 'loss'} so far"
        return (
            _answer(watched, catalogue),
            _table(watched, own) if watched else "",
            figure or blank(),
            title if figure else "",
            figure is None,
            _CAPTION,
            now,
        )


def curves(watched: Sequence[Watched], own: Choice) -> go.Figure | None:
    """Accuracy (loss, if there is none) against simulated seconds, a line a run; None if nothing was evaluated yet."""
    drawn = [one for one in watched if len(one.evaluations)]
    if not drawn:
        return None
    of = "accuracy" if _has_accuracy(watched) else "loss"
    figure = base_figure("simulated time (s)", f"test {of}")
    for one in drawn:
        label, style = own.named(one.entry), own.looks[own.named(one.entry)]
        x, y = (one.evaluations[name].to_numpy(np.float64) for name in ("time_s", of))
        known = np.flatnonzero(np.isfinite(y))
        if not len(known):
            continue
        kept = known[thinned([y[known]], max(50, N_POINTS // len(drawn)))]
        value = "%{y:.1%}" if of == "accuracy" else "%{y:.4g}"
        name = f"{escape(label)}, seed {one.entry.seed}".replace("%{", "&#37;{")  # would be read as a variable
        figure.add_scatter(
            x=x[kept].tolist(),
            y=y[kept].tolist(),
            mode="lines",
            line={"shape": "hv", "width": 2, **line_of(style)},
            hovertemplate=f"{name}: {value} after %{{x:.4g}} s<extra></extra>",
            **identity(label, style),
        )
        if one.is_going:
            end = {"x": [float(x[known[-1]])], "y": [float(y[known[-1]])], "mode": "markers", "hoverinfo": "skip"}
            figure.add_scatter(**end, marker={"size": 9, "color": style.colour}, **identity(label, style))
    figure.update_layout(showlegend=False, uirevision=of)
    return figure.update_yaxes(tickformat=".0%" if of == "accuracy" else "").update_xaxes(rangemode="tozero")


def _has_accuracy(watched: Sequence[Watched]) -> bool:
    return any(one.evaluations["accuracy"].notna().any() for one in watched)


def _answer(watched: Sequence[Watched], catalogue: Catalogue) -> str:
    n_going, n_silent = sum(one.is_going for one in watched), sum(one.silent_s is not None for one in watched)
    n_done = len(watched) - n_going
    done = f"{plural(n_done, 'run')} finished in the last 30 min" if n_done else ""
    if not n_going:
        start = f"Start one with fedsim run SCENARIO --out {catalogue.folder}; it appears here by itself."
        return f"Nothing is in progress; {done}." if done else f"Nothing is in progress. {start}"
    silent = f", {n_silent} of them without news" if n_silent else ""
    return f"{plural(n_going, 'run')} in progress{silent}{'; ' + done if done else ''}."


def _table(watched: Sequence[Watched], own: Choice) -> html.Div:
    rows = [
        [
            policy(own.named(one.entry), own.looks[own.named(one.entry)]),
            str(one.entry.seed),
            _progress(one),
            format_s(one.simulated_s),
            format_count(one.n_rounds),
            "none yet" if one.accuracy is None else format_share(one.accuracy),
            _news(one),
        ]
        for one in watched
    ]
    header = ["policy", "seed", "progress", "simulated", "rounds", "accuracy", "news"]
    return table("Runs in progress, then those finished lately", header, rows)


def _progress(one: Watched) -> html.Span:
    said = format_share(int(100 * one.share) / 100)
    named: dict[str, Any] = {"aria-label": "progress"}
    bar = html.Progress(value=str(one.share), max="1", **named)
    return html.Span([bar, html.Span(said, className="share")], className="progress")


def _news(one: Watched) -> str:
    if one.problem:
        return one.problem
    if not one.is_going:
        outcome = one.entry.facts["outcome"]
        return f"{outcome['kind']}: {outcome['reason']}" if outcome.get("reason") else str(outcome["kind"])
    if one.silent_s is not None:
        return f"no news for {one.silent_s // 60:.0f} min; it may have been stopped"
    return "going" if one.n_rounds else "begun; no round closed yet"
