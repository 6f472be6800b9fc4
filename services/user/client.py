"""A command line for the user service."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, override

import click
import grpc
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

import grpc_common
from services.user.paging import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, NEXT_PAGE_TOKEN

if TYPE_CHECKING:
    from user.user_service_pb2_grpc import UserServiceAsyncStub

DEADLINE = 10.0
"""Seconds after which a call is given up; each page of a list is a call."""

_CHANNEL = grpc_common.ChannelConfig(
    service=grpc_common.ServiceConfig.for_services(pb.DESCRIPTOR.services_by_name["UserService"])
)


class _Text(click.ParamType[str]):
    name = "text"

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            str(value).encode()
        except UnicodeEncodeError:
            self.fail(f"{value!a} is not UTF-8", param, ctx)
        return str(value)


@click.group()
@click.option(
    "--target",
    default="localhost:50051",
    show_default=True,
    help="The server, as host:port, dns:///name:port or kubernetes:///service.namespace:port.",
)
@click.pass_context
def main(context: click.Context, target: str) -> None:
    """Call user.UserService.

    A user is printed as a line: id, name and email, with a tab between them. The exit code
    is 0 for success, 1 if the service answers with an error, 2 for a mistake in the command.
    """
    context.obj = target


@main.command()
@click.option("--name", required=True, type=_Text(), help="What to call the user.")
@click.option("--email", required=True, type=_Text(), help="The user's address; no two users have the same.")
@click.pass_obj
def create(target: str, name: str, email: str) -> None:
    """Create a user."""

    async def call(stub: UserServiceAsyncStub) -> None:
        _print(await stub.CreateUser(pb.CreateUserRequest(name=name, email=email), timeout=DEADLINE))

    _run(target, call)


@main.command()
@click.argument("user_id", metavar="ID", type=_Text())
@click.pass_obj
def get(target: str, user_id: str) -> None:
    """Show the user with the ID."""

    async def call(stub: UserServiceAsyncStub) -> None:
        _print(await stub.GetUser(pb.GetUserRequest(id=user_id), timeout=DEADLINE))

    _run(target, call)


@main.command("list")
@click.option(
    "--page-size",
    default=DEFAULT_PAGE_SIZE,
    show_default=True,
    type=click.IntRange(1, MAX_PAGE_SIZE),
    help="How many users to ask for in one call.",
)
@click.pass_obj
def list_users(target: str, page_size: int) -> None:
    """Show all users, page by page, in the order of creation."""

    async def call(stub: UserServiceAsyncStub) -> None:
        token = ""
        while True:
            request = pb.ListUsersRequest(page_size=page_size, page_token=token)
            users = stub.ListUsers(request, timeout=DEADLINE)
            async for user in users:
                _print(user)
            token = str(dict(await users.trailing_metadata()).get(NEXT_PAGE_TOKEN, ""))
            if not token:
                return

    _run(target, call)


def _print(user: pb.User) -> None:
    click.echo(f"{user.id}\t{user.name}\t{user.email}")


def _run(target: str, call: Callable[[UserServiceAsyncStub], Awaitable[None]]) -> None:
    async def session() -> None:
        # A person waits: what can't be reached is told by the first call, not after ten seconds.
        async with grpc_common.channel(target, config=_CHANNEL, ready_timeout=None) as channel:
            await call(UserServiceStub(channel))

    grpc_common.configure_logging("warning")
    try:
        asyncio.run(session())
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except grpc.aio.AioRpcError as error:
        raise click.ClickException(f"{error.code().name}: {error.details()}") from None


if __name__ == "__main__":
    main(prog_name="client")
