"""Opens the channel to one endpoint, with the options and the credentials of the moment."""

from collections.abc import Sequence
from typing import Any

import grpc
from grpc.experimental import ChannelOptions  # type: ignore[attr-defined]  # not in types-grpcio

_BLOCKING_OPTIONS = ((ChannelOptions.SingleThreadedUnaryStream, 1),)
"""Of a channel whose streams are read in the thread that iterates; other threads may cancel them."""


class Dialer:
    """Opens channels of one service.

    Args:
        options: of every channel.
        credentials: None for plaintext.

    """

    def __init__(
        self, options: Sequence[tuple[str, Any]], credentials: grpc.ChannelCredentials | None = None
    ) -> None:
        self._options = list(options)
        self.credentials = credentials

    def open(self, uri: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
        """Return a new channel; it does not connect by itself."""
        if credentials is None:
            return grpc.aio.insecure_channel(uri, options=self._options)
        return grpc.aio.secure_channel(uri, credentials, options=self._options)

    def open_blocking(self, uri: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
        """Return a new channel for threads; C-core gives it a connection of its own."""
        options = [*self._options, *_BLOCKING_OPTIONS]
        if credentials is None:
            return grpc.insecure_channel(uri, options=options)
        return grpc.secure_channel(uri, credentials, options=options)
