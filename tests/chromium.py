"""A headless Chromium driven over its DevTools pipe, with the standard library and numpy alone.

The browser reads commands from its file descriptor 3 and answers on 4, as JSON messages that end with a zero byte
(``--remote-debugging-pipe``). No port is opened and no driver is needed.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

BINARY = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "no chromium, chromium-browser or google-chrome in PATH: the page can't be opened"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--hide-scrollbars", "--force-color-profile=srgb"]
FLAGS += ["--remote-debugging-pipe"]
PATIENCE = 60.0  # seconds for one answer; a busy machine is slow to start a browser


class Browser:
    """One browser process; ``open`` gives a tab."""

    def __init__(self, profile: Path, log: Path) -> None:
        assert BINARY, MISSING
        ends = [*os.pipe(), *os.pipe()]
        # Out of the way of 3 and 4, where the browser wants them.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in ends]
        for fd in ends:
            os.close(fd)
        browser_in, self.outgoing, self.incoming, browser_out = high
        log_file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        moves = [(os.POSIX_SPAWN_DUP2, a, b) for a, b in ((browser_in, 3), (browser_out, 4), (log_file, 1), (log_file, 2))]
        command = [BINARY, *FLAGS, f"--user-data-dir={profile}"]
        self.pid = os.posix_spawn(BINARY, command, dict(os.environ), file_actions=moves, setpgroup=0)
        for fd in (browser_in, browser_out, log_file):
            os.close(fd)
        self.log, self.buffer, self.number = log, b"", 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer; events that come before it are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self.outgoing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._keep(answer)

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.incoming], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(self.incoming, 1 << 20) if ready else b""
            if not piece:
                what = "ended" if ready else f"gave no answer for {PATIENCE:.0f} s"
                raise RuntimeError(f"{BINARY} {what}: {self.log.read_text(errors='replace')[-2000:]}")
            self.buffer += piece
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _keep(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event.get("method") == "Page.javascriptDialogOpening":
            # An open dialog would stop the page for good.
            self.number += 1
            close = {"id": self.number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            os.write(self.outgoing, json.dumps({**close, "sessionId": event["sessionId"]}).encode() + b"\0")

    def until(self, method: str, session: str) -> None:
        """Waits for an event of a tab."""
        while not any(e.get("method") == method and e.get("sessionId") == session for e in self.events):
            self._keep(self._read())

    def close(self) -> None:
        with suppress(OSError, RuntimeError):
            self.call("Browser.close")
        os.close(self.outgoing)
        os.close(self.incoming)
        end = time.monotonic() + 10
        while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.killpg(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                break
            time.sleep(0.02)


class Tab:
    """A page that is open, what it asked for and what it complained about."""

    def __init__(self, browser: Browser, page: Path, width: int, height: int, *, dark: bool = False, offline: bool = True) -> None:
        self.browser, self.uri = browser, page.as_uri()
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Network.emulateNetworkConditions", offline=offline, latency=0, downloadThroughput=-1, uploadThroughput=-1)
        self.size(width, height)
        self.media(dark)
        self.call("Page.navigate", url=self.uri)
        browser.until("Page.loadEventFired", self.session)
        # A late request or console message has arrived once this is answered.
        self.evaluate("new Promise(done => setTimeout(done, 100))")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def media(self, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def evaluate(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def _events(self, method: str) -> Iterator[dict[str, Any]]:
        return (e["params"] for e in self.browser.events if e.get("method") == method and e.get("sessionId") == self.session)

    def requests(self) -> list[str]:
        """Every address that the page asked for, itself and its inline images aside."""
        asked = [e["request"]["url"] for e in self._events("Network.requestWillBeSent")]
        return [url for url in asked if url != self.uri and not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """Console messages of any level, uncaught errors, what the policy blocked, and dialogs."""
        messages = [e["entry"]["text"] for e in self._events("Log.entryAdded")]
        messages += [str(e["args"]) for e in self._events("Runtime.consoleAPICalled")]
        messages += [e["exceptionDetails"]["text"] for e in self._events("Runtime.exceptionThrown")]
        return messages + [f"dialog: {e['message']}" for e in self._events("Page.javascriptDialogOpening")]

    def screenshot(self, *, whole: bool = True) -> bytes:
        """A PNG file of the window, or of the whole page at the window's width."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": self.evaluate("innerWidth"), "height": size["height"], "scale": 1}
        more = {"clip": clip, "captureBeyondViewport": True} if whole else {}
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", optimizeForSpeed=True, **more)["data"])

    def pdf(self) -> bytes:
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"])


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with an empty profile under ``folder``, closed at the end."""
    started = Browser(folder / "profile", folder / "chromium.log")
    try:
        yield started
    finally:
        started.close()


def pixels(png: bytes) -> np.ndarray:
    """A PNG file of 8 bits a channel, not interlaced, as uint8 [height, width, channels]."""
    at, data = 8, b""
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", body)
            assert depth == 8 and not interlaced, body
        data += body if kind == b"IDAT" else b""
        at += 12 + size
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colours]
    lines = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + width * channels)
    above, out = np.zeros((width, channels), np.uint8), np.empty((height, width, channels), np.uint8)
    for row, line in zip(out, lines, strict=True):
        row[:] = _unfiltered(int(line[0]), line[1:].reshape(width, channels), above)
        above = row
    return out


def _unfiltered(kind: int, line: np.ndarray, above: np.ndarray) -> np.ndarray:
    """One line of a PNG (its filters 0 to 4) with its filter undone; all sums are modulo 256."""
    if kind == 0:
        return line
    if kind == 1:
        return np.cumsum(line, axis=0, dtype=np.uint8)
    if kind == 2:
        return line + above
    left, corner, out = [0] * line.shape[1], [0] * line.shape[1], []
    for given, up in zip(line.tolist(), above.tolist(), strict=True):
        guess = map(_average if kind == 3 else _paeth, left, up, corner)
        left, corner = [(a + b) % 256 for a, b in zip(given, guess, strict=True)], up
        out.append(left)
    return np.array(out, np.uint8)


def _average(left: int, up: int, _: int) -> int:
    return (left + up) // 2


def _paeth(left: int, up: int, corner: int) -> int:
    middle = left + up - corner
    return min((left, up, corner), key=lambda value: abs(value - middle))
