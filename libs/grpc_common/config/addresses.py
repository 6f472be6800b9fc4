"""The addresses in a configuration, as gRPC's targets write them."""

import ipaddress
import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from grpc_common.core.ports import Address
from grpc_common.core.unix_sockets import MAX_PATH

_MAX_PORT = 65535


def parse_host(text: str) -> str:
    """Return the host that a server binds to; empty for all interfaces.

    Raises:
        ValueError: it is neither an IP address nor `localhost`; no name is looked up.

    """
    if text in ("", "localhost"):
        return text
    if not _is_ip_address(text):
        raise ValueError("write an IP address of this machine, localhost, or nothing for all interfaces")
    return text


def _is_ip_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return text.isprintable()  # the zone in fe80::1%eth0 may have any character, says ipaddress


def parse_address(text: str) -> Address:
    """Return what `HOST:PORT`, `:PORT`, `[v6]:PORT` or `unix:/path` names.

    Raises:
        ValueError: it is none of these.

    """
    if text.startswith("unix:"):
        return Address(path=_socket_path(text.removeprefix("unix:")))
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]") and ":" in host:
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("write an IPv6 address in brackets: [::1]:50051")
    if not (separator and port.isascii() and port.isdecimal() and int(port) <= _MAX_PORT):
        raise ValueError(
            "write HOST:PORT, :PORT for all interfaces, [v6]:PORT or unix:/path; a port is 0 to 65535"
        )
    return Address(parse_host(host), int(port))


def _socket_path(text: str) -> Path:
    if not text.startswith("/"):
        raise ValueError("write an absolute path: unix:/run/service.sock")
    path = Path("/" + text.lstrip("/"))
    if not (path.name and text.isprintable()) or text.endswith("/"):
        raise ValueError("write the path of a file: unix:/run/service.sock")
    if any(character in text for character in "%#?"):
        raise ValueError("write a path without %, # and ?: in a client's target they are no part of a path")
    if (size := len(os.fsencode(path))) > MAX_PATH:
        raise ValueError(f"the path has {size} bytes; a Unix socket's has at most {MAX_PATH}")
    return path


Host = Annotated[str, AfterValidator(parse_host)]
"""An IP address, `localhost`, or empty for all interfaces."""


def _checked(text: str) -> str:
    parse_address(text)
    return text


ListenAddress = Annotated[str, AfterValidator(_checked)]
"""What parse_address takes, as it is written."""
