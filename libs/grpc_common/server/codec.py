"""Turns messages of a method into what a servicer works with, and back."""

from __future__ import annotations

from typing import Any

import grpc

from grpc_common.core.calls import Method
from grpc_common.core.errors import StatusError
from grpc_common.observe.metrics import CallMetrics


class Codec:
    """Parses requests and serializes responses; whatever is wrong with one is a status.

    Args:
        method: whose messages they are.
        handler: has the functions that were registered with gRPC.
        metrics: counts messages.
        max_send_size: bytes of the largest response.

    """

    def __init__(
        self,
        method: Method,
        handler: grpc.RpcMethodHandler[Any, Any],
        metrics: CallMetrics | None,
        max_send_size: int,
    ) -> None:
        self._method = method
        self._max_send_size = max_send_size
        self._deserializer, self._serializer = handler.request_deserializer, handler.response_serializer
        if metrics is not None:
            self._deserializer = metrics.counted(self._deserializer, method, "received")
            self._serializer = metrics.counted(self._serializer, method, "sent")

    def parse(self, message: bytes) -> Any:
        """Return the request that a client has sent.

        Raises:
            StatusError: it is none; INTERNAL, as gRPC has it for this.

        """
        try:
            return self._deserializer(message) if self._deserializer else message
        except Exception:  # noqa: BLE001 (each serialization has its own)
            raise StatusError(
                grpc.StatusCode.INTERNAL, f"the request of {self._method.path} can't be parsed"
            ) from None

    def serialize(self, response: Any) -> bytes:
        """Return what is sent to the client.

        Raises:
            StatusError: RESOURCE_EXHAUSTED, since it is too large.
            TypeError: it is no message.

        """
        message = self._serializer(response) if self._serializer else response
        if type(message) is not bytes:
            raise TypeError(f"{self._method.path} has returned {type(message).__name__}, which is no message")
        if len(message) > self._max_send_size:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "the response is larger than max_send_msg_size "
                f"({len(message)} vs. {self._max_send_size} bytes)",
            )
        return message
