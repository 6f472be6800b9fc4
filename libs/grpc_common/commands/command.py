"""The command line of a service: --config, --print-config, --help, and exit codes."""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from grpc_common.config import process_end
from grpc_common.config.loading import load, to_yaml
from grpc_common.config.path_argument import PathArgument
from grpc_common.config.sections import ServerConfig
from grpc_common.config.settings import Setting, settings
from grpc_common.core.errors import StartError
from grpc_common.core.signals import ignore_harmless_signals
from grpc_common.observe.logs import configure_logging
from grpc_common.observe.stderr import catch_stderr
from grpc_common.server.engine import loop_factory

_VARIABLES = """\
A list in a variable is separated by commas. An empty variable means none where that is the default, an empty
text or an empty list; for other settings, and required ones, it is as if it were not set."""

type Work[Config: ServerConfig] = Callable[[Config], Coroutine[Any, Any, int]]
"""What a command does with its configuration; it returns the exit code."""


def command[Config: ServerConfig](
    serve: Work[Config], config_class: type[Config], *, also: Sequence[Work[Config]] = ()
) -> click.Command:
    """Return the command that runs `serve` with the configuration, and exits with what it returns.

    Its help is the docstring of `serve` and a table of all settings. A StartError that
    `serve` raises ends the command with the error's text and exit code 1. The functions in
    `also` are commands below it, such as `server migrate`. Once a signal has told its server to end,
    the process ends within drain.delay, drain.grace and process_end.BOUND, with exit code 1 if it has to be
    forced.
    """

    def start(context: click.Context, config: Path | None, *, print_config: bool) -> None:
        if print_config:
            with _errors():
                click.echo(to_yaml(load(config_class, config)), nl=False)
            context.exit()
        if context.invoked_subcommand is None:
            _run(serve, config_class, config)

    group = _Group(
        "server",
        callback=click.pass_context(start),
        invoke_without_command=True,
        subcommand_metavar="[COMMAND]" if also else "",
        help=serve.__doc__,
        params=[
            _config_option(envvar=f"{config_class.env_prefix}CONFIG_FILE", show_envvar=True),
            click.Option(["--print-config"], is_flag=True, help="Show the settings in effect, and exit."),
        ],
        known=settings(config_class),
    )
    for work in also:
        group.add_command(_below(work, config_class))
    return group


def _below[Config: ServerConfig](work: Work[Config], config_class: type[Config]) -> click.Command:
    def start(context: click.Context, config: Path | None) -> None:
        above = context.parent.params["config"] if context.parent else None
        _run(work, config_class, config or above)

    return click.Command(
        work.__name__, callback=click.pass_context(start), help=work.__doc__, params=[_config_option()]
    )


def _config_option(**more: Any) -> click.Option:
    return click.Option(["--config"], type=PathArgument(), help="The YAML file with the settings.", **more)


def _run[Config: ServerConfig](work: Work[Config], config_class: type[Config], file: Path | None) -> None:
    ignore_harmless_signals()
    process_end.exit_on_sigterm()
    with _errors():
        config = load(config_class, file)
        configure_logging(config.logging.level, config.logging.format)
        catch_stderr()
        new_loop = loop_factory(config.server.engine)
        with process_end.bounded():
            code = asyncio.run(work(config), loop_factory=new_loop)
        sys.exit(code)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except StartError as error:
        raise click.ClickException(str(error)) from None


class _Group(click.Group):
    def __init__(self, *args: Any, known: Sequence[Setting], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._known = known

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        with formatter.section("Settings: key in the file, variable that overrides it, meaning [default]"):
            formatter.write_dl(
                [
                    (f"{setting.key}  {setting.variable}", f"{setting.description} [{setting.default_text}]")
                    for setting in self._known
                ]
            )
            formatter.write_paragraph()
            formatter.write_text(_VARIABLES)
