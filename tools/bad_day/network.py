"""The way from clients to pods: a relay before each pod, an EndpointSlice for each, and Envoy's endpoints."""

import asyncio
import json
from pathlib import Path
from typing import Any

from grpc_common.testing.api_server import ApiServer, endpoint_slice
from tests.faults.proxy import Proxy
from tools.lab.fleet.fleet import NAMESPACE, PORT_NAME, SERVICE
from tools.lab.fleet.pod import Pod
from tools.replacing import replace_file

CLUSTER = "user-service"
"""Of Envoy."""


class Network:
    """Leads to the pods that a control plane knows of; each way may be slow or cut.

    Args:
        api: tells clients of grpc_common the endpoints.
        file: tells them Envoy.

    """

    def __init__(self, api: ApiServer, file: Path) -> None:
        self.relays: dict[str, Proxy] = {}
        """By the pod's name; those of pods that have ended stay."""
        self._api, self._file = api, file
        self._ports: dict[str, int] = {}
        self._ready: dict[str, int] = {}
        self._version = 0
        self._listeners: list[asyncio.Server] = []

    async def add(self, pod: Pod) -> None:
        """Have a way to a pod."""
        relay = self.relays[pod.name] = Proxy(pod.port, pod.address)
        listener = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
        self._listeners.append(listener)
        self._ports[pod.name] = listener.sockets[0].getsockname()[1]

    def tell(self, pod: Pod, *, ended: bool) -> None:
        """Tell API server and Envoy what is true of a pod now."""
        if ended:
            self._api.delete(pod.name)
        else:
            self._api.put(self._slice(pod))
        if pod.ready and not pod.terminating:
            self._ready[pod.name] = self._ports[pod.name]
        else:
            self._ready.pop(pod.name, None)
        self.write()

    def _slice(self, pod: Pod) -> dict[str, Any]:
        conditions = {
            "ready": pod.ready and not pod.terminating,
            "serving": pod.ready,
            "terminating": pod.terminating,
        }
        port = (PORT_NAME, self._ports[pod.name])
        return endpoint_slice(
            pod.name,
            ["127.0.0.1"],
            service=SERVICE,
            namespace=NAMESPACE,
            conditions=conditions,
            ports=[port],
        )

    def write(self) -> None:
        """Write Envoy's endpoints; it sees that the file was replaced."""
        self._version += 1
        endpoints = [{"endpoint": {"address": _address(port)}} for port in self._ready.values()]
        assignment = {
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": CLUSTER,
            "endpoints": [{"lb_endpoints": endpoints}],
        }
        response = {"version_info": str(self._version), "resources": [assignment]}
        replace_file(self._file, json.dumps(response))

    def close(self) -> None:
        """End all ways."""
        for listener in self._listeners:
            listener.close()
        for relay in self.relays.values():
            relay.cut()


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
