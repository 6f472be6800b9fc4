"""Creates under load while a test breaks something, and what is to be true of them afterwards."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from services.user.testing_listing import all_users

DEADLINE = 3.0
"""Seconds that a call is given while something is broken: many of them end by it."""

NO_HURRY = 30.0
"""The same where no call may fail: a machine that stands still for seconds is not the service's fault."""

SLACK = 10.0
"""Seconds over the deadline that a busy machine may need to say so, this process among others."""

RECOVERY = 30.0
"""Seconds after the end of a fault within which the service works again without help."""

CREATORS = 8
"""Calls at a time, so that the fault meets creates in every state."""

PAUSE = 0.02
"""Seconds that a creator waits after a failure."""

EXPECTED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""What a caller may be told during a fault."""

UNTOLD = ("postgres", "sqlite", "asyncpg", "sql", "disk", "transaction", "relation", "traceback")
"""Words of databases, which no caller is to read."""


@dataclass
class Load:
    """Users that were asked for, each with an idempotency key of its own, and what the service answered."""

    deadline: float = DEADLINE
    """Seconds that a call is given."""

    sent: int = 0
    """Creates, repeated ones too."""

    longest: float = 0.0
    """Seconds of the longest call, which may be a read."""

    acknowledged: dict[str, pb.User] = field(default_factory=dict)
    """The users that were returned, by their key."""

    unanswered: set[str] = field(default_factory=set)
    """Keys of creates that failed, so that nobody knows whether they happened."""

    codes: Counter[grpc.StatusCode] = field(default_factory=Counter)
    """How failed calls ended, reads too."""

    details: set[str] = field(default_factory=set)
    """The texts with which they did."""

    _keys: itertools.count[int] = field(default_factory=itertools.count)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _ending: bool = False

    @asynccontextmanager
    async def running(self, *targets: str) -> AsyncIterator[None]:
        """Create users at the targets and read them, one after the other, until the block ends."""
        self._ending = False
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as creators:
            channels = [await stack.enter_async_context(grpc.aio.insecure_channel(t)) for t in targets]
            for _, channel in zip(range(CREATORS), itertools.cycle(channels), strict=False):
                creators.create_task(self._create_until_the_end(UserServiceStub(channel)))
            yield
            self._ending = True

    async def until_acknowledged(self, count: int) -> None:
        """Wait until `count` more users are acknowledged."""
        goal = len(self.acknowledged) + count
        async with asyncio.timeout(RECOVERY), self._changed:
            await self._changed.wait_for(lambda: len(self.acknowledged) >= goal)

    async def until_failed(self, count: int) -> None:
        """Wait until `count` more calls have failed."""
        goal = self.codes.total() + count
        async with asyncio.timeout(RECOVERY), self._changed:
            await self._changed.wait_for(lambda: self.codes.total() >= goal)

    async def retry(self, target: str) -> None:
        """Send what has no answer again, with its key, until all have one."""
        async with asyncio.timeout(RECOVERY), grpc.aio.insecure_channel(target) as channel:
            while self.unanswered:
                await self.create(UserServiceStub(channel), next(iter(self.unanswered)))

    async def create(self, stub: UserServiceStub, key: str) -> bool:
        """Create the user that `key` stands for, with it as the key; return whether it was acknowledged.

        Raises:
            AioRpcError: the call failed in a way that no fault excuses.

        """
        self.unanswered.add(key)
        self.sent += 1
        request = pb.CreateUserRequest(name=key, email=f"{key}@example.com")
        metadata = (("idempotency-key", key),)
        user = await self._answer(stub.CreateUser(request, timeout=self.deadline, metadata=metadata))
        if user:
            assert self.acknowledged.setdefault(key, user) == user
            self.unanswered.discard(key)
        async with self._changed:
            self._changed.notify_all()
        return bool(user)

    async def _create_until_the_end(self, stub: UserServiceStub) -> None:
        while not self._ending:
            if not await self.create(stub, f"user{next(self._keys)}"):
                await asyncio.sleep(PAUSE)
            await self._read(stub)

    async def _read(self, stub: UserServiceStub) -> None:
        """Get the user that was acknowledged last."""
        for user in itertools.islice(reversed(self.acknowledged.values()), 1):
            found = await self._answer(stub.GetUser(pb.GetUserRequest(id=user.id), timeout=self.deadline))
            assert found is None or found == user

    async def _answer(self, call: Awaitable[pb.User]) -> pb.User | None:
        """Return what the service answers, None if it fails as it may."""
        began = time.perf_counter()
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            if error.code() not in EXPECTED:
                raise
            self.codes[error.code()] += 1
            self.details.add(error.details() or "")
            return None
        finally:
            self.longest = max(self.longest, time.perf_counter() - began)


async def users_of(target: str) -> list[pb.User]:
    """List every user of a server."""
    async with grpc.aio.insecure_channel(target) as channel:
        return await all_users(UserServiceStub(channel), NO_HURRY)


async def assert_nothing_lost(load: Load, fault: str, database: str, target: str) -> int:
    """Check what holds after every fault, and print the row about it.

    Each acknowledged user is there once; calls ended in time, with a code that says what to do and a
    text that says nothing of the database. A create without an answer, sent again, makes one user.
    Returns how many of those had happened.
    """
    acknowledged = dict(load.acknowledged)
    users = {user.name: user for user in await users_of(target)}
    found = sum(users.get(key) == user for key, user in acknowledged.items())
    kept = len(users) - len(acknowledged)
    failed = {code.name: count for code, count in load.codes.items()}
    print(  # noqa: T201 (the row is what the test is for)
        f"| {fault} | {database} | {load.sent} | {len(acknowledged)} | {found} | {load.longest:.2f} s"
        f" | failed: {failed}; {kept} kept without an answer |"
    )
    assert found == len(acknowledged)
    assert [text for text in load.details if any(word in text.lower() for word in UNTOLD)] == []
    assert load.longest < load.deadline + SLACK
    await load.retry(target)
    listed = await users_of(target)
    assert [user.id for user in listed] == sorted(user.id for user in load.acknowledged.values())
    assert {user.name: user for user in listed} == load.acknowledged
    return kept


async def until_readiness(health: health_pb2_grpc.HealthStub, status: int) -> None:
    """Wait until readiness is `status`."""
    async with asyncio.timeout(RECOVERY):
        async for answer in health.Watch(health_pb2.HealthCheckRequest(service="readiness")):
            if answer.status == status:
                return
