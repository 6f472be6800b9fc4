"""Takes over a changed configuration file while the server runs, for the settings that need no restart."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from grpc_common.config.document import ConfigError, read_bytes
from grpc_common.config.loading import changed, load
from grpc_common.config.sections import ServerConfig
from grpc_common.core.background import supervise

log = structlog.get_logger()

INTERVAL = 1.0
"""Seconds between two looks at the file; kubelet itself takes up to a minute to update a mount."""

LIVE = frozenset({"logging.level", "tracing.sampling_rate"})
"""The keys that take effect while the server runs."""


async def reload_changes(config: ServerConfig, apply: Callable[[ServerConfig], None]) -> None:
    """Call `apply` with each new configuration, until cancelled; a wrong one is logged, and nothing changes.

    It returns at once if `config` was not read from a file.
    """
    if config.file is not None:
        watcher = _Watcher(config, config.file, apply)
        await supervise("reload of the configuration", watcher.watch)


class _Watcher:
    """What is in effect, and what the file held when it was last looked at.

    The content is compared, not the time of the last change: a ConfigMap's mount swaps symbolic links.
    """

    def __init__(self, config: ServerConfig, file: Path, apply: Callable[[ServerConfig], None]) -> None:
        self._config = config
        self._file = file
        self._apply = apply
        # Equal to nothing, since the file may have changed after it was loaded.
        self._content: object = object()

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            content = _content(self._file)
            if content != self._content:
                # First, so that a file which makes the reload fail is tried once.
                self._content = content
                await self._reload()

    async def _reload(self) -> None:
        try:
            # A large file takes seconds to parse.
            new = await asyncio.to_thread(load, type(self._config), self._file)
        except ConfigError as error:
            log.error("configuration not reloaded", mistakes=str(error).splitlines())  # noqa: TRY400 (no bug)
            return
        keys = changed(self._config, new)
        if not keys:
            return
        need_restart = [key for key in keys if key not in LIVE]
        log.info("configuration reloaded", changed=keys, need_restart=need_restart)
        self._config = new
        self._apply(new)


def _content(file: Path) -> bytes | None:
    try:
        return read_bytes(file)
    except ConfigError:
        return None  # between two states of the mount, or gone: load() will say
