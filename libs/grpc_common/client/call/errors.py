"""The errors of calls that this process ends itself."""

import asyncio
from collections.abc import Coroutine
from copy import copy
from typing import Any

import grpc

from grpc_common.core.errors import StatusError

_WRITE_FAILED = "Internal error from Core"

_LOOK = 0.001
"""Seconds until the next look at a status that is not the true one yet; nothing announces that."""

_MOST_LOOKS = 100


def rpc_error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    """Return the error of a call that never left this process."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


def rpc_error_of(error: StatusError) -> grpc.aio.AioRpcError:
    """Return the error that a StatusError means to a caller."""
    status = error.to_status()
    trailers = grpc.aio.Metadata(*status.trailing_metadata)
    return grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), trailers, status.details)


def copy_of(error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
    """Return an error to raise for one of those who wait for a call.

    The call's own would get a traceback, and with it keep the call and its connection: each would have the
    other, until garbage is collected.
    """
    raised = copy(error)
    raised.__cause__ = error.__cause__
    return raised


def code_of(ended: grpc.aio.Call) -> grpc.StatusCode:
    """Return the code of a call that has ended."""
    return _at_once(ended.code())


def details_of(ended: grpc.aio.Call) -> str:
    """Return the text with which a call has ended."""
    return _at_once(ended.details())


def end_of(attempt: grpc.aio.Call) -> asyncio.Future[grpc.aio.AioRpcError | None]:
    """Return the end of a call: its error, or None if it ends well.

    When a stream ends while a request is written, grpc.aio puts "Internal error from Core" in the place
    of the server's status, or has that in the place of its own a moment later. Its callbacks see the first.
    """
    end: asyncio.Future[grpc.aio.AioRpcError | None] = asyncio.get_running_loop().create_future()
    attempt.add_done_callback(lambda _attempt: _take_status(attempt, end, _MOST_LOOKS))
    return end


def _take_status(
    attempt: grpc.aio.Call, end: asyncio.Future[grpc.aio.AioRpcError | None], looks: int
) -> None:
    error = _at_once(_status_of(attempt))
    if looks and error is not None and error.details() == _WRITE_FAILED:
        end.get_loop().call_later(_LOOK, _take_status, attempt, end, looks - 1)
    elif not end.done():
        end.set_result(error)


async def _status_of(ended: Any) -> grpc.aio.AioRpcError | None:
    code = await ended.code()
    if code is grpc.StatusCode.OK:
        return None
    headers, trailers = await ended.initial_metadata(), await ended.trailing_metadata()
    text, debug = await ended.details(), await ended.debug_error_string()
    return grpc.aio.AioRpcError(code, headers, trailers, text, debug)


def _at_once[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns that need not wait."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("a call that has ended has no status")
