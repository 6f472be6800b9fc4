import ast
import re
from collections import Counter
from pathlib import Path

import grpc_common
from grpc_common.config.sections import ServerConfig
from grpc_common.config.settings import settings

README = Path(__file__).parents[1].joinpath("README.md").read_text()


def test_every_setting_of_a_server_is_in_the_table():
    """The table of the README says what the code does: key, variable, default and meaning of each setting."""
    rows = [
        f"| `{setting.key}` | {setting.variable} | {setting.default_text} | {setting.description} |"
        for setting in settings(ServerConfig)
    ]
    assert missing(rows) == []


class Config(ServerConfig):
    """A service with a channel."""

    payments: grpc_common.ChannelSection


def test_every_setting_of_a_channel_is_in_the_table():
    """So it is with the channel's; the name of the section stands before each key, and is the reader's."""
    rows = [
        f"| `{setting.key.removeprefix('payments.')}` | {setting.default_text} | {setting.description} |"
        for setting in settings(Config)
        if setting.path[0] == "payments"
    ]
    assert missing(rows) == []


def test_examples_are_python():
    """What a reader copies from the README can at least be parsed."""
    blocks = README.split("```python\n")[1:]
    assert len(blocks) >= 2
    for block in blocks:
        ast.parse(block.partition("```")[0])


def test_lines_of_the_extension_points():
    """The table of extension points has each that the tests mark, and its length."""
    lines: Counter[str] = Counter()
    for file in Path(__file__).parent.glob("extension_*_test.py"):
        lines.update(marked(file.read_text()))
    assert len(lines) == 20
    assert [(name, count) for name, count in lines.items() if not row_of(name, count)] == []
    assert row_of("**all of them**", lines.total())


def row_of(point: str, lines: int) -> bool:
    """Return whether the table of extension points says so."""
    return bool(re.search(rf"^\| {re.escape(point)} \| [^|]*\| {lines} \| ", README, re.MULTILINE))


def marked(text: str) -> Counter[str]:
    """Return how many lines each `# region: NAME` has, without comments and docstrings."""
    lines: Counter[str] = Counter()
    region = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("# region: "):
            region = line.removeprefix("# region: ")
            lines[region] += 0
        elif line == "# endregion":
            region = ""
        elif region and line and not line.startswith(("#", '"""')):
            lines[region] += 1
    return lines


def missing(rows: list[str]) -> list[str]:
    """Return the rows that the README does not have."""
    return [row for row in rows if row not in README]
