import json

import pytest

from tools.bench.page import page, readme_chart
from tools.bench.results import Report, Result, Spread
from tools.bench.ways import BASE, WAYS
from tools.pages.browser import browser, contrast, needs_browser

pytestmark = needs_browser

WHITE = "rgb(255, 255, 255)"

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


@pytest.fixture
async def tab(tmp_path):
    """Return a tab of a browser."""
    async with browser(tmp_path / "profile") as opened:
        yield opened


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1000])
async def test_the_page_shows_what_the_json_holds(tab, tmp_path, width, scheme):
    """Each figure is beside a bar of its length, readable on a phone and on a desk, by day and night."""
    (tmp_path / "report.json").write_text(measured().to_json())
    (tmp_path / "report.html").write_text(page(Report.read(tmp_path / "report.json"), []))
    data = json.loads((tmp_path / "report.json").read_text())["results"]
    await tab.show(tmp_path / "report.html", width, scheme)
    seen = await tab.evaluate(SEEN)
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
    text, back = seen["colors"]
    assert contrast(text, back) >= 7
    assert all(contrast(color, back) >= 3 for color in seen["bars"])
    assert (contrast(text, WHITE) > contrast(back, WHITE)) == (scheme == "light")
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
    assert (contrast(color, WHITE) > 7) == (scheme == "light")
