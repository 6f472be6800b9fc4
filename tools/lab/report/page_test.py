import html
import re
import shlex
import xml.etree.ElementTree as ET

import pytest
import pytest_asyncio

from tools.lab.report.page import page
from tools.lab.report.picture import picture
from tools.lab.report.testing_report import DURATION, EVENTS, PODS, bad_day, lab
from tools.pages.browser import browser, contrast, needs_browser

# One browser, and so one loop, for all.
pytestmark = [needs_browser, pytest.mark.asyncio(loop_scope="module")]

SEEN = """(() => {
  const box = element => {
    const {left, right, top, bottom, width, height} = element.getBoundingClientRect();
    return {left, right, top, bottom, width, height, text: element.textContent};
  };
  const all = (element, what) => [...element.querySelectorAll(what)].map(box);
  const texts = (element, what) => all(element, what).map(each => each.text);
  const shown = element => element.getClientRects().length > 0;
  const color = (what, property) => getComputedStyle(document.querySelector(what))[property];
  const pod = element => ({
    title: element.querySelector("title").textContent,
    ...Object.fromEntries(["lane", "fair", "over"].map(name => [name, all(element, "." + name)[0]])),
  });
  return {
    width: document.documentElement.scrollWidth,
    scrolled: [...document.querySelectorAll(".scrolled")].map(each => each.scrollWidth - each.clientWidth),
    words: [...document.querySelectorAll("svg text, h1, h2, p, li, dt, dd, td, th")].filter(shown).map(box),
    colors: {
      text: color("body", "color"), back: color("body", "backgroundColor"), soft: color(".soft", "color"),
      lane: color(".lane", "fill"), fair: color(".fair", "fill"), over: color(".over", "fill"),
      failure: color(".failure", "fill"), p99: color("path.p99", "stroke"),
    },
    headings: texts(document, "h1, h2"),
    setting: texts(document, ".setting"),
    summary: [...document.querySelectorAll(".summary tbody tr")].map(row =>
      [...row.querySelectorAll("th, td")].filter(shown).map(cell => cell.textContent)),
    invariants: [...document.querySelectorAll(".invariants tr")].map(row => texts(row, "td")),
    commands: texts(document, "code"),
    events: texts(document, ".events.all li"),
    skipped: texts(document, ".skipped li"),
    runs: [...document.querySelectorAll(".run")].map(run => ({
      id: run.dataset.run, title: texts(run, "h2")[0], about: texts(run, ".about")[0],
      figures: Object.fromEntries([...run.querySelectorAll("[data-figure]")].map(each =>
        [each.dataset.figure, each.querySelector("dd").textContent])),
      causes: texts(run, ".causes li"), own: texts(run, ".events.own li"),
      phases: [...run.querySelectorAll("details tbody tr")].map(row => texts(row, "td")),
      label: run.querySelector("svg.chart").getAttribute("aria-labelledby").split(" ").map(
        id => document.getElementById(id).textContent),
      shapes: all(run, ".shapes")[0], p99: all(run, "path.p99")[0],
      pods: [...run.querySelectorAll(".pod")].map(pod),
      failed: all(run, ".failed"), asides: all(run, "text.aside"),
      marks: [...run.querySelectorAll(".mark")].map(mark =>
        ({...box(mark), shape: mark.querySelector(".badge").tagName})),
      bands: [...run.querySelectorAll(".event")].map(band => ({...box(band), kind: band.classList[1]})),
    })),
  };
})()"""
"""What of the page is on the screen, and where."""

WHITE = "rgb(255, 255, 255)"
FIGURES = ("jain_steady", "new_pod_seconds", "failed_planned", "failed_unplanned")
MORE = ("p50", "p99", "p99_slow_pod", "connections_opened")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tab(tmp_path_factory):
    """Return a tab of a browser."""
    async with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


async def show(tab, tmp_path, report, width=1280, scheme="light"):
    """Show a report's page, and return what is seen of it."""
    (tmp_path / "report.html").write_text(page(report))
    await tab.show(tmp_path / "report.html", width, scheme)
    await tab.keep(f"{report['kind']}-{scheme}-{width}", tmp_path)
    await tab.evaluate('document.querySelectorAll("details").forEach(details => details.open = true)')
    return await tab.evaluate(SEEN)


def number(text):
    """Return a figure that is shown; times in seconds."""
    value, _, unit = text.replace(",", "").partition(" ")
    return float(value) * {"": 1, "s": 1, "ms": 1e-3, "µs": 1e-6}[unit]


def near(value):
    """Return what three digits of a figure are."""
    return pytest.approx(value, rel=0.005, abs=0.0005 if value > 0.1 else 0)


def total(samples, key, *only):
    """Return the sum of what the samples hold under a key."""
    return sum(count for each in samples for name, count in each[key].items() if not only or name in only)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
async def test_the_page_shows_what_the_json_holds(tab, tmp_path, width, scheme):
    """Each figure, event, pod and failed call is there, on a phone and on a desk, by day and night."""
    report = lab()
    seen = await show(tab, tmp_path, report, width, scheme)
    assert [run["id"] for run in seen["runs"]] == [run["name"] for run in report["runs"]]
    names = FIGURES if width == 320 else FIGURES + MORE
    for run, row, shown in zip(report["runs"], seen["summary"], seen["runs"], strict=True):
        assert row[0] == shown["title"] == shown["label"][0] == run["title"]
        assert list(map(number, row[1:])) == [near(run["figures"][name]) for name in names]
        assert set(shown["figures"]) == {*FIGURES, *MORE}
        assert all(number(shown["figures"][name]) == near(run["figures"][name]) for name in FIGURES + MORE)
        assert shown["about"] == run["about"]
        assert f"Jain's index, steady: {shown['figures']['jain_steady']}" in shown["label"][1]
        the_chart_is_right(report, run, shown)
        the_phases_are_right(run, shown)
    assert seen["events"] == [
        f"{number}: {each['title']}, {kind}, {times}{number}{each['title']} {times}"
        f"{', fault' if kind == 'fault' else ''}"
        for number, each in enumerate(report["events"], 1)
        for kind in ("planned event" if each["planned"] else "fault",)
        for times in (span(each["at"], each["until"]),)
    ]
    assert seen["skipped"] == ["the guide's Go client: Go is not on PATH <yet>"]
    assert seen["setting"] == ["Python: 3.14 · cores: 2 · calls a second, each: 40 · by: <b>simulation</b>"]
    it_is_readable(seen, width, scheme)
    assert tab.console == []
    assert tab.requests == [(tmp_path / "report.html").as_uri()]


def span(start, end):
    """Return two times as the page has them."""
    return f"{start:.1f} s" if start == end else f"{start:.1f} to {end:.1f} s"


def the_chart_is_right(report, run, shown):
    """Check that pods, events and failed calls are there, and where they belong on the time axis."""
    left, across = shown["shapes"]["left"], shown["shapes"]["width"]

    def at(seconds):
        return pytest.approx(left + across * seconds / DURATION, abs=1.5)

    pods = {pod["title"].partition(" ")[0]: pod for pod in shown["pods"]}
    assert set(pods) == set(PODS)
    for name, (start, end) in PODS.items():
        assert pods[name]["lane"]["left"] == at(start)
        assert pods[name]["lane"]["right"] == at(DURATION if end is None else end)
        calls = total(run["samples"], "calls", name)
        assert pods[name]["title"].endswith(f": {calls:,} calls")
        assert (pods[name].get("fair") is not None) == (calls > 0)
    for event, band, mark in zip(report["events"], shown["bands"], shown["marks"], strict=True):
        assert (band["left"], band["right"]) == (at(event["at"]), at(event["until"]))
        assert band["kind"] == ("planned" if event["planned"] else "fault")
        assert mark["shape"] == ("circle" if event["planned"] else "rect")
        assert f": {event['title']}, " in mark["text"]
        assert (mark["left"] + mark["right"]) / 2 == at((event["at"] + event["until"]) / 2)
    counted = [int(count) for bar in shown["failed"] for count in re.findall(r"[:,] ([\d]+) U", bar["text"])]
    assert sum(counted) == total(run["samples"], "failed") > 0
    assert [bar["left"] for bar in shown["failed"]] == [at(45), at(49), at(50)]
    assert all(bar["bottom"] <= shown["p99"]["top"] for bar in shown["failed"])
    assert shown["p99"]["width"] == pytest.approx(across, abs=3)


def the_phases_are_right(run, shown):
    """Check the table of phases, and why calls failed."""
    for phase, row in zip(run["phases"], shown["phases"], strict=True):
        assert row[0] == phase["title"]
        assert row[1] == span(phase["from"], phase["to"])
        assert int(row[2].replace(",", "")) == phase["calls"]
        assert [number(cell) if cell != "-" else None for cell in row[3:6]] == [
            phase[key] if phase[key] is None else near(phase[key]) for key in ("jain", "p50", "p99")
        ]
        assert row[6] == (", ".join(f"{count} {why}" for why, count in phase["failed"].items()) or "0")
    reasons = [(count, why) for phase in run["phases"] for why, count in phase["failed"].items()]
    assert sorted(shown["causes"]) == sorted(f"{count} failed otherwise: {why}" for count, why in reasons)


def it_is_readable(seen, width, scheme):
    """Check that nothing is cut off, too small, or of a colour near that of what is behind it."""
    assert seen["width"] <= width
    assert max(seen["scrolled"]) <= 0  # nor anything in it
    assert all(word["left"] >= 0 and word["right"] <= width for word in seen["words"])
    assert all(word["height"] >= 9 for word in seen["words"] if word["text"])
    colors = seen["colors"]
    back = colors["back"]
    assert (contrast(back, WHITE) < 2) == (scheme == "light")
    assert contrast(colors["text"], back) >= 7
    assert contrast(colors["soft"], back) >= 4.5
    assert contrast(colors["p99"], back) >= 3
    for name in ("fair", "over", "failure"):
        assert contrast(colors[name], back) >= 3
        assert contrast(colors[name], colors["lane"]) >= 3


async def test_evenness_is_seen(tab, tmp_path):
    """With pick_first one lane is full and others are empty; with round_robin all are full to the half."""
    seen = await show(tab, tmp_path, lab())
    runs = {run["id"]: {pod["title"].partition(" ")[0]: pod for pod in run["pods"]} for run in seen["runs"]}
    first = runs["pick-first"]["pod-1"]
    assert first["fair"]["height"] == pytest.approx(first["lane"]["height"] / 2, abs=0.5)
    assert first["over"]["height"] == pytest.approx(first["lane"]["height"] / 2, abs=0.5)
    assert first["over"]["bottom"] == pytest.approx(first["fair"]["top"], abs=0.5)
    assert "fair" not in runs["pick-first"]["pod-12"]
    for pod in runs["kubernetes-round-robin"].values():
        assert pod["fair"]["height"] == pytest.approx(pod["lane"]["height"] / 2, abs=0.5)
        assert pod.get("over", {"height": 0})["height"] < pod["lane"]["height"] * 0.15


async def test_p99_of_a_slow_pod_is_higher(tab, tmp_path):
    """A p99 of 250 ms is at 60 % of the scale from 1 ms to 10 s."""
    seen = await show(tab, tmp_path, lab())
    runs = {run["id"]: run for run in seen["runs"]}
    scale = await tab.evaluate(
        "[...document.querySelectorAll('.run')[1].querySelectorAll('.shapes > .grid')].map(line => {"
        "const {top, bottom} = line.getBoundingClientRect(); return {top, bottom} }).at(-1)"
    )
    height = scale["bottom"] - scale["top"]
    reached = (scale["bottom"] - runs["headless-dns"]["p99"]["top"]) / height
    assert reached == pytest.approx(0.60, abs=0.02)
    assert (scale["bottom"] - runs["pick-first"]["p99"]["top"]) / height < 0.3
    words = {aside["text"]: aside for aside in reversed(runs["headless-dns"]["asides"])}  # times come last
    for word, place in (("10 s", scale["top"]), ("1 ms", scale["bottom"])):
        assert (words[word]["top"] + words[word]["bottom"]) / 2 == pytest.approx(place, abs=4)


@pytest.mark.parametrize("width", [320, 1280])
async def test_a_bad_day_begins_with_its_invariants(tab, tmp_path, width):
    """Those that broke stand out, and the command to have the same day again is there."""
    report = bad_day()
    seen = await show(tab, tmp_path, report, width)
    assert seen["headings"][:2] == ["A bad day", "Invariants: 1 of 2 broken"]
    assert seen["invariants"] == [
        ["✓ held", "Acknowledged users are there once", "421 users, pod-1 24 → 25"],
        ["✗ broken", "No call outlives its deadline by 3 s", "1 DEADLINE_EXCEEDED <at 31 s>"],
    ]
    assert seen["commands"] == ["tools/bazel run //tools/bad_day -- --seed=7 --minutes=1 --engine=grpc-aio"]
    assert seen["summary"] == []
    assert [run["figures"] for run in seen["runs"]] == [{"failed_planned": "0", "failed_unplanned": "4"}]
    the_chart_is_right(report, report["runs"][0], seen["runs"][0])
    it_is_readable(seen, width, "light")
    for each in report["invariants"]:
        each["held"] = True
    assert (await show(tab, tmp_path, report, width))["headings"][1] == "Invariants: all held"


async def test_the_numbers_of_many_events_do_not_overlap(tab, tmp_path):
    """A bad day of 20 minutes has a hundred, and a phone 320 pixels."""
    events = [
        {"at": 0.6 * n, "until": 0.6 * n, "name": f"fault-{n}", "title": "x", "planned": n % 3 > 0}
        for n in range(100)
    ]
    seen = await show(tab, tmp_path, bad_day() | {"events": events}, 320)
    (run,) = seen["runs"]
    marks = run["marks"]
    assert len(marks) == 100
    for index, one in enumerate(marks):
        for other in marks[index + 1 :]:
            beside = one["right"] <= other["left"] + 0.5 or other["right"] <= one["left"] + 0.5
            assert beside or one["bottom"] <= other["top"] + 0.5 or other["bottom"] <= one["top"] + 0.5
    assert max(mark["bottom"] for mark in marks) <= run["shapes"]["top"]


async def test_a_run_may_have_its_own_times(tab, tmp_path):
    """Its chart has its events, and a list of them, beside those of all others."""
    report = lab()
    later = {"at": 20, "until": 30, "name": "scale-up", "title": "later", "planned": True}
    report["runs"][1]["events"] = [later]
    seen = await show(tab, tmp_path, report)
    assert len(seen["runs"][0]["bands"]) == len(report["events"])
    assert seen["runs"][0]["own"] == []
    (band,), (own,) = seen["runs"][1]["bands"], seen["runs"][1]["own"]
    shapes = seen["runs"][1]["shapes"]
    assert band["left"] == pytest.approx(shapes["left"] + shapes["width"] / 3, abs=1.5)
    assert own.endswith("later 20.0 to 30.0 s")


async def test_what_must_not_be_stands_out(tab, tmp_path):
    """A new pod that never got its share, and calls that failed in planned events, are marked."""
    report = lab()
    report["runs"][0]["figures"] |= {"new_pod_seconds": None, "failed_planned": 3}
    seen = await show(tab, tmp_path, report)
    assert seen["runs"][0]["figures"]["new_pod_seconds"] == "never"
    marked = await tab.evaluate('[...document.querySelectorAll(".summary .bad")].map(e => e.textContent)')
    assert marked == ["never", "3"]


def odd(**run):
    """Return a report of one run, some of which is otherwise."""
    report = lab()
    return report | {"runs": [report["runs"][0] | run]}


def of_many_pods(count):
    """Return a report of so many pods."""
    names = [f"user-service-{number}" for number in range(count)]
    pods = [{"name": name, "address": "127.0.0.2", "from": 0, "to": None} for name in names]
    sample = {"at": 60, "calls": dict.fromkeys(names, 3), "failed": {}, "p50": 0, "p99": 0, "connections": 1}
    return odd(pods=pods, samples=[sample])


TURNED, LONG = "\N{RIGHT-TO-LEFT OVERRIDE}deppots \N{HEBREW LETTER ALEF}", "user-service" * 40
ODD = {
    "nothing": odd(pods=[], samples=[], phases=[], events=[]),
    "no call": odd(samples=[], phases=[]),
    "an instant": odd(pods=[], samples=[], phases=[], events=[], duration=1e-3),
    "a week": odd(duration=7 * 86_400.0),
    "one pod": of_many_pods(1),
    "many pods": of_many_pods(40),
    "at once": odd(events=[EVENTS[0] | {"planned": number % 2 == 0} for number in range(60)]),
    "after the end": odd(events=[EVENTS[0] | {"at": 70.0, "until": 90.0}]),
    "long": odd(title=LONG, about=LONG, events=[EVENTS[0] | {"title": LONG}]) | {"title": LONG},
    "control": odd(title="a\0b\x1b[31mc\ufffe", about="\x85") | {"events": [EVENTS[0] | {"title": "\x08"}]},
    "turned": odd(title=TURNED) | {"events": [EVENTS[0] | {"title": TURNED}]},
    "spaces": odd(name="a b\nc%20#"),
}


@pytest.mark.parametrize("report", ODD.values(), ids=ODD.keys())
async def test_an_odd_report_is_a_page_too(tab, tmp_path, report):
    """It is as wide as a phone, asks for nothing, and its chart has its name; the picture is well-formed."""
    (tmp_path / "page.html").write_text(page(report))
    await tab.show(tmp_path / "page.html", 320, "dark")
    assert await tab.evaluate("document.documentElement.scrollWidth") <= 320
    named = "getAttribute('aria-labelledby').split(' ').every(id => document.getElementById(id))"
    assert await tab.evaluate(f"document.querySelector('svg.chart').{named}")
    assert await tab.evaluate("document.querySelectorAll('svg.chart text').length") < 200
    assert tab.console == []
    assert tab.requests == [(tmp_path / "page.html").as_uri()]
    ET.fromstring(picture(report))  # noqa: S314 (it is our own)


async def test_the_direction_of_a_text_is_its_own(tab, tmp_path):
    """What is written from right to left in a title leaves the times beside it readable."""
    (tmp_path / "page.html").write_text(page(ODD["turned"]))
    await tab.show(tmp_path / "page.html", 1280, "light")
    title, times = await tab.evaluate(
        '["bdi", ".soft"].map(what => document.querySelector(".events li " + what).getBoundingClientRect().x)'
    )
    assert title < times


async def test_a_page_can_ask_nobody(tab, tmp_path):
    """Its policy lets nothing in, should any text of a report get to be HTML one day."""
    (tmp_path / "page.html").write_text(page(lab()))
    await tab.show(tmp_path / "page.html", 1280, "light")
    await tab.evaluate('document.body.append(Object.assign(new Image(), {src: "http://127.0.0.1:9/"}))')
    await tab.evaluate("0")  # what the browser has said until then is read
    assert "Content Security Policy" in str(tab.console)


async def test_the_command_of_a_report_is_one():
    """Whoever copies the command to have a day again runs nothing else, whoever has written the report."""
    shown = page(bad_day() | {"setting": {"minutes": "1; rm -rf ~", "engine": "$(id)"}})
    command = html.unescape(re.search("<code>(.*)</code>", shown)[1])
    assert shlex.split(command)[-3:] == ["--seed=7", "--minutes=1; rm -rf ~", "--engine=$(id)"]


EVIL = """</title></svg></style>"'><script>document.title = "evil"</script>&amp;"""


def evil(part, *path):
    """Return a part of a report whose texts, and keys that are texts, have what HTML takes for its own."""
    if isinstance(part, dict):
        texts = path and path[-1] in {"calls", "failed", "setting"}
        return {f"{key}{EVIL}" if texts else key: evil(value, *path, key) for key, value in part.items()}
    if isinstance(part, list):
        return [evil(each, *path) for each in part]
    return f"{part}{EVIL}" if isinstance(part, str) and path[-1:] != ("kind",) else part


@pytest.mark.parametrize("report", [lab(), bad_day()], ids=["lab", "bad-day"])
async def test_texts_are_never_taken_for_html(tab, tmp_path, report):
    """Whatever names, titles and errors hold is shown as it is, in the page and in the picture."""
    (tmp_path / "page.html").write_text(page(evil(report)))
    (tmp_path / "picture.svg").write_text(picture(evil(report)))
    await tab.show(tmp_path / "page.html", 1280, "light")
    shown = await tab.evaluate("document.documentElement.textContent")
    parts = ("setting", "events", "runs", "skipped", "invariants")
    causes = [f"{why}{EVIL}" for run in report["runs"] for each in run["samples"] for why in each["failed"]]
    assert all(cause in shown for cause in causes)
    assert all(text in shown for part in parts for text in texts(evil(report.get(part), part)))
    assert await tab.evaluate("document.title") == report["title"] + EVIL
    assert await tab.evaluate('document.querySelectorAll("script").length') == 0
    await tab.show(tmp_path / "picture.svg", 848, "light")
    assert await tab.evaluate('document.querySelectorAll("script").length') == 0
    assert await tab.evaluate('document.querySelectorAll("svg > title").length') > 0
    ET.fromstring(picture(evil(report)))  # noqa: S314 (it is our own)


def texts(part):
    """Return the titles and the like that a part of a report holds."""
    if isinstance(part, dict):
        own = [value for key, value in part.items() if key in {"title", "about", "why", "detail", "address"}]
        return own + [text for value in part.values() for text in texts(value)]
    return [text for each in part for text in texts(each)] if isinstance(part, list) else []


async def test_the_words_of_the_picture_never_overlap(tab, tmp_path):
    """Neither those of the next strategy, where there are few pods, nor the lanes beside a long title."""
    report = lab()
    for run in report["runs"]:
        run["pods"] = [run["pods"][0]]
        run["title"] = "pick_first, max_connection_age"
        run["samples"] = [each | {"calls": {"pod-1": 20}} for each in run["samples"]]
    (tmp_path / "lab.svg").write_text(picture(report))
    await tab.show(tmp_path / "lab.svg", 848, "light")
    names, others, lanes = await tab.evaluate("""[".name", ".aside:not(.name)", ".shapes"].map(what =>
      [...document.querySelectorAll(what)].map(element => {
        const {left, right, top, bottom} = element.getBoundingClientRect();
        return {left, right, top, bottom} }))""")
    assert len(names) == len(lanes) == len(report["runs"])
    assert all(name["right"] <= lane["left"] for name in names for lane in lanes)
    for name in names[1:]:
        assert not any(other["top"] < name["top"] + 2 < other["bottom"] for other in others)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_picture_of_the_readme_stands_by_itself(tab, tmp_path, scheme):
    """It follows the reader's colours without a page, and names all strategies and events side by side."""
    report = lab()
    (tmp_path / "lab.svg").write_text(picture(report))
    ET.fromstring(picture(report))  # noqa: S314 (it is our own)
    await tab.show(tmp_path / "lab.svg", 848, scheme)
    await tab.keep(f"readme-{scheme}", tmp_path)
    words = await tab.evaluate("""[...document.querySelectorAll("text")].map(text => {
      const {left, right, top, bottom} = text.getBoundingClientRect();
      return {left, right, top, bottom, text: text.textContent, color: getComputedStyle(text).fill} })""")
    shown = {word["text"]: word for word in words}
    assert {run["title"] for run in report["runs"]} <= set(shown)
    for known in (run["figures"] for run in report["runs"]):
        assert f"Jain's index {known['jain_steady']:.3f}" in shown
        assert f"failed: {known['failed_planned']} planned, {known['failed_unplanned']} otherwise" in shown
    waits = [word.removeprefix("new pod has its share: ") for word in shown if word.startswith("new pod")]
    assert set(map(number, waits)) == {run["figures"]["new_pod_seconds"] for run in report["runs"]}
    assert all(word["left"] >= 0 and word["right"] <= 848 for word in words)
    titles = [shown[event["title"]] for event in report["events"]]
    for index, one in enumerate(titles):
        assert all(one["right"] < t["left"] or one["top"] != t["top"] for t in titles[index + 1 :])
    assert (contrast(titles[0]["color"], WHITE) > 7) == (scheme == "light")
    paper, lane, *fills = await tab.evaluate(
        '["paper", "lane", "fair", "over", "failure"].map(each => '
        'getComputedStyle(document.querySelector("." + each)).fill)'
    )
    assert contrast(paper, lane) < 2
    assert all(contrast(fill, lane) >= 3 for fill in fills)
    pods = await tab.evaluate('[...document.querySelectorAll(".pod title")].map(pod => pod.textContent)')
    assert len(pods) == len(PODS) * len(report["runs"])
    assert tab.console == []
    assert tab.requests == [(tmp_path / "lab.svg").as_uri()]
