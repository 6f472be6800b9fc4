"""Tells an error of kubectl that passes by itself from one that stays, and waits for the former."""

import re
import time

import click

from tools.kubernetes.deploy.text import printable

_FINAL = re.compile(
    r"""
    (calling|conversion|admission)\ webhook  # its owner must act; the API server waited for it already
    | denied\ the\ request
    | x509:
    | Error\ from\ server\ \((?!TooManyRequests|ServiceUnavailable|InternalError|Timeout|ServerTimeout)
    """,
    re.VERBOSE,
)

_TRANSIENT = re.compile(
    r"""
    connection\ (refused|reset|lost|timed\ out)
    | The\ connection\ to\ the\ server\ .*\ was\ refused
    | broken\ pipe | use\ of\ closed\ network\ connection | GOAWAY | stream\ error
    | \bEOF\b
    | handshake\ timeout | i/o\ timeout | Client\.Timeout | context\ deadline\ exceeded | request\ canceled
    | no\ such\ host | server\ misbehaving | network\ is\ unreachable | no\ route\ to\ host
    | etcdserver: | code\ =\ Unavailable | shutting\ down | storage\ is\ \(re\)initializing
    | TooManyRequests | too\ many\ requests
    | status\ code\ (408|425)
    | ServiceUnavailable | InternalError | Error\ from\ server\ \((Server)?Timeout\)
    | currently\ unable\ to\ handle\ the\ request
    | an\ error\ on\ the\ server\ .*\ has\ prevented\ the\ request
    """,
    re.VERBOSE,
)

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 10.0


def is_transient(error: str) -> bool:
    """Return whether the same command may succeed later, by what kubectl wrote to stderr.

    A lost connection, an overloaded API server and an etcd that elects a leader pass; what the API server
    or a webhook refused stays refused.
    """
    return bool(_TRANSIENT.search(error)) and not _FINAL.search(error)


class Patience:
    """How long one command is tried again."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._pause = _FIRST_PAUSE
        self._told = False

    def waits(self, error: str) -> bool:
        """Sleep and return True if the command is to be tried again; the first time it is said."""
        left = self._end - time.monotonic()
        if left <= 0 or not is_transient(error):
            return False
        if not self._told:
            self._told = True
            click.secho(
                f"trying again for up to {left:.0f} s: {printable(error.splitlines()[-1])}",
                fg="yellow",
                err=True,
            )
        time.sleep(min(self._pause, left))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return True
