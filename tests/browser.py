"""Show pages in a headless Chromium, driven over the DevTools protocol on a pair of pipes."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
NOT_INSTALLED = f"no browser is installed: none of {', '.join(NAMES)} (apt-get install chromium)"
SECONDS = 60.0
# Chromium reads its pipes from these two descriptors.
READS, WRITES = 3, 4
TAKE_PIPES = (
    "import os, sys; r, w = int(sys.argv[1]), int(sys.argv[2]); "
    f"os.dup2(r, {READS}); os.dup2(w, {WRITES}); os.execv(sys.argv[3], sys.argv[3:])"
)
# A container has no user namespaces for the sandbox, and little shared memory.
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--remote-debugging-pipe"),
    "--hide-scrollbars",
)


def find_browser() -> str | None:
    """Return the path of a Chromium, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """Send commands to one page, and keep the events that it sends back."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._session: str | None = None
        self._number = 0
        self._buffer = b""
        self.events: list[dict[str, Any]] = []

    def attach(self) -> None:
        """Open an empty page and listen to what it loads and says."""
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the result of one command; events that come before it are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def wait(self, event: str) -> None:
        """Read until an event has come since the last `show`."""
        while not any(found.get("method") == event for found in self.events):
            self.events.append(self._next())

    def show(
        self,
        page: Path,
        *,
        width: int,
        dark: bool = False,
        printed: bool = False,
        scripts: bool = True,
    ) -> None:
        """Load a file at a width in pixels of the style sheet; its own programs run or do not."""
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call(
            "Emulation.setEmulatedMedia", media="print" if printed else "screen", features=[scheme]
        )
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Return left, top, width and height of the first such element, brought into view."""
        found = self.evaluate(
            f"(() => {{ const each = document.querySelector({json.dumps(selector)});"
            "each.scrollIntoView({block: 'center'}); const box = each.getBoundingClientRect();"
            "return JSON.stringify([box.x, box.y, box.width, box.height]) })()"
        )
        x, y, width, height = json.loads(found)
        return x, y, width, height

    def drag(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """Press the mouse at one point of the window, move it to another, and release it there."""
        held = {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, **held)
        for part in (0.25, 0.5, 0.75, 1.0):
            at = {"x": x + (to_x - x) * part, "y": y + (to_y - y) * part}
            self.call("Input.dispatchMouseEvent", type="mouseMoved", button="left", buttons=1, **at)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=to_x, y=to_y, **held)

    def click(self, selector: str) -> None:
        """Click the middle of an element."""
        x, y, width, height = self.box(selector)
        self.drag(x + width / 2, y + height / 2, x + width / 2, y + height / 2)

    def press(self, key: str, code: int) -> None:
        """Press a key, by its name and its number of Windows, in the element that has the focus."""
        for kind in ("rawKeyDown", "keyUp"):
            known = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            self.call("Input.dispatchKeyEvent", type=kind, **known)

    def pixels(self, x: float, y: float, width: float, height: float) -> bytes:
        """Return a PNG of a part of the window."""
        scroll = json.loads(self.evaluate("JSON.stringify([scrollX, scrollY])"))
        clip = {"x": x + scroll[0], "y": y + scroll[1], "width": width, "height": height}
        made = self.call("Page.captureScreenshot", clip={**clip, "scale": 1})
        return base64.b64decode(made["data"])

    def requests(self) -> list[str]:
        """Return the addresses that the page asked for, without those that hold their data."""
        sent = (e for e in self.events if e.get("method") == "Network.requestWillBeSent")
        every = [event["params"]["request"]["url"] for event in sent]
        return [url for url in every if not url.startswith("data:")]

    def messages(self) -> list[str]:
        """Return what the page wrote to the console, and its errors."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(e["params"]) for e in self.events if e.get("method") in kinds]

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write a PNG of the page as it is shown."""
        made = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(made["data"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], SECONDS)
            assert ready, f"the browser said nothing for {SECONDS:g} s"
            part = os.read(self._from, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


@contextmanager
def open_browser(program: str, profile: Path) -> Iterator[Browser]:
    """Start a browser with a profile of its own, and end it."""
    child_reads, we_write = pipe()
    we_read, child_writes = pipe()
    pipes = (str(child_reads), str(child_writes))
    command = [sys.executable, "-c", TAKE_PIPES, *pipes, program, *ARGUMENTS]
    process = subprocess.Popen(
        [*command, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(child_reads, child_writes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(child_reads)
    os.close(child_writes)
    try:
        browser = Browser(we_write, we_read)
        browser.attach()
        yield browser
        browser._session = None
        browser.call("Browser.close")
        process.wait(SECONDS)
    finally:
        os.close(we_write)
        os.close(we_read)
        if process.poll() is None:
            process.kill()
            process.wait(SECONDS)
        # Its helpers write into the profile for a moment longer.
        time.sleep(0.2)


def pipe() -> tuple[int, int]:
    """Return a pipe whose ends are not the two descriptors that Chromium reads."""
    ends = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return high[0], high[1]
