"""The command line of the user service."""

import sys
import uuid
from typing import Any, override

import click
from user import user_service_pb2 as pb

from services.user import idempotency
from services.user.cli.connection import EXIT_CODES, Connection, Text, connection_options, start
from services.user.cli.import_command import import_users
from services.user.cli.output import FORMATS, Format, renderer
from services.user.cli.user_client import UserClient
from services.user.paging import MAX_PAGE_SIZE


class _Key(Text):
    name = "key"

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        key = super().convert(value, param, ctx)
        try:
            idempotency.idempotency_key([key], pb.CreateUserRequest())
        except ValueError as error:
            self.fail(f"{key!a} {error}", param, ctx)
        return key


_format_option = click.option(
    "--format",
    "chosen",
    type=click.Choice(FORMATS),
    default=lambda: "table" if sys.stdout.isatty() else "tsv",
    show_default="table on a terminal, tsv elsewhere",
    help="table; json: an object a line; csv; tsv: id, name, email, without a head.",
)


@click.group(epilog=EXIT_CODES)
@connection_options
@click.pass_context
def main(context: click.Context, connection: Connection) -> None:
    """Call user.UserService: create users, show them, import them from a file.

    Every command may be repeated: a creation has an idempotency key, so that no user is created twice.
    """
    context.obj = connection


@main.command()
@click.option("--name", required=True, type=Text(), help="What to call the user.")
@click.option("--email", required=True, type=Text(), help="The user's address; no two users have the same.")
@click.option(
    "--idempotency-key",
    type=_Key(),
    help="Makes it safe to run the command again: with the same key, the same user is shown. "
    "A new one for each run by default.",
)
@_format_option
@click.pass_obj
def create(
    connection: Connection, name: str, email: str, idempotency_key: str | None, chosen: Format
) -> None:
    """Create a user."""
    key = str(uuid.uuid4()) if idempotency_key is None else idempotency_key
    user = connection.run(lambda client: client.create(name, email, key))
    click.echo(renderer(chosen)([user]), nl=False)


@main.command()
@click.argument("user_id", metavar="ID", type=Text())
@_format_option
@click.pass_obj
def get(connection: Connection, user_id: str, chosen: Format) -> None:
    """Show the user with the ID."""
    user = connection.run(lambda client: client.get(user_id))
    click.echo(renderer(chosen)([user]), nl=False)


@main.command("list")
@_format_option
@click.option("--limit", type=click.IntRange(1), help="Show this many users and no more.")
@click.option(
    "--page-size",
    default=MAX_PAGE_SIZE,
    show_default=True,
    type=click.IntRange(1, MAX_PAGE_SIZE),
    help="How many users to ask for in one call.",
)
@click.pass_obj
def list_users(connection: Connection, chosen: Format, limit: int | None, page_size: int) -> None:
    """Show all users, page by page, in the order of creation."""

    async def show(client: UserClient) -> None:
        render = renderer(chosen)
        async for page in client.pages(page_size, limit):
            click.echo(render(page), nl=False)

    connection.run(show)


main.add_command(import_users)

if __name__ == "__main__":
    start(main, "client")
