"""Serve the dashboard on this machine until it is told to stop."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsim.facts import BadInput

if TYPE_CHECKING:
    from dash import Dash


def serve(folder: Path, host: str, port: int, tell: Callable[[str], None]) -> None:
    """Serve until Ctrl-C. port: 0 for any that is free. tell: called with the address once it listens.

    Raises BadInput if there is no such folder or the address cannot be had.
    """
    if not folder.is_dir():
        raise BadInput(
            f"{folder} is not a folder; give the folder that holds your runs, or make some: fedsim run SCENARIO"
        )
    listening = _listening(host, port)
    try:
        _serve(_app(folder, host), listening, host, tell)
    finally:
        listening.close()


def _app(folder: Path, host: str) -> Dash:
    from fedsim.commands.planner import Planner
    from fedsim.dashboard.live.app import is_this_machine, make_app

    return make_app(folder, Planner.of_folder(folder), only_loopback=is_this_machine(host))


def _listening(host: str, port: int) -> socket.socket:
    """A socket of that address, before anything slow is imported: a port that is taken is said at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)
    except (OSError, OverflowError) as error:
        listening.close()
        why = getattr(error, "strerror", None) or error
        raise BadInput(f"--host {host} --port {port}: {why}; choose another port with --port, or 0 for any") from error
    return listening


def _serve(app: Dash, listening: socket.socket, host: str, tell: Callable[[str], None]) -> None:
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        """Says nothing of requests that went well."""

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            pass

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    port = listening.getsockname()[1]
    server: Any = make_server(host, port, app.server, threaded=True, request_handler=Quiet, fd=listening.fileno())
    try:
        tell(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
        server.serve_forever()
    finally:
        server.server_close()
