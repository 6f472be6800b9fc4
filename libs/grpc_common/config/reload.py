"""Follows a changed configuration file, for the settings that need no restart."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from grpc_common.config.loading import ConfigError, changed, load
from grpc_common.config.sections import ServerConfig

log = structlog.get_logger()

INTERVAL = 1.0
"""Seconds between two looks at the file; kubelet itself takes up to a minute to update a mount."""

LIVE = frozenset({"logging.level", "tracing.sampling_rate"})
"""The keys that take effect while the server runs."""


async def follow(config: ServerConfig, apply: Callable[[ServerConfig], None]) -> None:
    """Call `apply` with each new configuration, until cancelled; a wrong one is logged and left.

    The content is compared, not the time, since a ConfigMap mount swaps symbolic links.
    """
    if config.file is None:
        return
    content: object = object()  # equal to nothing, since the file may have changed after it was loaded
    while True:
        await asyncio.sleep(INTERVAL)
        latest = _content(config.file)
        if latest == content:
            continue
        content = latest
        try:
            new = load(type(config), config.file)
        except ConfigError as error:
            log.error("configuration not reloaded", mistakes=str(error).splitlines())  # noqa: TRY400 (no bug)
            continue
        keys = changed(config, new)
        if not keys:
            continue
        log.info(
            "configuration reloaded", changed=keys, need_restart=[key for key in keys if key not in LIVE]
        )
        config = new
        apply(new)


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None  # between two states of the mount, or gone: load() will say
