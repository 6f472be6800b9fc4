from io import StringIO

import pytest
from rich.console import Console

from tools.lab.report.live import WINDOW, Live, sparkline


def sample(at, calls, p99=0.003, **failed):
    """Return a sample of the report's form."""
    return {"at": at, "calls": calls, "failed": failed, "p50": 0.002, "p99": p99, "connections": 1}


def screen(width=100):
    """Return a terminal of so many columns."""
    return Console(file=StringIO(), force_terminal=True, width=width, color_system=None)


def seen(console):
    """Return the last table that was drawn."""
    return console.file.getvalue().rpartition("the lab")[2]


def test_a_terminal_shows_a_row_for_each_run():
    """A row has its rate, its pods' shares, Jain's index, what failed, and p99."""
    console = screen()
    with Live("the lab", 60, ["even", "one"], console) as shown:
        for at in range(1, 6):
            samples = {"even": sample(at, {"pod-1": 20, "pod-2": 20}), "one": sample(at, {"pod-2": 40})}
            shown.update(at, samples, "scale 2 → 3")
        samples = {"even": sample(6, {"pod-1": 20, "pod-2": 20}), "one": sample(6, {}, None, UNAVAILABLE=7)}
        shown.update(6, samples, "scale 2 → 3")
    picture = seen(console)
    assert "6 of 60 s, 54 s left" in picture
    assert "scale 2 → 3" in picture
    (even,) = (line.split() for line in picture.splitlines() if "even" in line)
    (one,) = (line.split() for line in picture.splitlines() if "one " in line)
    assert [cell for cell in even if cell != "│"] == ["even", "40", "██", "1.000", "0", "3", "ms"]
    assert [cell for cell in one if cell != "│"] == ["one", "32", "█", "0.500", "7"]


@pytest.mark.parametrize("width", [80, 100])
def test_many_pods_leave_room_for_the_figures(width):
    """A row stays one line, whose figures can be read."""
    console = screen(width)
    with Live("the lab", 60, ["kubernetes-least-request"], console) as shown:
        calls = {f"pod-{number}": 20 for number in range(60)}
        shown.update(1, {"kubernetes-least-request": sample(1, calls, UNAVAILABLE=1234)})
    (row,) = (line for line in seen(console).splitlines() if "kubernetes" in line or "█" in line)
    assert [cell for cell in row.split() if cell[0] not in "│█"] == [
        *("kubernetes-least-request", "1200", "1.000", "1234", "3", "ms")
    ]


@pytest.mark.parametrize("width", [48, 60, 69])
def test_a_narrow_terminal_shows_the_figures_whole(width):
    """Bars are left out there, and then the end of a name."""
    console = screen(width)
    with Live("the lab", 60, ["kubernetes-least-request"], console) as shown:
        calls = {f"pod-{number}": 20 for number in range(60)}
        shown.update(1, {"kubernetes-least-request": sample(1, calls, 0.0123, UNAVAILABLE=1234)})
    lines = seen(console).splitlines()
    cells = [[cell for cell in line.split() if cell not in "┃│…"] for line in lines]
    assert ["calls/s", "Jain", "failed", "p99"] in cells
    (row,) = (line for line in cells if "1234" in line)
    assert row[1:] == ["1200", "1.000", "1234", "12.3", "ms"]


def test_a_row_forgets_what_is_long_ago():
    """A pod that has ended is no longer part of evenness, and a run that hangs shows no calls."""
    console = screen()
    with Live("the lab", 60, ["run"], console) as shown:
        shown.update(1, {"run": sample(1, {"pod-1": 40})})
        shown.update(1 + WINDOW, {"run": sample(1 + WINDOW, {"pod-2": 50})})
        assert " 10 " in seen(console)
        assert "1.000" in seen(console)
        shown.update(1 + 2 * WINDOW, {})
    assert "1.000" not in seen(console)
    assert " 0 " in seen(console)


def test_without_a_terminal_there_is_a_line_now_and_then(capsys):
    """There is one for each event and every ten seconds, and none of it is a control sequence."""
    with Live("lab", 60, ["even", "one"]) as shown:
        for at in range(1, 25):
            failed = {"UNAVAILABLE": 1} if at == 14 else {}
            event = "kill -9" if at in {14, 15} else None
            samples = {"even": sample(at, {"pod-1": 20}), "one": sample(at, {"pod-1": 20}, **failed)}
            shown.update(at, samples, event)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "lab: 60 s",
        "    1 of 60 s, steady: 40 calls/s, failed so far: none",
        "   11 of 60 s, steady: 40 calls/s, failed so far: none",
        "   14 of 60 s, kill -9: 40 calls/s, failed so far: one 1",
        "   16 of 60 s, steady: 40 calls/s, failed so far: one 1",
    ]


def test_a_terminal_is_left_as_it_was_when_the_run_fails():
    """The cursor is back."""
    console = screen()
    with pytest.raises(ValueError, match="the run failed"), Live("the lab", 60, ["run"], console):
        raise ValueError("the run failed")
    assert console.file.getvalue().rstrip().endswith("\x1b[?25h")


@pytest.mark.parametrize(
    ("values", "bars"), [([], ""), ([0, 0], "  "), ([1, 50, 100], "▁▄█"), ([7, 7, 7], "███")]
)
def test_a_sparkline_is_as_high_as_its_values(values, bars):
    """The largest is full, and what is not nothing can be seen."""
    assert sparkline(values) == bars
