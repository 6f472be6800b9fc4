"""Checks a server's health: `python -m grpc_common.commands.probe --addr localhost:50051`.

Options, output and exit codes are those of grpc_health_probe, so that its command lines work: they are
read as Go reads flags, with one dash or two, `-tls` or `-tls=true`, `-addr X` or `-addr=X`. What is left
out is in _UNSUPPORTED.

It runs every few seconds in every pod: import nothing here that takes long.
"""

import asyncio
import re
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import click
import grpc
from grpc_health.v1 import health_pb2

from grpc_common.config.durations import format_duration
from grpc_common.config.path_argument import PathArgument

INVALID_ARGUMENTS = 1
CONNECTION_FAILED = 2
RPC_FAILED = 3
UNHEALTHY = 4

# What gRPC accepts, but for headers that end in -bin, which are not text.
_HEADER = re.compile(r"(?P<name>[\w.-]+(?<!-bin)): *(?P<value>[ -~]*)", re.ASCII)

# Seconds in which a channel that can't connect tells why; it does so at once if it knows.
_REASON_TIMEOUT = 0.05


class ProbeError(Exception):
    """The server is not known to be serving.

    Args:
        exit_code: one of the constants of this module.
        message: what to print.

    """

    def __init__(self, exit_code: int, message: str) -> None:
        # A server's own words are in it, which must not look like another line.
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))
        self.exit_code = exit_code


# Go's time.ParseDuration, and the greatest time.Duration that it returns.
_GO_UNITS = {"ns": 1e-9, "us": 1e-6, "\N{MICRO SIGN}s": 1e-6, "\N{GREEK SMALL LETTER MU}s": 1e-6}
_GO_UNITS |= {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_GO_NUMBER = r"([0-9]+\.?[0-9]*|\.[0-9]+)"
_GO_PART = re.compile(f"{_GO_NUMBER}({'|'.join(_GO_UNITS)})")
_GO_DURATION = re.compile(f"[+]?(0|({_GO_PART.pattern})+)")
_LONGEST = 2**63 / 1e9

_GO_BOOLEANS = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), "true")
_GO_BOOLEANS |= dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), "false")

_UNSUPPORTED = {
    "alts": "it is for machines of Google's cloud",
    "gzip": "a health check is larger with it",
    "spiffe": "name the files with -tls-ca-cert, -tls-client-cert and -tls-client-key",
    "tls-no-verify": "gRPC for Python always verifies; name the CA with -tls-ca-cert",
}
"""Flags of grpc_health_probe that are refused, and why; all of them are booleans."""


class _Flags(click.Command):
    """A command whose arguments are read as Go's package flag does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(self._as_click_has_them(ctx, args)))

    def _as_click_has_them(self, ctx: click.Context, args: list[str]) -> Iterator[str]:
        options = {option.opts[0].lstrip("-"): option for option in self.get_params(ctx)}
        remaining = iter(args)
        for argument in remaining:
            name, equals, value = argument.removeprefix("-").removeprefix("-").partition("=")
            if name in {"h", "help"}:
                yield "--help"
            elif name in _UNSUPPORTED:
                if _GO_BOOLEANS.get(value or "true") != "false":
                    raise click.UsageError(f"-{name} is not supported: {_UNSUPPORTED[name]}", ctx)
            elif not argument.startswith("-") or not name:
                raise click.UsageError(f"{argument!r} is no flag", ctx)
            elif name not in options:
                raise click.UsageError(f"No such option: -{ascii(name)[1:-1]}", ctx)
            else:
                if not equals:
                    value = _implied_value(ctx, options[name], name, remaining)
                yield f"--{name}={value}"


def _implied_value(ctx: click.Context, option: click.Parameter, name: str, remaining: Iterator[str]) -> str:
    if isinstance(option.type, _Boolean):
        return "true"
    value = next(remaining, None)
    if value is None:
        raise click.UsageError(f"-{name} needs a value", ctx)
    return value


class _Text(click.ParamType[str]):
    """What can be sent: UTF-8."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"{value!r} is not UTF-8", param, ctx)
        return str(value)


class _HeaderText(_Text):
    """What can be the value of a header."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"[ -~]*", value):
            self.fail(f"{value!r}: write it in ASCII, on one line", param, ctx)
        return str(value)


class _Boolean(click.ParamType[bool]):
    name = "boolean"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        if value not in _GO_BOOLEANS:
            self.fail(f"{value!r}: write true or false", param, ctx)
        return _GO_BOOLEANS[value] == "true"


class _Timeout(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if value.startswith("-"):
            self.fail(f"{value!r} must be more than zero", param, ctx)
        if not _GO_DURATION.fullmatch(value):
            self.fail(f'{value!r}: write a duration with its unit: "500ms", "1.5s" or "1m30s"', param, ctx)
        seconds = sum(float(number) * _GO_UNITS[unit] for number, unit in _GO_PART.findall(value))
        if not 0 < seconds < _LONGEST:
            self.fail(f"{value!r} must be more than zero, and less than 292 years", param, ctx)
        return seconds


class _File(PathArgument):
    """A file that exists; empty stands for none, as in Go."""

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return None if value == "" else super().convert(value, param, ctx)


class _Header(click.ParamType[tuple[str, str]]):
    name = "name: value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        header = _HEADER.fullmatch(value)
        if header is None:
            self.fail(f'{value!r}: write "name: value", in ASCII', param, ctx)
        return header["name"].lower(), header["value"]


@click.command(cls=_Flags)
@click.option(
    "-addr", "--addr", type=_Text(), required=True, help="Where: host:port, :port of this host, or unix:path."
)
@click.option(
    "-service", "--service", type=_Text(), default="", help="Whose health; without it the whole server's."
)
@click.option("-connect-timeout", "--connect-timeout", type=_Timeout(), default="1s", show_default=True)
@click.option("-rpc-timeout", "--rpc-timeout", type=_Timeout(), default="1s", show_default=True)
@click.option(
    "-rpc-header", "--rpc-header", "headers", type=_Header(), multiple=True, help="Sent; repeatable."
)
@click.option(
    "-user-agent", "--user-agent", type=_HeaderText(), default="grpc_health_probe", show_default=True
)
@click.option("-tls", "--tls", type=_Boolean(), default="false", help="Use TLS.")
@click.option("-tls-ca-cert", "--tls-ca-cert", type=_File(), help="CA of the server's certificate.")
@click.option("-tls-client-cert", "--tls-client-cert", type=_File(), help="Certificate to present.")
@click.option("-tls-client-key", "--tls-client-key", type=_File(), help="Its private key.")
@click.option("-tls-server-name", "--tls-server-name", type=_Text(), help="Name in the server's certificate.")
@click.option("-v", "--v", "verbose", type=_Boolean(), default="false", help="Say how long it took.")
def command(
    *,
    addr: str,
    service: str,
    connect_timeout: float,
    rpc_timeout: float,
    headers: tuple[tuple[str, str], ...],
    user_agent: str,
    verbose: bool,
    **tls: Any,
) -> None:
    """Check a server's health with grpc.health.v1.Health/Check.

    Exit code: 0 SERVING, 1 wrong options, 2 no connection, 3 the call failed, 4 not SERVING.
    """
    if not addr:
        raise click.UsageError("--addr is empty")
    credentials = _credentials(**tls)
    target = f"localhost{addr}" if addr.startswith(":") else addr
    options = [("grpc.primary_user_agent", user_agent)]
    if tls["tls_server_name"]:
        options.append(("grpc.default_authority", tls["tls_server_name"]))

    async def probe() -> None:
        if credentials:
            channel = grpc.aio.secure_channel(target, credentials, options)
        else:
            channel = grpc.aio.insecure_channel(target, options)
        async with channel:
            start = time.perf_counter()
            await _connect(channel, addr, connect_timeout)
            connected = time.perf_counter()
            await _check(channel, service, rpc_timeout, headers)
            if verbose:
                done = time.perf_counter()
                click.echo(f"time elapsed: connect={connected - start:.4f}s rpc={done - connected:.4f}s")

    # The synchronous API would need 0.2 s more, for a thread that watches the connection to end.
    asyncio.run(probe())
    click.echo("status: SERVING")


def _credentials(
    *,
    tls: bool,
    tls_ca_cert: Path | None,
    tls_client_cert: Path | None,
    tls_client_key: Path | None,
    tls_server_name: str | None,
) -> grpc.ChannelCredentials | None:
    if not tls:
        if tls_ca_cert or tls_client_cert or tls_client_key or tls_server_name:
            raise click.UsageError("--tls-... options need --tls")
        return None
    if bool(tls_client_cert) != bool(tls_client_key):
        raise click.UsageError("--tls-client-cert and --tls-client-key need each other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:  # gRPC would take anything, and not connect for a reason that is hard to find
        if tls_ca_cert:
            context.load_verify_locations(tls_ca_cert)
        if tls_client_cert:
            context.load_cert_chain(tls_client_cert, tls_client_key, password="")
    except OSError as error:
        files = ", ".join(str(path) for path in (tls_ca_cert, tls_client_cert, tls_client_key) if path)
        raise click.UsageError(f"failed to use {files}: {error}") from None
    ca, key, certificate = (
        path.read_bytes() if path else None for path in (tls_ca_cert, tls_client_key, tls_client_cert)
    )
    return grpc.ssl_channel_credentials(ca, key, certificate)


async def _connect(channel: grpc.aio.Channel, addr: str, timeout: float) -> None:  # noqa: ASYNC109 (an option)
    try:
        async with asyncio.timeout(timeout):
            await channel.channel_ready()
    except TimeoutError:
        within = _shown(timeout)
        message = f'timeout: failed to connect service "{addr}" within {within}{await _reason(channel)}'
        raise ProbeError(CONNECTION_FAILED, message) from None


async def _reason(channel: grpc.aio.Channel) -> str:
    try:
        await _check_method(channel)(health_pb2.HealthCheckRequest(), timeout=_REASON_TIMEOUT)
    except grpc.aio.AioRpcError as error:
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            return f": {error.details()}"
    return ""


async def _check(
    channel: grpc.aio.Channel,
    service: str,
    timeout: float,  # noqa: ASYNC109 (the deadline is gRPC's)
    headers: tuple[tuple[str, str], ...],
) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        response = await _check_method(channel)(request, timeout=timeout, metadata=headers)
    except grpc.aio.AioRpcError as error:
        raise ProbeError(RPC_FAILED, _failure(error, timeout)) from None
    names = {number: name for name, number in health_pb2.HealthCheckResponse.ServingStatus.items()}
    status = names.get(response.status, str(response.status))  # as Go prints an enum's unknown number
    if status != "SERVING":
        raise ProbeError(UNHEALTHY, f'service unhealthy (responded with "{status}")')


def _check_method(channel: grpc.aio.Channel) -> grpc.aio.UnaryUnaryMultiCallable[Any, Any]:
    return channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )


def _shown(seconds: float) -> str:
    return format_duration(seconds) if seconds >= 0.001 else f"{seconds * 1e6:g}us"  # noqa: PLR2004


def _failure(error: grpc.aio.AioRpcError, timeout: float) -> str:
    match error.code():
        case grpc.StatusCode.UNIMPLEMENTED:
            return "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"timeout: health rpc did not complete within {_shown(timeout)}"
        case code:
            return f"error: health rpc failed: {code.name}: {error.details()}"


def main() -> NoReturn:
    """Run the command; end the process with its exit code."""
    try:
        sys.exit(command(standalone_mode=False))
    except ProbeError as error:
        click.echo(error, err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(INVALID_ARGUMENTS)
    except click.Abort:
        sys.exit(INVALID_ARGUMENTS)


if __name__ == "__main__":
    main()
