"""The Envoys that the overlays istio and gateway-api ask for, in front of servers on this machine."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import trustme
import yaml
from user.user_service_pb2_grpc import UserServiceStub

from grpc_common.testing.certificates import CertificateDirectory
from k8s.checks.rendered import load
from tests.edges import gateway, istio
from tests.edges.limits import without_limits
from tests.edges.objects import Object
from tests.interop.envoy_proxy import Envoy, configured

EDGES = ("istio", "istio-gateway", "gateway-api")
"""A caller's sidecar, an ingress gateway of the same mesh, and that of Gateway API."""

FASTER = 4
"""By which the outlier detection's times are shortened, or a server would come back after 40 s only."""


@dataclass
class Edge:
    """An Envoy in front of the servers, and a channel to it that repeats nothing by itself."""

    envoy: Envoy
    channel: grpc.aio.Channel
    channel_to: Callable[[int], grpc.aio.Channel]
    """Opens another one, to a port of 127.0.0.1."""

    @property
    def stub(self) -> UserServiceStub:
        """A stub of the service."""
        return UserServiceStub(self.channel)


def overlay_of(edge: str) -> str:
    """Return the overlay that asks for an edge."""
    return edge.removesuffix("-gateway")


def beside_gateway() -> list[Object]:
    """Return what README.md of the component istio-gateway has applied where the gateway's pods are."""
    text = Path("k8s/components/istio-gateway/beside-gateway.yaml").read_text("utf-8")
    return list(yaml.safe_load_all(text))


@asynccontextmanager
async def running_edge(
    edge: str, folder: Path, ports: Sequence[int], *, limited: bool = False
) -> AsyncIterator[Edge]:
    """Run the Envoy of an edge, in front of the servers on `ports`.

    Args:
        edge: one of EDGES.
        folder: for files.
        ports: of the servers, on 127.0.0.1.
        limited: whether with the edge's rate limit; all tests are one client to it.

    Raises:
        ValueError: the overlay says something that is not translated for Envoy.
        RuntimeError: Envoy did not take the configuration.

    """
    certificate = CertificateDirectory(folder / "tls", trustme.CA(), "grpc.example.com")
    objects = load(overlay_of(edge))
    if edge == "istio":
        listener, clusters = istio.sidecar(objects, ports)
    elif edge == "istio-gateway":
        beside = beside_gateway() if limited else []
        listener, clusters = istio.gateway(objects, beside, ports, certificate.path)
    else:
        objects = objects if limited else without_limits(objects)
        listener, clusters = gateway.proxy(objects, ports, certificate.path)
    for cluster in clusters:
        _quicken(cluster["outlier_detection"])
    channel_to = partial(channel, edge, certificate)
    async with configured(folder, listener, clusters) as envoy, channel_to(envoy.port) as opened:
        yield Edge(envoy, opened, channel_to)


def _quicken(detection: Object) -> None:
    """Shorten the times, and leave the thresholds."""
    for name in ("interval", "base_ejection_time"):
        detection[name] = f"{float(detection[name].removesuffix('s')) / FASTER}s"


def channel(edge: str, certificate: CertificateDirectory, port: int) -> grpc.aio.Channel:
    """Return a channel for the name that clients know the service by."""
    target = f"127.0.0.1:{port}"
    # With a small window and no probe for a larger one the client holds little of what it has not read.
    options: list[tuple[str, str | int]] = [("grpc.enable_retries", 0), ("grpc.http2.bdp_probe", 0)]
    if edge == "istio":
        options.append(("grpc.default_authority", "user-service:50051"))
        return grpc.aio.insecure_channel(target, options=options)
    options.append(("grpc.ssl_target_name_override", "grpc.example.com"))
    root = certificate.path.joinpath("ca.crt").read_bytes()
    return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(root), options=options)
