"""What a client may dial: the forms of a channel's target."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_FORMS = (
    "kubernetes:///SERVICE.NAMESPACE:PORT, dns:///NAME:PORT, dns://RESOLVER/NAME:PORT, NAME:PORT, "
    "ipv4:ADDRESS:PORT[,...], ipv6:[ADDRESS]:PORT[,...], unix:PATH or unix-abstract:NAME"
)

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"

# Names of services, namespaces and ports are DNS labels (RFC 1123), and so all of it is lower case.
_KUBERNETES = re.compile(
    rf"(?P<name>(?P<service>{_LABEL})\.(?P<namespace>{_LABEL})(?:\.svc(?:\.{_LABEL})*)?):(?P<port>{_LABEL})"
)
_HOST_AND_PORT = re.compile(
    r"(?:[A-Za-z0-9_]([-A-Za-z0-9_.]*)|\[[0-9A-Fa-f:.]+(?:%25\w+)?\]):(?P<port>\d{1,5})", re.ASCII
)
_DNS = re.compile(r"dns:(?://(?P<resolver>[^/]*)/)?(?P<name>.+)")

_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class KubernetesTarget:
    """The ready endpoints of a Kubernetes service."""

    service: str
    namespace: str

    port: int | str
    """The number of the pods' port (not the Service's, which only its virtual IP knows), or a port's name."""

    name: str
    """The service as it stands in the target: what the server's certificate must be for."""


@dataclass(frozen=True, slots=True)
class GrpcTarget:
    """A target that grpc itself resolves."""

    uri: str


type Target = KubernetesTarget | GrpcTarget


def parse_target(target: str) -> Target:
    """Return what `target` means.

    A Kubernetes target may go on with `.svc` and the cluster's domain, as in
    `kubernetes:///user-service.default.svc.cluster.local:50051`.

    Raises:
        ValueError: it has none of the known forms; the text says what would be right.

    """
    scheme, colon, rest = target.partition(":")
    if scheme == "kubernetes":
        return _kubernetes(target, rest)
    if colon and rest.isprintable() and rest and scheme in {"unix", "unix-abstract"}:
        return GrpcTarget(target)
    if scheme in {"ipv4", "ipv6"}:
        addresses = rest.split(",")
    elif scheme == "dns":
        match = _DNS.fullmatch(target)
        addresses = [match["name"].removeprefix("/")] if match else [""]
    else:
        addresses = [target]
    if not all(map(_is_host_and_port, addresses)):
        raise ValueError(f"target {target!r} is not of the form {_FORMS}")
    return GrpcTarget(target)


def _kubernetes(target: str, rest: str) -> KubernetesTarget:
    match = _KUBERNETES.fullmatch(rest.removeprefix("///"))
    if not rest.startswith("///") or match is None or not _is_port(match["port"]):
        raise ValueError(
            f"target {target!r} is not of the form kubernetes:///SERVICE.NAMESPACE:PORT, "
            "where PORT is the number or the name of a port, as in kubernetes:///user-service.default:50051"
        )
    port = match["port"]
    return KubernetesTarget(
        match["service"], match["namespace"], int(port) if port.isdigit() else port, match["name"]
    )


def _is_host_and_port(address: str) -> bool:
    match = _HOST_AND_PORT.fullmatch(address)
    return match is not None and _is_port(match["port"])


def _is_port(port: str) -> bool:
    return not port.isdigit() or 0 < int(port) <= _MAX_PORT


def endpoints_target(addresses: Sequence[str]) -> str:
    """Return the grpc target of `ip:port` addresses.

    grpc has no target of mixed families: IPv4 wins, since a dual-stack service has the same pods
    in both.
    """
    ipv4 = [address for address in addresses if not address.startswith("[")]
    return "ipv4:" + ",".join(ipv4) if ipv4 else "ipv6:" + ",".join(addresses)
