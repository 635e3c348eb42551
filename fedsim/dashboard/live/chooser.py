"""The controls that choose scenarios, policies and seeds; shared by the pages, each with ids of its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from time import time
from typing import Any

from dash import Dash, Input, Output, State, dcc, html, no_update
from plotly.utils import PlotlyJSONEncoder

from fedsim.dashboard.live.desk import Query, choice, whole_numbers
from fedsim.dashboard.live.parts import field, group, policy
from fedsim.statistics.catalogue import Catalogue, Entry, policies_of
from fedsim.statistics.words import format_count, plural

Option = dict[str, Any]
_STATES = {"finished": "finished", "in_progress": "in progress", "broken": "broken"}


def layout(prefix: str, entries: Sequence[Entry], query: Query, default: Sequence[str]) -> html.Div:
    """The controls, as the address has them. default: scenarios that are chosen if it has none."""
    known = {entry.scenario for entry in entries}
    asked = [name for name in query.get("scenario", ()) if name in known] or list(default)
    own = choice(entries, asked)
    policies = policy_options(entries, asked)
    ids = [option["value"] for option in policies]
    wanted = query.get("policy")
    ticked = ids if wanted is None else [one for one in ids if one in wanted]
    seeds = whole_numbers(query.get("seed", ()))
    return html.Div(
        [
            group(
                "Scenarios",
                dcc.Checklist(
                    id=f"{prefix}-scenarios", options=scenario_options(entries), value=asked, className="list"
                ),
            ),
            group(
                "Policies",
                html.Div(_policy_boxes(prefix, policies, ticked), id=f"{prefix}-policy-boxes"),
                html.Div(
                    [
                        html.Button("all", id=f"{prefix}-all", className="link", n_clicks=0),
                        html.Button("none", id=f"{prefix}-none", className="link", n_clicks=0),
                    ],
                    className="row",
                ),
            ),
            field(
                "Seeds",
                dcc.Dropdown(
                    id=f"{prefix}-seeds",
                    options=seed_options(own.entries),
                    value=[seed for seed in seeds if seed in {e.seed for e in own.entries}],
                    multi=True,
                    placeholder="all seeds",
                ),
                f"{prefix}-seeds",
            ),
        ],
        className="chooser",
    )


def register(app: Dash, prefix: str, catalogue: Catalogue) -> None:
    """Policies and seeds follow the scenarios; everything follows what appears in the folder."""

    @app.callback(
        Output(f"{prefix}-scenarios", "options"),
        Output(f"{prefix}-policy-boxes", "children"),
        Output(f"{prefix}-seeds", "options"),
        Output(f"{prefix}-seeds", "value"),
        Input(f"{prefix}-scenarios", "value"),
        Input("listing", "data"),
        State(f"{prefix}-policies", "options"),
        State(f"{prefix}-policies", "value"),
        State(f"{prefix}-seeds", "value"),
        prevent_initial_call=True,
    )
    def follow(
        scenarios: list[str], _: str, before: list[Option], ticked: list[str], seeds: list[int]
    ) -> tuple[list[Option], Any, list[Option], Any]:
        entries = catalogue.look()
        policies = policy_options(entries, scenarios or [])
        ids, known = [option["value"] for option in policies], {option["value"] for option in before or []}
        # What was taken off stays off; what is new is on. Boxes that are as they were stay, and with them the focus.
        now_ticked = [one for one in ids if one in set(ticked or []) or one not in known]
        boxes = no_update if _plain(policies) == before else _policy_boxes(prefix, policies, now_ticked)
        found = seed_options(choice(entries, scenarios or []).entries)
        kept = [seed for seed in seeds or [] if seed in {option["value"] for option in found}]
        return scenario_options(entries), boxes, found, no_update if kept == (seeds or []) else kept

    for name, action in (("all", "(_, options) => options.map((one) => one.value)"), ("none", "(_, options) => []")):
        app.clientside_callback(  # type: ignore[no-untyped-call]
            action,
            Output(f"{prefix}-policies", "value", allow_duplicate=True),
            Input(f"{prefix}-{name}", "n_clicks"),
            State(f"{prefix}-policies", "options"),
            prevent_initial_call=True,
        )


def latest(entries: Sequence[Entry]) -> list[str]:
    """The scenario in which a finished run changed last; if none has one, any run."""
    finished = [entry for entry in entries if entry.state == "finished"] or list(entries)
    return [max(finished, key=lambda entry: entry.changed_s).scenario] if finished else []


def scenario_options(entries: Sequence[Entry]) -> list[Option]:
    """A line for each scenario: its name, how many runs it has in which state, when one of them changed last."""
    by_scenario: dict[str, list[Entry]] = {}
    for entry in entries:
        by_scenario.setdefault(entry.scenario, []).append(entry)
    return [{"label": f"{name}\n{_counts(own)}", "value": name} for name, own in by_scenario.items()]


def policy_options(entries: Sequence[Entry], scenarios: Sequence[str]) -> list[Option]:
    """A box for each policy of these scenarios, with its swatch; the legend of all figures."""
    own = choice(entries, scenarios)
    named = {policy_id: own.names[policy_id] for policy_id in policies_of(own.entries)}
    return [{"label": policy(name, own.looks[name]), "value": policy_id} for policy_id, name in named.items()]


def seed_options(entries: Sequence[Entry]) -> list[Option]:
    """The seeds of these runs."""
    return [{"label": f"seed {seed}", "value": seed} for seed in sorted({entry.seed for entry in entries})]


def ago(then_s: float, now_s: float) -> str:
    """How long ago that was on a real clock: "just now", "7 min ago", "3 days ago"."""
    past_s = max(0.0, now_s - then_s)
    if past_s < 60:
        return "just now"
    if past_s < 3_600:
        return f"{past_s // 60:.0f} min ago"
    if past_s < 86_400:
        return f"{past_s // 3_600:.0f} h ago"
    return f"{plural(int(past_s // 86_400), 'day')} ago"


def _policy_boxes(prefix: str, options: Sequence[Option], ticked: Sequence[str]) -> dcc.Checklist:
    """The policies' boxes, made anew whenever there are others: Dash cannot exchange labels that hold swatches."""
    return dcc.Checklist(id=f"{prefix}-policies", options=list(options), value=list(ticked), className="row")


def _plain(options: Sequence[Option]) -> Any:
    """As a browser sends them back."""
    return json.loads(json.dumps(options, cls=PlotlyJSONEncoder))


def _counts(entries: Sequence[Entry]) -> str:
    counts = Counter(str(entry.state) for entry in entries)
    told = [f"{format_count(counts[state])} {words}" for state, words in _STATES.items() if counts[state]]
    return f"{', '.join(told)}; changed {ago(max(entry.changed_s for entry in entries), time())}"
