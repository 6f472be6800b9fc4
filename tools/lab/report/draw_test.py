import json
import subprocess

import pytest

from tools.lab.report.testing_report import lab


def draw(*arguments):
    """Run the command."""
    return subprocess.run(["tools/lab/report/draw", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def report(tmp_path):
    """Return a file with a report."""
    (tmp_path / "report.json").write_text(json.dumps(lab()))
    return tmp_path / "report.json"


def test_the_page_and_the_picture_are_written(report, tmp_path):
    """Each goes into the file that was asked for."""
    html, svg = tmp_path / "page.html", tmp_path / "picture.svg"
    done = draw(report, "--html", html, "--picture", svg)
    assert (done.returncode, done.stderr) == (0, "")
    assert html.read_text().startswith("<!DOCTYPE html>")
    assert svg.read_text().startswith("<svg ")
    assert done.stdout.splitlines() == [f"written: {html}", f"written: {svg}"]


def test_half_a_character_is_drawn_as_one_that_is_missing(report, tmp_path):
    """JSON can have half a surrogate pair, and UTF-8 can't."""
    report.write_text(json.dumps(lab() | {"title": "half \ud800"}))
    html, svg = tmp_path / "page.html", tmp_path / "picture.svg"
    done = draw(report, "--html", html, "--picture", svg)
    assert (done.returncode, done.stderr) == (0, "")
    assert all("half \ufffd" in file.read_text("utf-8") for file in (html, svg))


def test_what_is_no_report_is_refused(report, tmp_path):
    """The message names the file and what is wrong with it, and nothing is written."""
    report.write_text(json.dumps(lab() | {"version": 2}))
    done = draw(report, "--html", tmp_path / "page.html")
    assert done.returncode == 2
    assert f"{report}: it is no report of the lab or of a bad day:\nversion: Input should be 1" in done.stderr
    assert not (tmp_path / "page.html").exists()


def test_there_must_be_something_to_draw_and_room_for_it(report, tmp_path):
    """Neither ends in a traceback."""
    nothing = draw(report)
    assert nothing.returncode == 2
    assert "--html FILE" in nothing.stderr
    nowhere = draw(report, "--html", tmp_path / "missing" / "page.html")
    assert nowhere.returncode == 2
    assert f"{tmp_path}/missing/page.html can't be written: No such file or directory\n" in nowhere.stderr
