"""The edges with one server behind them, as the overlays publish it, or with authentication in addition."""

import copy
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import yaml

from k8s.checks.rendered import load
from tests.edges.envoy import ControlPlanes
from tests.edges.nginx import running_nginx
from tests.edges.objects import Object, only
from tests.edges.secrets import Issuer, environment, issue_secrets
from tests.edges.traefik import running_traefik
from tests.programs import Server, running_server

EDGES = ("prod", "staging", "traefik", "nginx-ingress", "gateway-api", "istio")
"""The overlays with a proxy between the server and those outside of the cluster."""

_AUTHENTICATION = Path("k8s/components/authentication/config.yaml")


@dataclass
class Published:
    """A server that is published by an edge."""

    channel: grpc.aio.Channel
    """Through the edge, as a client outside has it."""

    channel_to: Callable[[int], grpc.aio.Channel]
    """Opens another one, to a port of 127.0.0.1 that leads to the edge."""

    port: int
    """Of the edge, on 127.0.0.1."""

    server: Server
    issuer: Issuer | None
    secrets: Path
    """A folder for each Secret."""


@asynccontextmanager
async def published(
    name: str,
    folder: Path,
    planes: ControlPlanes,
    *,
    authentication: bool,
    objects: Sequence[Object] | None = None,
) -> AsyncIterator[Published]:
    """Run a server and the edge of an overlay in front of it.

    Args:
        name: of the overlay.
        folder: for files; there are none in it yet.
        planes: for the overlays istio and gateway-api.
        authentication: whether the server of a trial has the component authentication too.
        objects: those of the overlay, if not as they are rendered.

    """
    overlay = list(objects or load(name))
    if authentication and name not in ("prod", "staging"):
        overlay = with_authentication(overlay)
    issue_secrets(overlay, folder)
    issuer = Issuer(overlay, folder) if authentication else None
    variables = environment(overlay, folder) | (issuer.variables if issuer else {})
    with running_server(folder / "users.db", **variables) as server:
        async with (
            _edge(name, overlay, folder, planes, server.port("grpc_port")) as (channel_to, port),
            channel_to(port) as channel,
        ):
            yield Published(channel, channel_to, port, server, issuer, folder)


def with_authentication(overlay: Sequence[Object]) -> list[Object]:
    """Return an overlay with the component authentication, as its README says for one without mutual TLS."""
    objects = copy.deepcopy(list(overlay))
    settings = yaml.safe_load(_AUTHENTICATION.read_text("utf-8"))
    server = settings["server"]
    del server["proxies"]
    server["allowed_callers"] = {
        method: [caller for caller in callers if caller.startswith("scope:")]
        for method, callers in server["allowed_callers"].items()
    }
    config = next(each for each in objects if each["metadata"]["name"].startswith("user-service-config-"))
    config["data"]["config.yaml"] = yaml.safe_dump(settings)
    return objects


@asynccontextmanager
async def _edge(
    name: str, overlay: Sequence[Object], folder: Path, planes: ControlPlanes, server: int
) -> AsyncIterator[tuple[Callable[[int], grpc.aio.Channel], int]]:
    """Run an edge; yield what opens a channel to a port, and its own."""
    if name in ("gateway-api", "istio"):
        edge = "istio-gateway" if name == "istio" else name
        with planes.running_edge(edge, [server], limited=True) as of_envoy:
            yield of_envoy.channel_to, of_envoy.envoy.port
    elif name == "nginx-ingress":
        with running_nginx(folder, only(overlay, "Ingress"), [server]) as of_nginx:
            yield lambda port: replace(of_nginx, port=port).channel(), of_nginx.port
    else:
        with running_traefik(folder, overlay, folder, [server]) as of_traefik:
            yield lambda port: replace(of_traefik, port=port).channel(), of_traefik.port
