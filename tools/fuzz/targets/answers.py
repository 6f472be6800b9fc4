"""What a server says of a failed call, beside its code: when to come back, and details."""

from typing import Any

import grpc
from grpc.aio import AioRpcError, Metadata

from grpc_common.client.call.retry import _pushback
from grpc_common.core.errors import error_details


def fuzz(data: bytes) -> None:
    """There is a time or no retry, and details of known types or none; the first line is the time."""
    time, newline, details = data.partition(b"\n")
    trailers: list[tuple[str, Any]] = [("grpc-retry-pushback-ms", time.decode("latin-1"))]
    if newline:
        trailers.append(("grpc-status-details-bin", details))
    error = AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(*trailers))
    pushback = _pushback(error)
    assert pushback is not None
    assert pushback == -1 or (pushback >= 0 and time.isdigit())
    for detail in error_details(error):
        assert detail.DESCRIPTOR.full_name.startswith("google.rpc.")
        assert detail.FromString(detail.SerializeToString()) == detail
