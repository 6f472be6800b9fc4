"""EndpointSlices of discovery.k8s.io/v1: the part of them that says where a service can be called.

All that comes from the API server is taken for hostile: what makes no sense is left out, and
never takes away the rest.
"""

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import batched
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from grpc_common.client.resolver.endpoint import Endpoint
from grpc_common.core.errors import excerpt

_MAX_PORT = 65535

# Endpoints that are read in one turn of the event loop: a millisecond. A slice has 100 unless the
# cluster's controller is told otherwise, and 1000 at most.
_BATCH = 100


class Wire(BaseModel):
    """A part of what the API server says; unknown fields are passed over."""

    model_config = ConfigDict(alias_generator=to_camel, frozen=True, hide_input_in_errors=True)


class Version(Wire):
    """The state of the API server's storage that an answer shows, or in which an object was changed last."""

    resource_version: int = Field(ge=0)


class _Conditions(Wire):
    """What Kubernetes knows of an endpoint; None means that nobody has said so."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None

    def takes_calls(self) -> bool:
        """Whether calls may go there; if it is terminating, only where there is no better place.

        `serving` is asked besides `ready` because a Service with publishNotReadyAddresses has
        all its endpoints "ready", and a terminating one is never ready otherwise.
        """
        ready = self.ready is not False
        serving = ready if self.serving is None else self.serving
        return serving and (ready or bool(self.terminating))


class _ForZone(Wire):
    name: str


class _Hints(Wire):
    for_zones: list[_ForZone] | None = None


def _hosts(addresses: list[str]) -> list[str]:
    """Return the first address as it stands before a port: IPv6 in brackets, and both in canonical form."""
    # With a zone (fe80::1%eth0) an address has a meaning on one machine only, and can hold any text.
    if "%" in addresses[0]:
        raise ValueError(f"{excerpt(addresses[0])!r} is an address with a zone")
    try:
        ip = ip_address(addresses[0])
    except ValueError:
        raise ValueError(f"{excerpt(addresses[0])!r} is no IP address") from None
    return [f"[{ip}]" if ip.version == 6 else str(ip)]  # noqa: PLR2004


class _Pod(Wire):
    """What the API calls an endpoint. Only its first address has a meaning, says the API."""

    addresses: Annotated[list[str], Field(min_length=1), AfterValidator(_hosts)]
    conditions: _Conditions | None = None
    hints: _Hints | None = None
    node_name: str | None = None
    zone: str | None = None

    @property
    def takes_calls(self) -> bool:
        return self.conditions is None or self.conditions.takes_calls()

    def endpoint(self, port: int) -> Endpoint:
        zones = self.hints.for_zones if self.hints else None
        return Endpoint(
            f"{self.addresses[0]}:{port}",
            zone=self.zone or "",
            node=self.node_name or "",
            for_zones=tuple([zone.name for zone in zones]) if zones else (),
            terminating=bool(self.conditions and self.conditions.terminating),
        )


class Port(Wire):
    """A port of the pods: what the Service calls targetPort, under the name of the Service's port."""

    name: str | None = None
    port: int | None = None
    protocol: str | None = None

    @property
    def takes_calls(self) -> bool:
        """Whether gRPC can be spoken there."""
        return self.protocol in (None, "TCP") and self.port is not None and 0 < self.port <= _MAX_PORT

    def __str__(self) -> str:
        return f"{self.port} ({excerpt(self.name) if self.name else 'no name'})"


class _Metadata(Wire):
    name: str
    resource_version: int = 0


class _Slice(Wire):
    """Up to 1000 endpoints of a service that have one address family and the same ports."""

    metadata: _Metadata
    address_type: str
    endpoints: list[object] | None = None
    ports: list[Port] | None = None


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """What a slice says of one port: made once for each version of the slice."""

    name: str = ""
    version: int = 0

    endpoints: Mapping[str, Endpoint] = field(default_factory=dict)
    """Those that take calls, by their addresses."""

    pods: int = 0
    """How many it lists, whether they take calls or not."""

    ports: Sequence[Port] = ()

    port: int | None = None
    """The pods' port that is meant; None if there is none."""

    complaint: str = ""
    """Why it is left out, or a part of it; empty if it makes sense."""


async def read_slice(content: object, port: int | str | None) -> EndpointSlice:
    """Return what a slice of the API server says of a target's port. Never raises."""
    try:
        piece = _Slice.model_validate(content)
    except ValidationError as error:
        return EndpointSlice(name_of(content), complaint=f"left out: {first_error(error)}")
    name, version, pods = piece.metadata.name, piece.metadata.resource_version, piece.endpoints or ()
    if piece.address_type not in ("IPv4", "IPv6"):
        return EndpointSlice(
            name, version, complaint=f"left out: addressType {excerpt(piece.address_type)!r}"
        )
    ports = piece.ports or ()
    number = target_port(ports, port)
    endpoints, complaint = await _endpoints(pods, number)
    return EndpointSlice(name, version, endpoints, len(pods), ports, number, complaint)


def name_of(content: object) -> str:
    """Return the name of a slice, as far as it can be read; else an empty text."""
    metadata = content.get("metadata") if isinstance(content, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else ""


def target_port(ports: Sequence[Port], wanted: int | str | None) -> int | None:
    """Return the pods' port for the port of a target, or None if there is no such port.

    A name is the name of the Service's port. A number is the pods' port, as it is for the Go
    resolver of this scheme; because a slice does not tell the number of the Service's port,
    any number stands for the only port of a Service that has one, and a Service without
    ports takes every number. None is the only port of a Service that has one.
    """
    usable = [port for port in ports if port.takes_calls]
    numbers = {port.port for port in usable}
    if isinstance(wanted, str):
        return next((port.port for port in usable if port.name == wanted), None)
    if wanted is not None and (wanted in numbers or not ports):
        return wanted
    return numbers.pop() if len(numbers) == 1 else None


async def _endpoints(pods: Sequence[object], port: int | None) -> tuple[dict[str, Endpoint], str]:
    """Return the endpoints that take calls, and a complaint of those that make no sense."""
    found: dict[str, Endpoint] = {}
    errors: list[ValidationError] = []
    for batch in batched(pods, _BATCH, strict=False):
        for content in batch:
            try:
                pod = _Pod.model_validate(content)
            except ValidationError as error:
                errors.append(error)
            else:
                if port is not None and pod.takes_calls:
                    endpoint = pod.endpoint(port)
                    found[endpoint.address] = endpoint
        await asyncio.sleep(0)
    if not errors:
        return found, ""
    return found, f"{len(errors)} of its endpoints left out, the first: {first_error(errors[0])}"


def first_error(error: ValidationError) -> str:
    """Return where and what is wrong, as a text of one line."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]


def merge(slices: Iterable[EndpointSlice]) -> list[Endpoint]:
    """Return the endpoints of all slices, each once and in order.

    A dual-stack Service lists each of its pods in both families. One family is enough, or each pod
    would get calls twice, so IPv6 counts where there is no IPv4. An address in several slices is as
    the slice says that was changed last: a controller may move an endpoint between slices.
    """
    found: dict[str, Endpoint] = {}
    for piece in sorted(slices, key=lambda piece: piece.version):
        found.update(piece.endpoints)
    ipv4 = {address for address in found if not address.startswith("[")}
    return [found[address] for address in sorted(ipv4 or found)]


def why_empty(slices: Collection[EndpointSlice], port: int | str | None) -> str:
    """Say why `merge` returns nothing."""
    complaints = [
        f"EndpointSlice {excerpt(piece.name)!r}: {piece.complaint}" for piece in slices if piece.complaint
    ]
    if complaints:
        return "; ".join(complaints[:3])
    if not any(piece.pods for piece in slices):
        return "the Service does not exist, has no selector, or selects no pod"
    if all(piece.port is None for piece in slices if piece.pods):
        return _no_port(slices, port)
    return "no pod of the Service is ready"


def _no_port(slices: Iterable[EndpointSlice], port: int | str | None) -> str:
    known = ", ".join(sorted({str(known) for known in _ports(slices)}))
    if not known:
        return "the Service names no TCP port; the target must have the number of the pods' port"
    if port is None:
        return f"the Service has several ports; the target must name one of {known}"
    return f"the Service has no port {port}; its pods' ports are {known}"


def _ports(slices: Iterable[EndpointSlice]) -> Iterator[Port]:
    return (port for piece in slices for port in piece.ports if port.takes_calls)
