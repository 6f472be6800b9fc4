"""How far a long command is: a bar on a terminal, a line now and then elsewhere."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_BAR_INTERVAL = 0.2
_LINE_INTERVAL = 10.0


@asynccontextmanager
async def progress(
    total: float | None, completed: Callable[[], float], text: Callable[[], str]
) -> AsyncIterator[None]:
    """Show on stderr, while the block runs, how much of `total` is done; None if that can't be known."""
    follow = _draw(total, completed, text) if sys.stderr.isatty() else _write(text)
    task = asyncio.create_task(follow)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _draw(total: float | None, completed: Callable[[], float], text: Callable[[], str]) -> None:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # While it is drawn it takes what is written to stderr, and shows it above itself.
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        while True:
            bar.update(task, completed=completed(), description=text())
            await asyncio.sleep(_BAR_INTERVAL)


async def _write(text: Callable[[], str]) -> None:
    while True:
        await asyncio.sleep(_LINE_INTERVAL)
        click.echo(text(), err=True)
