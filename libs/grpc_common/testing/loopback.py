"""Serves a servicer as production does, on a free port of this machine."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc

from grpc_common.client.channel import channel as grpc_common_channel
from grpc_common.config.loading import load
from grpc_common.config.sections import ListenConfig, ServerConfig, TlsConfig
from grpc_common.config.settings import settings as known_settings
from grpc_common.core.caller import Caller
from grpc_common.core.calls import Call
from grpc_common.server.server import Server
from grpc_common.tls.credentials import ClientTLS

type Channel = Callable[[str], AbstractAsyncContextManager[grpc.aio.Channel]]
"""Opens a channel to a target."""

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
    channel: Channel = grpc.aio.insecure_channel,
    unix_socket: bool = False,
    client_certificate: str | None = None,
    caller: str | Caller | None = None,
    **server_options: Any,
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve `servicer` and yield a channel to it.

    Args:
        servicer: what to serve.
        add_to_server: the generated `add_<Service>Servicer_to_server`.
        config: the settings, of `configure` if None.
        channel: opens the channel to a target, if not a plain one: `grpc_common.channel`, to test with
            what production has.
        unix_socket: whether the channel is to a Unix socket, on which the server listens beside its port.
        client_certificate: the SAN of a certificate that the channel shows. The server has TLS then, asks
            for it, and both have certificates of an authority that is made for this server.
        caller: who makes all calls: a Caller, or the subject of one. No credential is asked for.
        **server_options: what else `Server` takes, such as `errors`, or `observers=[RecordedCalls()]`.

    """
    with TemporaryDirectory() as folder:  # a short path, as that of a socket must be
        config = config or configure()
        if client_certificate is not None:
            config, channel = _with_mutual_tls(config, Path(folder), client_certificate)
        if unix_socket:
            config = _with_section(
                config, listen=[*config.server.listen, ListenConfig(address=f"unix:{folder}/s")]
            )
        if caller is not None:
            server_options["authenticators"] = [_Everyone(caller), *server_options.get("authenticators", ())]
        server = Server(config, **server_options)
        server.add(servicer, add_to_server)
        async with server.serving() as port:
            target = f"unix:{folder}/s" if unix_socket else f"127.0.0.1:{port}"
            async with channel(target) as opened:
                yield opened


class _Everyone:
    """An Authenticator for which every call is one caller's."""

    def __init__(self, caller: str | Caller) -> None:
        self._caller = (
            caller if isinstance(caller, Caller) else Caller(caller, frozenset({f"subject:{caller}"}))
        )

    async def authenticate(self, _call: Call) -> Caller:
        return self._caller


def _with_mutual_tls(config: ServerConfig, folder: Path, client: str) -> tuple[ServerConfig, Channel]:
    # Few tests need them, and the library behind them.
    import trustme  # noqa: PLC0415

    from grpc_common.testing.certificates import LOOPBACK, CertificateDirectory  # noqa: PLC0415

    authority = trustme.CA()
    server = CertificateDirectory(folder / "server", authority).path
    tls = ClientTLS(CertificateDirectory(folder / "client", authority, client).path, LOOPBACK[0])
    section = TlsConfig(directory=server, require_client_certificate=True)
    return _with_section(config, tls=section), partial(grpc_common_channel, tls=tls)


def _with_section(config: ServerConfig, **changes: Any) -> ServerConfig:
    return config.model_copy(update={"server": config.server.model_copy(update=changes)})
