"""The edges in front of a fleet, each of which hears of its pods in a way like that of its own controller."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import trustme
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from grpc_common.client.resolver.endpoint import Endpoint
from grpc_common.client.resolver.source import source_of
from grpc_common.client.resolver.target import parse_target
from grpc_common.testing.certificates import CertificateDirectory
from k8s.checks.rendered import load
from tests.edges import envoy, gateway
from tests.edges.limits import without_limits
from tests.edges.nginx import Named, running_nginx
from tests.edges.objects import Object, only
from tests.edges.secrets import issue_secrets
from tests.edges.traefik import dynamic_configuration, running_traefik
from tests.interop.envoy_proxy import configured
from tests.rollout.ledger import PATIENCE
from tools.lab.fleet.fleet import HEADLESS_NAME, Fleet

EDGES = ("nginx-ingress", "traefik", "gateway-api")
"""The overlays with an edge that talks plaintext to the pods."""

type Follow = Callable[[Sequence[str]], None]
"""Tells an edge the addresses of all pods."""

_ASSIGNMENT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"


@asynccontextmanager
async def running_edges(fleet: Fleet, folder: Path) -> AsyncIterator[dict[str, Callable[[], Any]]]:
    """Run the edges, and yield what opens a channel to each."""
    for name in ("nginx", "traefik", "envoy"):
        (folder / name).mkdir()
    async with AsyncExitStack() as stack:
        nginx = stack.enter_context(_nginx(fleet, folder / "nginx"))
        traefik, follow_traefik = await stack.enter_async_context(_traefik(folder / "traefik"))
        gateway_api, follow_envoy = await stack.enter_async_context(_envoy(folder / "envoy"))
        await stack.enter_async_context(_following(fleet, [follow_traefik, follow_envoy]))
        opened = {"nginx": nginx.channel, "traefik": traefik.channel, "envoy": gateway_api}
        await asyncio.gather(*[_has_heard(open_channel) for open_channel in opened.values()])
        yield opened


@asynccontextmanager
async def _following(fleet: Fleet, follows: Sequence[Follow]) -> AsyncIterator[None]:
    """Watch the EndpointSlices as the edges' controllers do; the block begins once there are some."""
    known = asyncio.Event()

    async def watch() -> None:
        async for endpoints in source_of(parse_target(fleet.target), {}).watch():
            known_pods = [each for each in endpoints if isinstance(each, Endpoint)]
            ready = [each.address for each in known_pods if not each.terminating]
            for follow in follows:
                follow(ready)
            known.set()

    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch())
        await known.wait()
        yield
        watching.cancel()


async def _has_heard(opened: Callable[[], grpc.aio.Channel]) -> None:
    """Wait until an edge has heard of pods."""
    code = grpc.StatusCode.UNAVAILABLE
    async with opened() as channel, asyncio.timeout(PATIENCE):
        while code is not grpc.StatusCode.INVALID_ARGUMENT:  # by a pod
            call = UserServiceStub(channel).GetUser(pb.GetUserRequest(id="none"), timeout=PATIENCE)
            code = await call.code()


def _nginx(fleet: Fleet, folder: Path) -> Any:
    ingress = only(without_limits(load("nginx-ingress")), "Ingress")
    named = Named(fleet.dns.server, f"{HEADLESS_NAME}:{fleet.pods[0].port}")
    return running_nginx(folder, ingress, (), named=named)


@asynccontextmanager
async def _traefik(folder: Path) -> AsyncIterator[tuple[Any, Follow]]:
    objects = without_limits(load("traefik"))
    issue_secrets(objects, folder)

    def follow(addresses: Sequence[str]) -> None:
        configuration = dynamic_configuration(objects, folder, [])
        [service] = configuration["http"]["services"].values()
        service["loadBalancer"]["servers"] = [{"url": f"h2c://{address}"} for address in addresses]
        _replace(folder / "dynamic.yaml", configuration)

    with running_traefik(folder, objects, folder, []) as edge:
        yield edge, follow


@asynccontextmanager
async def _envoy(folder: Path) -> AsyncIterator[tuple[Callable[[], grpc.aio.Channel], Follow]]:
    certificate = CertificateDirectory(folder / "tls", trustme.CA(), "grpc.example.com")
    objects = without_limits(load("gateway-api"))
    listener, clusters = gateway.proxy(objects, [], certificate.path)
    for cluster in clusters:
        _discover(cluster, folder)

    def follow(addresses: Sequence[str]) -> None:
        for cluster in clusters:
            _replace(folder / f"{cluster['name']}.json", _assignment(cluster["name"], addresses))

    follow([])
    async with configured(folder, listener, clusters) as running:
        yield lambda: envoy.channel("gateway-api", certificate, running.port), follow


def _discover(cluster: Object, folder: Path) -> None:
    """Have a cluster's endpoints discovered (EDS), here in a file."""
    del cluster["load_assignment"]
    file = {"path_config_source": {"path": str(folder / f"{cluster['name']}.json")}}
    cluster |= {"type": "EDS", "eds_cluster_config": {"eds_config": file}}


def _assignment(cluster: str, addresses: Sequence[str]) -> Object:
    sockets = [address.rpartition(":") for address in addresses]
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
        for host, _, port in sockets
    ]
    assignment = {"@type": _ASSIGNMENT, "cluster_name": cluster, "endpoints": [{"lb_endpoints": endpoints}]}
    return {"resources": [assignment]}


def _replace(file: Path, content: Object) -> None:
    """Write a file in one step: who follows it sees no half of it."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(content))
    new.rename(file)
