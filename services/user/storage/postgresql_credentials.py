"""The files that a connection to PostgreSQL is made with: its password, certificates and keys.

They are read for each connection, so that what Kubernetes replaces in a mounted Secret is taken
without a restart.
"""

import os
import ssl
import stat
import unicodedata
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from grpc_common.core.errors import excerpt

_LONGEST = 64 * 2**10
"""Bytes of a password file; the longest passwords of managed databases, which are tokens, have some 2 KiB."""

_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
"""The parameters of a URL that name files, which are PG and their names in capitals as variables."""


class CredentialError(OSError):
    """A file can't be used; the text says which, and what is wrong with it."""


def read_password(path: Path) -> str:
    """Return the password that the file holds now, without the newline at its end.

    Raises:
        CredentialError: it can't be read, or is no password; the text names the file alone.

    """
    where = f"database.password_file {excerpt(str(path))}"
    try:
        content = _read(path)
    except OSError as error:
        raise CredentialError(f"{where} can't be read: {error.strerror}") from None
    if content is None:
        raise CredentialError(f"{where} is no regular file")
    if len(content) > _LONGEST:
        raise CredentialError(f"{where} has more than {_LONGEST} bytes, which no password has")
    try:
        password = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise CredentialError(f"{where} is not UTF-8; write the password as it is, not encoded") from None
    if not password:
        raise CredentialError(f"{where} is empty; write the password into it")
    if any(unicodedata.category(character) == "Cc" for character in password):
        raise CredentialError(
            f"{where} has several lines or control characters; write nothing but the password"
        )
    return password


def check_files(url: str) -> None:
    """Accept a URL whose certificates and keys can be read.

    Raises:
        CredentialError: one can't, or has no certificate of an authority; the text names the file.

    """
    parameters = parse_qs(urlsplit(url).query)
    for name in _FILES:
        path = parameters.get(name, [os.environ.get(f"PG{name.upper()}", "")])[-1]
        try:
            if path and name == "sslrootcert":
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
            elif path:
                _read(Path(path))
        except ssl.SSLError:
            raise CredentialError(f"{name} {excerpt(path)} has no certificate in PEM") from None
        except OSError as error:
            raise CredentialError(f"{name} {excerpt(path)} can't be read: {error.strerror}") from None


def _read(path: Path) -> bytes | None:
    """Return what a file holds, or the beginning of too much; None if it is no regular file."""
    # A pipe would hold up the event loop until somebody writes into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return os.read(descriptor, _LONGEST + 1)
    finally:
        os.close(descriptor)
