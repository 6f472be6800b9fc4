"""The proxies of the overlays in front of a fleet: each follows its endpoints, as controllers have it do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trustme

from grpc_common.testing.certificates import CertificateDirectory
from k8s.checks.rendered import load
from tests.edges import gateway
from tests.edges.limits import without_limits
from tests.edges.nginx import following, running_nginx
from tests.edges.objects import only
from tests.edges.secrets import issue_secrets
from tests.edges.traefik import dynamic_configuration, running_traefik
from tests.interop.envoy_proxy import configured
from tools.lab.fleet.fleet import Fleet

_HOST = "grpc.example.com"


@asynccontextmanager
async def traefik(folder: Path, fleet: Fleet) -> AsyncIterator[dict[str, str]]:
    """Run Traefik as the overlay has it; its file of endpoints takes the place of the API server.

    Yields:
        What is to be said of a Client: target, host and root.

    """
    objects = without_limits(load("traefik"))
    issue_secrets(objects, folder)
    configuration = dynamic_configuration(objects, folder, [])
    [service] = configuration["http"]["services"].values()

    def write(targets: Sequence[str]) -> None:
        service["loadBalancer"]["servers"] = [{"url": f"h2c://{target}"} for target in targets]
        _replace(folder / "dynamic.yaml", configuration)

    with ExitStack() as stack:
        running = running_traefik(folder, objects, folder, [])
        edge = await asyncio.to_thread(stack.enter_context, running)
        stack.enter_context(fleet.followed(write))
        yield _client(edge.port, edge.host, edge.root)


@asynccontextmanager
async def nginx(folder: Path, fleet: Fleet) -> AsyncIterator[dict[str, str]]:
    """Run nginx as ingress-nginx has it; it asks DNS each second, as Lua looks at the endpoints there."""
    ingress = only(without_limits(load("nginx-ingress")), "Ingress")
    upstream = following(f"{fleet.dns.name}:{fleet.port}", fleet.dns.server)
    with running_nginx(folder, ingress, upstream) as edge:
        yield _client(edge.port, edge.host, edge.root)


@asynccontextmanager
async def envoy(folder: Path, fleet: Fleet) -> AsyncIterator[dict[str, str]]:
    """Run Envoy as Envoy Gateway has it; it reads its endpoints of a file in place of a control plane."""
    certificate = CertificateDirectory(folder / "tls", trustme.CA(), _HOST)
    listener, clusters = gateway.proxy(without_limits(load("gateway-api")), [], certificate.path)
    # One for each: Envoy takes a file with the endpoints of several for a mistake.
    files = {cluster["name"]: folder / f"endpoints-{index}.json" for index, cluster in enumerate(clusters)}
    for cluster in clusters:
        del cluster["load_assignment"]
        source = {"path_config_source": {"path": str(files[cluster["name"]])}, "resource_api_version": "V3"}
        cluster |= {"type": "EDS", "eds_cluster_config": {"eds_config": source}}

    def write(targets: Sequence[str]) -> None:
        for name, file in files.items():
            _replace(file, _assignment(name, targets))

    with fleet.followed(write):
        async with configured(folder, listener, clusters) as running:
            root = certificate.path.joinpath("ca.crt").read_bytes()
            yield _client(running.port, _HOST, root)


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


def _client(port: int, host: str, root: bytes) -> dict[str, str]:
    return {"target": f"127.0.0.1:{port}", "host": host, "root": root.decode()}


def _replace(file: Path, content: object) -> None:
    """Write a file at once, as those who watch it need it."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(content))
    new.replace(file)
