"""The errors of calls that this process ends itself."""

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


def code_of(ended: grpc.aio.Call) -> grpc.StatusCode:
    """Return the code of a call that has ended, for which its coroutine does not have to wait."""
    try:
        ended.code().send(None)
    except StopIteration as stop:
        code: grpc.StatusCode = stop.value
        return code
    raise AssertionError(f"{ended} has not ended")


async def error_of(ended: grpc.aio.Call) -> grpc.aio.AioRpcError | None:
    """Return the error of a call that has ended, or is about to; None if it has ended well."""
    code = await ended.code()
    if code is grpc.StatusCode.OK:
        return None
    headers, trailers = await ended.initial_metadata(), await ended.trailing_metadata()
    return grpc.aio.AioRpcError(code, headers, trailers, await ended.details())
