"""Whether gRPC reaches a target through an HTTP proxy, which then resolves its name."""

import ipaddress
import os
import re
from collections.abc import Mapping
from types import MappingProxyType

_NONE: Mapping[str, object] = MappingProxyType({})

# gRPC knows proxies of this scheme alone.
_PROXY = re.compile(r"http://(?:[^/?#]*@)?[^/?#@]+(?:[/?#].*)?", re.IGNORECASE | re.DOTALL)


def proxied(name: str, port: str | int, args: Mapping[str, object] = _NONE) -> bool:
    """Return whether gRPC sends the target `name:port` through an HTTP proxy.

    It follows the rules of grpcio 1.85's HTTP proxy mapper: the first of grpc_proxy, https_proxy and
    http_proxy that is set counts, even if it is empty; an entry of no_grpc_proxy, or of no_proxy if that
    is not set, is a name with all names below it, with or without a dot in front, or a range of addresses
    such as 10.0.0.0/8. Variables in upper case don't count; an entry with `*` or a port matches nothing.

    Args:
        name: DNS name or IP address (IPv6 with or without brackets).
        port: number of the port. It makes no difference to gRPC so far.
        args: the channel's arguments; grpc.enable_http_proxy and grpc.http_proxy count.

    """
    del port
    enabled = args.get("grpc.enable_http_proxy")
    if isinstance(enabled, int) and not enabled:
        return False
    proxy = args.get("grpc.http_proxy")
    if not isinstance(proxy, str):
        proxy = _first("grpc_proxy", "https_proxy", "http_proxy")
    if not proxy or not _PROXY.fullmatch(proxy):
        return False
    exceptions = _first("no_grpc_proxy", "no_proxy")
    host = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    return not any(_is_exception(host, entry.strip()) for entry in (exceptions or "").split(",") if entry)


def _first(*variables: str) -> str | None:
    """Return the value of the first environment variable that is set."""
    return next((os.environ[variable] for variable in variables if variable in os.environ), None)


def _is_exception(host: str, entry: str) -> bool:
    domain = entry.lower().removeprefix(".")
    if domain and f".{host.lower()}".endswith(f".{domain}"):
        return True
    return _in_range(host, entry)


def _in_range(host: str, entry: str) -> bool:
    first, slash, bits = entry.partition("/")
    try:
        address, network = ipaddress.ip_address(host), ipaddress.ip_address(first.strip("[]"))
        length = min(int(bits), network.max_prefixlen)
        return bool(slash) and address in ipaddress.ip_network((network, length), strict=False)
    except ValueError:
        return False
