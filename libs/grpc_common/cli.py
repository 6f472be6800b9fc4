"""The command line of a service: --config, --print-config, --help, and exit codes."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

from grpc_common.config import ServerConfig
from grpc_common.config_file import Setting, load, settings, to_yaml
from grpc_common.errors import StartError
from grpc_common.logs import configure_logging


def command[Config: ServerConfig](
    serve: Callable[[Config], Coroutine[Any, Any, int]], config_class: type[Config]
) -> click.Command:
    """Return the command that runs `serve` with the configuration, and exits with what it returns.

    Its help is the docstring of `serve` and a table of all settings. A StartError that
    `serve` raises ends the command with the error's text and exit code 1.
    """

    def run(config: Path | None, *, print_config: bool) -> None:
        try:
            loaded = load(config_class, config)
            if print_config:
                click.echo(to_yaml(loaded), nl=False)
                return
            configure_logging(loaded.logging.level, loaded.logging.format)
            sys.exit(asyncio.run(serve(loaded)))
        except StartError as error:
            raise click.ClickException(str(error)) from None

    return _Command(
        "server",
        callback=run,
        help=serve.__doc__,
        params=[
            click.Option(
                ["--config"],
                type=click.Path(path_type=Path),
                envvar="CONFIG_FILE",
                show_envvar=True,
                help="The YAML file with the settings.",
            ),
            click.Option(["--print-config"], is_flag=True, help="Show the settings in effect, and exit."),
        ],
        known=settings(config_class),
    )


class _Command(click.Command):
    def __init__(self, *args: Any, known: list[Setting], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._known = known

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        with formatter.section("Settings: key in the file, variable that overrides it, meaning [default]"):
            formatter.write_dl(
                [
                    (f"{setting.key}  {setting.variable}", f"{setting.description} [{_default(setting)}]")
                    for setting in self._known
                ]
            )


def _default(setting: Setting) -> str:
    return "none" if setting.default in (None, "", {}) else str(setting.default)
