"""The dashboard's app: its frame, its pages, and what keeps it to this machine.

    make_app(Path("runs")).server      is a Flask app that any WSGI server can serve

A page is a module with `layout(catalogue, query)` and `register(app, catalogue)`. What a page shows stands in its address,
so that an address can be shared. Every two seconds the open page asks whether anything has changed in the folder; if not,
nothing is computed and nothing sent.
"""

from __future__ import annotations

import logging
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType
from typing import Any

from dash import Dash, Input, Output, State, dcc, html, set_props
from dash.exceptions import PreventUpdate
from flask import Response, abort, request

from fedsim.dashboard.live import planner_page, runs_page, settings_page, timeline_page, watch_page
from fedsim.dashboard.live.desk import parsed, token
from fedsim.facts import BadInput
from fedsim.statistics.catalogue import Catalogue

PAGES: tuple[Any, ...] = (runs_page, settings_page, watch_page, timeline_page)
PLANNER_PATH, PLANNER_NAME = "/planner", "Planner"
TICK_MS = 2_000

# 'unsafe-inline': Dash starts itself from inline scripts, Plotly sets styles. Nothing may come from, or go to, elsewhere.
_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "font-src 'self' data:; img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_ADDRESS = "(query) => { if (typeof query === 'string') history.replaceState(null, '', location.pathname + query); }"
_logger = logging.getLogger(__name__)


def make_app(folder: Path | str, planner: Any = None, *, only_loopback: bool = True) -> Dash:
    """The app over a folder of runs, or of one scenario's. Raises BadInput if there is no such folder.

    planner: what the page "Planner" asks; without one there is no such page. only_loopback: answer only requests that
    name this machine, so that no page of another site can read the runs through a name that it points here.
    """
    catalogue = Catalogue(Path(folder))
    catalogue.look()
    app = Dash(
        "fedsim.dashboard.live",
        assets_folder=str(Path(__file__).parent / "assets"),
        title="fedsim",
        update_title=None,  # type: ignore[arg-type]  # "Updating..." would flicker in the tab every two seconds
        suppress_callback_exceptions=True,  # pages come and go
        on_error=_tell,
        serve_locally=True,
        add_log_handler=False,
        use_pages=False,
        enable_mcp=False,
    )
    _guard(app, only_loopback=only_loopback)
    # A function: each page that is opened begins with what lies there by then, and need not ask at once.
    app.layout = lambda: _frame(token(catalogue.look()), has_planner=planner is not None)
    for page in PAGES:
        page.register(app, catalogue)
        _keep_address(app, page)
    if planner is not None:
        planner_page.register(app, planner)
    _route(app, catalogue, planner)
    return app


def _frame(listing: str, *, has_planner: bool) -> html.Div:
    """What every page has around it."""
    links = [(page.PATH, page.NAME) for page in PAGES] + ([(PLANNER_PATH, PLANNER_NAME)] if has_planner else [])
    return html.Div(
        [
            dcc.Location(id="url", refresh=False),
            dcc.Interval(id="tick", interval=TICK_MS),
            dcc.Store(id="listing", data=listing),
            dcc.Store(id="titled"),
            html.Header(
                [
                    html.Strong("fedsim"),
                    html.Nav([dcc.Link(name, href=path, id=f"to-{name}") for path, name in links], id="pages"),
                ]
            ),
            html.P(id="alarm", role="alert"),
            html.Main(id="page"),
        ]
    )


def _route(app: Dash, catalogue: Catalogue, planner: Any) -> None:
    pages: dict[str, ModuleType] = {page.PATH: page for page in PAGES}

    @app.callback(
        Output("page", "children"), Output("titled", "data"), Input("url", "pathname"), State("url", "search")
    )
    def show(path: str, search: str | None) -> tuple[Any, str]:
        set_props("alarm", {"children": ""})
        if path == PLANNER_PATH and planner is not None:
            return planner_page.layout(planner), PLANNER_NAME
        page = pages.get(path)
        if page is None:
            return html.P("There is no such page. Choose one above."), "no such page"
        return page.layout(catalogue, parsed(search)), page.NAME

    @app.callback(Output("listing", "data"), Input("tick", "n_intervals"), State("listing", "data"))
    def listen(_: int, before: str) -> str:
        now = token(catalogue.look())
        if now == before:
            raise PreventUpdate  # sent as nothing at all
        return now

    # The title of the tab, and which page the links show as open.
    app.clientside_callback(  # type: ignore[no-untyped-call]
        """(name, path) => {
          document.title = name + " · fedsim";
          document.querySelectorAll("#pages a").forEach((link) => link.getAttribute("href") === path
            ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current"));
        }""",
        Input("titled", "data"),
        State("url", "pathname"),
        prevent_initial_call=True,
    )


def _keep_address(app: Dash, page: Any) -> None:
    """Let the address say what the page shows; without an entry in the browser's history for every click."""
    app.clientside_callback(  # type: ignore[no-untyped-call]
        _ADDRESS, Input(f"{page.__name__.rpartition('.')[2].removesuffix('_page')}-query", "data")
    )


def is_this_machine(name: str) -> bool:
    """Whether a host's name, "localhost", "127.0.0.1" or "[::1]", can only mean the machine that it is said on."""
    try:
        return name.lower() == "localhost" or ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def _guard(app: Dash, *, only_loopback: bool) -> None:
    def refuse_other_names() -> None:
        name = (
            request.host.rpartition(":")[0] if not request.host.endswith("]") and ":" in request.host else request.host
        )
        if only_loopback and not is_this_machine(name):
            abort(403, "This dashboard answers only to 127.0.0.1 and localhost.")

    def keep_to_this_machine(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        return response

    app.server.before_request(refuse_other_names)
    app.server.after_request(keep_to_this_machine)


def _tell(error: Exception) -> None:
    """One line on the page; the rest, where it is our own fault, goes to the terminal."""
    if isinstance(error, BadInput):
        set_props("alarm", {"children": str(error)})
        return
    _logger.error("a callback failed", exc_info=error)
    set_props("alarm", {"children": f"This could not be shown ({type(error).__name__}: {error}). Reload the page."})
