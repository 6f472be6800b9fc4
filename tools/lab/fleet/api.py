"""Where a fleet tells of its endpoints, and clients of grpc_common find them."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from grpc_common.testing.api_server import ApiServer, Object, kubeconfig

LOOPBACK = "127.0.0."
"""What the addresses of all pods begin with."""


class Api(Protocol):
    """An API server, as a fleet needs it."""

    name: str
    """What it is, and its version."""

    namespace: str
    """Of the Service."""

    network: str
    """What addresses in EndpointSlices begin with, in place of LOOPBACK."""

    kubeconfig: Path
    """The file that leads clients there, who may read EndpointSlices; a client finds it in KUBECONFIG."""

    def put(self, piece: Object) -> None:
        """Add or replace an EndpointSlice."""


class SimulatedApi(ApiServer):
    """That of grpc_common.testing, which has nothing but EndpointSlices."""

    name = "simulated by grpc_common.testing"
    namespace = "default"
    network = LOOPBACK
    kubeconfig = Path()

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[SimulatedApi]:
        """Run one that any token opens."""
        with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
            async with (api := cls()).serve():
                api.kubeconfig = Path(folder, "kubeconfig")
                api.kubeconfig.write_text(kubeconfig(api.url, {"token": "a"}, namespace=api.namespace))
                yield api
