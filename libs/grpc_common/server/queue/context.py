"""What C-core knows of a call, in the form of grpc.aio's context."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import grpc
import structlog
from grpc._cython import cygrpc  # type: ignore[import-not-found, attr-defined, unused-ignore]  # compiled

log = structlog.get_logger()

_FOREVER = 1e11
"""Seconds since 1970. C-core gives calls without a deadline one in the far future."""


class QueueContext:
    """The part of grpc.aio.ServicerContext that needs no engine to wait for it."""

    __slots__ = (
        "_call",
        "_callbacks",
        "_code",
        "_deadline",
        "_details",
        "_metadata",
        "_peer",
        "_trailers",
        "compression",
        "is_done",
        "write_flags",
    )

    def __init__(self, request: Any) -> None:
        self._call = request.call
        self._metadata = request.invocation_metadata
        self._deadline: float = request.call_details.deadline
        # Of a call that is over C-core knows it no more.
        self._peer: str = request.call.peer().decode()
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._trailers: tuple[tuple[str, str | bytes], ...] = ()
        self._callbacks: list[Callable[[Any], object]] = []
        self.compression: grpc.Compression | None = None
        self.write_flags = 0
        self.is_done = False

    def invocation_metadata(self) -> Any:
        """Return what the caller has sent, once: it may be megabytes, and whoever has asked keeps it."""
        metadata, self._metadata = self._metadata, ()
        return metadata

    def peer(self) -> str:
        """Return the caller's address."""
        return self._peer

    def time_remaining(self) -> float | None:
        """Return the seconds until the caller's deadline, or None."""
        return None if self._deadline > _FOREVER else max(self._deadline - time.time(), 0)

    def set_trailing_metadata(self, trailing_metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Set what is sent with the status."""
        self._trailers = tuple(trailing_metadata)

    def trailing_metadata(self) -> Any:
        """Return what is sent with the status."""
        return self._trailers

    @property
    def has_trailers(self) -> bool:
        """Whether something is sent with the status of a call that has not failed."""
        return bool(self._trailers or self._details)

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status code."""
        self._code = code

    def code(self) -> grpc.StatusCode | None:
        """Return the code that was set, or None."""
        return self._code

    def set_details(self, details: str) -> None:
        """Set the text of the status."""
        self._details = details

    def details(self) -> str:
        """Return the text that was set."""
        return self._details

    def set_compression(self, compression: grpc.Compression) -> None:
        """Compress the responses; before the first one only."""
        self.compression = compression

    def disable_next_message_compression(self) -> None:
        """Send the next response as it is."""
        self.write_flags = cygrpc.WriteFlag.no_compress

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what TLS knows of the caller."""
        found = cygrpc.auth_context(self._call) or {}
        return {name.decode(): values for name, values in found.items()}

    def peer_identities(self) -> Iterable[bytes] | None:
        """Return the names of the caller."""
        names: Iterable[bytes] | None = cygrpc.peer_identities(self._call)
        return names

    def peer_identity_key(self) -> str | None:
        """Return of what kind these names are."""
        key: bytes | None = cygrpc.peer_identity_key(self._call)
        return key.decode() if key else None

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Call `callback` once the call is over."""
        self._callbacks.append(callback)

    def done(self) -> bool:
        """Return whether the call is over."""
        return self.is_done

    def forget(self) -> None:
        """Let go of C-core's call, and run the callbacks, none of which can harm the call."""
        self.is_done = True
        self._call = None
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback(self)
            except KeyboardInterrupt:
                raise
            except BaseException:  # SystemExit would end the event loop
                log.exception("a done callback of a call failed", peer=self._peer)
