"""The errors that most services need, with the details that google.rpc has for each.

What each of them takes is for the caller to read: nothing secret.
"""

import math
from collections.abc import Mapping

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from grpc_common.core.errors import StatusError

_LONGEST_MS = 2**31 - 1
"""What `grpc-retry-pushback-ms` may be, some 24 days: grpc-java reads it with Integer.valueOf."""


def invalid_argument(violations: Mapping[str, str]) -> StatusError:
    """Return INVALID_ARGUMENT with a BadRequest for `violations`: {field: what is wrong}."""
    bad_request = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=_text(field), description=_text(description))
            for field, description in violations.items()
        ]
    )
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, _sentence(violations), bad_request)


def not_found(message: str, *, resource_type: str = "", resource_name: str = "") -> StatusError:
    """Return NOT_FOUND, with a ResourceInfo if a resource is given, such as `user.User` and its id."""
    resource = _resource(resource_type, resource_name)
    return StatusError(grpc.StatusCode.NOT_FOUND, message, *resource)


def already_exists(message: str, *, resource_type: str = "", resource_name: str = "") -> StatusError:
    """Return ALREADY_EXISTS, with a ResourceInfo if a resource is given, such as `user.User` and its id."""
    resource = _resource(resource_type, resource_name)
    return StatusError(grpc.StatusCode.ALREADY_EXISTS, message, *resource)


def failed_precondition(violations: Mapping[str, str]) -> StatusError:
    """Return FAILED_PRECONDITION with a PreconditionFailure for `violations`: {subject: what is wrong}."""
    failure = error_details_pb2.PreconditionFailure(
        violations=[
            error_details_pb2.PreconditionFailure.Violation(
                subject=_text(subject), description=_text(description)
            )
            for subject, description in violations.items()
        ]
    )
    return StatusError(grpc.StatusCode.FAILED_PRECONDITION, _sentence(violations), failure)


def permission_denied(message: str, *, reason: str = "", domain: str = "") -> StatusError:
    """Return PERMISSION_DENIED, with an ErrorInfo if a reason or a domain is given.

    Args:
        message: a sentence for the developer who reads it.
        reason: why, for programs: `ACCOUNT_CLOSED`.
        domain: what the reason is unique in, usually the service's name: `user.example.com`.

    """
    info = []
    if reason or domain:
        info = [error_details_pb2.ErrorInfo(reason=_text(reason), domain=_text(domain))]
    return StatusError(grpc.StatusCode.PERMISSION_DENIED, message, *info)


def unavailable(message: str, *, retry_after: float | None = None) -> StatusError:
    """Return UNAVAILABLE, which tells the caller to come back.

    Args:
        message: a sentence for the developer who reads it.
        retry_after: seconds until then; None leaves it to the caller.

    Raises:
        ValueError: `retry_after` is negative, not finite, or more than 24 days.
        TypeError: it is no number.

    """
    if retry_after is None:
        return StatusError(grpc.StatusCode.UNAVAILABLE, message)
    return retry_later(grpc.StatusCode.UNAVAILABLE, message, retry_after)


def retry_later(code: grpc.StatusCode, message: str, seconds: float) -> StatusError:
    """Return an error with a time to come back: in gRPC's own trailer, which its retries obey, and RetryInfo.

    Both have the same number of whole milliseconds, and at least one unless `seconds` is 0.

    Raises:
        ValueError: `seconds` is negative, not finite, or more than 24 days.
        TypeError: it is no number.

    """
    milliseconds = _milliseconds(seconds)
    whole, rest = divmod(milliseconds, 1000)
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=whole, nanos=rest * 1_000_000))
    metadata = [("grpc-retry-pushback-ms", str(milliseconds))]
    return StatusError(code, message, retry, metadata=metadata)


def _sentence(violations: Mapping[str, str]) -> str:
    return "; ".join(f"{where}: {what}" for where, what in violations.items())


def _milliseconds(seconds: float) -> int:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"the time to come back is a number of seconds, not {seconds!r}")
    if not 0 <= seconds <= _LONGEST_MS / 1000:  # which NaN is not, either
        raise ValueError(f"{seconds!r} seconds are no time to come back; take 0 to {_LONGEST_MS // 1000}")
    return round(seconds * 1000) or math.ceil(seconds)


def _resource(resource_type: str, resource_name: str) -> list[Message]:
    if not (resource_type or resource_name):
        return []
    return [
        error_details_pb2.ResourceInfo(resource_type=_text(resource_type), resource_name=_text(resource_name))
    ]


def _text(text: str) -> str:
    """Return `text` as protobuf takes it: without halves of surrogate pairs, as names of files may have."""
    return text.encode(errors="replace").decode()
