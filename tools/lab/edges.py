"""The proxies of the overlays in front of a fleet: each follows its endpoints, as controllers have it do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from grpc_common.testing.certificates import CertificateDirectory
from k8s.checks.rendered import load
from tests.edges import gateway
from tests.edges.envoy_tls import discovered
from tests.edges.limits import without_limits
from tests.edges.nginx import following, running_nginx
from tests.edges.objects import only
from tests.edges.secrets import issue_secrets
from tests.edges.traefik import dynamic_configuration, running_traefik
from tests.interop.envoy_proxy import configured
from tools.lab.fleet.fleet import Fleet
from tools.replacing import replace_file

_HOST = "grpc.example.com"


@dataclass(frozen=True)
class Edge:
    """A proxy that runs."""

    port: int
    """Where it takes calls, on 127.0.0.1."""

    host: str
    """What callers, and its certificate, call it."""

    root: str
    """PEM of the certificate's authority."""

    renew_certificate: Callable[[], None]
    """Has it show another one of the authority soon, as its controller does when the Secret has changed."""

    @property
    def target(self) -> str:
        """What callers dial."""
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def traefik(folder: Path, fleet: Fleet) -> AsyncIterator[Edge]:
    """Run Traefik as the overlay has it; its file takes the place of the API server."""
    objects = without_limits(load("traefik"))
    [secret] = issue_secrets(objects, folder).values()
    configuration = dynamic_configuration(objects, folder, [])
    [service] = configuration["http"]["services"].values()

    def write(targets: Sequence[str]) -> None:
        service["loadBalancer"]["servers"] = [{"url": f"h2c://{target}"} for target in targets]
        replace_file(folder / "dynamic.yaml", json.dumps(configuration))

    def renew() -> None:
        secret.rotate()
        # Traefik follows this file alone, and reads with it those that it names.
        replace_file(folder / "dynamic.yaml", json.dumps(configuration))

    with ExitStack() as stack:
        running = running_traefik(folder, objects, folder, [])
        edge = await asyncio.to_thread(stack.enter_context, running)
        stack.enter_context(fleet.followed(write))
        yield Edge(edge.port, edge.host, edge.root.decode(), renew)


@asynccontextmanager
async def nginx(folder: Path, fleet: Fleet) -> AsyncIterator[Edge]:
    """Run nginx as ingress-nginx has it; it asks DNS each second, as Lua looks at the endpoints there."""
    ingress = only(without_limits(load("nginx-ingress")), "Ingress")
    upstream = following(f"{fleet.dns.name}:{fleet.port}", fleet.dns.server)
    with running_nginx(folder, ingress, upstream) as edge:
        yield Edge(edge.port, edge.host, edge.root.decode(), edge.renew_certificate)


@asynccontextmanager
async def envoy(folder: Path, fleet: Fleet) -> AsyncIterator[Edge]:
    """Run Envoy as Envoy Gateway has it; files take the place of a control plane."""
    certificate, secrets = CertificateDirectory(folder / "tls", trustme.CA(), _HOST), folder / "secrets.json"
    replace_file(secrets, json.dumps(discovered(certificate.path)))
    listener, clusters = gateway.proxy(without_limits(load("gateway-api")), [], secrets)
    # One for each: Envoy takes a file with the endpoints of several for a mistake.
    files = {cluster["name"]: folder / f"endpoints-{index}.json" for index, cluster in enumerate(clusters)}
    for cluster in clusters:
        del cluster["load_assignment"]
        source = {"path_config_source": {"path": str(files[cluster["name"]])}, "resource_api_version": "V3"}
        cluster |= {"type": "EDS", "eds_cluster_config": {"eds_config": source}}

    def write(targets: Sequence[str]) -> None:
        for name, file in files.items():
            replace_file(file, json.dumps(_assignment(name, targets)))

    def renew() -> None:
        certificate.rotate()
        replace_file(secrets, json.dumps(discovered(certificate.path)))

    with fleet.followed(write):
        async with configured(folder, listener, clusters) as running:
            yield Edge(running.port, _HOST, certificate.ca.cert_pem.bytes().decode(), renew)


def _assignment(cluster: str, targets: Sequence[str]) -> dict[str, Any]:
    endpoints = [{"endpoint": {"address": _address(target)}} for target in targets]
    resource = {
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster,
        "endpoints": [{"lb_endpoints": endpoints}],
    }
    return {"resources": [resource]}


def _address(target: str) -> dict[str, Any]:
    host, _, port = target.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}
