"""Serves a servicer as production does, on a free port of this machine."""

import functools
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import grpc

import grpc_common
from grpc_common.client.channel_config import ChannelConfig
from grpc_common.config.document import Document
from grpc_common.config.loading import load_document
from grpc_common.config.sections import ListenConfig, ServerConfig, TlsConfig
from grpc_common.config.settings import settings as known_settings
from grpc_common.config.yaml_file import read_document
from grpc_common.core.caller import Caller
from grpc_common.core.calls import Call
from grpc_common.server.server import Server
from grpc_common.tls.credentials import ClientTLS

type _OpenChannel = Callable[..., AbstractAsyncContextManager[grpc.aio.Channel]]

_SETTINGS = {
    "GRPC_HOST": "127.0.0.1",
    "GRPC_PORT": "0",
    "METRICS_ENABLED": "false",
    "DRAIN_DELAY": "0s",
    "DRAIN_GRACE": "1s",
}


def configure[Config: ServerConfig](
    config_class: type[Config] = ServerConfig,  # type: ignore[assignment]  # python/mypy#3737
    file: Path | None = None,
    /,
    **settings: str | Mapping[str, Any],
) -> Config:
    """Return the configuration of a server under test: a free port, no metrics, an end without waiting.

        configure(DEFAULT_DEADLINE="50ms", server={"allowed_callers": {"*": ["subject:ada"]}})

    Args:
        config_class: the service's own class.
        file: the service's YAML file, over which the settings are.
        **settings: environment variables, and sections as the file has them, under them. The process's
            own variables are not read.

    Raises:
        ConfigError: one of them is wrong.
        TypeError: there is no such variable.

    """
    variables = {name: value for name, value in settings.items() if isinstance(value, str)}
    sections = {name: deepcopy(dict(value)) for name, value in settings.items() if not isinstance(value, str)}
    known = {setting.variable: setting.path for setting in known_settings(config_class)}
    if unknown := variables.keys() - known.keys():
        raise TypeError(f"{config_class.__name__} has no variable {', '.join(sorted(unknown))}")
    ours = {f"{config_class.env_prefix}{name}": value for name, value in _SETTINGS.items()}
    missing = {name: value for name, value in ours.items() if not _has(sections, known[name])}
    document = Document() if file is None else read_document(file)
    _put(sections, document.values)
    return load_document(config_class, document, missing | variables, file)


def _put(values: Mapping[str, Any], into: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _put(value, into[name])
        else:
            into[name] = value


def _has(values: Any, path: tuple[str, ...]) -> bool:
    for name in path:
        if not isinstance(values, Mapping) or name not in values:
            return False
        values = values[name]
    return True


@asynccontextmanager
async def serve_on_loopback[Servicer](
    servicer: Servicer,
    add_to_server: Callable[[Servicer, grpc.aio.Server], Any],
    *,
    config: ServerConfig | None = None,
    unix_socket: bool = False,
    client_certificate: str | None = None,
    caller: str | Caller | None = None,
    channel: _OpenChannel | None = None,
    **server_options: Any,
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve `servicer` and yield a channel to it.

    Args:
        servicer: what to serve.
        add_to_server: the generated `add_<Service>Servicer_to_server`.
        config: the settings, of `configure` if None.
        unix_socket: whether the channel is over a Unix socket, which is served beside the port.
        client_certificate: turns on mutual TLS, with certificates made for this server; the client's has
            this SAN, written as in `server.allowed_callers`.
        caller: is who makes every call, without a credential: a Caller, or the subject of one.
        channel: opens the channel to a target, such as `functools.partial(grpc_common.channel,
            interceptors=[...])`; with `client_certificate` it gets `tls=` too. If None, that is
            `grpc_common.channel` with certificates, and grpc's own without.
        **server_options: what else `Server` takes, such as `errors` or `observers`.

    Raises:
        StartError: the server can't start.
        ValueError: `client_certificate` is no SAN.

    """
    config = config or configure()
    connect = channel or _direct_channel(tls=bool(client_certificate))
    if caller:
        server_options["authenticators"] = [_Everyone(caller), *server_options.get("authenticators", ())]
    with tempfile.TemporaryDirectory() as folder:  # not pytest's: a socket's path has at most 107 bytes
        socket = f"unix:{folder}/socket" if unix_socket else None
        if socket:
            config = _changed(config, listen=[*config.server.listen, ListenConfig(address=socket)])
        if client_certificate:
            # Only tests with certificates need trustme.
            from grpc_common.testing.certificates import mutual_tls  # noqa: PLC0415

            server_files, client_files = mutual_tls(Path(folder), client_certificate)
            tls = TlsConfig(directory=server_files, require_client_certificate=True)
            config = _changed(config, tls=tls)
            # A Unix socket has no name that a certificate could be for.
            connect = functools.partial(connect, tls=ClientTLS(client_files, server_name="localhost"))
        server = Server(config, **server_options)
        server.add(servicer, add_to_server)
        async with server.serving() as port, connect(socket or f"127.0.0.1:{port}") as opened:
            yield opened


def _direct_channel(*, tls: bool) -> _OpenChannel:
    """Return what opens a channel; a proxy of the machine's environment can't reach a server on loopback."""
    arguments: dict[str, int | str] = {"grpc.enable_http_proxy": 0}
    if tls:
        return functools.partial(grpc_common.channel, config=ChannelConfig(channel_args=arguments))
    return functools.partial(grpc.aio.insecure_channel, options=list(arguments.items()))


def _changed(config: ServerConfig, **settings: Any) -> ServerConfig:
    return config.model_copy(update={"server": config.server.model_copy(update=settings)})


class _Everyone:
    """Says of every call that one caller has made it."""

    def __init__(self, caller: str | Caller) -> None:
        if isinstance(caller, str):
            caller = Caller(caller, frozenset({f"subject:{caller}"}))
        self._caller = caller

    async def authenticate(self, _call: Call) -> Caller:
        """Return the caller."""
        return self._caller
