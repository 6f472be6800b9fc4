"""The Envoys of the overlays istio and gateway-api, as Istio and Envoy Gateway configure them."""

import copy
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import grpc
import pytest
import trustme
import yaml
from user.user_service_pb2_grpc import UserServiceStub

from grpc_common.testing.certificates import CertificateDirectory
from k8s.checks.rendered import load
from tests.edges.envoy_gateway import EnvoyGateway, running_envoy_gateway
from tests.edges.istio import GATEWAYS, Mesh, running_mesh
from tests.edges.limits import without_limits
from tests.edges.objects import Object
from tests.interop.envoy_proxy import Envoy
from tools.cluster.cluster import MissingProgramError

EDGES = ("istio", "istio-gateway", "gateway-api")
"""A caller's sidecar, an ingress gateway of the same mesh, and that of Gateway API."""

FASTER = 4
"""By which the outlier detection's times are shortened, or a server would come back after 40 s only."""

_TRIAL = "user-service-trial"
"""The namespace of the overlays."""


@dataclass
class Edge:
    """An Envoy in front of the servers, and a channel to it that repeats nothing by itself."""

    envoy: Envoy
    channel: grpc.aio.Channel

    @property
    def stub(self) -> UserServiceStub:
        """A stub of the service."""
        return UserServiceStub(self.channel)


@dataclass
class RunningEdge:
    """An Envoy in front of the servers."""

    envoy: Envoy
    channel_to: Callable[..., grpc.aio.Channel]
    """Opens a channel to a port that leads to it, of 127.0.0.1 if no `host` is given."""

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Edge]:
        """Open a channel."""
        async with self.channel_to(self.envoy.port, host=self.envoy.host) as channel:
            yield Edge(self.envoy, channel)


class ControlPlanes:
    """Istio and Envoy Gateway, each of which starts with its first edge."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.certificate = CertificateDirectory(folder / "tls", trustme.CA(), "grpc.example.com")
        """Of the host at the gateways."""
        self._trials = 0

    @cached_property
    def mesh(self) -> Mesh:
        """The mesh; the test is skipped if something is not built for it."""
        return self._start(running_mesh(self._folder / "istio", self.certificate))

    @cached_property
    def envoy_gateway(self) -> EnvoyGateway:
        """Envoy Gateway; the test is skipped if it is not built."""
        return self._start(running_envoy_gateway(self._folder / "envoy-gateway", self.certificate))

    def _start[Plane](self, plane: AbstractContextManager[Plane]) -> Plane:
        try:
            return self._stack.enter_context(plane)
        except MissingProgramError as missing:
            pytest.skip(str(missing))

    @contextmanager
    def running_edge(
        self, edge: str, ports: Sequence[int], *, limited: bool = False
    ) -> Iterator[RunningEdge]:
        """Run the Envoy of an edge in front of the servers on `ports` of 127.0.0.1.

        Args:
            edge: one of EDGES.
            ports: of the servers.
            limited: whether with the edge's rate limit; all tests are one client to it.

        """
        namespace = self.new_namespace()
        overlay = moved(quickened(load(edge.removesuffix("-gateway"))), namespace)
        if edge == "gateway-api":
            overlay = overlay if limited else without_limits(overlay)
            running = self.envoy_gateway.running(overlay, ports)
        else:
            self.mesh.deploy(overlay)
            servers = self.mesh.add_servers(namespace, ports)
            running = self._of_mesh(edge, namespace, servers, limited=limited)
        with running as envoy:
            yield RunningEdge(envoy, partial(channel, edge, self.certificate))

    def new_namespace(self) -> str:
        """Return a name for a trial of its own."""
        self._trials += 1
        return f"trial-{self._trials}"

    @contextmanager
    def _of_mesh(
        self, edge: str, namespace: str, servers: Sequence[str], *, limited: bool
    ) -> Iterator[Envoy]:
        if edge == "istio":
            with self.mesh.caller_sidecar(f"{namespace}/user-service-client", namespace, servers) as envoy:
                yield envoy
        else:
            filters = ["envoy.filters.http.local_ratelimit"] if limited else []
            if limited:
                self.mesh.apply(moved(beside_gateway(), namespace))
            with self.mesh.ingress_gateway(namespace, servers, *filters) as envoy:
                yield envoy


@contextmanager
def control_planes(folder: Path) -> Iterator[ControlPlanes]:
    """Have control planes start when they are needed, and end with the block."""
    with ExitStack() as stack:
        yield ControlPlanes(folder, stack)


def beside_gateway() -> list[Object]:
    """Return what README.md of the component istio-gateway has applied where the gateway's pods are."""
    text = Path("k8s/components/istio-gateway/beside-gateway.yaml").read_text("utf-8")
    objects = [each for each in yaml.safe_load_all(text) if each["kind"] == "EnvoyFilter"]
    for each in objects:
        each["metadata"]["namespace"] = GATEWAYS
    return objects


def moved(objects: Sequence[Object], namespace: str) -> list[Object]:
    """Return the objects of a trial in another namespace, with an ingress gateway of its own."""
    text = yaml.safe_dump_all(objects)
    for old, new in {_TRIAL: namespace, "istio: ingress": f"istio: {namespace}"}.items():
        text = text.replace(old, new)
    return list(yaml.safe_load_all(text))


def quickened(objects: Sequence[Object]) -> list[Object]:
    """Return objects whose outlier detection has shorter times, and the same thresholds."""
    objects = copy.deepcopy(list(objects))
    for detection in map(_outlier_detection, objects):
        for name in ("interval", "baseEjectionTime") if detection else ():
            detection[name] = f"{int(float(detection[name].removesuffix('s')) / FASTER * 1000)}ms"
    return objects


def _outlier_detection(each: Object) -> Object | None:
    if each["kind"] == "DestinationRule":
        return each["spec"]["trafficPolicy"]["outlierDetection"]
    if each["kind"] == "BackendTrafficPolicy":
        return each["spec"].get("healthCheck", {}).get("passive")
    return None


def channel(
    edge: str, certificate: CertificateDirectory, port: int, *, host: str = "127.0.0.1"
) -> grpc.aio.Channel:
    """Return a channel for the name that clients know the service by."""
    target = f"{host}:{port}"
    # With a small window and no probe for a larger one the client holds little of what it has not read.
    options: list[tuple[str, str | int]] = [("grpc.enable_retries", 0), ("grpc.http2.bdp_probe", 0)]
    if edge == "istio":
        options.append(("grpc.default_authority", "user-service:50051"))
        return grpc.aio.insecure_channel(target, options=options)
    options.append(("grpc.ssl_target_name_override", "grpc.example.com"))
    root = certificate.path.joinpath("ca.crt").read_bytes()
    return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(root), options=options)
