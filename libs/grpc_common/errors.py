"""Errors that callers understand: a gRPC status with google.rpc details.

A servicer raises `StatusError`; `StatusInterceptor` turns it into the call's status. Anything
else that a servicer raises is a bug: the caller gets INTERNAL with an id and nothing of the
exception's text, and the log has the id beside the traceback.
"""

import inspect
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NoReturn

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


type _Context = grpc.aio.ServicerContext[Any, Any]
type _Handler = grpc.RpcMethodHandler[Any, Any]
type _Behavior = Callable[[Any, _Context], Any]


class StatusInterceptor(grpc.aio.ServerInterceptor):
    """Ends every call that raises with the right status; see the module's text."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        """Wrap the method's behavior; a method that does not exist stays UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        shape = "_".join(
            "stream" if streaming else "unary"
            for streaming in (handler.request_streaming, handler.response_streaming)
        )
        behavior: _Behavior = getattr(handler, shape)
        guard = _guard_generator if inspect.isasyncgenfunction(behavior) else _guard_coroutine
        make: Callable[..., _Handler] = getattr(grpc, f"{shape}_rpc_method_handler")
        return make(
            guard(behavior, handler_call_details.method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _guard_coroutine(behavior: _Behavior, method: str) -> _Behavior:
    async def guarded(request: Any, context: _Context) -> Any:
        try:
            return await behavior(request, context)
        except Exception as error:  # noqa: BLE001 (every end of a call becomes a status)
            await _abort(error, context, method)

    return guarded


def _guard_generator(behavior: _Behavior, method: str) -> _Behavior:
    async def guarded(request: Any, context: _Context) -> AsyncIterator[Any]:
        try:
            async for response in behavior(request, context):
                yield response
        except Exception as error:  # noqa: BLE001 (every end of a call becomes a status)
            await _abort(error, context, method)

    return guarded


async def _abort(error: Exception, context: _Context, method: str) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, StatusError):
        error_id = uuid.uuid4().hex
        log.error("unexpected exception", method=method, error_id=error_id, exc_info=error)
        error = StatusError(grpc.StatusCode.INTERNAL, f"internal error {error_id}")
    await context.abort_with_status(error.to_status())
