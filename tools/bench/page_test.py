import asyncio
import base64
import json
import os
import re
import shutil
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tools.bench.page import page, readme_chart
from tools.bench.results import Report, Result, Spread
from tools.bench.ways import BASE, WAYS

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium is on PATH; it is in Debian's package chromium-headless-shell"
)

SEEN = """(() => {
  const box = element => {
    const {left, right, width, height} = element.getBoundingClientRect();
    return {left, right, width, height, text: element.textContent};
  };
  const all = (element, what) => [...element.querySelectorAll(what)].map(box);
  const shown = element => element.getClientRects().length;
  const body = getComputedStyle(document.body);
  return {
    colors: [body.color, body.backgroundColor],
    bars: [...document.querySelectorAll("section rect")].map(rect => getComputedStyle(rect).fill),
    overflow: document.documentElement.scrollWidth - innerWidth,
    width: innerWidth,
    headings: all(document, "h2, h3").map(heading => heading.text),
    charts: [...document.querySelectorAll("section > svg")].filter(shown).map(svg => ({
      box: box(svg), bars: all(svg, "rect"), values: all(svg, ".value"), labels: all(svg, ".beside, .above"),
      marks: all(svg, ".mark"), whiskers: all(svg, ".whisker"),
    })),
  };
})()"""
"""What of the page is on the screen, and where."""


class Tab:
    """A page in a real browser, over the DevTools protocol."""

    def __init__(self, socket):
        self._socket = socket
        self._last = 0

    async def call(self, method, **parameters):
        """Call a method, and return its result."""
        self._last += 1
        await self._socket.send_json({"id": self._last, "method": method, "params": parameters})
        while True:
            answer = await self._socket.receive_json()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                return answer["result"]

    async def show(self, file, width, scheme):
        """Open a file at a width, in a colour scheme, and return what is seen of it."""
        await self.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        await self.call("Page.enable")
        await self.call("Page.navigate", url=file.as_uri())
        while (await self.evaluate("[document.readyState, location.href]")) != ["complete", file.as_uri()]:
            await asyncio.sleep(0.01)  # between two pages there is none that could tell
        return await self.evaluate(SEEN)

    async def evaluate(self, expression):
        """Return the value of a JavaScript expression."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return result["result"].get("value")

    async def keep(self, name, folder):
        """Keep a picture of the whole page among the test's outputs, or in a folder without Bazel."""
        picture = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        folder = Path(os.environ.get("TEST_UNDECLARED_OUTPUTS_DIR", folder))
        (folder / f"{name}.png").write_bytes(base64.b64decode(picture["data"]))


@asynccontextmanager
async def browser(folder):
    """Run a browser with one tab."""
    process = await asyncio.create_subprocess_exec(
        BROWSER,
        *("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"),
        *("--remote-allow-origins=*", f"--user-data-dir={folder}", "about:blank"),
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
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


def measured():
    """Return a report with each kind of load, whose figures all differ."""
    results = [
        Result(
            load=load,
            way=way.name,
            group=way.group,
            unit="call",
            cpu=1e-4 * ratio,
            rate=10,
            ratio=Spread(ratio, ratio * 0.8, ratio * 1.2, 5) if ratio != 1 else Spread(1, 1, 1, 5),
            latencies=latencies,
            others=others,
            series=series,
        )
        for load, latencies, others, series in (
            ("saturation", {}, {}, ""),
            ("paced", {"p50": 0.0004, "p99": 0.002}, {}, ""),
            ("start", {}, {"MB resident then": 60.5}, ""),
            ("1 connection", {}, {}, "a row of loads"),
            ("64 connections", {}, {}, "a row of loads"),
        )
        for way, ratio in zip(WAYS, (1 + 0.13 * index for index in range(len(WAYS))), strict=True)
    ]
    assert results[0].way == BASE
    return Report({"rounds": 5}, results, {"grpc-go": "no Go here"})


CHARTS = [
    ("saturation", "ratio", "median"),
    ("paced", "ratio", "median"),
    ("paced", "latencies", "p50"),
    ("paced", "latencies", "p99"),
    ("start", "ratio", "median"),
    ("start", "others", "MB resident then"),
]
"""The page's charts but for the row of loads: whose figures they show."""


def figures(data, load, *keys):
    """Return the figures of a load from a report's JSON."""
    results = [result for result in data if result["load"] == load]
    for key in keys:
        results = [result[key] for result in results]
    return results


def luminance(color):
    """Return how light a CSS colour is, from 0 to 1."""
    red, green, blue = map(int, re.findall(r"\d+", color)[:3])
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


@pytest.fixture
async def tab(tmp_path):
    """Return a tab of a browser."""
    async with browser(tmp_path / "profile") as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1000])
async def test_the_page_shows_what_the_json_holds(tab, tmp_path, width, scheme):
    """Each figure is beside a bar of its length, readable on a phone and on a desk, by day and night."""
    measured().write(tmp_path / "report.json")
    (tmp_path / "report.html").write_text(page(Report.read(tmp_path / "report.json"), []))
    data = json.loads((tmp_path / "report.json").read_text())["results"]
    seen = await tab.show(tmp_path / "report.html", width, scheme)
    await tab.keep(f"{scheme}-{width}", tmp_path)
    expected = [figures(data, load, *keys) for load, *keys in CHARTS]
    row = sorted((r for r in data if r["series"]), key=lambda r: [way.name for way in WAYS].index(r["way"]))
    expected.append([r["cpu"] for r in row])
    assert len(seen["charts"]) == len(expected)
    for chart, values in zip(seen["charts"], expected, strict=True):
        widths = [bar["width"] / value for bar, value in zip(chart["bars"], values, strict=True)]
        assert max(widths) == pytest.approx(min(widths), rel=0.02)
    values = [value["text"] for value in seen["charts"][0]["values"]]
    assert values == [f"{figure:.2f}" for figure in expected[0]]
    assert [label["text"] for label in seen["charts"][0]["labels"]] == [way.name for way in WAYS]
    assert {"saturation", "paced", "Latency, p99", "start", "a row of loads", "Not measured"} <= set(
        seen["headings"]
    )
    readable(seen, scheme)


def readable(seen, scheme):
    """Check that nothing is cut off, too small, or of the colour of what is behind it."""
    assert seen["overflow"] <= 0
    for chart in seen["charts"]:
        words = chart["values"] + chart["labels"]
        left, right = chart["box"]["left"], chart["box"]["right"]
        assert left >= 0
        assert right <= seen["width"]
        assert all(left <= word["left"] and word["right"] <= right for word in words)
        assert all(word["height"] >= 11 for word in words)
    first = seen["charts"][0]
    (mark,) = first["marks"]
    assert mark["left"] == pytest.approx(first["bars"][0]["right"], abs=1)  # the baseline is where 1 is
    assert len(first["whiskers"]) == len(first["bars"])
    text, back = map(luminance, seen["colors"])
    assert (text < 0.3 and back > 0.9) if scheme == "light" else (text > 0.9 and back < 0.2)
    assert all(abs(luminance(color) - back) > 0.2 for color in seen["bars"])
    assert len(set(seen["bars"])) == 3  # peers, and ours on each engine


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_chart_of_the_readme_is_a_picture_by_itself(tab, tmp_path, scheme):
    """It follows the reader's colours without the page's style, and holds all peers and both engines."""
    (tmp_path / "chart.svg").write_text(readme_chart(measured()))
    await tab.show(tmp_path / "chart.svg", 800, scheme)
    await tab.keep(f"readme-{scheme}", tmp_path)
    words = await tab.evaluate('[...document.querySelectorAll("text")].map(text => text.textContent)')
    ours = {"grpc_common, grpc-aio", "grpc_common, completion-queue"}
    assert {way.name for way in WAYS if way.group == "peers"} | ours == set(words[::2])
    color = await tab.evaluate('getComputedStyle(document.querySelector("text")).fill')
    assert (luminance(color) < 0.3) == (scheme == "light")
