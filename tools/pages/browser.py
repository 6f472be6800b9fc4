"""A real browser for tests of pages, over the DevTools protocol."""

import asyncio
import base64
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

_BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
_BROWSER = next(filter(None, map(shutil.which, _BROWSERS)), None)

_DESK = 600
"""Pixels; what is narrower is a phone, whose scroll bars take no room."""

needs_browser = pytest.mark.skipif(
    _BROWSER is None, reason="no Chromium is on PATH; it is in Debian's package chromium-headless-shell"
)


class Tab:
    """A page in the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._last = 0
        self.console: list[Any] = []
        """What the console was told since the last page, errors and anything else."""

        self.requests: list[str] = []
        """The URLs that the browser asked for since then, the page's own first."""

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method, and return its result."""
        self._last += 1
        await self._socket.send_json({"id": self._last, "method": method, "params": parameters})
        while True:
            message: dict[str, Any] = await self._socket.receive_json()
            if message.get("id") == self._last:
                assert "error" not in message, message
                return dict(message["result"])
            self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, method: str, about: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif method in {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}:
            self.console.append(about)

    async def show(self, file: Path, width: int, scheme: str) -> None:
        """Open a file at a width in pixels, in a colour scheme, "light" or "dark"."""
        await self.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < _DESK}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        self.console.clear()
        self.requests.clear()
        await self.call("Page.navigate", url=file.as_uri())
        shown = ["complete", file.as_uri()]
        while await self.evaluate("[document.readyState, location.href]") != shown:  # noqa: ASYNC110 (see below)
            await asyncio.sleep(0.01)  # between two pages there is none that could tell

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def keep(self, name: str, folder: Path) -> None:
        """Keep a picture of the whole page among the test's outputs, or in a folder without Bazel."""
        picture = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        folder = Path(os.environ.get("TEST_UNDECLARED_OUTPUTS_DIR", folder))
        (folder / f"{name}.png").write_bytes(base64.b64decode(picture["data"]))


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Tab]:
    """Run the browser, whose profile is in a folder, with one tab."""
    assert _BROWSER, "the test is to be marked with needs_browser"
    process = await asyncio.create_subprocess_exec(
        _BROWSER,
        *("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"),
        *("--remote-allow-origins=*", f"--user-data-dir={folder}", "about:blank"),
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stderr
    try:
        while not (
            found := re.search(rb"listening on ws://([^/]+)/", line := await process.stderr.readline())
        ):
            assert line, "the browser ended"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{found[1].decode()}/json/list") as answer:
                (target,) = (target for target in await answer.json() if target["type"] == "page")
            url = target["webSocketDebuggerUrl"]
            async with session.ws_connect(url, max_msg_size=0) as socket:
                yield Tab(socket)
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # what is on PATH may be a script that starts the browser
        await process.wait()


def contrast(one: str, other: str) -> float:
    """Return how well two CSS colours tell apart, from 1 to 21.

    The formula, and what is enough (4.5 for text, 3 for shapes), are WCAG 2.2's 1.4.3 and 1.4.11.
    """
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: str) -> float:
    red, green, blue = (_linear(int(part) / 255) for part in re.findall(r"\d+", color)[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(part: float) -> float:
    return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4  # noqa: PLR2004 (WCAG's)
