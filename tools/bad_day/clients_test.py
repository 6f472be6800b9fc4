"""A client of a bad day finds out each way in which a service can break its word."""

import asyncio
import random
from typing import override

import grpc
import pytest
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceServicer, add_UserServiceServicer_to_server

from tools.bad_day.clients import Client
from tools.bad_day.invariants import Day, Window, check
from tools.bad_day.ledger import Ledger

CALLS = 30
"""Enough for some of each kind, of these chances."""


class Honest(UserServiceServicer):
    """A service that keeps its word; each create with a key fails once, after it has made the user."""

    def __init__(self) -> None:
        self.users: dict[str, pb.User] = {}
        """By id."""
        self.keys: dict[str, pb.User] = {}

    @override
    async def CreateUser(self, request, context):
        """Make a user, unless its key has one."""
        key = dict(context.invocation_metadata()).get("idempotency-key")
        if key in self.keys:
            return self.again(self.keys[key])
        user = pb.User(id=f"{len(self.users):05}", name=request.name, email=request.email)
        self.store(user)
        if key:
            self.keys[key] = user
            await context.abort(grpc.StatusCode.UNAVAILABLE, "come back")
        return user

    @override
    async def GetUser(self, request, context):
        """Return the user of an id."""
        if request.id not in self.users:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such user")
        return self.found(self.users[request.id])

    @override
    async def ListUsers(self, request, context):
        """Return the first of all users."""
        for user in self.listed()[: request.page_size]:
            yield user

    def store(self, user):
        """Keep a user."""
        self.users[user.id] = user

    def again(self, user):
        """Return what a key gets that has a user."""
        return user

    def found(self, user):
        """Return what GetUser returns."""
        return user

    def listed(self):
        """Return what ListUsers returns."""
        return sorted(self.users.values(), key=lambda user: user.id)


class Forgetful(Honest):
    """It acknowledges what it has not stored."""

    def store(self, user):
        """Keep each other user."""
        if len(self.users) < 2:
            super().store(user)


class Twice(Honest):
    """It makes another user for the same key."""

    def again(self, user):
        """Make it again."""
        other = pb.User(id=f"again {user.id}", name=user.name, email=user.email)
        self.store(other)
        return other


class Mistaken(Honest):
    """It takes one user for another."""

    def found(self, user):
        """Return what is nearly right."""
        return pb.User(id=user.id, name=user.name, email=f"{user.email}.org")


class Disorderly(Honest):
    """Its pages are in no order."""

    def listed(self):
        """Return all, the newest first."""
        return super().listed()[::-1]


class Repeating(Honest):
    """Its pages have a user twice."""

    def listed(self):
        """Return all, and the first one again."""
        return super().listed()[:1] + super().listed()


class Talkative(Honest):
    """It tells callers of its database."""

    @override
    async def ListUsers(self, request, context):
        """Fail."""
        await context.abort(grpc.StatusCode.UNAVAILABLE, "relation users: deadlock")
        yield pb.User()


async def lived(service: Honest) -> Day:
    """Return the books of a client that has called a service some times."""
    server, ledger = grpc.aio.server(), Ledger()
    add_UserServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        client = Client("direct", channel, ledger, random.Random(1), "day")  # noqa: S311 (to be replayed)
        ended = asyncio.Event()
        async with asyncio.TaskGroup() as calling:
            calling.create_task(client.run(ended))
            while ledger.made < CALLS:
                await asyncio.sleep(0.05)
            ended.set()
    await server.stop(None)
    return Day(ledger, [*service.users.values()], [Window(None, 0, 0, "nothing")])


def broken(day: Day) -> set[str]:
    """Return which invariants of clients were not held."""
    of_clients = {"acknowledged-users", "true-answers", "deadlines", "codes", "calm"}
    return {finding.name for finding in check(day) if not finding.held} & of_clients


@pytest.mark.parametrize(
    ("service", "names"),
    [
        (Honest(), set()),
        (Forgetful(), {"acknowledged-users", "codes"}),
        (Twice(), {"acknowledged-users"}),
        (Mistaken(), {"true-answers"}),
        (Disorderly(), {"true-answers"}),
        (Repeating(), {"true-answers"}),
        (Talkative(), {"codes"}),
    ],
    ids=lambda service: type(service).__name__,
)
async def test_a_broken_word_is_found_out(service, names):
    """What a service does wrong breaks the invariant that forbids it, and what it does right none."""
    day = await lived(service)
    assert broken(day) == names
    assert day.ledger.succeeded["direct"] > 0
    assert day.ledger.acknowledged
