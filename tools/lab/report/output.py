"""The files that a report goes to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, override

import click

from grpc_common.config.path_argument import PathArgument


class OutputFile(PathArgument):
    """A file that is written at the end, which may be minutes away: that it can't be is told before."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False)

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        file: Path = super().convert(value, param, ctx)
        was_there = file.exists()
        try:
            file.open("a").close()
        except OSError as error:
            self.fail(f"{file}: {error.strerror}", param, ctx)
        if not was_there:
            file.unlink()
        return file


def write(file: Path | None, draw: Callable[[dict[str, Any]], str], report: dict[str, Any]) -> None:
    """Write what `draw` makes of a report, if there is a file for it, and say so.

    Raises:
        click.ClickException: the file can't be written.

    """
    if file is None:
        return
    try:
        file.write_text(draw(report), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from error
    click.echo(f"written: {file}")
