"""The configuration of a server, which loading.py reads."""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr, field_validator, model_validator

from grpc_common.config.addresses import Host, ListenAddress, parse_address
from grpc_common.config.callers import parse_allowed_callers, parse_proxy
from grpc_common.config.channel_args import ServerArgs
from grpc_common.config.jwks import DEFAULT_ALGORITHMS, Algorithm, check_jwks
from grpc_common.config.section import Section
from grpc_common.config.units import (
    Count,
    Deadline,
    Duration,
    MetadataName,
    Port,
    PositiveDuration,
    Ratio,
    Seconds,
    Size,
)
from grpc_common.observe.metrics import BUCKETS


class KeepaliveConfig(Section):
    """How long connections live, and how a dead peer is found."""

    max_connection_idle: PositiveDuration = 300
    """A connection without calls is closed after it."""

    max_connection_age: PositiveDuration = 30
    """A client must connect anew after it, and so finds new replicas; gRPC varies it by 10 %."""

    max_connection_age_grace: PositiveDuration = 310
    """What calls get to finish when their connection is too old; more than the longest stream takes."""

    time: PositiveDuration = 10
    """A silent client is pinged after it."""

    timeout: PositiveDuration = 5
    """A client that does not answer the ping within it is gone."""

    min_time: PositiveDuration = 5
    """A client that pings more often is cut off; clients' keepalive time must not be below it."""


class DrainConfig(Section):
    """How a server ends."""

    delay: Duration = 5
    """After SIGTERM, from NOT_SERVING to the end of new connections, for kube-proxy and proxies to notice."""

    grace: Duration = 40
    """What calls get to end after it; 1.1 x max_connection_age plus the longest call fail no client."""


class TlsConfig(Section):
    """Encryption of the service's port."""

    directory: Path | None = None
    """The folder with tls.crt, tls.key and ca.crt, as cert-manager makes it; without it there is no TLS."""

    require_client_certificate: bool = False
    """Whether clients must have a certificate of the authority in ca.crt (mutual TLS)."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.directory is None and self.require_client_certificate:
            raise ValueError("require_client_certificate needs directory, where the certificates are")
        return self


class JwtConfig(Section):
    """Bearer tokens (JWT) of callers; needs PyJWT."""

    jwks: Annotated[str, AfterValidator(check_jwks)]
    """The issuer's public keys: a file with a JWKS, or its https:// URL (http:// on this machine)."""

    issuer: Annotated[str, Field(min_length=1)]
    """What a token's `iss` must be."""

    audience: Annotated[str, Field(min_length=1)]
    """What a token's `aud` must be or hold: the name of this service, as tokens for others are none."""

    leeway: Duration = 30
    """How far the issuer's clock may differ from this one."""

    algorithms: Annotated[list[Algorithm], Field(min_length=1)] = Field(
        default_factory=lambda: list(DEFAULT_ALGORITHMS)
    )
    """With which a token may be signed; never with a shared secret."""


class ListenConfig(Section):
    """A further address that a server listens on."""

    address: ListenAddress
    """HOST:PORT, :PORT for all interfaces, [v6]:PORT, or unix:/path; the port 0 takes a free one."""

    tls: bool | None = None
    """Whether it is encrypted; if not given, whether server.tls.directory is."""


class ServerSection(Section):
    """What the gRPC server itself is told."""

    port: Port = 50051
    """Where gRPC is served; 0 takes a free port."""

    host: Host = ""
    """The IP address that port and health_port are served on, or `localhost`; all interfaces when empty."""

    listen: list[ListenConfig] = Field(default_factory=list)
    """Where else the same is served: `{address, tls}` each. The address is HOST:PORT, :PORT, [v6]:PORT or
    unix:/path. tls is true or false; if not given, whether tls.directory is."""

    health_port: Port | None = None
    """Where health alone is served in plaintext, for probes of a server with TLS; off when empty."""

    max_recv_msg_size: Size = Size(10 * 2**20)
    """The largest message that a client may send."""

    max_send_msg_size: Size = Size(10 * 2**20)
    """The largest message that a client can get."""

    max_concurrent_calls: Count = 1000
    """More calls than these at a time are refused with RESOURCE_EXHAUSTED."""

    max_message_memory: Size = Size(64 * 2**20)
    """What messages above 64KiB may take together; those that find no room are RESOURCE_EXHAUSTED."""

    max_concurrent_streams: Count = 100
    """How many calls a connection may have at a time; HTTP/2 tells the client, which lets more calls wait."""

    max_connections: Count = 2000
    """More connections than these are closed at once; the health port has as many of its own."""

    max_metadata_size: Size = Size(16 * 2**10)
    """The largest metadata of a request, counted as HTTP/2 does: each name and value and 32 bytes."""

    handshake_timeout: PositiveDuration = 10
    """A connection that has not finished TLS, and HTTP/2's own greeting, within it is closed."""

    default_deadline: Deadline = 30
    """For calls whose client sends no deadline; `none` for no limit."""

    default_stream_deadline: Deadline = 300
    """The same for calls that stream."""

    reflection: bool = True
    """Whether clients may ask which services and messages there are."""

    propagated_metadata: list[MetadataName] = Field(default_factory=list)
    """What the calls of a handler carry on of its own call's metadata, as `x-request-id`; without TLS too."""

    allowed_callers: dict[str, list[str]] = Field(default_factory=dict)
    """{pattern: callers}: for `/package.Service/Method`, `/package.Service/*` or `*` (not health) the SANs,
    `subject:NAME` or `scope:NAME` of tokens that may call. The most specific decides; `[]` is nobody.
    A method without any is open; `"*": []` closes those."""

    proxies: list[Annotated[str, AfterValidator(parse_proxy)]] = Field(default_factory=list)
    """SANs of proxies, through which others call: with such a certificate only a token says who calls."""

    compression: Literal["none", "gzip", "deflate"] = "none"
    """How responses are compressed for clients that take it; the other one for those that take only that."""

    engine: Literal["auto", "grpc-aio", "completion-queue"] = "auto"
    """What drives calls: C-core's completion queue in one thread, or grpc.aio. `auto` is the first one where
    grpcio's version is tested with it."""

    channel_args: ServerArgs = Field(default_factory=dict)
    """{option of C-core: number or text} for what no setting has, such as `grpc.http2.max_frame_size`."""

    keepalive: KeepaliveConfig = KeepaliveConfig()
    drain: DrainConfig = DrainConfig()
    tls: TlsConfig = TlsConfig()
    jwt: JwtConfig | None = None

    @field_validator("allowed_callers")
    @classmethod
    def _methods_and_callers(cls, allowed_callers: dict[str, list[str]]) -> dict[str, list[str]]:
        parse_allowed_callers(allowed_callers)
        return allowed_callers

    @model_validator(mode="after")
    def _own_health_port(self) -> Self:
        if self.health_port and self.health_port == self.port:
            raise ValueError(f"health_port and port are both {self.port}; give health a port of its own")
        return self

    @model_validator(mode="after")
    def _certificates_for_listeners(self) -> Self:
        for index, listener in enumerate(self.listen):
            if listener.tls and self.tls.directory is None:
                raise ValueError(f"listen.{index}.tls needs tls.directory, where the certificates are")
        return self

    @model_validator(mode="after")
    def _own_addresses(self) -> Self:
        names: dict[int | Path | None, str] = {self.port: "port", self.health_port: "health_port"}
        for index, listener in enumerate(self.listen):
            address = parse_address(listener.address)
            taken = address.path or address.port
            if taken and taken in names:
                raise ValueError(
                    f"listen.{index}.address and {names[taken]} are both {taken}; "
                    "give each a port or path of its own, whatever the host"
                )
            names[taken] = f"listen.{index}.address"
        return self


class LoggingConfig(Section):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Events below it are not logged; a changed file takes effect at once."""

    format: Literal["json", "console"] = "console"
    """One JSON object a line, or lines for people."""


class TracingConfig(Section):
    """Traces over OTLP; where to is in OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT."""

    enabled: bool = False
    """Whether calls are traced."""

    service_name: str = ""
    """What traces call this service; OTEL_SERVICE_NAME overrules it."""

    sampling_rate: Ratio = 0.1
    """The share of calls traced if the caller has not decided; a changed file takes effect at once."""


class MetricsConfig(Section):
    """Metrics for Prometheus."""

    enabled: bool = True
    """Whether /metrics is served."""

    port: Port = 9090
    """Where /metrics is served over HTTP; 0 takes a free port."""

    buckets: tuple[Seconds, ...] = BUCKETS
    """The bounds of the histogram of calls, in seconds or as durations."""

    @field_validator("buckets")
    @classmethod
    def _increasing(cls, buckets: tuple[float, ...]) -> tuple[float, ...]:
        if not buckets:
            raise ValueError('name at least one bound, such as "100ms"')
        for lower, upper in pairwise(buckets):
            if upper <= lower:
                raise ValueError(
                    f"{upper:g} comes after {lower:g}; write each bound once, the smallest first"
                )
        return buckets


class ServerConfig(Section):
    """The settings of every server; a service adds its own sections in a subclass."""

    env_prefix: ClassVar[str] = ""
    """What each variable begins with, such as "USER_", where variables of other programs could be meant."""

    server: ServerSection = ServerSection()
    logging: LoggingConfig = LoggingConfig()
    tracing: TracingConfig = TracingConfig()
    metrics: MetricsConfig = MetricsConfig()

    @model_validator(mode="after")
    def _own_metrics_port(self) -> Self:
        if not (self.metrics.enabled and self.metrics.port):
            return self
        names = {"server.port": self.server.port, "server.health_port": self.server.health_port}
        for index, listener in enumerate(self.server.listen):
            names[f"server.listen.{index}.address"] = parse_address(listener.address).port
        for name, port in names.items():
            if port == self.metrics.port:
                raise ValueError(f"metrics.port and {name} are both {port}; give each a port of its own")
        return self

    _file: Path | None = PrivateAttr(default=None)

    @property
    def file(self) -> Path | None:
        """The file that this was read from, if it was."""
        return self._file
