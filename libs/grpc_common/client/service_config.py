"""How a client's calls are spread, repeated and kept from bad servers: gRPC's service config, typed."""

import json
from typing import Annotated, Any, Literal, Self

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from pydantic import AfterValidator, Field

from grpc_common.config.section import Section
from grpc_common.config.units import Count, Factor, Percent, PositiveDuration, TextOrNone

_IDEMPOTENT = {MethodOptions.NO_SIDE_EFFECTS, MethodOptions.IDEMPOTENT}

# C-core lowers a greater number to this one in silence.
_MOST_ATTEMPTS = 5

# Bound of gRFC A6.
_MOST_TOKENS = 1000


def split_path(path: str) -> tuple[str, str]:
    """Return service and method of `package.Service/Method`.

    Raises:
        ValueError: it is not of that form.

    """
    service, slash, method = path.partition("/")
    if not (service and slash and method) or "/" in method or "*" in path:
        raise ValueError(
            f"method {path!r} is not of the form package.Service/Method, as in user.UserService/GetUser"
        )
    return service, method


def _checked(path: str) -> str:
    split_path(path)
    return path


MethodPath = Annotated[str, AfterValidator(_checked)]
"""A method, written as in `user.UserService/GetUser`."""


class RetryPolicy(Section):
    """How often and when a call that ended UNAVAILABLE is made again.

    Only UNAVAILABLE: it is the one code that says that another server, or the same one later, may
    well do it. Every other code is an answer, or (DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED) a
    repetition makes it worse. A server's trailer `grpc-retry-pushback-ms` overrules the waiting
    time, or forbids the repetition with a negative number.
    """

    max_attempts: Annotated[Count, Field(ge=2, le=_MOST_ATTEMPTS)] = 4
    """Attempts in all, the first one included: 2 to 5, gRPC's own bound."""

    initial_backoff: PositiveDuration = 0.1
    """The wait before the second attempt; gRPC adds 20 % of jitter."""

    max_backoff: PositiveDuration = 1
    """The longest wait."""

    backoff_multiplier: Factor = 2
    """How much longer each wait is than the one before it."""

    def to_json(self) -> dict[str, Any]:
        """Return the value of `retryPolicy`."""
        return {
            "maxAttempts": self.max_attempts,
            "initialBackoff": _duration(self.initial_backoff),
            "maxBackoff": _duration(self.max_backoff),
            "backoffMultiplier": self.backoff_multiplier,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }


class RetryThrottling(Section):
    """Stops all retries while too many calls fail, so that they don't bury a struggling service.

    A failure takes one token, a success gives `token_ratio`; below half of `max_tokens` nothing is
    repeated. The default lets 50 calls fail at once, as they do when a busy server dies.
    """

    max_tokens: Annotated[Count, Field(le=_MOST_TOKENS)] = 100
    """The most tokens: 1 to 1000."""

    token_ratio: Factor = 0.1
    """Tokens for a success."""

    def to_json(self) -> dict[str, Any]:
        """Return the value of `retryThrottling`."""
        return {"maxTokens": self.max_tokens, "tokenRatio": self.token_ratio}


class OutlierDetection(Section):
    """Leaves a server out for a while when too many of its calls fail.

    What health checks can't see: a server that says it is SERVING and fails. A failure is any code
    but OK, so a service whose callers often get NOT_FOUND wants a high threshold. The memory of
    failures begins anew when the set of endpoints changes.
    """

    interval: PositiveDuration = 10
    """From one look at the counts to the next."""

    base_ejection_time: PositiveDuration = 30
    """How long a server is left out at first; each further time as much longer again."""

    max_ejection_percent: Percent = 50
    """The greatest part of the servers that is left out at the same time; at least one always may be."""

    failure_percentage: Percent = 85
    """Percent of failed calls in an interval above which a server is left out."""

    minimum_hosts: Count = 3
    """With fewer servers none is left out."""

    request_volume: Count = 50
    """With fewer calls in an interval a server is not judged."""

    def to_json(self, child: str) -> dict[str, Any]:
        """Return the load balancing policy around the policy `child`."""
        ejection = {
            "threshold": self.failure_percentage,
            "enforcementPercentage": 100,
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


class ServiceConfig(Section):
    """What a client does with a service; `for_services` reads in the proto which methods may be repeated."""

    load_balancing: Literal["round_robin", "pick_first"] = "round_robin"
    """`round_robin` takes all servers in turn, `pick_first` stays with one."""

    health_check_service: TextOrNone = ""
    """Whose health a server must report: "" for the server as a whole, a name like `user.UserService`, or
    `none` for no check. A server without a health service counts as healthy. Only round_robin checks."""

    retryable_methods: tuple[MethodPath, ...] = ()
    """The methods, as `user.UserService/GetUser`, that `retry` is for."""

    retry: RetryPolicy | None = RetryPolicy()
    """How retryable methods are repeated; `none` never repeats."""

    retry_throttling: RetryThrottling | None = RetryThrottling()
    """What stops retries when they would do harm."""

    outlier_detection: OutlierDetection | None = None
    """What leaves failing servers out; `none` doesn't."""

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


def _is_idempotent(method: MethodDescriptor) -> bool:
    options = method.GetOptions()
    return options.idempotency_level in _IDEMPOTENT


def _duration(seconds: float) -> str:
    return f"{seconds:.9f}s"
