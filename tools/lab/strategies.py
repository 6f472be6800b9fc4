"""The ways in which clients reach the pods of a Service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.lab import edges
from tools.lab.edges import Edge
from tools.lab.fleet.api import LOOPBACK
from tools.lab.fleet.fleet import Fleet
from tools.lab.story import Story

_ROUND_ROBIN = '{"loadBalancingConfig": [{"round_robin": {}}]}'

type Opened = AbstractAsyncContextManager[dict[str, Any]]
"""Runs what stands between client and fleet; the block gets what is to be said of a driver's Client."""


@dataclass(frozen=True)
class Strategy:
    """A way to reach pods."""

    name: str
    title: str
    about: str
    opened: Callable[[Path, Fleet, Story], Opened]
    """Of a folder for files, the fleet and the story."""

    ages: bool = True
    """Whether the servers end connections at max_connection_age."""

    in_go: bool = False
    """Whether the client is the one in go/."""


@asynccontextmanager
async def _cluster_ip(_folder: Path, fleet: Fleet, _story: Story) -> AsyncIterator[dict[str, Any]]:
    yield {"target": fleet.cluster_ip.target}


@asynccontextmanager
async def _headless(_folder: Path, fleet: Fleet, story: Story) -> AsyncIterator[dict[str, Any]]:
    yield {
        "target": f"dns://{fleet.dns.server}/{fleet.dns.name}:{fleet.port}",
        "service_config": _ROUND_ROBIN,
        "resolution": story.max_connection_age,
    }


def _kubernetes(policy: str) -> Callable[[Path, Fleet, Story], Opened]:
    @asynccontextmanager
    async def opened(_folder: Path, fleet: Fleet, _story: Story) -> AsyncIterator[dict[str, Any]]:
        network = fleet.api.network
        networks = None if network == LOOPBACK else (network, LOOPBACK)
        yield {"target": fleet.target, "policy": policy, "networks": networks}

    return opened


def _edge(
    run: Callable[[Path, Fleet], AbstractAsyncContextManager[Edge]],
) -> Callable[[Path, Fleet, Story], Opened]:
    @asynccontextmanager
    async def opened(folder: Path, fleet: Fleet, _story: Story) -> AsyncIterator[dict[str, Any]]:
        async with run(folder, fleet) as edge:
            yield {"target": edge.target, "host": edge.host, "root": edge.root}

    return opened


STRATEGIES = [
    Strategy(
        "pick-first",
        "pick_first, ClusterIP",
        "grpcio as it is, on a ClusterIP: one connection, for ever (the servers set no max_connection_age).",
        _cluster_ip,
        ages=False,
    ),
    Strategy(
        "pick-first-max-age",
        "pick_first, max_connection_age",
        "The same, but the servers end each connection at max_connection_age; the next one goes to any pod.",
        _cluster_ip,
    ),
    Strategy(
        "headless-dns",
        "dns:/// round_robin",
        "The guide's way: grpcio's round_robin over the addresses of a headless Service; it asks DNS again "
        "when a connection ends.",
        _headless,
    ),
    Strategy(
        "go-guide",
        "dns:/// round_robin, Go",
        "The guide's own client: grpc-go with dns:/// and round_robin.",
        _headless,
        in_go=True,
    ),
    Strategy(
        "kubernetes-round-robin",
        "kubernetes:/// round_robin",
        "grpc_common follows EndpointSlices, and calls the pods in turn.",
        _kubernetes("round_robin"),
    ),
    Strategy(
        "kubernetes-least-request",
        "kubernetes:/// least_request",
        "The same, and of two pods the one with fewer calls in flight; grpc_common's default.",
        _kubernetes("least_request"),
    ),
    Strategy(
        "traefik",
        "Traefik",
        "grpcio through Traefik as the overlay traefik has it: calls to the pods in turn.",
        _edge(edges.traefik),
    ),
    Strategy(
        "nginx",
        "ingress-nginx",
        "grpcio through nginx as the overlay nginx-ingress has it: calls to the pods in turn.",
        _edge(edges.nginx),
    ),
    Strategy(
        "envoy",
        "Envoy Gateway",
        "grpcio through Envoy as the overlay gateway-api has it: calls to the pod with fewer of two.",
        _edge(edges.envoy),
    ),
]
