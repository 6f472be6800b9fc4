"""The settings of a channel, from Python or from a service's YAML file."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from pydantic import AfterValidator, Field, model_validator

from grpc_common.client.bearer import BearerToken, is_local
from grpc_common.client.resolver.target import parse_target
from grpc_common.client.service_config import MethodPath, ServiceConfig
from grpc_common.config.channel_args import ArgValue, without
from grpc_common.config.section import Section
from grpc_common.config.units import PositiveDuration, Size
from grpc_common.core.calls import CallType
from grpc_common.tls.credentials import ClientTLS

# Seconds; the default of the server's keepalive.min_time.
_LEAST_KEEPALIVE_TIME = 5

_COMPRESSIONS = {
    "none": grpc.Compression.NoCompression,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}

_LARGEST_INT = 2**31 - 1
"""Of C-core's arguments."""

_FIELDS = {
    "grpc.service_config": "service",
    "grpc.max_receive_message_length": "max_recv_msg_size",
    "grpc.max_send_message_length": "max_send_msg_size",
    "grpc.max_metadata_size": "max_metadata_size",
    "grpc.absolute_max_metadata_size": "max_metadata_size",
    "grpc.default_compression_algorithm": "compression",
    "grpc.keepalive_time_ms": "keepalive.time",
    "grpc.keepalive_timeout_ms": "keepalive.timeout",
    "grpc.http2.ping_timeout_ms": "keepalive.timeout",
    "grpc.default_authority": "tls.server_name",
    "grpc.ssl_target_name_override": "tls.server_name",
}
"""What sets the arguments of a channel that `channel_args` must not set again."""


def _not_too_often(time: float) -> float:
    if time < _LEAST_KEEPALIVE_TIME:
        raise ValueError(
            f"is less than {_LEAST_KEEPALIVE_TIME} s, the servers' keepalive.min_time; "
            "they cut off whoever pings more often"
        )
    return time


class Keepalive(Section):
    """How a client finds out that a server is gone without a word, with or without calls on the way."""

    time: Annotated[PositiveDuration, AfterValidator(_not_too_often)] = 10
    """The silence until the server is pinged: 5 s at least, since a server cuts off (`too_many_pings`)
    whoever pings more often than its keepalive.min_time, which is 5 s by default."""

    timeout: PositiveDuration = 3
    """How long the answer may take."""

    def options(self) -> list[tuple[str, int]]:
        """Return the options of a channel."""
        timeout = round(self.timeout * 1000)
        return [
            ("grpc.keepalive_time_ms", round(self.time * 1000)),
            ("grpc.keepalive_timeout_ms", timeout),
            # Without it C-core waits a minute for the answer, whatever keepalive_timeout_ms says.
            ("grpc.http2.ping_timeout_ms", timeout),
            ("grpc.keepalive_permit_without_calls", 1),
            # Without it pings stop after two, as long as no data is sent.
            ("grpc.http2.max_pings_without_data", 0),
        ]


class ChannelConfig(Section):
    """The settings of a channel; its defaults go with those of `grpc_common.Server`.

    In Python a number is seconds or bytes; texts with a unit, as the YAML file has them, work too.
    """

    service: ServiceConfig = ServiceConfig()
    """Balancing, health checks, retries."""

    keepalive: Keepalive = Keepalive()
    """How a dead server is found."""

    max_recv_msg_size: Size = 10 * 2**20
    """The largest message that the client takes."""

    max_send_msg_size: Size = 10 * 2**20
    """The largest message that the client sends."""

    max_metadata_size: Size = 16 * 2**10
    """The largest metadata that the client takes, a status with its text and details included;
    HTTP/2 counts each name and value and 32 bytes."""

    default_deadline: PositiveDuration = 30
    """For unary calls that are made without a timeout."""

    default_stream_deadline: PositiveDuration = 300
    """For streaming calls that are made without a timeout."""

    method_deadlines: dict[MethodPath, PositiveDuration] = Field(default_factory=dict)
    """The same for single methods: `{user.UserService/GetUser: 2s}`. A call's own timeout always wins, be it
    longer or shorter: that is why this is not the `timeout` of gRPC's service config, which is a maximum."""

    compression: Literal["none", "gzip", "deflate"] = "none"
    """How the client's messages are compressed; a call can choose another one, but not none (grpcio)."""

    channel_args: dict[Annotated[str, without(_FIELDS)], ArgValue] = Field(default_factory=dict)
    """Arguments of gRPC that have no field here: `{grpc.enable_http_proxy: 0}`. gRPC ignores unknown ones."""

    def for_services(self, *services: ServiceDescriptor) -> Self:
        """Return these settings with more `service.retryable_methods`: those that `services` call idempotent.

        It is ServiceConfig.for_services for settings that were read from a file, which need not list methods.
        """
        read = ServiceConfig.for_services(*services).retryable_methods
        methods = tuple(dict.fromkeys((*self.service.retryable_methods, *read)))
        service = self.service.model_copy(update={"retryable_methods": methods})
        return self.model_copy(update={"service": service})

    def options(self) -> list[tuple[str, Any]]:
        """Return the options of a channel."""
        options = {
            "grpc.service_config": self.service.to_json(),
            # Without it a changed record is seen half a minute late; the server's max age asks for a look.
            "grpc.dns_min_time_between_resolutions_ms": 1000,
            # By default a server that was away for a minute is tried again only after up to two more.
            "grpc.max_reconnect_backoff_ms": 5000,
            "grpc.max_receive_message_length": self.max_recv_msg_size,
            "grpc.max_send_message_length": self.max_send_msg_size,
            # By default a call of more than 256 KiB is never sent again, whatever its policy, not even if no
            # server has seen it, as when its connection was too old. What is kept for it is no copy.
            "grpc.per_rpc_retry_buffer_size": min(
                self.max_send_msg_size + self.max_metadata_size, _LARGEST_INT
            ),
            # Where the two differ, C-core refuses at random what lies between them.
            "grpc.max_metadata_size": self.max_metadata_size,
            "grpc.absolute_max_metadata_size": self.max_metadata_size,
            "grpc.default_compression_algorithm": int(_COMPRESSIONS[self.compression]),
            **dict(self.keepalive.options()),
            **self.channel_args,
        }
        return list(options.items())

    def deadlines(self) -> dict[CallType, float]:
        """Return the seconds for calls without a timeout."""
        return dict.fromkeys(CallType, self.default_stream_deadline) | {CallType.UNARY: self.default_deadline}


class ChannelTls(Section):
    """How the client checks the server, and shows who it is; `{}` is TLS with the public roots."""

    directory: Path | None = None
    """Where ca.crt is, and the client's tls.crt and tls.key if it has any; the public roots without."""

    server_name: str | None = None
    """What the server's certificate must be for, if that is not the target's name."""


def _dialable(target: str) -> str:
    parse_target(target)
    return target


class ChannelSection(ChannelConfig):
    """A channel in the YAML file of a service, which `channel()` takes in the place of a target.

    class Config(grpc_common.ServerConfig):
        payments: grpc_common.ChannelSection

    async with grpc_common.channel(config.payments) as payments: ...
    """

    target: Annotated[str, AfterValidator(_dialable)]
    """What to dial: `kubernetes:///SERVICE.NAMESPACE:PORT`, `dns:///NAME:PORT`, `NAME:PORT`, ..."""

    tls: ChannelTls | None = None
    """Certificates; plaintext without."""

    token_file: Path | None = None
    """The file with a bearer token for all calls, as Kubernetes mounts and rotates one; needs `tls`."""

    @model_validator(mode="after")
    def _no_token_in_plaintext(self) -> Self:
        if self.token_file is not None and self.tls is None and not is_local(self.target):
            raise ValueError("token_file needs tls, or the network would see the token; `{}` is enough")
        return self

    def bearer_tokens(self) -> list[BearerToken]:
        """Return what attaches the token of `token_file`, if there is one."""
        return [] if self.token_file is None else [BearerToken.from_file(self.token_file)]

    def client_tls(self) -> ClientTLS | None:
        """Return how to make the credentials; None for plaintext."""
        return None if self.tls is None else ClientTLS(self.tls.directory, self.tls.server_name)
