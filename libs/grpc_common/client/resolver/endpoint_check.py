"""What a source of one's own may say about endpoints, and what makes no sense."""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

from grpc_common.client.resolver.endpoint import Endpoint

_FORMS = "IP:PORT, [IPv6]:PORT or unix:PATH"
_MAX_PORT = 65535
_SOCKETS = ("unix:", "unix-abstract:")


def checked(found: Sequence[Endpoint | str]) -> tuple[list[Endpoint], list[str]]:
    """Return the endpoints that make sense, and for each other one why it doesn't.

    Raises:
        TypeError: it is no sequence of endpoints at all.

    """
    if isinstance(found, str | bytes):
        raise TypeError(f"{found!r} is one text and not a sequence of endpoints")
    endpoints: list[Endpoint] = []
    refused: list[str] = []
    for each in found:
        endpoint = Endpoint(each) if isinstance(each, str) else each
        if reason := _fault(endpoint):
            refused.append(reason)
        else:
            endpoints.append(endpoint)
    return endpoints, refused


def _fault(endpoint: Any) -> str:
    """Return what is wrong with an endpoint; empty if nothing is."""
    if not isinstance(endpoint, Endpoint):
        return f"{endpoint!r} is neither an Endpoint nor a text"
    address: Any = endpoint.address
    if not isinstance(address, str) or not _is_address(address):
        return f"address {address!r} is not of the form {_FORMS}"
    for name, (is_right, right) in _ATTRIBUTES.items():
        if not is_right(value := getattr(endpoint, name)):
            return f"{address}: {name} {value!r} is not {right}"
    return ""


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_tuple_of_texts(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(each, str) for each in value)


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_weight(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and value > 0


_ATTRIBUTES: dict[str, tuple[Callable[[object], bool], str]] = {
    "zone": (_is_text, "a text"),
    "node": (_is_text, "a text"),
    "for_zones": (_is_tuple_of_texts, "a tuple of texts"),
    "terminating": (_is_bool, "True or False"),
    "weight": (_is_weight, "a number above 0"),
}


@lru_cache(1 << 14)
def _is_address(address: str) -> bool:
    if address.startswith(_SOCKETS):
        return address.isprintable() and address not in _SOCKETS
    if address.startswith("dns:"):
        return address.isprintable() and not address.endswith(":")
    host, _, port = address.rpartition(":")
    is_port = port.isascii() and port.isdecimal() and 0 < int(port) <= _MAX_PORT
    return is_port and _is_host(host)


def _is_host(host: str) -> bool:
    is_ipv6 = host.startswith("[") and host.endswith("]")
    try:
        ip = ip_address(host[1:-1] if is_ipv6 else host)
    except ValueError:
        return False
    return (ip.version == 6) == is_ipv6  # noqa: PLR2004
