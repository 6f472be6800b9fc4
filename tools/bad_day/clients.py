"""Who calls the service all day: each at a steady rate, whatever happens to its calls."""

import asyncio
import random
from collections.abc import Coroutine
from typing import Any

import grpc
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from tools.bad_day.ledger import Ledger

DEADLINE = 8.0
"""Seconds that each call is given: with three, calls fail for nothing on a machine that does much else."""

RATE = 12.0
"""Calls a second of each client: what two processors do beside servers, proxies and a database."""

_PAGE = 100
"""Users of a stream."""

_LAST = 30.0
"""Seconds for what is on its way at the day's end."""

_PAUSE = 0.2
"""Seconds until a create is sent again."""


class Client:
    """Creates users, with an idempotency key and without, gets them, and lists them.

    Args:
        name: of the way to the service.
        channel: to the service.
        ledger: where all is written down.
        chance: decides what is called next.
        users: begins the names of the users that it makes; unique.

    """

    def __init__(
        self, name: str, channel: grpc.aio.Channel, ledger: Ledger, chance: random.Random, users: str
    ) -> None:
        self.name = name
        self._users = users
        self._stub = UserServiceStub(channel)
        self._ledger = ledger
        self._chance = chance
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, ended: asyncio.Event) -> None:
        """Call until `ended`, and then wait until each create with a key is acknowledged, _LAST at most."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not ended.is_set():
            self._begin(self._next())
            due += 1 / RATE
            await asyncio.sleep(due - loop.time())
        if not self._tasks:
            return
        _, unanswered = await asyncio.wait(self._tasks, timeout=_LAST)
        for task in unanswered:
            task.cancel()
            self._ledger.untrue.append(
                f"{self.name}: no answer to {task.get_name()} {_LAST:g} s after the last call"
            )

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=work.__name__)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._ledger.untrue.append(f"{self.name}: {error!r}")

    def _next(self) -> Coroutine[Any, Any, None]:
        choices = {self._get: 50, self._list: 10, self._create: 20, self._create_once: 20}
        [choice] = self._chance.choices([*choices], [*choices.values()])
        return choice()

    def _new_name(self) -> str:
        self._count += 1
        return f"{self._users}-{self._count}"

    async def _create_once(self) -> None:
        """Create a user without a key: never repeated, neither by this nor by anything on the way."""
        await self._send(self._new_name())

    async def _create(self) -> None:
        """Create a user with a key, again and again until it is acknowledged."""
        name = self._new_name()
        while not await self._send(name, ("idempotency-key", name)):  # noqa: ASYNC110 (only an answer tells)
            await asyncio.sleep(_PAUSE)

    async def _send(self, name: str, *metadata: tuple[str, str]) -> bool:
        request = pb.CreateUserRequest(name=name, email=f"{name}@example.com")
        async with self._ledger.call(self.name, "CreateUser", DEADLINE) as made:
            call = self._stub.CreateUser(request, timeout=DEADLINE, metadata=metadata)
            await self._ledger.created(name, call)
        return made.code in {"OK", "ALREADY_EXISTS"}  # the latter is wrong, and so in the ledger

    async def _get(self) -> None:
        if not self._ledger.acknowledged:
            return
        user = self._ledger.any_user(self._chance)
        async with self._ledger.call(self.name, "GetUser", DEADLINE):
            found = await self._stub.GetUser(pb.GetUserRequest(id=user.id), timeout=DEADLINE)
            if found != user:
                self._ledger.untrue.append(f"{user.id} was {user.name}, and then {found.id}, {found.name}")

    async def _list(self) -> None:
        async with self._ledger.call(self.name, "ListUsers", DEADLINE):
            call = self._stub.ListUsers(pb.ListUsersRequest(page_size=_PAGE), timeout=DEADLINE)
            ids = [user.id async for user in call]
            if ids != sorted(set(ids)):
                self._ledger.untrue.append(f"ListUsers of {self.name} is not in the order of ids: {ids}")
