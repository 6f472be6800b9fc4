"""What runs around every call: who calls, a line for failures, a metric."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from hashlib import sha256

import structlog
from prometheus_client import CollectorRegistry, Counter

from grpc_common import Call, Caller, permission_denied

log = structlog.get_logger()


class ApiKeys:
    """Knows callers by their metadata `api-key`, beside the tokens of server.jwt; an Authenticator.

    Args:
        digests: {caller: SHA-256 of the key, in hexadecimal}.

    """

    def __init__(self, digests: Mapping[str, str]) -> None:
        self._callers = {digest: name for name, digest in digests.items()}

    async def authenticate(self, call: Call) -> Caller | None:
        """Return who has the key; None without a key, so that the call has no credential of this kind."""
        keys = [value for name, value in call.metadata if name == "api-key"]
        if not keys:
            return None
        name = self._callers.get(sha256(str(keys[0]).encode()).hexdigest())
        if name is None:
            raise permission_denied("the api-key is not known")
        return Caller(name, names=frozenset({f"subject:{name}"}))


@asynccontextmanager
async def failures_logged(call: Call) -> AsyncIterator[None]:
    """Log why a call has failed; an Interceptor, of the server and of its channel."""
    try:
        yield
    except Exception as error:
        log.warning("call failed", reason=str(error), seconds_left=call.time_remaining())
        raise


class CallsByCaller:
    """Counts calls by who makes them, which the server's own metrics don't tell; a CallObserver."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["caller", "code"]
        self._calls = Counter("orders_calls", "Calls by caller and code.", labels, registry=registry)

    def started(self, call: Call) -> None:
        """Do nothing."""

    def ended(self, call: Call) -> None:
        """Count the call."""
        assert call.code is not None
        self._calls.labels(call.caller or "nobody", call.code.name).inc()
