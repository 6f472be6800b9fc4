"""How a client's calls are spread, repeated and kept from bad servers: gRPC's service config, typed."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

_IDEMPOTENT = {MethodOptions.NO_SIDE_EFFECTS, MethodOptions.IDEMPOTENT}

# C-core lowers a greater number to this one in silence.
_MOST_ATTEMPTS = 5

_PERCENT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and when a call that ended UNAVAILABLE is made again.

    Only UNAVAILABLE: it is the one code that says that another server, or the same one later, may
    well do it. Every other code is an answer, or (DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED) a
    repetition makes it worse. A server's trailer `grpc-retry-pushback-ms` overrules the waiting
    time, or forbids the repetition with a negative number.
    """

    max_attempts: int = 4
    """Attempts in all, the first one included: 2 to 5, gRPC's own bound."""

    initial_backoff: float = 0.1
    """Seconds to wait before the second attempt; gRPC adds 20 % of jitter."""

    max_backoff: float = 1
    """Seconds that no wait exceeds."""

    backoff_multiplier: float = 2
    """How much longer each wait is than the one before it."""

    def __post_init__(self) -> None:
        """Refuse what gRPC would ignore or lower in silence.

        Raises:
            ValueError: a number can't be used.

        """
        if not 2 <= self.max_attempts <= _MOST_ATTEMPTS:  # noqa: PLR2004 (one attempt is no retry)
            raise ValueError(f"max_attempts={self.max_attempts} is not from 2 to {_MOST_ATTEMPTS}")
        _require_positive(self, "initial_backoff", "max_backoff", "backoff_multiplier")

    def to_json(self) -> dict[str, Any]:
        """Return the value of `retryPolicy`."""
        return {
            "maxAttempts": self.max_attempts,
            "initialBackoff": _duration(self.initial_backoff),
            "maxBackoff": _duration(self.max_backoff),
            "backoffMultiplier": self.backoff_multiplier,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryThrottling:
    """Stops all retries while too many calls fail, so that they don't bury a struggling service.

    A failure takes one token, a success gives `token_ratio`; below half of `max_tokens` nothing is
    repeated. The default lets 50 calls fail at once, as they do when a busy server dies.
    """

    max_tokens: int = 100
    """The most tokens: 1 to 1000."""

    token_ratio: float = 0.1
    """Tokens for a success."""

    def __post_init__(self) -> None:
        """Refuse what gRPC refuses.

        Raises:
            ValueError: a number can't be used.

        """
        if not 1 <= self.max_tokens <= 1000:  # noqa: PLR2004 (bound of gRFC A6)
            raise ValueError(f"max_tokens={self.max_tokens} is not from 1 to 1000")
        _require_positive(self, "token_ratio")

    def to_json(self) -> dict[str, Any]:
        """Return the value of `retryThrottling`."""
        return {"maxTokens": self.max_tokens, "tokenRatio": self.token_ratio}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDetection:
    """Leaves a server out for a while when too many of its calls fail.

    What health checks can't see: a server that says it is SERVING and fails. A failure is any code
    but OK, so a service whose callers often get NOT_FOUND wants a high threshold. The memory of
    failures begins anew when the set of endpoints changes.
    """

    interval: float = 10
    """Seconds between two looks at the counts."""

    base_ejection_time: float = 30
    """Seconds that a server is left out at first; each further time as much longer again."""

    max_ejection_percent: int = 50
    """The greatest part of the servers that is left out at the same time; at least one always may be."""

    failure_percentage: int = 85
    """Percent of failed calls in an interval above which a server is left out."""

    minimum_hosts: int = 3
    """With fewer servers none is left out."""

    request_volume: int = 50
    """With fewer calls in an interval a server is not judged."""

    def __post_init__(self) -> None:
        """Refuse what gRPC refuses.

        Raises:
            ValueError: a number can't be used.

        """
        _require_positive(self, "interval", "base_ejection_time", "minimum_hosts", "request_volume")
        for name in ("max_ejection_percent", "failure_percentage"):
            if not 0 <= getattr(self, name) <= _PERCENT:
                raise ValueError(f"{name}={getattr(self, name)} is not from 0 to {_PERCENT}")

    def to_json(self, child: str) -> dict[str, Any]:
        """Return the load balancing policy around the policy `child`."""
        ejection = {
            "threshold": self.failure_percentage,
            "enforcementPercentage": _PERCENT,
            "minimumHosts": self.minimum_hosts,
            "requestVolume": self.request_volume,
        }
        policy = {
            "interval": _duration(self.interval),
            "baseEjectionTime": _duration(self.base_ejection_time),
            "maxEjectionPercent": self.max_ejection_percent,
            "failurePercentageEjection": ejection,
            "childPolicy": [{child: {}}],
        }
        return {"outlier_detection_experimental": policy}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """What a client does with a service; `for_services` reads in the proto which methods may be repeated."""

    load_balancing: Literal["round_robin", "pick_first"] = "round_robin"
    """`round_robin` takes all servers in turn, `pick_first` stays with one."""

    health_check_service: str | None = ""
    """Whose health a server must report: "" for the server as a whole, a name like `user.UserService`, or
    None for no check. A server without a health service counts as healthy. Only round_robin checks."""

    retryable_methods: tuple[str, ...] = ()
    """The methods, as `user.UserService/GetUser`, that `retry` is for."""

    retry: RetryPolicy | None = field(default_factory=RetryPolicy)
    """How retryable methods are repeated; None never repeats."""

    retry_throttling: RetryThrottling | None = field(default_factory=RetryThrottling)
    """What stops retries when they would do harm."""

    outlier_detection: OutlierDetection | None = None
    """What leaves failing servers out; None doesn't."""

    @classmethod
    def for_services(cls, *services: ServiceDescriptor, **settings: Any) -> Self:
        """Return the configuration for a client of `services`, with `settings` for the other fields.

        The methods that may be repeated are those whose `idempotency_level` in the proto is
        NO_SIDE_EFFECTS or IDEMPOTENT:

            ServiceConfig.for_services(user_service_pb2.DESCRIPTOR.services_by_name["UserService"])
        """
        retryable = (
            f"{service.full_name}/{method.name}"
            for service in services
            for method in service.methods
            if _is_idempotent(method)
        )
        return cls(retryable_methods=tuple(retryable), **settings)

    def __post_init__(self) -> None:
        """Refuse a name that would match no method.

        Raises:
            ValueError: a retryable method is not of the form `package.Service/Method`.

        """
        for path in self.retryable_methods:
            split_path(path)

    def to_json(self) -> str:
        """Return the value of the channel option `grpc.service_config`."""
        config: dict[str, Any] = {"loadBalancingConfig": [self._balancing()]}
        if self.health_check_service is not None:
            config["healthCheckConfig"] = {"serviceName": self.health_check_service}
        if self.retry is not None and self.retryable_methods:
            names = [
                dict(zip(("service", "method"), split_path(path), strict=True))
                for path in self.retryable_methods
            ]
            config["methodConfig"] = [{"name": names, "retryPolicy": self.retry.to_json()}]
            if self.retry_throttling is not None:
                config["retryThrottling"] = self.retry_throttling.to_json()
        return json.dumps(config)

    def _balancing(self) -> dict[str, Any]:
        if self.outlier_detection is None:
            return {self.load_balancing: {}}
        return self.outlier_detection.to_json(self.load_balancing)


def split_path(path: str) -> tuple[str, str]:
    """Return service and method of `package.Service/Method`.

    Raises:
        ValueError: it is not of that form.

    """
    service, slash, method = path.partition("/")
    if not (service and slash and method) or "/" in method:
        raise ValueError(
            f"method {path!r} is not of the form package.Service/Method, as in user.UserService/GetUser"
        )
    return service, method


def _is_idempotent(method: MethodDescriptor) -> bool:
    options = method.GetOptions()
    return options.idempotency_level in _IDEMPOTENT


def _require_positive(settings: object, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) > 0:
            raise ValueError(f"{name}={getattr(settings, name)} is not more than 0")


def _duration(seconds: float) -> str:
    return f"{seconds:.9f}s"
