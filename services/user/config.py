"""The user service's configuration: that of every server, and the database."""

import os
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import platformdirs
from pydantic import field_validator

from grpc_common import ConfigError, CredentialUrl, Section, ServerConfig
from grpc_common.config.units import Count, PositiveDuration, hide_password

_SQLITE = "sqlite:///"
_POSTGRESQL = "postgresql://"


class DatabaseConfig(Section):
    """Where the users are kept."""

    url: CredentialUrl = ""
    """`postgresql://USER:PASSWORD@HOST/NAME` or `sqlite:///FILE`; a file in the data directory if empty."""

    pool_size: Count = 10
    """PostgreSQL: connections of a replica at most; all replicas' must fit the database's max_connections."""

    connect_timeout: PositiveDuration = 5
    """PostgreSQL: what a call waits for a connection, a new one or a free one."""

    statement_timeout: PositiveDuration = 10
    """What a statement may take, if the call has no earlier deadline."""

    @field_validator("url")
    @classmethod
    def _check(cls, url: str) -> str:
        if url.startswith(_POSTGRESQL):
            _check_postgresql(url)
        elif url and (not url.startswith(_SQLITE) or url == _SQLITE):
            raise ValueError(f"must be {_SQLITE}FILE or {_POSTGRESQL}USER:PASSWORD@HOST/NAME")
        return url

    @property
    def is_postgresql(self) -> bool:
        """Whether the users are in PostgreSQL, not in a SQLite file."""
        return self.url.startswith(_POSTGRESQL)

    @property
    def name(self) -> str:
        """What the database is called in logs and errors; no password is in it."""
        return hide_password(self.url) if self.is_postgresql else str(self.path)

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


class UserServiceConfig(ServerConfig):
    """Settings of the user service."""

    database: DatabaseConfig = DatabaseConfig()


def _check_postgresql(url: str) -> None:
    parts = urlsplit(url)
    for host in parts.netloc.rpartition("@")[2].split(","):
        _ = urlsplit(f"//{host}").port  # a ValueError if it is none
    if "password" in parse_qs(parts.query):
        raise ValueError("the password belongs before the host, USER:PASSWORD@HOST, or into PGPASSWORD")


def _data_directory() -> Path:
    try:
        return platformdirs.user_data_path("grpc-on-kubernetes", ensure_exists=True)
    except OSError as error:
        raise ConfigError(f"there is no place for the default database ({error}); set DATABASE_URL") from None
