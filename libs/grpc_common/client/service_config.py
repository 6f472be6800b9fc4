"""How a client's calls are spread, repeated and kept from bad servers: gRPC's service config, typed."""

import json
from typing import Annotated, Any, Literal, Self

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from pydantic import AfterValidator, Field

from grpc_common.config.section import Section
from grpc_common.config.units import Count, Duration, Factor, Percent, PositiveDuration, TextOrNone

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


def _code(name: str) -> str:
    if name not in grpc.StatusCode.__members__ or name == "OK":
        raise ValueError(f"{name!r} is no code of an error, such as UNAVAILABLE or ABORTED")
    return name


Code = Annotated[str, AfterValidator(_code)]
"""The name of a status code of an error."""


class RetryPolicy(Section):
    """How often and when a failed call is made again, on another endpoint if there is one.

    A server's trailer `grpc-retry-pushback-ms` overrules the waiting time, or forbids the repetition with a
    negative number.
    """

    max_attempts: Annotated[Count, Field(ge=2, le=_MOST_ATTEMPTS)] = 4
    """Attempts in all, the first one included: 2 to 5, gRPC's own bound."""

    initial_backoff: PositiveDuration = 0.1
    """The wait before the second attempt; 20 % of it, up and down, are left to chance."""

    max_backoff: PositiveDuration = 1
    """The longest wait."""

    backoff_multiplier: Factor = 2
    """How much longer each wait is than the one before it."""

    retryable_codes: tuple[Code, ...] = ("UNAVAILABLE",)
    """The codes, by name, that a call is repeated after. UNAVAILABLE is the one code that says that another
    server, or the same one later, may well do it. Every other code is an answer, or (DEADLINE_EXCEEDED,
    RESOURCE_EXHAUSTED) a repetition makes it worse, unless a service means something else by it."""


class RetryThrottling(Section):
    """Stops all retries while too many calls fail, so that they don't bury a struggling service.

    A failure takes one token, a success gives `token_ratio`; below half of `max_tokens` nothing is
    repeated. The default lets 50 calls fail at once, as they do when a busy server dies.
    """

    max_tokens: Annotated[Count, Field(le=_MOST_TOKENS)] = 100
    """The most tokens: 1 to 1000."""

    token_ratio: Factor = 0.1
    """Tokens for a success."""


class OutlierDetection(Section):
    """Leaves a server out for a while when too many of its calls fail.

    What health checks can't see: a server that says it is SERVING and fails. A failure is any code
    but OK, so a service whose callers often get NOT_FOUND wants a high threshold.
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


class Subset(Section):
    """Each client connects to some of the servers, and all clients together to all of them.

    For fleets so large that a connection from every client to every server costs too much.
    """

    size: Annotated[Count, Field(ge=2)] = 20
    """How many servers a client takes; all if there are no more."""

    client: str = ""
    """What tells this client from the others; the host name, which is a pod's, if empty. With names that end
    in a number, as in a StatefulSet, the clients are spread evenly; with others as if by dice."""


class ServiceConfig(Section):
    """What a client does with a service; `for_services` reads in the proto which methods may be repeated."""

    load_balancing: Literal["least_request", "round_robin", "pick_first"] = "least_request"
    """`least_request` takes all servers in turn, but of a busy one and a random other one the less busy;
    `round_robin` takes them in turn whatever happens, `pick_first` stays with one."""

    zone: str = ""
    """The client's own zone, as in topology.kubernetes.io/zone: calls stay there while enough servers do.
    Empty for no preference."""

    slow_start: Duration = 0
    """How long a server that has just come gets less than its share; `0s` gives it all at once."""

    subset: Subset | None = None
    """Which part of a large fleet a client connects to; `none` connects to all."""

    health_check_service: TextOrNone = ""
    """Whose health a server must report: "" for the server as a whole, a name like `user.UserService`, or
    `none` for no check. A server without a health service counts as healthy. pick_first does not check."""

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
        """Return the value of the channel option `grpc.service_config` for one endpoint.

        C-core checks the health of a server only with round_robin, for one address as well.
        """
        balancing = "pick_first" if self.load_balancing == "pick_first" else "round_robin"
        config: dict[str, Any] = {"loadBalancingConfig": [{balancing: {}}]}
        if self.health_check_service is not None:
            config["healthCheckConfig"] = {"serviceName": self.health_check_service}
        return json.dumps(config)


def _is_idempotent(method: MethodDescriptor) -> bool:
    options = method.GetOptions()
    return options.idempotency_level in _IDEMPOTENT
