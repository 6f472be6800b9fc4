"""Adds up what calls of `bazel test --build_event_json_file=FILE` did, in a line as pytest ends with.

What did not build or did not run counts as failed, and only what these calls did counts at all: in
bazel-testlogs are reports of targets that are gone, too. Runs on the machine's own Python, without Bazel.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse
from xml.etree import ElementTree as ET

SLOWEST = 10
"""How many targets are named with their time."""


@dataclass(frozen=True)
class Case:
    """A test, or a target that has no report of its tests."""

    outcome: str
    where: str
    why: str = ""


def main(*files: str) -> int:
    """Name what failed or was skipped and the slowest targets, then print the totals; 1 if any failed."""
    calls = [read(Path(file)) for file in files]
    cases = [case for events in calls for case in all_cases(events)]
    for case in cases:
        if case.outcome != "passed":
            print(printable(f"{case.outcome}: {case.where}: {case.why}"))
    print_slowest([event for events in calls for event in events])
    count = [case.outcome for case in cases].count
    print(f"{count('passed')} passed, {count('failed')} failed, {count('skipped')} skipped")
    return int(count("failed") > 0 or not cases)


def read(file: Path) -> list[dict[str, Any]]:
    """Return the events of a call; one that is missing or has no end is a call that did not finish."""
    text = file.read_bytes().decode(errors="replace") if file.is_file() else ""
    events = [event for line in text.split("\n") for event in parsed(line)]
    if not any("finished" in event for event in events):
        events.append({"id": {"file": {}}, "aborted": {"description": f"Bazel did not finish: see {file}"}})
    return list({subject(event): event for event in events}.values())


def parsed(line: str) -> Iterator[dict[str, Any]]:
    """Yield the event of a line, unless Bazel was killed while it wrote it."""
    try:
        event = json.loads(line)
    except ValueError:
        return
    if isinstance(event, dict) and event.get("id"):
        yield event


def printable(text: str) -> str:
    """Return what a terminal shows as it is: tests say what they like in their messages."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def subject(event: dict[str, Any]) -> str:
    """Return what an event is of, which is the same for each attempt at a test."""
    test = {name: value for name, value in event["id"].get("testResult", {}).items() if name != "attempt"}
    return json.dumps(event["id"] | {"testResult": test}, sort_keys=True)


def all_cases(events: list[dict[str, Any]]) -> Iterator[Case]:
    """Yield the tests of a call, and what kept tests from running."""
    results = [event for event in events if "testResult" in event]
    ran = {event["id"]["testResult"]["label"] for event in results}
    for event in events:
        yield from obstacles(event, ran)
    for event in results:
        yield from tests(event["id"]["testResult"], event["testResult"])


def obstacles(event: dict[str, Any], ran: set[str]) -> Iterator[Case]:
    """Yield what an event says of targets that were not built, or whose tests did not run."""
    name = next(iter(event["id"]))
    where = str(event["id"][name].get("label") or event["id"][name].get("pattern") or "bazel")
    if aborted := event.get("aborted"):
        if aborted.get("reason") != "SKIPPED":  # not for this platform
            yield Case(
                "failed", where, aborted.get("description", "").partition("\n")[0] or aborted["reason"]
            )
    elif name == "targetCompleted" and not event.get("completed", {}).get("success"):
        yield Case("failed", where, "did not build")
    elif name == "targetCompleted" and has_tests(event) and where not in ran:
        yield Case("failed", where, "did not run")


def has_tests(event: dict[str, Any]) -> bool:
    """Tell whether Bazel announced results of this target's tests."""
    return any("testSummary" in child for child in event.get("children", []))


def tests(target: dict[str, Any], result: dict[str, Any]) -> Iterator[Case]:
    """Yield what a target's JUnit report has, and the target itself if it failed for another reason."""
    reports = [output["uri"] for output in result.get("testActionOutput", []) if output["name"] == "test.xml"]
    cases = [case for uri in reports for case in report(target["label"], Path(unquote(urlparse(uri).path)))]
    yield from cases
    if result["status"] != "PASSED" and all(case.outcome != "failed" for case in cases):
        yield Case("failed", target["label"], result["status"])


def report(label: str, file: Path) -> Iterator[Case]:
    """Yield the tests of a JUnit report."""
    try:
        cases = list(ET.parse(file).iter("testcase"))  # noqa: S314 (our own tests wrote it)
    except (OSError, ET.ParseError) as error:
        yield Case("failed", label, f"its report can't be read: {error}")
        return
    for case in cases:
        reasons = [*case.findall("failure"), *case.findall("error"), *case.findall("skipped")]
        outcome = "passed" if not reasons else "skipped" if reasons[0].tag == "skipped" else "failed"
        why = reasons[0].get("message", "").partition("\n")[0] if reasons else ""
        yield Case(outcome, f"{label}: {case.get('name')}", why)


def print_slowest(events: list[dict[str, Any]]) -> None:
    """Say where the time went."""
    seconds: dict[str, float] = {}
    for event in events:
        if "testResult" in event and not event["testResult"].get("cachedLocally"):
            label = event["id"]["testResult"]["label"]
            seconds[label] = (
                seconds.get(label, 0) + int(event["testResult"].get("testAttemptDurationMillis", 0)) / 1000
            )
    print(f"{sum(seconds.values()):.0f} s of tests in {len(seconds)} targets, the slowest:")
    for label in sorted(seconds, key=seconds.__getitem__, reverse=True)[:SLOWEST]:
        print(f"{seconds[label]:7.0f} s {label}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
