"""Connections to PostgreSQL, and their failures in words."""

from typing import Any

import asyncpg

FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg raises when the database can't be used (a TimeoutError is an OSError)."""


async def connect(*arguments: Any, **settings: Any) -> asyncpg.Connection:
    """Connect as asyncpg does, but with errors that quote nothing of the URL."""
    try:
        return await asyncpg.connect(*arguments, **settings)
    except asyncpg.ClientConfigurationError:
        raise
    except ValueError:
        # Of a parameter, a host's name, ...: it may quote a secret.
        raise asyncpg.ClientConfigurationError("the URL has a host or parameter that can't be used") from None


def explain(error: Exception) -> str:
    """Return one of FAILURES in words."""
    if isinstance(error, TimeoutError):
        return "took longer than database.connect_timeout or database.statement_timeout"
    return str(error) or type(error).__name__
