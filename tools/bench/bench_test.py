import itertools
import json
import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from typing import override

import pytest

from tools.bench.charts import Bar, chart
from tools.bench.loads import CORES, LOADS, LoadError
from tools.bench.measuring import measure, percentiles
from tools.bench.page import page
from tools.bench.plan import SHORT, WHOLE
from tools.bench.results import Report, Result, Spread, changes
from tools.bench.ways import BASE

COMMAND = ["tools/bench/bench", "--quick", "--rounds", "1", "--seconds", "0.05", "--connections", "50"]

needs_h2load = pytest.mark.skipif(
    shutil.which("h2load") is None, reason="h2load is not on PATH; it is in Debian's package nghttp2-client"
)


class Parsed(HTMLParser):
    """What a page holds; an element that is not closed in its turn is an error."""

    EMPTY = ("meta", "path", "rect")

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    @override
    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in self.EMPTY:
            self.open.append(tag)

    @override
    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs

    @override
    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    @override
    def handle_data(self, data):
        self.text += data


def result(way=BASE, ratio=(1.0, 1.0, 1.0, 5), **others):
    """Return a result of the load `a load`."""
    values = {"load": "a load", "way": way, "group": "peers", "unit": "call", "cpu": 1e-4, "rate": 10}
    return Result(**values | {"ratio": Spread(*ratio), "latencies": {}} | others)


def report(*results, skipped=None):
    """Return a report of `results`."""
    return Report({"rounds": 3}, list(results), skipped or {})


@needs_h2load
def test_each_server_is_measured_under_each_load(tmp_path):
    """One run prints all, and keeps it as JSON, as a page and as the README's chart."""
    environment = os.environ | {"BUILD_WORKING_DIRECTORY": str(tmp_path)}
    command = [*COMMAND, "--output", "new", "--chart", "chart.svg"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    data = json.loads((tmp_path / "new/report.json").read_text())
    assert data["skipped"].keys() <= {"grpc-go"}  # which needs Go and its modules
    ways = [way.name for way in SHORT.resting if way.name not in data["skipped"]]
    results = {(entry["load"], entry["way"]): entry for entry in data["results"]}
    rests = ["start, until it serves", "50 idle connections, each opened once"]
    assert list(results) == list(itertools.product([*(load.name for load in LOADS), *rests], ways))
    assert all(entry["cpu"] > 0 for entry in results.values())
    for load in LOADS:
        assert all(results[load.name, way]["rate"] > 0 for way in ways)
        assert results[load.name, BASE]["ratio"] == {"median": 1, "least": 1, "most": 1, "rounds": 1}
        # On a busy machine one server may get too few calls in so short a time; not all of them.
        assert any(results[load.name, way]["latencies"] for way in ways) == bool(load.rate)
    for way in ways:
        others = results[rests[0], way]["others"] | results[rests[1], way]["others"]
        assert others["seconds until it serves"] > 0
        assert others["MB resident then"] > 1
        assert others["% of a processor while all are idle"] >= 0
        assert way in ended.stdout
    written = Parsed((tmp_path / "new/report.html").read_text())
    assert written.seen.count("svg") >= len(LOADS)
    assert Report.read(tmp_path / "new/report.json").results[0].way == BASE
    ET.parse(tmp_path / "chart.svg")  # noqa: S314 (our own)


@needs_h2load
def test_an_older_report_is_shown_without_measuring(tmp_path):
    """--report makes the page and the chart of a JSON file alone."""
    (tmp_path / "old.json").write_text(report(result(), result("grpc-go")).to_json())
    command = [*COMMAND[:1], "--report", tmp_path / "old.json", "--output", tmp_path / "new"]
    ended = subprocess.run(
        [*command, "--chart", tmp_path / "chart.svg"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert Report.read(tmp_path / "new/report.json") == Report.read(tmp_path / "old.json")
    assert "grpc-go" in (tmp_path / "new/report.html").read_text()
    assert "grpc-go" in (tmp_path / "chart.svg").read_text()


@needs_h2load
def test_relays_methods_and_processors_are_measured():
    """Each of a few servers gets the loads that are not about what it has switched on."""
    tasks = [task for task in WHOLE.tasks if task[1] not in LOADS and task[0].engine == "completion-queue"]
    base = [task for task in WHOLE.tasks if task[1] not in LOADS and task[0].name == BASE]
    results, skipped = measure(replace(WHOLE, rounds=1, seconds=0.05, tasks=base + tasks), list)
    assert skipped == {}
    assert {r.load for r in results} == {load.name for _, load in base}
    assert all(r.cpu > 0 and r.rate > 0 for r in results)
    assert {r.series for r in results if "processor" in r.load} == {CORES[0].series}


def test_without_h2load_the_package_is_named(tmp_path, monkeypatch):
    """A machine without h2load gets told where it is, before any server starts."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoadError, match="nghttp2-client"):
        measure(WHOLE, list)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 0}', '{"version": 2, "results": [{}]}', "\x00"]
)
def test_what_is_no_report_is_refused_before_anything_is_measured(tmp_path, text):
    """--compare names the file that it can't read."""
    (tmp_path / "old.json").write_text(text)
    command = [*COMMAND, "--compare", tmp_path / "old.json", "--output", tmp_path / "new"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "old.json" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("option", "name"), [("--output", "file/new"), ("--chart", "missing/chart.svg")])
def test_what_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, option, name):
    """Nobody measures for ten minutes to learn that there is no such folder."""
    (tmp_path / "file").touch()
    (tmp_path / "old.json").write_text(report(result()).to_json())
    command = [*COMMAND[:1], "--report", tmp_path / "old.json", "--output", tmp_path / "new"]
    ended = subprocess.run([*command, option, tmp_path / name], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert name in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_a_report_is_read_as_it_was_written(tmp_path):
    """The JSON file holds all of a report."""
    whole = report(result(latencies={"p50": 0.001}), skipped={"x": "why"})
    (tmp_path / "report.json").write_text(whole.to_json())
    assert Report.read(tmp_path / "report.json") == whole


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ((0.5, 0.4, 0.6, 5), (0.3, 0.2, 0.39, 5), "yes"),
        ((0.5, 0.4, 0.6, 5), (0.8, 0.7, 0.9, 6), "yes"),
        ((0.5, 0.4, 0.6, 5), (0.45, 0.3, 0.5, 5), "within the spread"),
        ((0.5, 0.4, 0.6, 5), (0.6, 0.6, 0.7, 5), "within the spread"),
        ((0.5, 0.4, 0.6, 5), (0.3, 0.2, 0.39, 2), "too few rounds to say"),
        ((0.5, 0.4, 0.6, 2), (0.3, 0.2, 0.39, 5), "too few rounds to say"),
    ],
)
def test_a_change_is_clear_when_enough_rounds_are_apart(old, new, verdict):
    """What only one of two reports has is not compared."""
    then, now = report(result(ratio=old), result("gone")), report(result(ratio=new), result("added"))
    (change,) = changes(then, now)
    assert (change.old.median, change.new.median, change.verdict) == (old[0], new[0], verdict)


def test_a_page_needs_nothing_else_and_hides_nothing():
    """It has no script and no address, both colour schemes, and every text as it is."""
    old = report(result("<b>&", ratio=(2.0, 1.0, 3.0, 5)))
    new = report(result(), result("<b>&", latencies={"p50": 0.001}), skipped={"<i>": "<script>"})
    text = page(new, changes(old, new))
    parsed = Parsed(text)
    assert not {"script", "link", "img", "iframe", "i", "b"} & set(parsed.seen)
    assert not {"href", "src"} & {name for name, _ in parsed.attributes}
    assert "prefers-color-scheme: dark" in text
    for shown in ("<b>&", "<i>: <script>", "p50", "1 ms", "a clear change"):
        assert shown in parsed.text


def test_half_a_character_is_shown_as_one_that_is_missing():
    """The JSON of a report from elsewhere can have half a surrogate pair, and UTF-8 can't."""
    text = page(report(result(), result("half \ud800")), [])
    assert "half \ufffd" in text
    assert "\ud800" not in text


@pytest.mark.parametrize("values", [[0.0], [0.2, 1.0, 3.5], [1e-9, 1e9]])
def test_a_chart_holds_all_of_its_bars(values):
    """No bar, whisker or mark leaves the picture, however large the figures are."""
    bars = [Bar("a", value, "text", 0, (value / 2, value * 2)) for value in values]
    root = ET.fromstring(chart("title", bars, mark=1))  # noqa: S314 (our own)
    name = "{http://www.w3.org/2000/svg}"
    width = float(root.attrib["viewBox"].split()[2])
    bodies = root.findall(f".//{name}rect")
    assert len(bodies) == len(values)
    assert all(0 <= float(bar.attrib["width"]) <= width - float(bar.attrib["x"]) for bar in bodies)
    assert all(float(text.attrib["x"]) < width - 90 for text in root.findall(f".//{name}text"))


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, []), (2, ["p50"]), (99, ["p50"]), (100, ["p50", "p99"]), (1000, ["p50", "p99", "p99.9"])],
)
def test_a_percentile_is_told_when_calls_lie_beyond(count, told):
    """p99.9 of a hundred calls would be the slowest of them, and says nothing."""
    latencies = list(map(float, range(count)))
    found = percentiles(latencies)
    assert list(found) == told
    assert all(value < latencies[-1] for value in found.values())
