"""Steady load on the user service: all kinds of calls, large and small, by clients of all kinds."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import grpc
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from tests.rollout.ledger import Ledger

DEADLINE = 60.0
"""Seconds. Longer than anything takes on an overloaded machine: a late answer is not a lost one."""

PAGE = 1000
"""Users of the longest page."""

PARTS = 25
"""Into which a slow reader of a page divides it; it rests between two."""

LARGE = 15 << 10
"""Bytes. With them a request is a little less than base's max_recv_msg_size of 16 KiB."""

_UNKNOWN_FIELD = b"\xa2\x06"
"""Tag of field 100, which no message has: a server reads past it, so that a request may be as large as one likes."""

NO_RETRIES = [("grpc.enable_retries", 0), ("grpc.http2.bdp_probe", 0)]
"""Of channels of plain grpcio. Without a probe the window stays small, or a slow page would be gone at once."""

type Opened = Callable[[], AbstractAsyncContextManager[grpc.aio.Channel]]


class Client:
    """One who makes every kind of call.

    Args:
        name: what the ledger calls it, and the emails of its users begin with.
        ledger: is told of each call.
        opened: opens a channel.
        slow: seconds that slow readers take for a page.

    """

    def __init__(self, name: str, ledger: Ledger, opened: Opened, *, slow: float) -> None:
        self.name = name
        self._ledger = ledger
        self._opened = opened
        self._slow = slow
        self._numbers = itertools.count()
        self._last = pb.User()

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Call over one channel until the block ends, and wait for the last answers."""
        async with self._opened() as channel:
            stub = UserServiceStub(channel)
            self._last = await self.create(stub)
            kinds = {
                self.create: 0.05,
                partial(self.create, size=LARGE): 0.1,
                self.create_twice: 0.15,
                self.create_taken: 0.3,
                self.get: 0.05,
                self.page: 0.5,
            }
            slow = [partial(self.page, seconds=self._slow)] * 3
            works = [(kind, pause) for kind, pause in kinds.items()] + [(kind, 0.0) for kind in slow]
            async with self._repeated([(partial(kind, stub), pause) for kind, pause in works]):
                yield

    @asynccontextmanager
    async def calling_anew(self) -> AsyncIterator[None]:
        """Open a channel for each call, as a short Job does, until the block ends."""

        async def once() -> None:
            async with self._opened() as channel:
                await self.create(UserServiceStub(channel))

        async with self._repeated([(once, 0.05)] * 2):
            yield

    @asynccontextmanager
    async def _repeated(
        self, works: Sequence[tuple[Callable[[], Awaitable[object]], float]]
    ) -> AsyncIterator[None]:
        ended = asyncio.Event()
        self._ledger.calling.add(self.name)

        async def repeat(work: Callable[[], Awaitable[object]], pause: float) -> None:
            while not ended.is_set():
                await work()
                await asyncio.sleep(pause)

        async with asyncio.TaskGroup() as tasks:
            for work, pause in works:
                tasks.create_task(repeat(work, pause))
            try:
                yield
            finally:
                self._ledger.calling.discard(self.name)
                ended.set()

    async def create(self, stub: UserServiceStub, size: int = 0, *keys: tuple[str, str]) -> pb.User:
        """Create a user whom nobody else creates, by a request that is larger by `size` bytes."""
        request = self._request(size)
        email = request.email
        self._ledger.unknown.add(email)
        call = stub.CreateUser(request, timeout=DEADLINE, metadata=keys)
        user = await self._answer("create", call, lambda user: user.email == email)
        if user:
            self._acknowledge(user)
        return user or pb.User()

    def _request(self, size: int) -> pb.CreateUserRequest:
        name = f"{self.name}-{next(self._numbers)}"
        request = pb.CreateUserRequest(name=name, email=f"{name}@example.com")
        if not size:
            return request
        length = bytes([size & 0x7F | 0x80, size >> 7])  # a varint of two bytes
        return pb.CreateUserRequest.FromString(
            request.SerializeToString() + _UNKNOWN_FIELD + length + bytes(size)
        )

    def _acknowledge(self, user: pb.User) -> None:
        self._ledger.acknowledged[user.email] = user.id
        self._ledger.unknown.discard(user.email)
        self._last = user

    async def create_twice(self, stub: UserServiceStub) -> None:
        """Create a user with an idempotency key, two times at once."""
        request = self._request(0)
        self._ledger.unknown.add(request.email)
        key = (("idempotency-key", request.email),)
        calls = [stub.CreateUser(request, timeout=DEADLINE, metadata=key) for _ in range(2)]
        is_right = lambda user: user.email == request.email  # noqa: E731
        created = [await self._answer("create with a key", call, is_right) for call in calls]
        for user in filter(None, created):
            self._acknowledge(user)
        if all(created) and created[0] != created[1]:
            self._ledger.failed(self.name, "create with a key", "two users")

    async def create_taken(self, stub: UserServiceStub) -> None:
        """Create a user whose email another one has, which is refused."""
        request = pb.CreateUserRequest(name="Another", email=self._last.email)
        call = stub.CreateUser(request, timeout=DEADLINE)
        await self._answer("create that is refused", _refusal(call), lambda is_refused: is_refused)

    async def get(self, stub: UserServiceStub) -> None:
        """Get a user who is there."""
        expected = self._last
        call = stub.GetUser(pb.GetUserRequest(id=expected.id), timeout=DEADLINE)
        await self._answer("get", call, lambda user: user == expected)

    async def page(self, stub: UserServiceStub, seconds: float = 0) -> None:
        """List a page of users, and take so long for it."""
        page = stub.ListUsers(pb.ListUsersRequest(page_size=PAGE), timeout=DEADLINE)
        kind = "slow page" if seconds else "page"
        await self._answer(kind, _read(page, seconds / PARTS), lambda is_whole: is_whole)

    async def _answer[Answer](
        self, kind: str, call: Awaitable[Answer], is_right: Callable[[Answer], bool]
    ) -> Answer | None:
        """Return what a call was answered; None, and the ledger has it, if it was not, or wrongly."""
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            self._ledger.failed(self.name, kind, f"{error.code().name}: {error.details()}")
            return None
        if not is_right(answer):
            self._ledger.failed(self.name, kind, f"a wrong answer; {str(answer)[:200]}")
            return None
        self._ledger.answered(self.name)
        return answer


async def _refusal(call: Awaitable[pb.User]) -> bool:
    """Return whether a call is refused since the email is taken."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
            raise
        return True
    return False


async def _read(page: grpc.aio.UnaryStreamCall[pb.ListUsersRequest, pb.User], pause: float) -> bool:
    """Return whether a page is whole and says that there are more; rest now and then."""
    count = 0
    async for _ in page:
        count += 1
        if pause and count % (PAGE // PARTS) == 0:
            await asyncio.sleep(pause)
    return count == PAGE and "next-page-token" in dict(await page.trailing_metadata())


@asynccontextmanager
async def plain_channel(
    target: str, credentials: grpc.ChannelCredentials | None = None, name: str = ""
) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel of grpcio's own, with one connection, that repeats nothing."""
    # Or channels of one target and process would share their connection.
    options = [*NO_RETRIES, ("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", name)]
    if credentials is None:
        opened = grpc.aio.insecure_channel(target, options=options)
    else:
        opened = grpc.aio.secure_channel(target, credentials, options=options)
    async with opened:
        yield opened
