"""A long import as a person sees it: progress, figures at the end, and how to go on after a stop."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import click
import grpc

from services.user.cli.csv_file import Rejected, Row
from services.user.cli.importer import Importer
from services.user.cli.progress import progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is imported, and how much of it there is."""

    records: AsyncIterator[Row | Rejected]
    total: float | None
    """In whatever unit; None if that can't be known."""
    completed: Callable[[], float]
    """Returns how much of `total` has been read."""
    how_to_resume: Callable[[], str]
    """Returns a sentence for who stopped it."""


async def fill(importer: Importer, source: Source) -> None:
    """Import all of `source`; print the figures.

    Raises:
        grpc.aio.AioRpcError: the service can't go on.

    """
    start = time.monotonic()
    try:
        async with progress(source.total, source.completed, lambda: _state(importer)):
            await importer.run(source.records)
    except grpc.aio.AioRpcError, asyncio.CancelledError:
        click.echo(f"Stopped: {_counts(importer)}. {source.how_to_resume()}", err=True)
        raise
    seconds = time.monotonic() - start
    click.echo(f"{_counts(importer)}, in {seconds:.1f} s ({importer.imported / seconds:,.0f} users/s)")


def _state(importer: Importer) -> str:
    waits = f", waiting: {importer.waits_for}" if importer.waits_for else ""
    return _counts(importer) + waits


def _counts(importer: Importer) -> str:
    text = f"{importer.imported:,} users imported, {importer.rejected:,} lines rejected"
    if importer.already_there:
        text += f" ({importer.already_there:,} of them since a user has the email)"
    return text
