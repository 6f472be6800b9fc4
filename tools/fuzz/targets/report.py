"""Reports of the lab and of bad days, which are drawn again."""

from tools.fuzz.input_file import input_file
from tools.fuzz.properties import check_shown
from tools.lab.report.model import read
from tools.lab.report.page import page
from tools.lab.report.picture import picture


def fuzz(data: bytes) -> None:
    """A file is a report that can be drawn, or an error of short lines."""
    try:
        report = read(input_file(data))
    except ValueError as error:
        check_shown(str(error), 300 * (len(data) + 10))
        return
    assert page(report).startswith("<!DOCTYPE html>")
    assert picture(report).startswith("<svg ")
