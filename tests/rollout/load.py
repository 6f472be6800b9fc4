"""Steady load on the user service: all kinds of calls, large and small, by clients of all kinds."""

import asyncio
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

SLOW_READERS = 3

LARGE = 15 << 10
"""Bytes. With them a request is a little less than base's max_recv_msg_size of 16 KiB."""

_UNKNOWN_FIELD = b"\xa2\x06"
"""Tag of field 100, which no message has: a server reads past it, and a request is as large as one likes."""

_OPTIONS = [
    # Or the window grows, and a whole page is in it before the slow reader wants it.
    ("grpc.http2.bdp_probe", 0),
    # Or channels of one process share their connections.
    ("grpc.use_local_subchannel_pool", 1),
]

_REST = 0.1
"""Seconds after a call that failed, or a server that is gone would cost a whole CPU."""

type Work = Callable[[], Awaitable[object]]
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
        self._last = pb.User()

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Call over one channel until the block ends, and wait for the last answers."""
        async with self._opened() as channel:
            stub = UserServiceStub(channel)
            await self.create(stub)
            works: list[tuple[Work, float]] = [
                (partial(self.create, stub), 0.05),
                (partial(self.create, stub, size=LARGE), 0.1),
                (partial(self.create_twice, stub), 0.15),
                (partial(self.create_taken, stub), 0.3),
                (partial(self.get, stub), 0.05),
                (partial(self.page, stub), 0.5),
            ]
            slow = [partial(self.page, stub, seconds=self._slow)] * SLOW_READERS
            async with self._repeated(works, slow):
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
        self,
        works: Sequence[tuple[Work, float]],
        slow: Sequence[Work] = (),
    ) -> AsyncIterator[None]:
        """Do works again and again, with their pauses, until the block ends; then give up the slow ones."""
        ended = asyncio.Event()
        self._ledger.calling.add(self.name)

        async def repeat(work: Work, pause: float) -> None:
            while not ended.is_set():
                await work()
                await asyncio.sleep(pause)

        async with asyncio.TaskGroup() as tasks:
            for work, pause in works:
                tasks.create_task(repeat(work, pause))
            reading = [tasks.create_task(repeat(work, 0)) for work in slow]
            try:
                yield
            finally:
                for task in reading:
                    task.cancel()
                self._ledger.calling.discard(self.name)
                ended.set()

    async def create(self, stub: UserServiceStub, size: int = 0) -> None:
        """Create a user whom nobody else creates, by a request that is larger by `size` bytes."""
        request = self._request(size)
        email = request.email
        self._ledger.unknown.add(email)
        call = stub.CreateUser(request, timeout=DEADLINE)
        user = await self._answer("create", call, lambda user: user.email == email)
        if user:
            self._acknowledge(user)

    def _request(self, size: int) -> pb.CreateUserRequest:
        name = f"{self.name}-{next(self._ledger.numbers)}"
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
            await asyncio.sleep(_REST)
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
    """Open a channel of grpcio's own, with one connection and no retry policy.

    What no server has seen, since its connection ended before, is sent over another one, as gRPC wants it.
    """
    options = [*_OPTIONS, ("grpc.ssl_target_name_override", name)]
    if credentials is None:
        opened = grpc.aio.insecure_channel(target, options=options)
    else:
        opened = grpc.aio.secure_channel(target, credentials, options=options)
    async with opened:
        yield opened
