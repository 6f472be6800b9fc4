"""Which failed call is made again, and when: gRPC's retry policy (gRFC A6)."""

from __future__ import annotations

import random
from collections.abc import Collection

import grpc

from grpc_common.client.balancer.subchannel import Subchannel
from grpc_common.client.service_config import RetryPolicy, RetryThrottling

PREVIOUS_ATTEMPTS = "grpc-previous-rpc-attempts"
"""Tells a server how often a call was tried before.

C-core sends it only with the channel argument `grpc.enable_retries: 0`: its own retry filter, which has no
policy here, keeps it back. The filter stays, since it alone knows which calls a GOAWAY says were not seen.
"""

_PUSHBACK = "grpc-retry-pushback-ms"

_JITTER = 0.2
"""Part of each wait that is left to chance, up and down; gRFC A6 has 20 %."""

_UNSENT = (
    "connections to all backends failing; last error: ",  # round_robin
    "failed to connect to all addresses; last error: ",  # pick_first
)
"""How C-core begins the text of a call for which it had no connection."""


class Throttle:
    """Stops the retries of a channel while too many of its calls fail."""

    def __init__(self, settings: RetryThrottling | None) -> None:
        self._settings = settings
        self._tokens = float(settings.max_tokens) if settings else 0.0

    def succeeded(self) -> None:
        """Count a call that has succeeded."""
        if self._settings is not None:
            self._tokens = min(self._settings.max_tokens, self._tokens + self._settings.token_ratio)

    def failed(self) -> bool:
        """Count an attempt that has failed, and return whether it may be repeated."""
        if self._settings is None:
            return True
        self._tokens = max(0.0, self._tokens - 1)
        return self._tokens > self._settings.max_tokens / 2


class Retries:
    """The repetitions of one call.

    Args:
        policy: how it may be repeated; None if it may not.
        throttle: that of its channel.

    """

    def __init__(self, policy: RetryPolicy | None, throttle: Throttle) -> None:
        self._policy = policy
        self._throttle = throttle
        self._waits = 0
        self.made = 0
        """How many there have been."""

    def succeeded(self) -> None:
        """Count the call as one that has succeeded."""
        if self._policy is not None:
            self._throttle.succeeded()

    def wait_after(self, error: grpc.aio.AioRpcError) -> float | None:
        """Return the seconds until the next attempt after one that failed with `error`; None to give up."""
        policy = self._policy
        if policy is None or error.code().name not in policy.retryable_codes:
            return None
        pushback = _pushback(error)
        allowed = self._throttle.failed()
        if not allowed or self.made + 1 >= policy.max_attempts or (pushback is not None and pushback < 0):
            return None
        self.made += 1
        if pushback is not None:
            self._waits = 0
            return pushback
        longest = policy.initial_backoff * policy.backoff_multiplier**self._waits
        self._waits += 1
        return min(longest, policy.max_backoff) * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311


def _pushback(error: grpc.aio.AioRpcError) -> float | None:
    """Return the seconds that the server wants to be left alone, below 0 for ever; None if it is silent."""
    values: Collection[object] = error.trailing_metadata().get_all(_PUSHBACK)
    if not values:
        return None
    text = str(next(iter(values)))
    # What can't be read forbids a retry, as gRFC A6 has it. (int() refuses thousands of digits.)
    return float(text) / 1000 if text.isascii() and text.isdecimal() and len(values) == 1 else -1.0


def reached_no_server(error: grpc.aio.AioRpcError, subchannel: Subchannel) -> bool:
    """Return whether a call on `subchannel` failed before it was sent.

    C-core does not say so in any other way than by its text, and by its state at that moment. A server may
    pass on the text of a call of its own: that one has another address in it, as a rule, and it came over a
    connection.
    """
    details = error.details() or ""
    return (
        error.code() is grpc.StatusCode.UNAVAILABLE
        and details.startswith(_UNSENT)
        and f" {subchannel.uri}: " in details
        and not subchannel.is_ready()
    )
