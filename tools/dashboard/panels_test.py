import xml.etree.ElementTree as ET

import pytest

from tools.dashboard.panels import Panel, draw, shown

LINES = {"a": [(0, 1), (2, 3), (4, 2), (10, 2)], "b <>": [(0, 0), (2, 0)]}


def read(picture):
    """Return the picture's tree."""
    return ET.fromstring(picture)  # noqa: S314 (drawn here)


def paths(picture, css):
    """Return the paths of a class."""
    return [path.get("d") for path in read(picture).findall(".//{*}path") if path.get("class") == css]


def test_each_panel_has_its_lines_and_names():
    """Titles and names of lines are as they are, whatever is in them."""
    picture = draw([Panel("Calls & more", "reqps", LINES), Panel("Nothing", "s", {})], 10, 2, (4, 6))
    texts = "".join(read(picture).itertext())
    for words in ("Calls & more", "b <>", "3/s", "Nothing", "no series"):
        assert words in texts
    assert [len(paths(picture, css)) for css in ("c0", "c1", "c2")] == [1, 1, 0]


def test_a_line_ends_where_values_are_missing():
    """What Prometheus has no value for is not drawn as if it had."""
    (line,) = paths(draw([Panel("Calls", "reqps", LINES)], 10, 2, (4, 6)), "c0")
    assert line.count("M") == 2
    assert line.count("L") == 2


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.014, "percentunit", "1.4 %"),
        (3 * 2**20, "bytes", "3 MiB"),
        (0.02, "s", "20 ms"),
        (2, "s", "2 s"),
        (5184000, "s", "60 d"),
        (2, "short", "2"),
        (2, "cps", "2/s"),
    ],
)
def test_values_have_their_units(value, unit, text):
    """A value is shown as people read it."""
    assert shown(value, unit) == text
