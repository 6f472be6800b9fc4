"""The real API server as a fleet's: that of a cluster of tools/cluster, in a namespace of the fleet's own."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kubernetes_asyncio.client import ApiClient, ApiException, Configuration, DiscoveryV1Api
from kubernetes_asyncio.config import load_kube_config

from grpc_common.testing.api_server import Object, kubeconfig
from tools.cluster.cluster import Cluster

_ROLE = Path("k8s/components/resolver-rbac/rbac.yaml").absolute()
_ACCOUNT = "user-service-client"
"""What clients are, and what they may: to read EndpointSlices."""

_OURS = {"endpointslice.kubernetes.io/managed-by": "lab"}
"""The label of slices that are not for Kubernetes' own controller."""

_LIFETIME = "--duration=24h"
"""Of the clients' token: longer than any story."""


class ClusterApi:
    """Puts slices as a controller would, the newest last."""

    network = "10.244.0."
    """The API server takes no loopback address for an endpoint's."""

    def __init__(self, name: str, namespace: str, kubeconfig: Path) -> None:
        self.name = name
        self.namespace = namespace
        self.kubeconfig = kubeconfig
        """Of the clients' account."""
        self._newest: asyncio.Queue[Object] = asyncio.Queue()

    @classmethod
    @asynccontextmanager
    async def running(cls, cluster: Cluster) -> AsyncIterator[ClusterApi]:
        """Make a namespace and the clients' account there, and put slices until the end of the block.

        Raises:
            ClusterError: the API server refused something of it.
            ExceptionGroup: of a RuntimeError: it refused a slice.

        """
        with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
            name, namespace = await asyncio.to_thread(_made, cluster, file := Path(folder, "kubeconfig"))
            api = cls(name, namespace, file)
            async with asyncio.TaskGroup() as tasks:
                putting = tasks.create_task(api._put_all(cluster))
                yield api
                putting.cancel()

    def put(self, piece: Object) -> None:
        """Add or replace an EndpointSlice, soon."""
        self._newest.put_nowait(piece)

    async def _put_all(self, cluster: Cluster) -> None:
        configuration = Configuration()
        await load_kube_config(str(cluster.kubeconfig), client_configuration=configuration)
        async with ApiClient(configuration) as client:
            api = DiscoveryV1Api(client)
            while True:
                await self._apply(api, await self._newest.get())

    async def _apply(self, api: DiscoveryV1Api, piece: Object) -> None:
        name = piece["metadata"]["name"]
        piece["metadata"]["labels"] |= _OURS
        try:
            await api.patch_namespaced_endpoint_slice(  # type: ignore[call-arg]  # the stubs lack _content_type
                name,
                self.namespace,
                piece,
                field_manager="lab",
                force=True,
                _content_type="application/apply-patch+yaml",
            )
        except ApiException as error:
            why = json.loads(error.body)["message"] if error.body else error.reason
            raise RuntimeError(f"the API server refused the EndpointSlice {name}: {why}") from error


def _made(cluster: Cluster, file: Path) -> tuple[str, str]:
    """Make a namespace and a kubeconfig for its clients; return the API server's name, and the namespace."""
    version = json.loads(cluster.kubectl("version", "--output=json"))["serverVersion"]["gitVersion"]
    namespace = _new_namespace(cluster)
    file.write_text(_kubeconfig(cluster, namespace))
    return f"kube-apiserver {version}", namespace


def _new_namespace(cluster: Cluster) -> str:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "lab-"}}
    created = cluster.kubectl("create", "--filename=-", "--output=name", stdin=json.dumps(namespace))
    return created.strip().removeprefix("namespace/")


def _kubeconfig(cluster: Cluster, namespace: str) -> str:
    """Return the kubeconfig of the clients' account, which is made."""
    own = f"--namespace={namespace}"
    cluster.kubectl("apply", "--server-side", f"--filename={_ROLE}", own)
    token = cluster.kubectl("create", "token", _ACCOUNT, _LIFETIME, own).strip()
    [admins] = json.loads(cluster.kubeconfig.read_text())["clusters"]
    server, authority = admins["cluster"]["server"], Path(admins["cluster"]["certificate-authority"])
    return kubeconfig(server, {"token": token}, authority.read_bytes(), namespace=namespace)
