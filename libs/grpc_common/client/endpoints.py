"""Where the addresses of a service come from."""

import importlib.util
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from grpc_common.core.errors import StartError


class EndpointSource(Protocol):
    """Knows the endpoints of one service and follows their changes."""

    def watch(self) -> AsyncIterator[Sequence[str]]:
        """Yield the full current set of addresses, first at once and then each time it changes.

        An address is `ip:port`, with an IPv6 address in brackets: `10.0.0.7:50051`,
        `[fd00::7]:50051`. An empty set means that no endpoint is ready. The source puts changes
        that follow each other closely together (debounce) and sees to its own reconnects: once
        it has yielded, the channel keeps the last set until the next one.
        """


def check_kubernetes() -> None:
    """Check that the packages for targets of the form kubernetes:/// are there.

    Raises:
        StartError: they are not.

    """
    if not all(importlib.util.find_spec(name) for name in ("aiohttp", "kubernetes_asyncio")):
        raise StartError(
            "targets of the form kubernetes:/// need the package kubernetes-asyncio: with Bazel depend on "
            "//libs/grpc_common:kubernetes, with pip install grpc-on-kubernetes-common[kubernetes]"
        )
