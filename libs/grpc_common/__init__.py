"""What every gRPC service of this repository shares: configuration, server, errors, logs.

A service is a servicer and a few lines around it; see services/user/server.py.
"""

from grpc_common.config import ConfigError, ServerConfig, load
from grpc_common.errors import StatusError, error_details, invalid_argument
from grpc_common.logs import configure_logging
from grpc_common.server import BindError, Server

__all__ = [
    "BindError",
    "ConfigError",
    "Server",
    "ServerConfig",
    "StatusError",
    "configure_logging",
    "error_details",
    "invalid_argument",
    "load",
]
