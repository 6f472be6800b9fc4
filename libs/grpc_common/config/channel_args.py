"""Options of gRPC's C-core that no setting has: a named escape hatch."""

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
"""The options that a setting has, by their names in grpc/impl/channel_arg_names.h."""

_INT32 = 2**31


def _one_value(value: Any) -> int | str:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if is_number and not -_INT32 <= value < _INT32:
        raise ValueError("write a number of 32 bits")
    if is_number or (isinstance(value, str) and "\0" not in value):
        return value  # type: ignore[no-any-return]  # one of the two
    raise ValueError("write a whole number, or a text; 1 and 0 for yes and no")


def _without_settings(arguments: dict[str, int | str]) -> dict[str, int | str]:
    taken = {name: _SETTINGS[name] for name in arguments if name in _SETTINGS}
    if taken:
        raise ValueError("; ".join(f"{name} is set by {setting}" for name, setting in taken.items()))
    if any(not name.isprintable() or not name for name in arguments):
        raise ValueError("write the names of options, such as grpc.http2.max_frame_size")
    return arguments


ChannelArgs = Annotated[
    dict[str, Annotated[int | str, BeforeValidator(_one_value)]], AfterValidator(_without_settings)
]
"""{name of an option of C-core: number or text}."""
