"""The user service's configuration: that of every server, and the database."""

import os
from pathlib import Path

import platformdirs
from pydantic import field_validator

from grpc_common import ConfigError, Section, ServerConfig

_SCHEME = "sqlite:///"


class DatabaseConfig(Section):
    """Where the users are kept."""

    url: str = ""
    """`sqlite:///relative.db` or `sqlite:////absolute.db`; users.db in the user's data directory if empty."""

    @field_validator("url")
    @classmethod
    def _check(cls, url: str) -> str:
        if url and (not url.startswith(_SCHEME) or url == _SCHEME):
            raise ValueError(f"must be {_SCHEME}PATH")
        return url

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
        return (start / self.url.removeprefix(_SCHEME)).absolute()


class UserServiceConfig(ServerConfig):
    """Settings of the user service."""

    database: DatabaseConfig = DatabaseConfig()


def _data_directory() -> Path:
    try:
        return platformdirs.user_data_path("grpc-on-kubernetes", ensure_exists=True)
    except OSError as error:
        raise ConfigError(f"there is no place for the default database ({error}); set DATABASE_URL") from None
