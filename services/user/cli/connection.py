"""What the commands have in common: how to reach the service, errors as one line, exit codes."""

import asyncio
import functools
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, override

import click
import grpc
from user.user_service_pb2_grpc import UserServiceStub

import grpc_common
from grpc_common.config.durations import parse_duration
from services.user.cli.output import visible
from services.user.cli.user_client import SERVICE_CONFIG, UserClient

EXIT_REJECTED = 3
"""A part of the lines was rejected, the others were taken."""

_EXIT_INTERRUPTED = 130
"""What a shell says of a program that Ctrl-C ended: 128 + SIGINT."""

EXIT_CODES = """\b
Exit codes:
    0    success
    1    the service answered with an error, or can't be reached
    2    a mistake in the command or its files; nothing was sent
    3    some lines of a file were rejected, the others were taken
    130  stopped by Ctrl-C"""


class Text(click.ParamType[str]):
    """A text that can be sent: arguments are bytes on Unix, and need not be UTF-8."""

    name = "text"

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail(f"{value!a} is not UTF-8", param, ctx)
        return str(value)


class Duration(click.ParamType[float]):
    """Seconds, written as `10s` or `1m30s`."""

    name = "duration"

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach the service."""

    target: str
    timeout: float
    tls: grpc_common.ClientTLS | None
    token_file: Path | None = None

    def run[Result](self, work: Callable[[UserClient], Awaitable[Result]]) -> Result:
        """Return what `work` does with a client; end the program if it fails."""
        # Below it the log would tell what the error says anyway.
        grpc_common.configure_logging("error")
        try:
            return asyncio.run(self._session(work))
        except (ValueError, grpc_common.TlsError) as error:
            raise click.UsageError(str(error)) from None
        except grpc.aio.AioRpcError as error:
            raise click.ClickException(describe(error)) from None
        except KeyboardInterrupt:
            sys.exit(_EXIT_INTERRUPTED)
        except BrokenPipeError:
            raise  # click ends the program without a word, as the reader of the output wants it
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'the output'}: {error.strerror}") from None

    async def _session[Result](self, work: Callable[[UserClient], Awaitable[Result]]) -> Result:
        config = grpc_common.ChannelConfig(service=SERVICE_CONFIG)
        # A person waits: what can't be reached is told by the first call, not after ten seconds.
        # Nobody reads metrics of a command.
        token = [grpc_common.BearerToken.from_file(self.token_file)] if self.token_file else []
        opened = grpc_common.channel(
            self.target, tls=self.tls, config=config, interceptors=token, observers=[], ready_timeout=None
        )
        async with opened as channel:
            return await work(UserClient(UserServiceStub(channel), self.timeout))


def describe(error: grpc.aio.AioRpcError) -> str:
    """Return an error of the service as a line for a terminal."""
    return f"{error.code().name}: {visible(error.details() or '')}"


def connection_options[Result](command: Callable[..., Result]) -> Callable[..., Result]:
    """Give a command the options that say how to reach the service; it gets `connection` for them."""

    @click.option(
        "--target",
        default="localhost:50051",
        show_default=True,
        help="The server, as host:port, dns:///name:port or kubernetes:///service.namespace:port.",
    )
    @click.option(
        "--timeout",
        default="10s",
        show_default=True,
        type=Duration(),
        help="The deadline of each call: a user, or a page of a list.",
    )
    @click.option(
        "--tls-directory",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Use TLS, with ca.crt of this folder, and with its tls.crt and tls.key if they are there.",
    )
    @click.option(
        "--tls-server-name",
        help="Use TLS, with this name in the server's certificate in place of the target's host; "
        "without --tls-directory the server's certificate is one of a public authority.",
    )
    @click.option(
        "--token-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Send the bearer token in this file with each call; needs TLS.",
    )
    @functools.wraps(command)
    def with_connection(
        target: str,
        timeout: float,
        tls_directory: Path | None,
        tls_server_name: str | None,
        token_file: Path | None,
        **others: Any,
    ) -> Result:
        uses_tls = tls_directory or tls_server_name
        if token_file and not uses_tls:
            raise click.UsageError("--token-file needs TLS: --tls-directory, or --tls-server-name alone")
        tls = grpc_common.ClientTLS(tls_directory, tls_server_name) if uses_tls else None
        return command(connection=Connection(target, timeout, tls, token_file), **others)

    return with_connection


def start(command: click.Command, name: str) -> None:
    """Run `command` as the program `name`."""
    # `bazel run` starts programs in a folder of its own and says where the user was.
    os.chdir(os.environ.get("BUILD_WORKING_DIRECTORY", "."))
    # Names are Unicode, also where LANG is not set.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    command(prog_name=name)
