"""The calls that the tests of all edges make, and what every edge does with them: tests to be inherited."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

import grpc
import pytest
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from tests.edges.servers import REPLICAS, Servers
from tests.programs import PATIENCE

DEADLINE = 25
"""Seconds. A server that can't be reached would take all of them if Traefik were left its own 30."""


async def get(stub: UserServiceStub, user_id: str) -> pb.User:
    """Get a user."""
    return await stub.GetUser(pb.GetUserRequest(id=user_id), timeout=DEADLINE)


def create(stub: UserServiceStub, name: str, **options: Any) -> grpc.aio.UnaryUnaryCall[Any, pb.User]:
    """Begin to create a user."""
    request = pb.CreateUserRequest(name=name, email=f"{name}@example.org")
    return stub.CreateUser(request, timeout=DEADLINE, **options)


async def failure(call: Awaitable[object]) -> grpc.aio.AioRpcError:
    """Await a call that must fail; return how it did."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


class EdgeTests:
    """Tests of the edge that `channel` leads to, in front of `servers`; see conftest.py."""

    died: grpc.StatusCode
    """What a client is told whose call dies with its server."""

    async def test_calls_are_spread(
        self, servers: Servers, stub: UserServiceStub, user_ids: list[str]
    ) -> None:
        """Over one connection of a client each server gets its share of the calls."""
        before = servers.calls("GetUser")
        for _ in range(10 * REPLICAS):
            assert (await get(stub, user_ids[0])).id == user_ids[0]
        after = servers.calls("GetUser")
        assert {number: after[number] - before[number] for number in after} == dict.fromkeys(
            range(REPLICAS), 10
        )

    async def test_metadata_passes(self, stub: UserServiceStub, user_ids: list[str]) -> None:
        """The idempotency key comes to the server, and the page token to the client."""
        key = (("idempotency-key", "ada"),)
        assert await create(stub, "ada", metadata=key) == await create(stub, "ada", metadata=key)
        page = stub.ListUsers(pb.ListUsersRequest(page_size=10), timeout=DEADLINE)
        assert [user.id async for user in page] == user_ids[:10]
        assert "next-page-token" in dict(await page.trailing_metadata())

    @pytest.mark.parametrize(
        "service", ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "no.Such"]
    )
    async def test_other_services_are_hidden(self, channel: grpc.aio.Channel, service: str) -> None:
        """What is not user.UserService gets its answer from the edge."""
        error = await failure(channel.unary_unary(f"/{service}/Check")(b"", timeout=DEADLINE))
        assert (error.code(), "404" in error.details()) == (grpc.StatusCode.UNIMPLEMENTED, True)

    async def test_unknown_method(self, edge: Any, channel: grpc.aio.Channel) -> None:
        """A method that user.UserService does not have gets its answer from a server."""
        asks_who_calls = getattr(edge, "token", None) is not None
        code = grpc.StatusCode.PERMISSION_DENIED if asks_who_calls else grpc.StatusCode.UNIMPLEMENTED
        error = await failure(channel.unary_unary("/user.UserService/NoSuch")(b"", timeout=DEADLINE))
        assert (error.code(), "404" in error.details()) == (code, False)

    @pytest.mark.parametrize(
        ("size", "code"),
        [(12 << 10, grpc.StatusCode.INVALID_ARGUMENT), (2 << 20, grpc.StatusCode.RESOURCE_EXHAUSTED)],
    )
    async def test_large_requests(self, stub: UserServiceStub, size: int, code: grpc.StatusCode) -> None:
        """It is the server that refuses a request for its size in bytes, with its own status."""
        error = await failure(get(stub, "x" * size))
        assert error.code() is code

    async def test_create_is_not_repeated(self, servers: Servers, stub: UserServiceStub) -> None:
        """A create that dies with its server is not sent to another one, and the client is told."""
        before = servers.calls("CreateUser")
        async with servers.stalled():
            call = create(stub, "bob")
            dead = await servers.called("CreateUser", before)
            servers.kill(dead)
            error = await failure(call)
            del before[dead]
            assert servers.calls("CreateUser") == before
        servers.start(dead)
        assert error.code() is self.died

    async def test_one_server_is_dead(
        self, servers: Servers, stub: UserServiceStub, user_ids: list[str]
    ) -> None:
        """With one server gone no call fails; once it is back it gets calls again."""
        servers.kill(0)
        # A call that is sent there before the edge knows is lost; once each server's turn has come, it does.
        for _ in range(REPLICAS):
            with suppress(grpc.aio.AioRpcError):
                await get(stub, user_ids[0])
        for number in range(10 * REPLICAS):
            await get(stub, user_ids[0])
            await create(stub, f"carol{number}")
        servers.start(0)
        async with asyncio.timeout(PATIENCE):
            while not servers.calls("GetUser")[0]:
                await get(stub, user_ids[0])
