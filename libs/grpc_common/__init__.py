"""What every gRPC service of this repository shares: configuration, server, client, errors, logs.

A service is its servicer and a few lines around it, a client the lines with its channel; see README.md.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpc_common.client.bearer import BearerToken
    from grpc_common.client.call.read_all import read_all
    from grpc_common.client.channel import ChannelConfig, ChannelSection, Keepalive, NotReadyError, channel
    from grpc_common.client.resolver.endpoint import Endpoint, EndpointSource
    from grpc_common.client.service_config import (
        OutlierDetection,
        RetryPolicy,
        RetryThrottling,
        ServiceConfig,
        Subset,
    )
    from grpc_common.commands.command import command
    from grpc_common.config.document import ConfigError
    from grpc_common.config.loading import load
    from grpc_common.config.section import Section
    from grpc_common.config.sections import ServerConfig
    from grpc_common.config.units import CredentialUrl
    from grpc_common.core.caller import Caller
    from grpc_common.core.calls import Call, CallObserver, Interceptor
    from grpc_common.core.error_map import Errors
    from grpc_common.core.errors import StartError, StatusError, error_details
    from grpc_common.core.ports import BindError
    from grpc_common.core.status_errors import (
        already_exists,
        failed_precondition,
        invalid_argument,
        not_found,
        permission_denied,
        unavailable,
    )
    from grpc_common.observe.logs import configure_logging
    from grpc_common.server.authentication import Authenticator
    from grpc_common.server.call import current_call
    from grpc_common.server.engine import loop_factory
    from grpc_common.server.server import Server
    from grpc_common.tls.credentials import ClientTLS
    from grpc_common.tls.files import TlsError

__all__ = [
    "Authenticator",
    "BearerToken",
    "BindError",
    "Call",
    "CallObserver",
    "Caller",
    "ChannelConfig",
    "ChannelSection",
    "ClientTLS",
    "ConfigError",
    "CredentialUrl",
    "Endpoint",
    "EndpointSource",
    "Errors",
    "Interceptor",
    "Keepalive",
    "NotReadyError",
    "OutlierDetection",
    "RetryPolicy",
    "RetryThrottling",
    "Section",
    "Server",
    "ServerConfig",
    "ServiceConfig",
    "StartError",
    "StatusError",
    "Subset",
    "TlsError",
    "already_exists",
    "channel",
    "command",
    "configure_logging",
    "current_call",
    "error_details",
    "failed_precondition",
    "invalid_argument",
    "load",
    "loop_factory",
    "not_found",
    "permission_denied",
    "read_all",
    "unavailable",
]

_MODULES = {
    "tls.files": ["TlsError"],
    "commands.command": ["command"],
    "client.bearer": ["BearerToken"],
    "client.channel": ["ChannelConfig", "ChannelSection", "Keepalive", "NotReadyError", "channel"],
    "client.call.read_all": ["read_all"],
    "client.resolver.endpoint": ["Endpoint", "EndpointSource"],
    "client.service_config": [
        "OutlierDetection",
        "RetryPolicy",
        "RetryThrottling",
        "ServiceConfig",
        "Subset",
    ],
    "config.section": ["Section"],
    "config.sections": ["ServerConfig"],
    "config.loading": ["load"],
    "config.document": ["ConfigError"],
    "core.calls": ["Call", "CallObserver", "Interceptor"],
    "core.error_map": ["Errors"],
    "core.errors": ["StartError", "StatusError", "error_details"],
    "observe.logs": ["configure_logging"],
    "core.ports": ["BindError"],
    "server.call": ["current_call"],
    "server.engine": ["loop_factory"],
    "core.status_errors": [
        "already_exists",
        "failed_precondition",
        "invalid_argument",
        "not_found",
        "permission_denied",
        "unavailable",
    ],
    "core.caller": ["Caller"],
    "server.authentication": ["Authenticator"],
    "server.server": ["Server"],
    "tls.credentials": ["ClientTLS"],
    "config.units": ["CredentialUrl"],
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: a probe that runs every few seconds needs none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    importlib.import_module(f"{__name__}.core.light_imports")  # before anything imports structlog
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
