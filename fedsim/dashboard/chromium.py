"""A Chromium without a window, told what to do through a pipe: a script in, its answer or a page's PDF out.

Speaks the browser's DevTools protocol, JSON messages that end in a zero byte, over the two pipes of
--remote-debugging-pipe; so it needs neither a network nor a package. Knows nothing of figures.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    # Only pages made here are opened, which ask for nothing; any address is one that does not exist.
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe"),
)
_FIRST_FREE_DESCRIPTOR = 10
# A browser reads from descriptor 3 and writes to 4. Done in the new process: code between fork and exec is not safe with
# threads, and a plain shell knows descriptors of one digit only.
_PUT_PIPES_IN_PLACE = (
    "import os, sys; a = sys.argv; os.dup2(int(a[1]), 3); os.dup2(int(a[2]), 4); os.execv(a[3], a[3:])"
)
_CLOSING_S = 10.0


class BrowserError(RuntimeError):
    """The browser did not start, did not answer, or answered with an error."""


class Page:
    """An empty page in a browser of its own; `open_page` makes and ends it."""

    def __init__(self, to_browser: int, from_browser: int, timeout_s: float) -> None:
        self._to_browser, self._from_browser, self._timeout_s = to_browser, from_browser, timeout_s
        self._n_calls, self._unread, self._session = 0, bytearray(), ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def run(self, script: str) -> Any:
        """The value of a script, awaited if it is a promise."""
        found = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            thrown = found["exceptionDetails"]
            raise BrowserError(str(thrown.get("exception", {}).get("description", thrown["text"])).split("\n", 1)[0])
        return found["result"].get("value")

    def pdf(self, html: str, width_in: float, height_in: float) -> bytes:
        """A page of `html` as a PDF of one sheet without margins. The sheet may be a point larger than asked for."""
        frame = self._call("Page.getFrameTree")["frameTree"]["frame"]["id"]
        self._call("Page.setDocumentContent", frameId=frame, html=html)
        printed = self._call("Page.printToPDF", **print_options(width_in, height_in))
        return base64.b64decode(printed["data"])

    def close(self) -> None:
        """Ask the browser to end."""
        self._session = ""
        self._call("Browser.close")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._n_calls += 1
        message = {"id": self._n_calls, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        written = json.dumps(message).encode() + b"\0"
        try:
            while written:
                written = written[os.write(self._to_browser, written) :]
        except BrokenPipeError as error:
            raise BrowserError("it ended by itself") from error
        until_s = time.monotonic() + self._timeout_s
        # Events come between the answers.
        while (answer := self._next_message(until_s)).get("id") != self._n_calls:
            pass
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error'].get('message', 'no reason given')}")
        return dict(answer["result"])

    def _next_message(self, until_s: float) -> dict[str, Any]:
        while (end := self._unread.find(b"\0")) < 0:
            is_ready, _, _ = select.select([self._from_browser], [], [], max(0.0, until_s - time.monotonic()))
            if not is_ready:
                raise BrowserError(f"no answer within {self._timeout_s:g} s")
            more = os.read(self._from_browser, 1 << 20)
            if not more:
                raise BrowserError("it ended by itself")
            self._unread += more
        message = json.loads(self._unread[:end])
        del self._unread[: end + 1]
        return dict(message)


def print_options(width_in: float, height_in: float) -> dict[str, Any]:
    """One sheet of that size without margins, for Page.printToPDF."""
    none = dict.fromkeys(("marginTop", "marginBottom", "marginLeft", "marginRight"), 0)
    return {"paperWidth": width_in, "paperHeight": height_in, "printBackground": True, "pageRanges": "1"} | none


def find_browser() -> str | None:
    """The path of the first browser of `NAMES` that is there."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_page(browser: str, timeout_s: float = 60.0) -> Iterator[Page]:
    """A page in a new browser, which is gone afterwards. timeout_s: the longest wait for one answer."""
    theirs_in, ours_out = _pipe()
    ours_in, theirs_out = _pipe()
    with tempfile.TemporaryDirectory(prefix="fedsim-browser-", ignore_cleanup_errors=True) as profile:
        command = [sys.executable, "-I", "-S", "-c", _PUT_PIPES_IN_PLACE, str(theirs_in), str(theirs_out)]
        process = subprocess.Popen(
            [*command, browser, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            page = Page(ours_out, ours_in, timeout_s)
            yield page
            with suppress(BrowserError, subprocess.TimeoutExpired):  # what was asked for is here already
                page.close()
                process.wait(_CLOSING_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            os.close(ours_out)
            os.close(ours_in)


def _pipe() -> tuple[int, int]:
    """Both ends of a new pipe, moved out of the way of descriptors 3 and 4."""
    import fcntl  # not on Windows, where Kaleido draws

    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_DESCRIPTOR) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
