"""The command `import`: the users of a CSV file, and a report of the lines that are not taken."""

import csv
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from services.user.cli.connection import EXIT_REJECTED, Connection, Duration
from services.user.cli.csv_file import HeaderError, Rejected, read_users
from services.user.cli.filling import Source, fill
from services.user.cli.importer import Importer
from services.user.cli.output import visible
from services.user.cli.user_client import UserClient


@click.command("import", short_help="Create the users of a CSV file.")
@click.argument("file", type=click.File("rb"))
@click.option(
    "--concurrency",
    default=64,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="How many users to create at a time.",
)
@click.option(
    "--retry-for",
    default="60s",
    show_default=True,
    type=Duration(),
    help="How long to wait for a service that is not there.",
)
@click.option(
    "--rejects",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the rejected lines to this CSV file, not to stderr: columns name, email, line, reason. "
    "Once they are put right it can be imported as it is.",
)
@click.option(
    "--from-line",
    default=2,
    show_default=True,
    type=click.IntRange(2),
    help="Begin at this line; --rejects is added to then. An import that stops says at which.",
)
@click.pass_obj
def import_users(
    connection: Connection,
    *,
    file: BinaryIO,
    concurrency: int,
    retry_for: float,
    rejects: Path | None,
    from_line: int,
) -> None:
    """Create the users of FILE, a CSV file in UTF-8; - is stdin.

    The first line names the columns: name and email, in any order, others are ignored. Commas,
    semicolons or tabs separate them. Each further line is a user.

    A rejected line is told with its number and the reason, and the others are still taken: exit
    code 3. Every line has an idempotency key, so that an import that stopped can be run again for 24 hours
    and creates no user twice; later, a user who is in already is rejected as ALREADY_EXISTS.
    """
    if rejects and rejects.exists() and os.path.samestat(rejects.stat(), os.fstat(file.fileno())):
        raise click.UsageError("--rejects would overwrite the file that is imported")
    name = "stdin" if file.fileno() == sys.stdin.fileno() else file.name

    async def work(client: UserClient) -> int:
        with _report(rejects, name, append=from_line > 2) as reject:  # noqa: PLR2004 (line 1 is the header)
            importer = Importer(client, concurrency, retry_for, reject)
            try:
                await fill(importer, _source(file.fileno(), from_line, importer))
            except HeaderError as error:
                raise click.UsageError(f"{name}: {error}") from None
        return importer.rejected

    if connection.run(work):
        sys.exit(EXIT_REJECTED)


def _source(file: int, from_line: int, importer: Importer) -> Source:
    status = os.fstat(file)
    is_regular = stat.S_ISREG(status.st_mode)
    return Source(
        records=read_users(file, from_line),
        total=status.st_size if is_regular else None,
        completed=lambda: os.lseek(file, 0, os.SEEK_CUR) if is_regular else 0,
        how_to_resume=lambda: (
            f"Run it again with --from-line {max(importer.next_line, from_line)}: no user is created twice."
        ),
    )


@contextmanager
def _report(path: Path | None, name: str, *, append: bool) -> Iterator[Callable[[Rejected], object]]:
    if path is None:
        yield lambda line: click.echo(f"{visible(name)}:{line.line}: {line.reason}", err=True)
        return
    # Line by line, so that it is whole whenever the program ends.
    with path.open("a" if append else "w", encoding="utf-8", newline="", buffering=1) as file:
        writer = csv.writer(file, lineterminator="\n")
        if not file.tell():
            writer.writerow(("name", "email", "line", "reason"))
        yield lambda line: writer.writerow((line.name, line.email, line.line, line.reason))
