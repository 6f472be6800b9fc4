"""Reports of the lab and of bad days, which are drawn again."""

import os
from pathlib import Path

from tools.fuzz.properties import check_shown
from tools.lab.report.model import read
from tools.lab.report.page import page
from tools.lab.report.picture import picture

_file = os.memfd_create("report.json")
_PATH = Path(f"/proc/self/fd/{_file}")


def fuzz(data: bytes) -> None:
    """A file is a report that can be drawn, or an error of short lines."""
    os.ftruncate(_file, 0)
    os.pwrite(_file, data, 0)
    try:
        report = read(_PATH)
    except ValueError as error:
        check_shown(str(error), 300 * (len(data) + 10))
        return
    assert page(report).startswith("<!DOCTYPE html>")
    assert picture(report).startswith("<svg ")
