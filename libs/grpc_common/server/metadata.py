"""What a servicer may send as metadata."""

import re
from collections.abc import Sequence
from typing import Any

import grpc

type Metadata = grpc.aio.Metadata | Sequence[tuple[str, str | bytes]]

# What C-core takes, which refuses the whole status otherwise: grpc_header_key_is_legal and
# grpc_header_nonbin_value_is_legal of its validate_metadata.cc.
_KEY = re.compile(r"[0-9a-z_.-]+")
_TEXT = re.compile(r"[ -~]*")
_BYTES = re.compile(rb"[ -~]*")

# gRPC's own, which would be sent twice; grpc-timeout from a server ends the process (a CHECK of C-core).
_RESERVED = frozenset({"content-type", "grpc-encoding", "grpc-message", "grpc-status", "grpc-timeout", "te"})


def checked(metadata: Any) -> tuple[tuple[str, str | bytes], ...]:
    """Return metadata in the form in which grpc.aio can send it.

    Raises:
        TypeError: it is no iterable of pairs of texts, or one of these has a wrong type.
        ValueError: C-core refuses a key or a value.

    """
    return tuple(_pair(key, value) for key, value in metadata)


def is_sendable(key: Any, value: Any) -> bool:
    """Return whether grpc.aio can send this; not all that a client may send can be sent on."""
    try:
        _pair(key, value)
    except (TypeError, ValueError):
        return False
    return True


def _pair(key: Any, value: Any) -> tuple[str, str | bytes]:
    if not isinstance(key, str) or not _KEY.fullmatch(key) or key in _RESERVED:
        raise ValueError(f"metadata can't have the key {key!r}; write lower-case letters, digits, _ . and -")
    if not isinstance(value, str | bytes):
        raise TypeError(f"metadata {key!r} has a {type(value).__name__}; it must be a str or bytes")
    is_binary = key.endswith("-bin")
    if is_binary and isinstance(value, str):
        raise TypeError(f"metadata {key!r} has a str; what ends in -bin takes bytes")
    if not is_binary and not _is_text(value):
        raise ValueError(f"metadata {key!r} must be printable ASCII; a key that ends in -bin takes any bytes")
    # No subclass, as a StrEnum is one: grpc.aio fails at it once it is too late for another status.
    return str.__str__(key), str.__str__(value) if isinstance(value, str) else bytes(value)


def _is_text(value: str | bytes) -> bool:
    return (_TEXT if isinstance(value, str) else _BYTES).fullmatch(value) is not None  # type: ignore[arg-type]
