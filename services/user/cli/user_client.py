"""user.UserService as its commands call it: every call may be repeated, whatever it does."""

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

import grpc
from user import user_service_pb2 as pb

from grpc_common import ServiceConfig, read_all
from services.user.idempotency import IDEMPOTENCY_KEY
from services.user.paging import NEXT_PAGE_TOKEN

if TYPE_CHECKING:
    from user.user_service_pb2_grpc import UserServiceAsyncStub

_SERVICE = pb.DESCRIPTOR.services_by_name["UserService"]

# CreateUser is in it because `create` below never calls it without an idempotency key.
SERVICE_CONFIG = ServiceConfig(
    retryable_methods=(
        *ServiceConfig.for_services(_SERVICE).retryable_methods,
        f"{_SERVICE.full_name}/CreateUser",
    )
)
"""Has gRPC repeat every method when a server is not there, for about a second."""

PAGE_PATIENCE = 30
"""Seconds that a list, once it has begun, waits for a server that went away."""

# What may be over after a while. The first and the last also come from gRPC itself.
_TEMPORARY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}

_FIRST_BACKOFF = 0.1
_MOST_BACKOFF = 2.0


class UserClient:
    """The service's methods, each with a deadline of `timeout` seconds a call.

    All of them raise grpc.aio.AioRpcError.
    """

    def __init__(self, stub: UserServiceAsyncStub, timeout: float) -> None:
        self._stub = stub
        self._timeout = timeout

    async def create(self, name: str, email: str, key: str) -> pb.User:
        """Create a user, or return the one that was created with the same idempotency key."""
        request = pb.CreateUserRequest(name=name, email=email)
        metadata = ((IDEMPOTENCY_KEY, key),)
        return await self._stub.CreateUser(request, timeout=self._timeout, metadata=metadata)

    async def get(self, user_id: str) -> pb.User:
        """Return the user with the id."""
        return await self._stub.GetUser(pb.GetUserRequest(id=user_id), timeout=self._timeout)

    async def pages(self, page_size: int, limit: int | None) -> AsyncIterator[list[pb.User]]:
        """Yield all users, or the first `limit`, a page at a time: one empty page if there is none."""
        left = limit
        page = asyncio.create_task(self._page(_size(page_size, left), "", 0))
        try:
            while True:
                users, token = await page
                left = None if left is None else left - len(users)
                if token and left != 0:  # it comes while this one is used
                    page = asyncio.create_task(self._page(_size(page_size, left), token, PAGE_PATIENCE))
                yield users
                if not token or left == 0:
                    return
        finally:
            page.cancel()
            await asyncio.gather(page, return_exceptions=True)

    async def _page(self, size: int, token: str, patience: float) -> tuple[list[pb.User], str]:
        # A whole page, since gRPC can't repeat a stream of which a message has been read.
        request = pb.ListUsersRequest(page_size=size, page_token=token)
        call = functools.partial(read_all, self._stub.ListUsers, request, timeout=self._timeout)
        users, trailers = await patiently(call, patience)
        return users, str(trailers.get(NEXT_PAGE_TOKEN, ""))


def _size(page_size: int, left: int | None) -> int:
    return page_size if left is None else min(page_size, left)


async def patiently[Result](
    call: Callable[[], Awaitable[Result]],
    patience: float,
    on_wait: Callable[[grpc.aio.AioRpcError], object] = lambda _: None,
) -> Result:
    """Return what `call` does; repeat it while its error is one that may be over soon.

    Args:
        call: makes the call; safe to repeat.
        patience: seconds from the first error until an error is final.
        on_wait: is told of each error that is not final.

    Raises:
        grpc.aio.AioRpcError: the last error.

    """
    loop = asyncio.get_running_loop()
    give_up: float | None = None
    backoff = _FIRST_BACKOFF
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            give_up = give_up or loop.time() + patience
            if error.code() not in _TEMPORARY or loop.time() >= give_up:
                raise
            on_wait(error)
        await asyncio.sleep(backoff * random.uniform(0.5, 1))  # noqa: S311 (not a secret)
        backoff = min(2 * backoff, _MOST_BACKOFF)
