"""A client of the lab in a process of its own, which calls at a steady rate, whatever comes back.

The first line of the standard input is a `Plan`; its end ends the load. A line of the standard output is a
call: `[client, sequence, started, latency, code, details]`, with times in seconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Literal, Self

import grpc
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

import grpc_common
from grpc_common.client.resolver.endpoint import Endpoint
from grpc_common.client.resolver.kubernetes import KubernetesEndpoints
from grpc_common.client.resolver.target import KubernetesTarget, parse_target
from grpc_common.client.service_config import ServiceConfig
from grpc_common.observe.logs import set_level

DEADLINE = 10.0
"""Seconds that a call is given."""

CREATE_EVERY = 10
"""One call of so many is a CreateUser, which nobody may repeat; the others are GetUser."""

_SERVICE = pb.DESCRIPTOR.services_by_name["UserService"]


@dataclass(frozen=True)
class Client:
    """How a client is opened."""

    number: int
    """From 1; it is in the trace id of each call, which the log of the pod tells."""

    target: str
    policy: Literal["round_robin", "least_request"] | None = None
    """Of grpc_common; None is grpcio as it is."""

    networks: tuple[str, str] | None = None
    """How the addresses of endpoints begin, and how those begin that are dialled in their place."""

    service_config: str = ""
    """Of grpcio."""

    resolution: float = 0
    """Seconds between two questions of grpcio to DNS; 0 is its default, 30."""

    root: str = ""
    """PEM of the authority of an edge's certificate."""

    host: str = ""
    """What that is for."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[grpc.aio.Channel]:
        """Open the channel."""
        if self.policy:
            service = ServiceConfig.for_services(_SERVICE, load_balancing=self.policy)
            config = grpc_common.ChannelConfig(service=service, channel_args={"grpc.enable_http_proxy": 0})
            source = _Renumbered(self.target, *self.networks) if self.networks else None
            # What is not ready yet fails calls, which are told.
            async with grpc_common.channel(
                self.target, config=config, endpoints=source, ready_timeout=None
            ) as channel:
                yield channel
            return
        async with self._of_grpcio() as channel:
            yield channel

    def _of_grpcio(self) -> grpc.aio.Channel:
        options: list[tuple[str, str | int]] = [("grpc.use_local_subchannel_pool", 1)]
        if self.service_config:
            options.append(("grpc.service_config", self.service_config))
        if self.resolution:
            options.append(("grpc.dns_min_time_between_resolutions_ms", round(self.resolution * 1000)))
        if not self.root:
            return grpc.aio.insecure_channel(self.target, options)
        options.append(("grpc.ssl_target_name_override", self.host))
        credentials = grpc.ssl_channel_credentials(self.root.encode())
        return grpc.aio.secure_channel(self.target, credentials, options)


class _Renumbered:
    """What grpc_common finds for a target, with addresses of another network."""

    def __init__(self, target: str, told: str, dialled: str) -> None:
        parsed = parse_target(target)
        assert isinstance(parsed, KubernetesTarget)
        self._source = KubernetesEndpoints(parsed.service, parsed.namespace, parsed.port)
        self._told, self._dialled = told, dialled

    async def watch(self) -> AsyncIterator[list[Endpoint]]:
        async for found in self._source.watch():
            yield [replace(each, address=each.address.replace(self._told, self._dialled)) for each in found]


@dataclass(frozen=True)
class Plan:
    """What the process does."""

    client: Client
    rate: float
    """Calls a second."""

    ids: list[str]
    """Of users that there are."""

    def to_line(self) -> bytes:
        """Return the plan as the process reads it."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of_line(cls, line: bytes) -> Self:
        """Return what `to_line` made a line of."""
        fields = json.loads(line)
        return cls(Client(**fields.pop("client")), **fields)


class Load:
    """The calls of the client."""

    def __init__(self, plan: Plan, channel: grpc.aio.Channel) -> None:
        self._number = plan.client.number
        self._plan = plan
        self._stub = UserServiceStub(channel)
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, end: asyncio.Event) -> None:
        """Call at the plan's rate until `end`, and wait for the answers."""
        period, sequence = 1 / self._plan.rate, 0
        following = time.time()
        while not end.is_set():
            await asyncio.sleep(following - time.time())
            sequence += 1
            task = asyncio.create_task(self._call(sequence))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            following += period
        await asyncio.gather(*self._running)

    async def _call(self, sequence: int) -> None:
        trace_id = f"{self._number:08x}{sequence:024x}"
        metadata = (("traceparent", f"00-{trace_id}-{sequence:016x}-00"),)
        started, code, details = time.time(), "OK", ""
        try:
            await self._request(sequence, metadata)
        except grpc.aio.AioRpcError as error:
            code, details = error.code().name, error.details() or ""
        print(json.dumps([self._number, sequence, started, time.time() - started, code, details]))

    async def _request(self, sequence: int, metadata: tuple[tuple[str, str], ...]) -> None:
        if sequence % CREATE_EVERY:
            request = pb.GetUserRequest(id=self._plan.ids[sequence % len(self._plan.ids)])
            await self._stub.GetUser(request, timeout=DEADLINE, metadata=metadata)
        else:
            name = f"client{self._number}-{sequence}"
            user = pb.CreateUserRequest(name=name, email=f"{name}@example.com")
            await self._stub.CreateUser(user, timeout=DEADLINE, metadata=metadata)


async def drive() -> None:
    """Do what the standard input says."""
    set_level("error")
    plan = Plan.of_line(await asyncio.to_thread(sys.stdin.buffer.readline))
    end = asyncio.Event()
    async with plan.client.opened() as channel, asyncio.TaskGroup() as tasks:
        tasks.create_task(Load(plan, channel).run(end))
        await asyncio.to_thread(sys.stdin.buffer.read)
        end.set()


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a text stream
    asyncio.run(drive())
