"""Checks a server's health: `python -m grpc_common.commands.probe --addr localhost:50051`.

Options, output and exit codes are those of grpc_health_probe, so that its command lines work
(`-addr=:50051` too). Left out are -tls-no-verify, which gRPC for Python can't do, -alts, -gzip and
-spiffe.

It runs every few seconds in every pod: import nothing here that takes long.
"""

import asyncio
import re
import ssl
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import click
import grpc
from grpc_health.v1 import health_pb2

from grpc_common.config.durations import format_duration, parse_duration

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
        super().__init__(message)
        self.exit_code = exit_code


class _Timeout(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)
        if seconds == 0:
            self.fail("must be more than zero", param, ctx)
        return seconds


class _Header(click.ParamType[tuple[str, str]]):
    name = "name: value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        header = _HEADER.fullmatch(value)
        if header is None:
            self.fail(f'{value!r}: write "name: value", in ASCII', param, ctx)
        return header["name"].lower(), header["value"]


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("-addr", "--addr", required=True, help="Where: host:port, :port of this host, or unix:path.")
@click.option("-service", "--service", default="", help="Whose health; without it the whole server's.")
@click.option("-connect-timeout", "--connect-timeout", type=_Timeout(), default="1s", show_default=True)
@click.option("-rpc-timeout", "--rpc-timeout", type=_Timeout(), default="1s", show_default=True)
@click.option(
    "-rpc-header", "--rpc-header", "headers", type=_Header(), multiple=True, help="Sent; repeatable."
)
@click.option("-user-agent", "--user-agent", default="grpc_health_probe", show_default=True)
@click.option("-tls", "--tls", is_flag=True, help="Use TLS.")
@click.option("-tls-ca-cert", "--tls-ca-cert", type=_FILE, help="CA of the server's certificate.")
@click.option("-tls-client-cert", "--tls-client-cert", type=_FILE, help="Certificate to present.")
@click.option("-tls-client-key", "--tls-client-key", type=_FILE, help="Its private key.")
@click.option("-tls-server-name", "--tls-server-name", help="Name in the server's certificate.")
@click.option("-v", "verbose", is_flag=True, help="Say how long it took.")
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
        within = format_duration(timeout)
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
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    if status != "SERVING":
        raise ProbeError(UNHEALTHY, f'service unhealthy (responded with "{status}")')


def _check_method(channel: grpc.aio.Channel) -> grpc.aio.UnaryUnaryMultiCallable[Any, Any]:
    return channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )


def _failure(error: grpc.aio.AioRpcError, timeout: float) -> str:
    match error.code():
        case grpc.StatusCode.UNIMPLEMENTED:
            return "error: this server does not implement the grpc health protocol (grpc.health.v1.Health)"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"timeout: health rpc did not complete within {format_duration(timeout)}"
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
