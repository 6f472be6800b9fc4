"""What C-core is told about a server: how long connections live, and what one peer may take."""

from grpc_common.config.sections import KeepaliveConfig, ServerSection

_MAX_DEALLOCATING_STREAMS = 1000
"""Streams of one connection that have ended and are not freed yet, before C-core refuses new ones. Its own
bound is max_concurrent_streams for both kinds together, at which honest clients are refused from 80 of 100
calls in flight on; at 500 to 1000 a flood of resets stays below 200 MiB. In no documentation of gRPC."""


_LEVELS = {"gzip": 1, "deflate": 3}
"""GRPC_COMPRESS_LEVEL_LOW and _HIGH of grpc/impl/compression_types.h."""


def options(config: ServerSection) -> list[tuple[str, int | str]]:
    """Return the options of a grpc.aio server that say what `config` does."""
    ours = [
        *_life_of_connections(config.keepalive),
        *_bounds_of_a_peer(config),
        # Or a burst of more than 1000 calls is partly CANCELLED, unseen by Python; ten times the defaults.
        ("grpc.server.max_pending_requests", 10_000),
        ("grpc.server.max_pending_requests_hard_limit", 30_000),
        # Or two servers share a port in silence and each gets some of the connections.
        ("grpc.so_reuseport", 0),
        *_compression(config.compression),
    ]
    # Of two with one name C-core takes the first (seen in 1.85).
    return list({**dict(ours), **config.channel_args}.items())


def _compression(algorithm: str) -> list[tuple[str, int | str]]:
    # A level has C-core look at what the client takes; an algorithm goes to those who have not asked for it.
    # If the client takes both, gzip is the lowest level and deflate the highest.
    return [("grpc.default_compression_level", _LEVELS[algorithm])] if algorithm in _LEVELS else []


def _life_of_connections(keepalive: KeepaliveConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.max_connection_idle_ms", _milliseconds(keepalive.max_connection_idle)),
        ("grpc.max_connection_age_ms", _milliseconds(keepalive.max_connection_age)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(keepalive.max_connection_age_grace)),
        ("grpc.keepalive_time_ms", _milliseconds(keepalive.time)),
        ("grpc.keepalive_timeout_ms", _milliseconds(keepalive.timeout)),
        # Without it a timeout below a minute has no effect.
        ("grpc.http2.ping_timeout_ms", _milliseconds(keepalive.timeout)),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(keepalive.min_time)),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _bounds_of_a_peer(config: ServerSection) -> list[tuple[str, int]]:
    return [
        ("grpc.max_allowed_incoming_connections", config.max_connections),
        # From the TCP connection to the end of TLS, and from there to the peer's SETTINGS.
        ("grpc.server_handshake_timeout_ms", _milliseconds(config.handshake_timeout)),
        ("grpc.http2.settings_timeout", _milliseconds(config.handshake_timeout)),
        ("grpc.max_concurrent_streams", config.max_concurrent_streams),
        ("grpc.http2.max_deallocating_streams", _MAX_DEALLOCATING_STREAMS),
        ("grpc.max_receive_message_length", config.max_recv_msg_size),
        ("grpc.max_send_message_length", config.max_send_msg_size),
        # Where the two differ, C-core refuses at random what lies between them.
        ("grpc.max_metadata_size", config.max_metadata_size),
        ("grpc.absolute_max_metadata_size", config.max_metadata_size),
        # Or the window of a fast peer grows to megabytes a stream, of messages that nobody reads yet.
        # A message that is being read still gets a window of its size.
        ("grpc.http2.bdp_probe", 0),
    ]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
