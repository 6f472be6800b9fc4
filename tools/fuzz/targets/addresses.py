"""Addresses that a server listens on."""

from grpc_common.config.addresses import parse_address
from tools.fuzz.properties import check_shown


def fuzz(data: bytes) -> None:
    """An address that is taken is the same once it is written out, whatever it was written as."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        address = parse_address(text)
    except ValueError as error:
        check_shown(str(error))
        return
    check_shown(text)
    if address.path:
        assert parse_address(f"unix:{address.path}") == address
        assert address.path.is_absolute()
        return
    host = f"[{address.host}]" if ":" in address.host else address.host
    assert parse_address(f"{host}:{address.port}") == address
