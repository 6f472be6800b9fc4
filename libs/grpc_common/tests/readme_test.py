import ast
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


def missing(rows: list[str]) -> list[str]:
    """Return the rows that the README does not have."""
    return [row for row in rows if row not in README]
