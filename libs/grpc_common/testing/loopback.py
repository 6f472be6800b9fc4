"""Serves a servicer as production does, on a free port of this machine."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from grpc_common.config.loading import load
from grpc_common.config.sections import ServerConfig
from grpc_common.config.settings import settings as known_settings
from grpc_common.server.server import Server

_SETTINGS = {"GRPC_PORT": "0", "METRICS_ENABLED": "false", "DRAIN_DELAY": "0s", "DRAIN_GRACE": "1s"}


def configure[Config: ServerConfig](
    config_class: type[Config] = ServerConfig,  # type: ignore[assignment]  # python/mypy#3737
    file: Path | None = None,
    /,
    **settings: str,
) -> Config:
    """Return the configuration of a server under test: a free port, no metrics, an end without waiting.

    Args:
        config_class: the service's own class.
        file: the service's YAML file, over which the variables are.
        **settings: more environment variables, such as `DEFAULT_DEADLINE="50ms"`; the process's own are not
            read.

    Raises:
        ConfigError: one of them is wrong.
        TypeError: there is no such variable.

    """
    unknown = settings.keys() - {setting.variable for setting in known_settings(config_class)}
    if unknown:
        raise TypeError(f"{config_class.__name__} has no variable {', '.join(sorted(unknown))}")
    ours = {f"{config_class.env_prefix}{name}": value for name, value in _SETTINGS.items()}
    return load(config_class, file, environ=ours | settings)


@asynccontextmanager
async def serve_on_loopback[Servicer](
    servicer: Servicer,
    add_to_server: Callable[[Servicer, grpc.aio.Server], Any],
    *,
    config: ServerConfig | None = None,
    channel: Callable[[str], AbstractAsyncContextManager[grpc.aio.Channel]] = grpc.aio.insecure_channel,
    **server_options: Any,
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve `servicer` and yield a channel to it.

    Args:
        servicer: what to serve.
        add_to_server: the generated `add_<Service>Servicer_to_server`.
        config: the settings, of `configure` if None.
        channel: opens the channel to a target; for a server with TLS, or to test with what production has,
            `functools.partial(grpc_common.channel, tls=grpc_common.ClientTLS(directory))`.
        **server_options: what else `Server` takes, such as `errors`.

    """
    server = Server(config or configure(), **server_options)
    server.add(servicer, add_to_server)
    async with server.serving() as port, channel(f"127.0.0.1:{port}") as opened:
        yield opened
