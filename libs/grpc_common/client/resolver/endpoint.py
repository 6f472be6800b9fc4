"""One place where a service can be called, and who knows of it."""

import importlib.util
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from grpc_common.core.errors import StartError


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server of a service, in most cases a pod."""

    address: str
    """`ip:port`, with an IPv6 address in brackets: `10.0.0.7:50051`, `[fd00::7]:50051`; or `unix:PATH`."""

    zone: str = ""
    """Where it runs (topology.kubernetes.io/zone); empty if nobody knows."""

    node: str = ""
    """The machine it runs on; empty if nobody knows."""

    for_zones: tuple[str, ...] = ()
    """The zones whose clients it is meant for, as an EndpointSlice's hints say; empty without hints."""

    terminating: bool = False
    """It still serves, but is on its way out: it gets new calls only where no other endpoint is known."""

    weight: float = 1.0
    """Its share of the calls in relation to the others' weights; above 0."""


class EndpointSource(Protocol):
    """Knows the endpoints of one service and follows their changes."""

    def watch(self) -> AsyncIterator[Sequence[Endpoint | str]]:
        """Yield the full current set of endpoints, first at once and then each time it changes.

        A text stands for an Endpoint with this address. An empty set means that no endpoint is ready. The
        source puts changes that follow each other closely together (debounce) and sees to its own
        reconnects: once it has yielded, the channel keeps the last set until the next one. What makes no
        sense in a set is left out and logged.
        """


class SourceStatus(Protocol):
    """What a source may tell of itself besides the endpoints.

    A source of one's own need not have it: `getattr(source, "reason", "")`.
    """

    @property
    def reason(self) -> str:
        """Why there are no endpoints, or why their changes can't be followed; empty if all is well."""

    @property
    def updated(self) -> float | None:
        """When the endpoints were last known to be the current ones, by time.monotonic(); None if never."""


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
