"""Options of gRPC's C-core that no setting has: a named escape hatch of servers and channels."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

_SETTINGS = {
    "grpc.max_connection_idle_ms": "server.keepalive.max_connection_idle",
    "grpc.max_connection_age_ms": "server.keepalive.max_connection_age",
    "grpc.max_connection_age_grace_ms": "server.keepalive.max_connection_age_grace",
    "grpc.keepalive_time_ms": "server.keepalive.time",
    "grpc.keepalive_timeout_ms": "server.keepalive.timeout",
    "grpc.http2.ping_timeout_ms": "server.keepalive.timeout",
    "grpc.http2.min_ping_interval_without_data_ms": "server.keepalive.min_time",
    "grpc.max_allowed_incoming_connections": "server.max_connections",
    "grpc.server_handshake_timeout_ms": "server.handshake_timeout",
    "grpc.http2.settings_timeout": "server.handshake_timeout",
    "grpc.max_concurrent_streams": "server.max_concurrent_streams",
    "grpc.max_receive_message_length": "server.max_recv_msg_size",
    "grpc.max_message_length": "server.max_recv_msg_size",
    "grpc.max_send_message_length": "server.max_send_msg_size",
    "grpc.max_metadata_size": "server.max_metadata_size",
    "grpc.absolute_max_metadata_size": "server.max_metadata_size",
    "grpc.default_compression_algorithm": "server.compression",
    "grpc.default_compression_level": "server.compression",
}
"""The options that a setting of a server has, by their names in grpc/impl/channel_arg_names.h."""

_INT32 = range(-(2**31), 2**31)


def without(settings: Mapping[str, str]) -> AfterValidator:
    """Return the check of an option's name: none that has a setting in {option: setting}."""

    def check(name: str) -> str:
        if name in settings:
            raise ValueError(f"{name} is set by {settings[name]}")
        if not name or not name.isprintable():
            raise ValueError("write the name of an option, such as grpc.http2.max_frame_size")
        return name

    return AfterValidator(check)


def _fits_in_c(text: str) -> bool:
    """Return whether C sees all of `text`: it ends at a NUL, and half a surrogate pair is no UTF-8."""
    return not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text)


def _number_or_text(value: Any) -> Any:
    is_number = isinstance(value, int) and not isinstance(value, bool) and value in _INT32
    if is_number or (isinstance(value, str) and _fits_in_c(value)):
        return value
    raise ValueError("write a text, or a whole number of at most 32 bits; 1 and 0 for on and off")


type ArgValue = Annotated[int | str, BeforeValidator(_number_or_text)]
"""What C-core takes."""

ServerArgs = dict[Annotated[str, without(_SETTINGS)], ArgValue]
"""{name of an option of C-core: number or text}, for a server."""
