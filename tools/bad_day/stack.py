"""All that a bad day happens to: three pods with mutual TLS, their database, Envoy, an API server, DNS."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trustme
import yaml

from grpc_common.testing.api_server import ApiServer, kubeconfig
from grpc_common.testing.certificates import CertificateDirectory
from tests.faults.proxy import Proxy
from tests.interop.envoy_proxy import configured, listener, retry_policy, type_url
from tools.bad_day.callers import Ways
from tools.bad_day.database import Database
from tools.bad_day.network import CLUSTER, Network
from tools.lab.fleet.fleet import NAMESPACE, PORT_NAME, SERVICE, Fleet
from tools.lab.fleet.pod import Pod

PODS = 3

SERVER_NAME = f"{SERVICE}.{NAMESPACE}"
"""What the servers' certificate is for."""

_BASE = Path("k8s/base/config.yaml")

# Calls are short here, and a pod's end is to be as well.
_SHORTER = {"drain": {"delay": "1s", "grace": "35s"}}


@dataclass
class Stack:
    """All that runs."""

    folder: Path
    database: Database
    fleet: Fleet
    network: Network
    api: ApiServer
    """The one that the clients ask."""

    way_to_api: Proxy
    """From the clients."""

    certificates: dict[str, CertificateDirectory]
    """Of "server", "client" and "envoy"."""

    config: Path
    """The servers' config.yaml."""

    variables: dict[str, str]
    """Of the servers' environment."""

    envoy: str
    """Where Envoy takes calls."""

    @property
    def pods(self) -> list[Pod]:
        """Those that are to serve."""
        return [pod for pod in self.fleet.pods if not pod.terminating]

    def pod(self, number: str) -> Pod:
        """Return one of those that are to serve; any number has one."""
        pods = self.pods
        return pods[int(number) % len(pods)]

    @property
    def ways(self) -> Ways:
        """How clients get to the pods: by EndpointSlices, by DNS, and through Envoy."""
        [port] = {pod.port for pod in self.fleet.pods}
        targets = {
            "kubernetes": f"kubernetes:///{SERVER_NAME}:{PORT_NAME}",
            "dns": f"dns://{self.fleet.dns.server}/{self.fleet.dns.name}:{port}",
        }
        kubeconfig = str(self.folder / "kubeconfig")
        return Ways(kubeconfig, targets, self.envoy, self.certificates["client"].path, SERVER_NAME)


@asynccontextmanager
async def running_stack(engine: str) -> AsyncIterator[Stack]:
    """Run all of it; skip the test if the machine lacks a program.

    Raises:
        RuntimeError: one of the programs has not started; the text has its log.

    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bad-day-")))
        certificates = _certificates(folder)
        config = folder / "config.yaml"
        config.write_text(_config(), "utf-8")
        database = await stack.enter_async_context(Database.running())
        api = await stack.enter_async_context(ApiServer().serve())
        network = Network(api, folder / "endpoints.json")
        stack.callback(network.close)
        network.write()
        variables = {
            "CONFIG_FILE": str(config),
            "ENGINE": engine,
            "TLS_DIRECTORY": str(certificates["server"].path),
            "TLS_REQUIRE_CLIENT_CERTIFICATE": "true",
        }
        fleet = await stack.enter_async_context(Fleet.running(0, database=database.url, variables=variables))
        fleet.subscribe(_follow(network))
        await fleet.scale(PODS)
        way_to_api, url = await _way_to(api, stack)
        (folder / "kubeconfig").write_text(kubeconfig(url, {"token": "secret"}, namespace=NAMESPACE))
        envoy = await stack.enter_async_context(
            configured(folder, listener([_ROUTES]), [_cluster(folder, certificates["envoy"].path)])
        )
        yield Stack(
            folder=folder,
            database=database,
            fleet=fleet,
            network=network,
            api=api,
            way_to_api=way_to_api,
            certificates=certificates,
            config=config,
            variables=variables,
            envoy=f"127.0.0.1:{envoy.port}",
        )


def _certificates(folder: Path) -> dict[str, CertificateDirectory]:
    ca = trustme.CA()
    names = {"server": SERVER_NAME, "client": "client.test", "envoy": "envoy.test"}
    return {name: CertificateDirectory(folder / name, ca, san) for name, san in names.items()}


def _config() -> str:
    """Return base's config.yaml, with a shorter drain, and the port for metrics left to the pod."""
    content = yaml.safe_load(_BASE.read_text("utf-8"))
    content["server"].update(_SHORTER)
    return yaml.safe_dump(content)


async def _way_to(api: ApiServer, stack: AsyncExitStack) -> tuple[Proxy, str]:
    port = urlsplit(api.url).port
    assert port
    way = Proxy(port)
    listener = await asyncio.start_server(way.serve, "127.0.0.1", 0)
    stack.callback(way.cut)
    stack.callback(listener.close)
    return way, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


def _follow(network: Network) -> Any:
    """Return what tells the network of each change of a pod, a moment later as in a cluster."""
    told: set[asyncio.Task[None]] = set()

    async def tell(pod: Pod, change: str) -> None:
        if pod.name not in network.relays:
            await network.add(pod)
        network.tell(pod, ended=change == "ended")

    def changed(pod: Pod, change: str) -> None:
        task = asyncio.create_task(tell(pod, change))
        told.add(task)
        task.add_done_callback(told.discard)

    return changed


_ROUTES = {
    "name": "all",
    "domains": ["*"],
    "routes": [
        {
            "match": {"prefix": "/", "grpc": {}},
            "route": {
                "cluster": CLUSTER,
                "timeout": "0s",
                # What no server has seen, as in the overlays; a create without a key must not be made twice.
                "retry_policy": retry_policy(num_retries=2, retry_on="connect-failure,refused-stream"),
            },
        }
    ],
}


def _cluster(folder: Path, certificate: Path) -> dict[str, Any]:
    """Return Envoy's cluster of the pods: endpoints from a file, and mutual TLS."""
    files = {
        field: {"filename": str(certificate / name)}
        for field, name in (("certificate_chain", "tls.crt"), ("private_key", "tls.key"))
    }
    tls = {
        "@type": type_url("transport_sockets.tls.v3.UpstreamTlsContext"),
        "sni": SERVER_NAME,
        "common_tls_context": {
            "tls_certificates": [files],
            "validation_context": {
                "trusted_ca": {"filename": str(certificate / "ca.crt")},
                "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": SERVER_NAME}}],
            },
            "alpn_protocols": ["h2"],
        },
    }
    http = {
        "@type": type_url("upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": {
            # A pod that says nothing any more is found out as grpc_common's channels do.
            "http2_protocol_options": {"connection_keepalive": {"interval": "10s", "timeout": "3s"}}
        },
    }
    return {
        "name": CLUSTER,
        "type": "EDS",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}, "update_merge_window": "0s"},
        "eds_cluster_config": {
            "eds_config": {
                "resource_api_version": "V3",
                "path_config_source": {"path": str(folder / "endpoints.json")},
            }
        },
        "transport_socket": {"name": "tls", "typed_config": tls},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http},
    }
