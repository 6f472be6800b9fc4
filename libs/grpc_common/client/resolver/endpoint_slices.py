"""EndpointSlices of discovery.k8s.io/v1: the part of them that says where a service can be called."""

from collections.abc import Collection, Iterable, Iterator
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from grpc_common.core.errors import StartError


class _Wire(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, frozen=True, hide_input_in_errors=True)


class Conditions(_Wire):
    """What Kubernetes knows of an endpoint; None means that nobody has said so."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Endpoint(_Wire):
    """One pod. Only its first address has a meaning, says the API."""

    addresses: list[str]
    conditions: Conditions | None = None

    def takes_calls(self) -> bool:
        """Whether new calls may go there.

        `serving` is asked besides `ready` because a Service with publishNotReadyAddresses has
        all its endpoints "ready".
        """
        conditions = self.conditions or Conditions()
        return (
            conditions.ready is not False and conditions.serving is not False and not conditions.terminating
        )


class Port(_Wire):
    """A port of the pods: what the Service calls targetPort, under the name of the Service's port."""

    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class ListMetadata(_Wire):
    """The state of the API server's storage that an answer shows."""

    resource_version: int


class Metadata(ListMetadata):
    """The name of a slice and the version in which it was changed last."""

    name: str


class EndpointSlice(_Wire):
    """Up to 1000 endpoints of a service that have one address family and the same ports."""

    metadata: Metadata
    address_type: str
    endpoints: list[Endpoint] | None = None
    ports: list[Port] | None = None

    def target_port(self, wanted: int | str) -> int | None:
        """Return the pods' port for the port of a target, or None if there is no such port.

        A name is the name of the Service's port. A number is the pods' port, as it is for the Go
        resolver of this scheme; because a slice does not tell the number of the Service's port,
        any number stands for the only port of a Service that has one, and a Service without
        ports takes every number.
        """
        ports = [port for port in self.ports or [] if port.protocol in (None, "TCP")]
        if isinstance(wanted, str):
            return next((port.port for port in ports if port.name == wanted), None)
        if not ports or any(port.port == wanted for port in ports):
            return wanted
        return ports[0].port if len(ports) == 1 else None

    def addresses(self, wanted: int | str) -> Iterator[str]:
        """Yield `ip:port` of the endpoints that take calls on the port of a target."""
        port = self.target_port(wanted)
        if port is None or self.address_type not in ("IPv4", "IPv6"):
            return
        for endpoint in self.endpoints or []:
            if endpoint.takes_calls():
                ip = ip_address(endpoint.addresses[0])
                yield f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"  # noqa: PLR2004


class EndpointSliceList(_Wire):
    """All slices of a service at one moment."""

    metadata: ListMetadata
    items: list[EndpointSlice]


class WatchEvent(_Wire):
    """A line of a watch: ADDED, MODIFIED or DELETED with a slice, BOOKMARK, or ERROR with a Status."""

    type: str
    object: dict[str, Any]


class Status(_Wire):
    """How the API server says no."""

    code: int
    message: str = ""


class ApiError(Exception):
    """The API server said no; the text has its status and reason."""

    def __init__(self, status: Status, retry_after: float = 0.0) -> None:
        super().__init__(f"{status.code}: {status.message}")
        self.code = status.code
        self.retry_after = retry_after
        """Seconds that the API server wants to be left alone."""

    def advice(self, namespace: str) -> str:
        """Say what would help, if it is known."""
        if self.code != HTTPStatus.FORBIDDEN:
            return ""
        return (
            f"a Role in namespace {namespace} bound to the caller, with apiGroups [discovery.k8s.io], "
            "resources [endpointslices], verbs [get, list, watch]"
        )


class ConfigurationError(StartError):
    """There is no usable way to the API server; the text says what was tried."""


def merge(slices: Iterable[EndpointSlice], port: int | str) -> list[str]:
    """Return the addresses of all slices, each once and in order.

    A dual-stack Service lists each of its pods in both families. One family is enough, and an
    address list of gRPC can't mix them, so IPv6 counts where there is no IPv4.
    """
    addresses = {address for piece in slices for address in piece.addresses(port)}
    ipv4 = {address for address in addresses if not address.startswith("[")}
    return sorted(ipv4 or addresses)


def why_empty(slices: Collection[EndpointSlice], port: int | str) -> str:
    """Say why `merge` returns nothing."""
    if not slices:
        return "the Service does not exist, has no selector, or selects no pod"
    if all(piece.target_port(port) is None for piece in slices):
        known = {
            f"{known.port} ({known.name or 'no name'})" for piece in slices for known in piece.ports or []
        }
        return f"the Service has no port {port}; its pods' ports are {', '.join(sorted(known))}"
    return "no pod of the Service is ready"
