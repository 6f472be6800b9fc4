"""Files that a command writes at its end."""

from contextlib import suppress
from pathlib import Path
from typing import Any, override

import click

from grpc_common.config.path_argument import PathArgument


class OutputFile(PathArgument):
    """A file that a long run ends with; whether it can be written is found out before the run."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True)

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        file = Path(super().convert(value, param, ctx))
        if not file.exists():
            self._try(file.resolve(), param, ctx)
        return file

    def _try(self, file: Path, param: click.Parameter | None, ctx: click.Context | None) -> None:
        try:
            file.touch()
        except OSError as error:
            self.fail(f"{file} can't be written: {error.strerror}", param, ctx)
        with suppress(FileNotFoundError):
            file.unlink()


def write(file: Path, text: str) -> None:
    """Write it, and say so.

    Raises:
        click.ClickException: it can't be written any more.

    """
    try:
        file.write_text(text, "utf-8")
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror}") from error
    click.echo(f"written: {file}")
