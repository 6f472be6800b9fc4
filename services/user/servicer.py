"""user.UserService over a UserStorage: requests in, users or a status out."""

import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import structlog
from user import user_service_pb2 as pb
from user import user_service_pb2_grpc as pb_grpc

from grpc_common import Errors, StatusError, already_exists, invalid_argument, not_found, unavailable
from services.user import paging
from services.user.idempotency import IDEMPOTENCY_KEY, IdempotencyKey, idempotency_key
from services.user.storage import EmailTakenError, KeyReusedError, StorageError, UserStorage
from services.user.users import InvalidUserError, User, new_user

log = structlog.get_logger()

_USER = pb.User.DESCRIPTOR.full_name

type _Context = grpc.aio.ServicerContext[Any, Any]


class UserService(pb_grpc.UserServiceServicer):
    """The servicer of user.UserService; what its methods do is said in the .proto file."""

    def __init__(self, storage: UserStorage) -> None:
        self._storage = storage

    async def GetUser(self, request: pb.GetUserRequest, context: _Context) -> pb.User:
        user_id = _checked("id", _parse_id, request.id)
        user = await self._storage.get(user_id)
        if user is None:
            message = f"no user has the id {user_id}"
            raise not_found(message, resource_type=_USER, resource_name=str(user_id))
        return _message(user)

    async def ListUsers(self, request: pb.ListUsersRequest, context: _Context) -> AsyncIterator[pb.User]:
        size = _checked("page_size", paging.page_size, request.page_size)
        after = _checked("page_token", paging.parse_token, request.page_token)
        users = await self._storage.page(after, size + 1)
        page, more = users[:size], users[size:]
        if more:
            context.set_trailing_metadata(((paging.NEXT_PAGE_TOKEN, paging.token_after(page[-1].id)),))
        for user in page:
            yield _message(user)

    async def CreateUser(self, request: pb.CreateUserRequest, context: _Context) -> pb.User:
        user, key = _checked_create(request, context)
        return _message(await self._storage.create(user, key))


def _checked_create(request: pb.CreateUserRequest, context: _Context) -> tuple[User, IdempotencyKey | None]:
    metadata = context.invocation_metadata() or ()
    try:
        key = idempotency_key([value for name, value in metadata if name == IDEMPOTENCY_KEY], request)
    except ValueError as error:
        raise invalid_argument({IDEMPOTENCY_KEY: str(error)}) from None
    try:
        return new_user(request.name, request.email), key
    except InvalidUserError as error:
        raise invalid_argument(error.violations) from None


def _message(user: User) -> pb.User:
    return pb.User(id=str(user.id), name=user.name, email=user.email)


def _parse_id(text: str) -> uuid.UUID:
    try:
        user_id = uuid.UUID(text)
    except ValueError:
        user_id = None
    # uuid.UUID takes braces, URNs and digits without hyphens too.
    if user_id is None or str(user_id) != text.lower():
        raise ValueError("is not a UUID, such as 019b2f60-7c00-7000-8000-000000000000")
    return user_id


def _checked[Given, Result](field: str, check: Callable[[Given], Result], value: Given) -> Result:
    try:
        return check(value)
    except ValueError as error:
        raise invalid_argument({field: str(error)}) from None


def _email_taken(error: EmailTakenError) -> StatusError:
    message = f"another user has the email {error}"
    return already_exists(message, resource_type=_USER, resource_name=str(error))


def _storage_failed(error: StorageError) -> StatusError:
    log.warning("storage failed", reason=str(error))
    return unavailable("the users can't be read or written now")


ERRORS: Errors = {
    EmailTakenError: _email_taken,
    KeyReusedError: lambda _: invalid_argument({IDEMPOTENCY_KEY: "was given with another request before"}),
    StorageError: _storage_failed,
}
"""The exceptions of the storage that a server of this servicer has to know."""
