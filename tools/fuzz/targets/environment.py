"""Environment variables of settings, those that Kubernetes sets for Services among them."""

from grpc_common.config.document import ConfigError
from grpc_common.config.loading import changed, load
from services.user.config import UserServiceConfig
from tools.fuzz.properties import check_shown

_LONGEST = 500
"""Characters of a line, in which a value has 100 at most."""


def fuzz(data: bytes) -> None:
    """Variables, one a line, are a configuration, or an error of short lines."""
    lines = data.replace(b"\0", b"").decode("utf-8", "surrogateescape").split("\n")
    environ = {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}
    try:
        config = load(UserServiceConfig, None, environ)
    except ConfigError as error:
        check_shown(str(error))
        assert all(len(line) < _LONGEST for line in str(error).split("\n"))
    else:
        assert not changed(config, load(UserServiceConfig, None, environ))
