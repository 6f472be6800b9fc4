"""Fills the user service with people who don't exist, for trials."""

import sys

import click

from services.user.cli.connection import (
    EXIT_CODES,
    EXIT_REJECTED,
    Connection,
    connection_options,
    start,
)
from services.user.cli.csv_file import Rejected
from services.user.cli.demo_users import demo_users
from services.user.cli.filling import Source, fill
from services.user.cli.importer import Importer
from services.user.cli.user_client import UserClient


@click.command(epilog=EXIT_CODES)
@connection_options
@click.option("--users", default=1000, show_default=True, type=click.IntRange(1), help="How many to create.")
@click.option("--seed", default=1, show_default=True, help="Other users for another number.")
def main(connection: Connection, users: int, seed: int) -> None:
    """Create users for trials: international names, and emails at example.com, .net and .org.

    The same seed makes the same users: run again, it goes on where it stopped, and a greater
    number adds to what is there.
    """

    def reject(line: Rejected) -> None:
        if not line.reason.startswith("ALREADY_EXISTS"):
            click.echo(f"user {line.line}: {line.reason}", err=True)

    async def work(client: UserClient) -> int:
        importer = Importer(client, concurrency=64, patience=60, reject=reject)
        source = Source(
            records=demo_users(users, seed),
            total=users,
            completed=lambda: importer.imported + importer.rejected,
            how_to_resume=lambda: "Run it again: no user is created twice.",
        )
        await fill(importer, source)
        return importer.rejected - importer.already_there

    if connection.run(work):
        sys.exit(EXIT_REJECTED)


if __name__ == "__main__":
    start(main, "seed_demo")
