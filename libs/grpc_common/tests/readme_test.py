import ast
from dataclasses import MISSING, fields
from pathlib import Path

from grpc_common import (
    ChannelConfig,
    Keepalive,
    OutlierDetection,
    RetryPolicy,
    RetryThrottling,
    ServiceConfig,
)
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


def test_every_setting_of_a_channel_is_in_the_table():
    """So it is with the channel's."""
    classes = (ChannelConfig, Keepalive, ServiceConfig, RetryPolicy, RetryThrottling, OutlierDetection)
    rows = [
        f"| `{config.__name__}.{field.name}` | {shown(default(field))} |"
        for config in classes
        for field in fields(config)
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


def default(field):
    """Return a field's default, made anew if it is made for each object."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def shown(value: object) -> str:
    """Return a default as the table has it."""
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{type(value).__name__}()`" if hasattr(value, "__dataclass_fields__") else str(value) or "empty"
