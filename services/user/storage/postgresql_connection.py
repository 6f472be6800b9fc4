"""Connections to PostgreSQL: to which host, through a pooler or not; and their failures in words."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg

from services.user.config import DatabaseConfig
from services.user.storage.postgresql_credentials import CredentialError, check_files, read_password

FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg raises when the database can't be used (a TimeoutError is an OSError)."""

_OTHER_HOST_MAY_DO = (
    OSError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.TargetServerAttributeNotMatched,
)
"""What ends one host's turn. After other errors, as of a wrong password, libpq asks no other host either."""

_KIND = "pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'"

# A pooler has made up the process id that the connection began with: it is not the one that a query runs in.
# Behind one the setting is for this transaction alone: the session is shared.
_SETTLE = f"""
SELECT pg_backend_pid() <> $1, {_KIND}, set_config('statement_timeout', $2, pg_backend_pid() <> $1)
"""

_WANTED: dict[str, Callable[[bool, bool], bool]] = {
    "any": lambda _standby, _read_only: True,
    "read-write": lambda _standby, read_only: not read_only,
    "read-only": lambda _standby, read_only: read_only,
    "primary": lambda standby, _read_only: not standby,
    "standby": lambda standby, _read_only: standby,
}
"""Whether a host is one of those that target_session_attrs of libpq means."""


class Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that knows whether it leads through a pooler."""

    __slots__ = ("is_pooled", "statement_timeout")

    is_pooled: bool
    statement_timeout: str

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109 (asyncpg's)
        """Close it, without a goodbye if the database does not answer; the pool looks at no error of it."""
        with suppress(TimeoutError):
            await super().close(timeout=timeout)

    @asynccontextmanager
    async def statements(self) -> AsyncIterator[None]:
        """Let the statements of the block reach one session of the database.

        A pooler may give each transaction another session; a transaction stays in one.
        """
        if not self.is_pooled:
            yield
            return
        async with self.transaction():
            await self.execute(f"SET LOCAL statement_timeout = {self.statement_timeout}")
            yield


class Connector:
    """Opens connections to the first host of `config.url` that may be used.

    A host that is not there takes no more than its share of `config.connect_timeout`.

    Args:
        config: the database.
        statement_timeout: seconds that a statement may take; None for any time.

    """

    def __init__(self, config: DatabaseConfig, statement_timeout: float | None) -> None:
        self._config = config
        self._statement_timeout = statement_timeout
        self._hosts = _hosts(config.url)
        self._wanted = _wanted(config.url)
        self._password = partial(read_password, config.password_file) if config.password_file else None
        self._is_pooled = False
        """Whether the last connection was."""

    async def connect(self) -> Connection:
        """Connect with the database.

        Raises:
            FAILURES: no host can be used; the errors quote nothing of the URL.

        """
        failures: dict[str, Exception] = {}
        passes = _passes(self._wanted)
        share = self._config.connect_timeout / (len(self._hosts) * len(passes))
        for wanted in passes:
            for host in self._hosts:
                try:
                    async with asyncio.timeout(share):
                        connection = await self._connect(host, wanted)
                except _OTHER_HOST_MAY_DO as error:
                    failures[":".join(map(str, host.values()))] = error
                else:
                    self._begin_with(host)
                    return connection
        raise _joined(failures)

    async def check(self, connection: Connection) -> None:
        """Accept a host that is still what was wanted of it when the connection was made.

        Raises:
            asyncpg.TargetServerAttributeNotMatched: it is not, as a primary that has become a standby.

        """
        is_standby, is_read_only = await connection.fetchrow(f"SELECT {_KIND}")
        _check(_passes(self._wanted)[-1], is_standby=is_standby, is_read_only=is_read_only)

    def _begin_with(self, host: dict[str, Any]) -> None:
        """Ask the host that was right first from now on: those before it may take their time to fail."""
        self._hosts = [host, *(other for other in self._hosts if other != host)]

    async def _connect(self, host: dict[str, Any], wanted: str) -> Connection:
        # What this one was opened for: meanwhile another may have found out about the pooler.
        expected = self._is_pooled
        connection = await self._settled(host, wanted)
        self._is_pooled = connection.is_pooled
        if connection.is_pooled == expected:
            return connection
        connection.terminate()
        return await self._connect(host, wanted)

    async def _settled(self, host: dict[str, Any], wanted: str) -> Connection:
        connection = await self._open(host)
        try:
            await self._settle(connection, wanted)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _open(self, host: dict[str, Any]) -> Connection:
        try:
            connection: Connection = await asyncpg.connect(
                self._config.url,
                **host,
                password=self._password,
                connection_class=Connection,
                target_session_attrs="any",
                # A prepared statement would outlive its transaction, in a session that is shared.
                statement_cache_size=0 if self._is_pooled else 100,
                # Poolers refuse most other parameters at the start.
                server_settings={"application_name": "user-service"},
                # If the database is not heard of any more, its connection is given up.
                command_timeout=self._statement_timeout,
            )
        except asyncpg.ClientConfigurationError:
            raise
        except OSError as error:  # before ValueError: a certificate that is refused is both
            if not isinstance(error, ConnectionError | TimeoutError | CredentialError):
                check_files(self._config.url)
            raise
        except ValueError:
            # Of a parameter, a host's name, ...: it may quote a secret.
            raise asyncpg.ClientConfigurationError(
                "the URL, or PGHOST, PGPORT, ..., has a host, port or parameter that can't be used"
            ) from None
        return connection

    async def _settle(self, connection: Connection, wanted: str) -> None:
        connection.statement_timeout = str(round((self._statement_timeout or 0) * 1000))
        async with connection.transaction():
            question = await connection.prepare(_SETTLE, name="")
            row = await question.fetchrow(connection.get_server_pid(), connection.statement_timeout)
        assert row
        connection.is_pooled, is_standby, is_read_only, _ = row
        _check(wanted, is_standby=is_standby, is_read_only=is_read_only)


def _check(wanted: str, *, is_standby: bool, is_read_only: bool) -> None:
    if not _WANTED[wanted](is_standby, is_read_only):
        kind = "a standby" if is_standby else "read-only" if is_read_only else "a primary"
        raise asyncpg.TargetServerAttributeNotMatched(f"the database is {kind}, wanted is {wanted}")


def _hosts(url: str) -> list[dict[str, Any]]:
    """Return the host and port of each host in a URL as asyncpg's arguments; none are for asyncpg to find."""
    parts = urlsplit(url)
    in_front = parts.netloc.rpartition("@")[2]
    if not in_front:
        return _hosts_elsewhere(parse_qs(parts.query))
    hosts = in_front.split(",")
    return [_host(host) for host in hosts] if len(hosts) > 1 else [{}]


def _hosts_elsewhere(parameters: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Return those of the parameters or variables, one or as many ports as hosts."""
    hosts, ports = (
        parameters.get(name, [os.environ.get(f"PG{name.upper()}", "")])[-1].split(",")
        for name in ("host", "port")
    )
    if len(ports) == 1:
        ports *= len(hosts)
    if len(hosts) == 1 or len(ports) != len(hosts):
        return [{}]
    return [{"host": host, "port": port or "5432"} for host, port in zip(hosts, ports, strict=True)]


def _host(text: str) -> dict[str, Any]:
    host, _, port = re.sub(r":([0-9]*)$", r"|\1", text).partition("|")
    return {"host": unquote(host.strip("[]")), "port": port or os.environ.get("PGPORT") or "5432"}


def _wanted(url: str) -> str:
    """Return what kind of host is wanted: one that takes writes if nothing is said."""
    given = parse_qs(urlsplit(url).query, keep_blank_values=True).get("target_session_attrs")
    return given[-1] if given else os.environ.get("PGTARGETSESSIONATTRS", "read-write")


def _passes(wanted: str) -> tuple[str, ...]:
    """Return what all hosts are asked for, one after the other."""
    if wanted == "prefer-standby":
        return "standby", "any"
    if wanted not in _WANTED:
        known = ", ".join([*_WANTED, "prefer-standby"])
        raise asyncpg.ClientConfigurationError(f"target_session_attrs must be one of {known}, not {wanted!a}")
    return (wanted,)


def _joined(failures: dict[str, Exception]) -> Exception:
    if len(failures) == 1:
        return next(iter(failures.values()))
    return ConnectionError("; ".join(f"{host}: {explain(error)}" for host, error in failures.items()))


def explain(error: Exception) -> str:
    """Return one of FAILURES in words."""
    if isinstance(error, TimeoutError):
        return "took longer than database.connect_timeout or database.statement_timeout"
    if isinstance(error, asyncpg.PostgresError):
        return str(error.args[0])  # without its detail, which quotes rows
    return str(error) or type(error).__name__
