"""What Prometheus sees of a replica's connections to PostgreSQL."""

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
from prometheus_client import Gauge, Histogram

_CONNECTIONS = Gauge("user_database_connections", "Connections of calls that are open.", ["state"])
_POOL_SIZE = Gauge("user_database_pool_size", "Connections of calls that may be open.")
ACQUIRE_SECONDS = Histogram(
    "user_database_acquire_seconds",
    "How long calls wait for a connection, those that get none too.",
    buckets=[0.001, 0.01, 0.1, 0.25, 0.5, 1, 2.5, 5],
)


@contextmanager
def shown(pool: asyncpg.Pool) -> Iterator[None]:
    """Show a pool while the block runs."""
    _POOL_SIZE.set(pool.get_max_size())
    _CONNECTIONS.labels("used").set_function(lambda: pool.get_size() - pool.get_idle_size())
    _CONNECTIONS.labels("idle").set_function(pool.get_idle_size)
    try:
        yield
    finally:
        _CONNECTIONS.clear()
