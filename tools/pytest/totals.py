"""Adds up the JUnit reports below folders, such as bazel-testlogs, in a line as pytest ends with.

Runs on the machine's own Python, without Bazel.
"""

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET


def outcome(case: ET.Element) -> str:
    """Return what became of a test."""
    if case.find("failure") is not None or case.find("error") is not None:
        return "failed"
    return "skipped" if case.find("skipped") is not None else "passed"


def main(*folders: str) -> None:
    """Name each test that failed or was skipped, then print the totals."""
    totals: Counter[str] = Counter()
    for report in sorted(xml for folder in folders for xml in Path(folder).resolve().rglob("test.xml")):
        for case in ET.parse(report).iter("testcase"):  # noqa: S314 (our own tests wrote it)
            totals[outcome(case)] += 1
            for reason in (*case.findall("failure"), *case.findall("error"), *case.findall("skipped")):
                message = reason.get("message", "").partition("\n")[0]
                print(f"{outcome(case)}: {report.parent.name}: {case.get('name')}: {message}")
    print(f"{totals['passed']} passed, {totals['failed']} failed, {totals['skipped']} skipped")


if __name__ == "__main__":
    main(*sys.argv[1:])
