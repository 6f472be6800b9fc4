"""Errors that callers understand: a gRPC status with google.rpc details.

A servicer raises `StatusError`, and the server makes it the call's status. So it does with the
exceptions that `Server(errors=)` names. Anything else that a servicer raises is a bug: the caller gets
INTERNAL with an id and nothing of the exception's text, and the log has the id beside the traceback.
"""

import asyncio
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from grpc_common.core.status_size import fitted

log = structlog.get_logger()

# The types of google.rpc that a status may carry, by the last part of their type URL.
_DETAIL_TYPES: dict[str, type[Message]] = {
    message.DESCRIPTOR.full_name: message
    for message in (
        error_details_pb2.BadRequest,
        error_details_pb2.DebugInfo,
        error_details_pb2.ErrorInfo,
        error_details_pb2.Help,
        error_details_pb2.LocalizedMessage,
        error_details_pb2.PreconditionFailure,
        error_details_pb2.QuotaFailure,
        error_details_pb2.RequestInfo,
        error_details_pb2.ResourceInfo,
        error_details_pb2.RetryInfo,
    )
}


def printable(text: str) -> str:
    """Return `text` with an escape for each character that could forge a line or write to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def excerpt(text: str, limit: int = 200) -> str:
    """Return the first `limit` characters of `text`, printable, and say so if there are more."""
    shown = printable(text[:limit])
    return shown if len(text) <= limit else f"{shown}... ({len(text)} characters)"


class StartError(Exception):
    """A server can't start; the text tells the operator what is wrong and what would be right.

    A service raises it, or a class of its own derived from it, for what it needs at start.
    """


type Metadata = tuple[tuple[str, str | bytes], ...]

CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
"""The status codes by their numbers."""


class StatusError(Exception):
    """Raised by a servicer to end its call with a status.

    Args:
        code: any code but OK, or its number.
        message: a sentence for the developer who reads it; never secret.
        details: messages of google.rpc.error_details, for programs.
        metadata: sent with the status, beside what the servicer's context has.

    Raises:
        ValueError: the code is none, or OK.
        TypeError: something is of another type.

    """

    def __init__(
        self,
        code: grpc.StatusCode | int,
        message: str,
        *details: Message,
        metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.code = _error_code(code)
        self.message = message
        self.details = details
        self.metadata = tuple(metadata)
        _check_types(message, details)

    def to_status(self, trailers: Iterable[tuple[str, str | bytes]] = ()) -> grpc.Status:
        """Return the form in which grpc sends it, small enough beside the servicer's own `trailers`.

        A text that is too long ends with how much was cut; details that are too large have fewer items,
        or are left out.
        """
        number: int = self.code.value[0]
        others = (*trailers, *self.metadata)
        status = rpc_status.to_status(fitted(number, self.message, self.details, others))
        return Status(status.code, status.details, (*others, *(status.trailing_metadata or ())))


@dataclass(frozen=True, slots=True)
class Status(grpc.Status):
    """A status as grpc sends it."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: Metadata


def _check_types(message: Any, details: Iterable[Any]) -> None:
    if not isinstance(message, str):
        raise TypeError(f"the message of a StatusError is a text, not {message!r}")
    for detail in details:
        if not isinstance(detail, Message):
            raise TypeError(f"the details of a StatusError are protobuf messages, not {detail!r}")


def _error_code(code: Any) -> grpc.StatusCode:
    known = CODES.get(code) if isinstance(code, int) else code
    if not isinstance(known, grpc.StatusCode) or known is grpc.StatusCode.OK:
        raise ValueError(f"{code!r} is no code of an error; take one of grpc.StatusCode, but not OK")
    return known


def error_details(error: grpc.RpcError) -> list[Message]:
    """Return the google.rpc details of a failed call, as a client received them.

    Details of an unknown type, and what a server has sent that can't be parsed, are left out.
    """
    metadata = error.trailing_metadata() if isinstance(error, grpc.aio.AioRpcError | grpc.Call) else None
    for key, value in metadata or ():
        if key == "grpc-status-details-bin":
            with suppress(DecodeError):
                return list(_known(status_pb2.Status.FromString(value)))
    return []


def _known(status: status_pb2.Status) -> Iterator[Message]:
    for detail in status.details:
        if _type_name(detail) in _DETAIL_TYPES:
            with suppress(DecodeError):
                yield _unpacked(detail)


def _type_name(detail: any_pb2.Any) -> str:
    return detail.type_url.rpartition("/")[2]


def _unpacked(detail: any_pb2.Any) -> Message:
    return _DETAIL_TYPES[_type_name(detail)].FromString(detail.value)


class Mapped(Protocol):
    """The exceptions beside StatusError that have a status; see error_map.py."""

    def has(self, error: BaseException) -> bool:
        """Return whether there is a status for `error`."""

    def status(self, error: BaseException) -> StatusError:
        """Return the status of `error`, for which there is one; raise any exception if that fails."""


def status_of(
    error: BaseException, method: str, code: grpc.StatusCode | None = None, mapped: Mapped | None = None
) -> StatusError:
    """Return what the caller is told about an exception that ended its call of `method`.

    A StatusError is its own answer, and one of the `mapped` has one, from a task of a TaskGroup too. A
    method that the servicer does not have, which has set `code` to UNIMPLEMENTED, is that. Anything else
    is a bug: logged with its traceback, and hidden from the caller.
    """
    if isinstance(error, NotImplementedError) and code is grpc.StatusCode.UNIMPLEMENTED:
        # What the methods of a generated servicer do until they are overridden.
        return StatusError(grpc.StatusCode.UNIMPLEMENTED, f"the server does not implement {method}")
    try:
        intended = _intended(error, mapped)
    except BaseException as mistake:  # noqa: BLE001 (a function of the service's own may do anything)
        return _bug(mistake, method)
    return _bug(error, method) if intended is None else intended


def _bug(error: BaseException, method: str) -> StatusError:
    error_id = uuid.uuid4().hex
    log.error("unexpected exception", method=method, error_id=error_id, exc_info=error)
    return StatusError(grpc.StatusCode.INTERNAL, f"internal error {error_id}")


def _intended(error: BaseException, mapped: Mapped | None) -> StatusError | None:
    """Return the status that an exception has, or the first of a group in which no other kind is."""
    errors = [each for each in leaves(error) if not isinstance(each, asyncio.CancelledError)]
    if not errors or not all(isinstance(each, StatusError) or _is_mapped(each, mapped) for each in errors):
        return None
    first = errors[0]
    if isinstance(first, StatusError):
        return first
    return mapped.status(first) if mapped else None


def _is_mapped(error: BaseException, mapped: Mapped | None) -> bool:
    return mapped is not None and mapped.has(error)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield `error`, or what is in it if it is a group, however deep."""
    rest = [error]
    while rest:
        each = rest.pop()
        if isinstance(each, BaseExceptionGroup):
            rest.extend(reversed(each.exceptions))
        else:
            yield each
