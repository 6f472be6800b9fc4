"""The user service's configuration: that of every server, and the database."""

import os
import re
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit

import platformdirs
from pydantic import field_validator, model_validator

from grpc_common import ConfigError, CredentialUrl, Section, ServerConfig
from grpc_common.config.units import Count, PositiveDuration
from grpc_common.config.urls import is_plain_url, mask_url

_SQLITE = "sqlite:///"
_POSTGRESQL = "postgresql://"
_UNCLEAR = (
    f"must be {_POSTGRESQL}USER:PASSWORD@HOST:PORT/NAME, with %2F, %3F, %23, %40, %3A, %25, %20 in the place "
    "of / ? # @ : % and spaces that belong to a user, password or parameter"
)
_NOT_OF_A_FILE = re.compile(r"[?#]|:[^/]*@")
_LAST_PORT = 65535


class DatabaseConfig(Section):
    """Where the users are kept."""

    url: CredentialUrl = ""
    """`postgresql://USER:PASSWORD@HOST/NAME` or `sqlite:///FILE`; a file in the data directory if empty."""

    password_file: Path | None = None
    """PostgreSQL: a file with the password, in place of one in the URL; read for each new connection."""

    pool_size: Count = 10
    """PostgreSQL: connections for a replica's calls, and one for its probe; all must fit max_connections."""

    connect_timeout: PositiveDuration = 5
    """PostgreSQL: what a call waits for a connection, a new one or a free one, and for a restart to end."""

    statement_timeout: PositiveDuration = 10
    """What a statement may take, if the call has no earlier deadline."""

    @field_validator("url")
    @classmethod
    def _check(cls, url: str) -> str:
        if url.startswith(_POSTGRESQL):
            _check_postgresql(url)
        elif url:
            _check_sqlite(url)
        return url

    @model_validator(mode="after")
    def _check_password(self) -> Self:
        if self.password_file and not self.is_postgresql:
            raise ValueError("password_file is for PostgreSQL, which url does not name")
        if self.password_file and (
            urlsplit(self.url).password is not None or "passfile" in _parameters(self.url)
        ):
            raise ValueError("url has a password, and there is a password_file: take one of them away")
        return self

    @property
    def is_postgresql(self) -> bool:
        """Whether the users are in PostgreSQL, not in a SQLite file."""
        return self.url.startswith(_POSTGRESQL)

    @property
    def name(self) -> str:
        """What the database is called in logs and errors: its URL without secrets, or its path."""
        return mask_url(self.url) if self.is_postgresql else str(self.path)

    @property
    def path(self) -> Path:
        """The SQLite file, as an absolute path.

        Raises:
            ConfigError: there is no data directory for the default and none can be made.

        """
        if not self.url:
            return _data_directory() / "users.db"
        # `bazel run` starts programs in a folder of its own and says where the user was.
        start = Path(os.environ.get("BUILD_WORKING_DIRECTORY", "."))
        return (start / self.url.removeprefix(_SQLITE)).absolute()


class SmokeConfig(Section):
    """What `server smoke` calls after a rollout; the server itself has no use for it."""

    target: str = "localhost:50051"
    """The service as its clients dial it: `NAME:PORT`, `dns:///NAME:PORT`."""

    tls_directory: Path | None = None
    """The folder with ca.crt, and the client's tls.crt and tls.key where it needs them; plaintext if none."""

    timeout: PositiveDuration = 30
    """For the connection and the health check, and again for the call."""


class UserServiceConfig(ServerConfig):
    """Settings of the user service."""

    database: DatabaseConfig = DatabaseConfig()

    smoke: SmokeConfig = SmokeConfig()


def _check_sqlite(url: str) -> None:
    if url == _SQLITE or not url.startswith(_SQLITE):
        raise ValueError(f"must be {_SQLITE}FILE or {_POSTGRESQL}USER:PASSWORD@HOST/NAME")
    if _NOT_OF_A_FILE.search(url.removeprefix(_SQLITE)) or not url.isprintable():
        raise ValueError(f"must be {_SQLITE}FILE: a file has no user, no password and no parameters")


def _check_postgresql(url: str) -> None:
    # No error of another says what is wrong: it would quote what may be a part of the password.
    try:
        parts, parameters = urlsplit(url), _parameters(url)
    except ValueError:
        raise ValueError(_UNCLEAR) from None
    if not is_plain_url(url):
        raise ValueError(_UNCLEAR)
    ports = re.findall(r":([0-9]+)(?:,|$)", parts.netloc.rpartition("@")[2])
    if any(int(port) > _LAST_PORT for port in ports):
        raise ValueError(f"has a port above {_LAST_PORT}")
    if "password" in parameters:
        raise ValueError("the password belongs before the host, USER:PASSWORD@HOST, or into PGPASSWORD")


def _parameters(url: str) -> dict[str, list[str]]:
    query = urlsplit(url).query
    return parse_qs(query, strict_parsing=True) if query else {}


def _data_directory() -> Path:
    try:
        return platformdirs.user_data_path("grpc-on-kubernetes", ensure_exists=True)
    except OSError as error:
        raise ConfigError(f"there is no place for the default database ({error}); set DATABASE_URL") from None
