"""The command line of the probe, which is Go's, and its durations."""

import click

from grpc_common.commands import probe
from tools.fuzz.properties import check_shown

_LONGEST = 2**63 / 1e9


def fuzz(data: bytes) -> None:
    """Arguments, one a line, are taken or refused as click does it, and never anything else."""
    arguments = data.replace(b"\0", b"").decode("utf-8", "surrogateescape").split("\n")
    try:
        context = probe.command.make_context("probe", arguments, resilient_parsing=False)
    except click.exceptions.Exit:  # --help
        return
    except click.ClickException as error:
        check_shown(error.format_message(), 4 * len(data) + 1000)
        return
    values = context.params
    for name in ("connect_timeout", "rpc_timeout"):
        assert 0 < values[name] < _LONGEST
    for name, value in values["headers"]:
        assert f"{name}{value}".isascii()
        check_shown(f"{name}: {value}")
    values["addr"].encode()
