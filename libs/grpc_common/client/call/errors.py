"""The errors of calls that this process ends itself."""

from copy import copy

import grpc

from grpc_common.core.errors import StatusError


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


async def error_of(ended: grpc.aio.Call) -> grpc.aio.AioRpcError | None:
    """Return the error of a call that has ended, or is about to; None if it has ended well."""
    code = await ended.code()
    if code is grpc.StatusCode.OK:
        return None
    headers, trailers = await ended.initial_metadata(), await ended.trailing_metadata()
    return grpc.aio.AioRpcError(code, headers, trailers, await ended.details())
