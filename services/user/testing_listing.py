"""All users that a server has, for tests that compare them with what was acknowledged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from user import user_service_pb2 as pb

if TYPE_CHECKING:  # only the stubs have it
    from user.user_service_pb2_grpc import UserServiceAsyncStub


async def all_users(
    stub: UserServiceAsyncStub, deadline: float, *, wait_for_ready: bool = False
) -> list[pb.User]:
    """List every user, page by page.

    Args:
        stub: of an asynchronous channel.
        deadline: seconds for each page.
        wait_for_ready: whether to wait for a server that is not there yet.

    Raises:
        grpc.aio.AioRpcError: the service does not answer.

    """
    users: list[pb.User] = []
    token = ""
    while True:
        request = pb.ListUsersRequest(page_size=1000, page_token=token)
        call = stub.ListUsers(request, timeout=deadline, wait_for_ready=wait_for_ready)
        users += [user async for user in call]
        token = str(dict(await call.trailing_metadata()).get("next-page-token", ""))
        if not token:
            return users
