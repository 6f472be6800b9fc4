"""The file of a Unix socket: whose it is, and when it is replaced and removed.

C-core would remove whatever socket has the path, a live server's too, when it binds and once more when it
stops. So it listens on a name of its own beside the path, which is then renamed.
"""

import errno
import os
import secrets
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MAX_PATH = 107
"""Bytes of a path: sun_path of unix(7) without the final NUL. C-core has the same bound."""

_LOOK = 1.0
"""Seconds in which a live server's kernel takes the connection that asks for it."""


class SocketFile:
    """The file of a socket that listens.

    Args:
        path: where clients find it.
        listen: listens at the path that it is given.

    Raises:
        OSError: there is something else than the socket of a server that has ended, or it is not allowed.

    """

    def __init__(self, path: Path, listen: Callable[[Path], object]) -> None:
        self._path = path
        self.bound = _name_beside(path)
        """The name that the listening descriptor has."""
        _check_free(path)
        _try(self.bound)
        listen(self.bound)
        try:
            self._mark = _mark(self.bound)
            self.bound.rename(path)
        except OSError:
            self.bound.unlink(missing_ok=True)
            raise

    def remove(self) -> None:
        """Remove the file, unless it is another server's by now."""
        with suppress(OSError):
            if _mark(self._path) == self._mark:
                self._path.unlink()


def _mark(path: Path) -> tuple[int, int]:
    """Return what tells a file from others that had or get its name; a number alone is used again."""
    status = path.lstat()
    return status.st_ino, status.st_mtime_ns


def _try(path: Path) -> None:
    """Bind for a moment: gRPC would tell no reason, and print a log line of its own form."""
    with socket.socket(socket.AF_UNIX) as candidate:
        candidate.bind(str(path))
    path.unlink()


def _name_beside(path: Path) -> Path:
    """Return a free name in the same folder that is short enough if that of `path` is."""
    room = MAX_PATH - len(os.fsencode(path.parent)) - 1
    while True:
        name = path.with_name(secrets.token_hex(8)[:room])
        if not os.path.lexists(name):
            return name


def _check_free(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_LOOK)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:  # nobody listens: what a killed process has left
            return
        except TimeoutError:
            pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
