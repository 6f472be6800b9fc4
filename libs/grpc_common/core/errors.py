"""Errors that callers understand: a gRPC status with google.rpc details.

A servicer raises `StatusError`, and the server makes it the call's status. Anything
else that a servicer raises is a bug: the caller gets INTERNAL with an id and nothing of the
exception's text, and the log has the id beside the traceback.
"""

import uuid
from collections.abc import Mapping
from typing import Any

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

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


class StartError(Exception):
    """A server can't start; the text tells the operator what is wrong and what would be right.

    A service raises it, or a class of its own derived from it, for what it needs at start.
    """


class StatusError(Exception):
    """Raised by a servicer to end its call with a status.

    Args:
        code: any code but OK.
        message: a sentence for the developer who reads it; never secret.
        details: messages of google.rpc.error_details, for programs.

    """

    def __init__(self, code: grpc.StatusCode, message: str, *details: Message) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    def to_status(self) -> grpc.Status:
        """Return the form in which grpc sends it."""
        packed = [any_pb2.Any() for _ in self.details]
        for target, detail in zip(packed, self.details, strict=True):
            target.Pack(detail)
        number: int = self.code.value[0]
        return rpc_status.to_status(status_pb2.Status(code=number, message=self.message, details=packed))


def invalid_argument(violations: Mapping[str, str]) -> StatusError:
    """Return INVALID_ARGUMENT with a BadRequest for `violations`: {field: what is wrong}."""
    bad_request = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
            for field, description in violations.items()
        ]
    )
    message = "; ".join(f"{field}: {what}" for field, what in violations.items())
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, message, bad_request)


def error_details(error: grpc.RpcError) -> list[Message]:
    """Return the google.rpc details of a failed call, as a client received them.

    Details of an unknown type are left out.
    """
    metadata = error.trailing_metadata() if isinstance(error, grpc.aio.AioRpcError | grpc.Call) else None
    for key, value in metadata or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            return [_unpacked(detail) for detail in status.details if _type_name(detail) in _DETAIL_TYPES]
    return []


def _type_name(detail: any_pb2.Any) -> str:
    return detail.type_url.rpartition("/")[2]


def _unpacked(detail: any_pb2.Any) -> Message:
    return _DETAIL_TYPES[_type_name(detail)].FromString(detail.value)


def status_of(error: Exception, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> StatusError:
    """Return what the caller is told about an exception that ended its call of `method`.

    A StatusError is its own answer. A method that the servicer does not have is UNIMPLEMENTED.
    Anything else is a bug: logged with its traceback, and hidden from the caller.
    """
    if isinstance(error, StatusError):
        return error
    if isinstance(error, NotImplementedError) and context.code() is grpc.StatusCode.UNIMPLEMENTED:
        # What the methods of a generated servicer do until they are overridden.
        return StatusError(grpc.StatusCode.UNIMPLEMENTED, f"the server does not implement {method}")
    error_id = uuid.uuid4().hex
    log.error("unexpected exception", method=method, error_id=error_id, exc_info=error)
    return StatusError(grpc.StatusCode.INTERNAL, f"internal error {error_id}")
