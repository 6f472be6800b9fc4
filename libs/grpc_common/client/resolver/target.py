"""What a client may dial: the forms of a channel's target."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

_FORMS = (
    "kubernetes:///SERVICE.NAMESPACE:PORT, dns:///NAME:PORT, dns://RESOLVER/NAME:PORT, NAME:PORT, "
    "ipv4:ADDRESS:PORT[,...], ipv6:[ADDRESS]:PORT[,...], unix:PATH or unix-abstract:NAME"
)
_KUBERNETES_FORMS = (
    "kubernetes:///SERVICE[.NAMESPACE][:PORT] or kubernetes://NAMESPACE/SERVICE[:PORT], "
    "where PORT is the number or the name of a port, as in kubernetes:///user-service.default:50051"
)

# Names of services, namespaces and ports are DNS labels (RFC 1123), and so all of it is lower case.
_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_KUBERNETES = re.compile(
    rf"(?P<name>(?P<service>{_LABEL})(?:\.(?P<namespace>{_LABEL})(?:\.svc(?:\.{_LABEL})*)?)?)(?::(?P<port>{_LABEL}))?"
)
_KUBERNETES_PLACE = re.compile(rf"//(?:(?P<namespace>{_LABEL})?/(?P<path>[^/]+)|(?P<authority>[^/]+)/?)")

# A name of digits and dots alone would be a mistyped address, which some resolvers read as octal.
_NAME = r"(?![\d.]+:)(?:[A-Za-z0-9_][-A-Za-z0-9_]{0,62}(?:\.|(?=:)))+"
_ADDRESS = r"[\d.]+|\[[0-9A-Fa-f:.]+(?:%25\w+)?\]"
_HOST_AND_PORT = re.compile(
    rf"(?:(?P<ip>{_ADDRESS})|(?P<name>(?=.{{1,254}}:){_NAME})):(?P<port>\d{{1,5}})", re.ASCII
)
_RESOLVER = re.compile(rf"(?P<ip>{_ADDRESS})(?::(?P<port>\d{{1,5}}))?", re.ASCII)
_DNS = re.compile(r"dns:(?://(?P<resolver>[^/]*)/|/?)(?P<host>[^/]+)")

_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class KubernetesTarget:
    """The endpoints of a Kubernetes service."""

    service: str

    namespace: str | None
    """None is one's own: that of the pod, or of the kubeconfig's current context."""

    port: int | str | None
    """The number of the pods' port (not the Service's, which only its virtual IP knows), a port's name,
    or None for the only port of a Service that has one."""

    name: str
    """What the server's certificate must be for: the service as it stands in the target. It is `service`
    alone if no namespace is written there, and `service.namespace` for `kubernetes://namespace/service`."""


@dataclass(frozen=True, slots=True)
class StaticTarget:
    """Endpoints that never change."""

    addresses: tuple[str, ...]
    """As in Endpoint.address."""

    uri: str
    """The whole target, as C-core takes it."""


@dataclass(frozen=True, slots=True)
class DnsTarget:
    """The addresses of a name in DNS."""

    name: str
    port: int

    resolver: str | None
    """The DNS server to ask, `ip` or `ip:port`; None for the system's."""

    uri: str
    """The whole target, as C-core takes it."""


type Target = KubernetesTarget | StaticTarget | DnsTarget


def parse_target(target: str) -> Target:
    """Return what `target` means.

    A Kubernetes target has one of the forms of kuberesolver for Go: `kubernetes:///service:port`,
    `///service.namespace:port`, `//namespace/service:port` or `//service.namespace:port/`. The namespace may
    go on with `.svc` and the cluster's domain, and `:port` may be left out if the Service has one port.

    Raises:
        ValueError: it has none of the known forms; the text says what would be right.

    """
    scheme, _, rest = target.partition(":")
    match scheme:
        case "kubernetes":
            return _kubernetes(target, rest)
        case "unix" | "unix-abstract" if rest and rest.isprintable():
            return _unix(target, scheme, rest)
        case "ipv4" | "ipv6":
            return _static(target, scheme, rest.split(","))
        case "dns":
            match = _DNS.fullmatch(target)
            return _dns(target, match["resolver"] if match else None, match["host"] if match else "")
        case _:
            return _dns(target, None, target)


def _kubernetes(target: str, rest: str) -> KubernetesTarget:
    place = _KUBERNETES_PLACE.fullmatch(rest)
    match = _KUBERNETES.fullmatch(place["path"] or place["authority"]) if place else None
    if place is None or match is None or not _is_port(match["port"] or "1"):
        raise ValueError(f"target {target!r} is not of the form {_KUBERNETES_FORMS}")
    outer, inner, name = place["namespace"], match["namespace"], match["name"]
    if outer and inner and outer != inner:
        raise ValueError(
            f"target {target!r} names two namespaces, {outer} and {inner}; leave one of them out"
        )
    if outer and not inner:
        name = f"{name}.{outer}"
    port = match["port"]
    number = int(port) if port and port.isdigit() else None
    return KubernetesTarget(match["service"], inner or outer, number or port, name)


def _unix(target: str, scheme: str, path: str) -> StaticTarget:
    if scheme == "unix" and path.startswith("//"):
        if not path.startswith("///"):
            raise ValueError(f"target {target!r} is not of the form unix:PATH or unix:///ABSOLUTE/PATH")
        path = "/" + path.lstrip("/")  # with two slashes left it would be the authority of a URI
    if "," in path:
        raise ValueError(f"target {target!r} has a comma in its path, at which gRPC would split it")
    return StaticTarget((f"{scheme}:{path}",), target)


def _static(target: str, scheme: str, texts: Sequence[str]) -> StaticTarget:
    addresses = []
    for text in texts:
        match = _host_and_port(target, text)
        ip = _ip(match["ip"])
        if ip is None or f"ipv{ip.version}" != scheme:
            raise _unknown_form(target)
        addresses.append(_address(ip, match))
    return StaticTarget(tuple(addresses), target)


def _dns(target: str, resolver: str | None, host: str) -> StaticTarget | DnsTarget:
    match = _host_and_port(target, host)
    if resolver and not _is_resolver(resolver):
        raise ValueError(
            f"target {target!r} has the DNS server {resolver!r}, which is not of the form IP or IP:PORT"
        )
    if match["name"]:
        return DnsTarget(match["name"], int(match["port"]), resolver or None, target)
    ip = _ip(match["ip"])
    if ip is None:
        raise _unknown_form(target)
    return StaticTarget((_address(ip, match),), target)


def _host_and_port(target: str, text: str) -> re.Match[str]:
    match = _HOST_AND_PORT.fullmatch(text)
    if match is None or not _is_port(match["port"]):
        raise _unknown_form(target)
    return match


def _unknown_form(target: str) -> ValueError:
    return ValueError(f"target {target!r} is not of the form {_FORMS}")


def _is_resolver(text: str) -> bool:
    match = _RESOLVER.fullmatch(text)
    return match is not None and _ip(match["ip"]) is not None and _is_port(match["port"] or "53")


def _is_port(port: str) -> bool:
    return not port.isdigit() or 0 < int(port) <= _MAX_PORT


def _ip(text: str | None) -> IPv4Address | IPv6Address | None:
    text = text or ""
    try:
        ip = ip_address(text.strip("[]").replace("%25", "%"))
    except ValueError:
        return None
    return ip if text.startswith("[") == (ip.version == 6) else None  # noqa: PLR2004


def _address(ip: IPv4Address | IPv6Address, match: re.Match[str]) -> str:
    port = int(match["port"])
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"  # noqa: PLR2004


def endpoint_uri(address: str) -> str:
    """Return C-core's target for an endpoint's address: `ipv4:...`, `ipv6:...`, `unix:...`, `dns:...`."""
    if address.startswith(("unix:", "unix-abstract:", "dns:")):
        return address
    # C-core decodes the zone of a link-local address as a part of a URI.
    return "ipv6:" + address.replace("%", "%25") if address.startswith("[") else f"ipv4:{address}"
