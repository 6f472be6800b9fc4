"""Nobody comes in from outside unasked: a server knows the caller of each method that a route leads to."""

from collections.abc import Iterator

from grpc_common import StartError
from grpc_common.config.callers import San, SanKind, parse_caller
from grpc_common.server.authentication import access
from grpc_common.server.authorization import Authorizer
from k8s.checks.entrances import Entrance, entrances
from k8s.checks.gateways import istio_servers, listeners
from k8s.checks.manifests import Manifest, Manifests, Problem, annotations, find, get, metadata
from k8s.checks.methods import METHODS
from k8s.checks.servers import Server, servers
from k8s.checks.traefik import hosts, needs_host

OPEN = "grpc-on-kubernetes/open-methods"
"""The annotation of a route with the methods that anybody may call: their paths, with spaces between them."""

_FIX = f"name who may in server.allowed_callers, or the method in the annotation {OPEN} of the route"

_SERVED = {
    **{path.split("/")[1]: [each.split("/")[2] for each in METHODS] for path in METHODS},
    "grpc.health.v1.Health": None,
    "grpc.reflection.v1.ServerReflection": None,
    "grpc.reflection.v1alpha.ServerReflection": None,
}

_REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"

_TOKEN = ("subject:", "scope:")

_NGINX = "nginx.ingress.kubernetes.io/"
_REDIRECTS = {"": "true", "force-": "false"}
"""What of nginx's two annotations about plaintext holds without them."""


def ask_who_calls_from_outside(manifests: Manifests) -> Iterator[Problem]:
    """Each method that a route from outside leads to asks for a credential, or is declared open."""
    lead_in: set[int] = set()
    for server in servers(manifests):
        found = list(entrances(manifests, server))
        lead_in |= {id(each.manifest) for each in found}
        for manifest in {id(each.manifest): each.manifest for each in found}.values():
            ways = [each for each in found if each.manifest is manifest]
            declared = annotations(manifest).get(OPEN, "").split()
            yield from _open(manifests, server, ways, declared)
            yield from _declared_for_nothing(manifests, server, ways, declared)
    for manifest in manifests.objects:
        if OPEN in annotations(manifest) and id(manifest) not in lead_in:
            fix = "take it out, or put it on the object that does"
            yield Problem(manifest, f"metadata.annotations[{OPEN}]", "leads to no server from outside", fix)


def _methods(server: Server) -> list[str]:
    """Return the paths of the methods that nobody may call unasked; probes and clients may ask for health."""
    return [*METHODS, *([_REFLECTION] if server.config.server.reflection else [])]


def _open(
    manifests: Manifests, server: Server, ways: list[Entrance], declared: list[str]
) -> Iterator[Problem]:
    for path in _methods(server):
        for way in ways:
            why = _why_open(manifests, server, way, path)
            if why and path not in declared:
                yield Problem(way.manifest, way.field, f"anybody may call {path} from outside: {why}", _FIX)
                break


def _declared_for_nothing(
    manifests: Manifests, server: Server, ways: list[Entrance], declared: list[str]
) -> Iterator[Problem]:
    """A method that is declared open and is not would be open unseen once it is."""
    for path in declared:
        if path not in (methods := _methods(server)):
            what, fix = f"{path} is no method of the server", f"take some of {', '.join(methods)}"
        elif not any(_why_open(manifests, server, way, path) for way in ways):
            what, fix = f"{path} is not open by this route", "take it out"
        else:
            continue
        yield Problem(ways[0].manifest, f"metadata.annotations[{OPEN}]", what, fix)


def _why_open(manifests: Manifests, server: Server, way: Entrance, path: str) -> str | None:
    """Return why a caller without a credential of its own may call a method by an entrance, if it may."""
    if not way.takes(path) or _asks_for_certificates(manifests, way):
        return None
    config = server.config.server
    allowed = Authorizer(config.allowed_callers).allowed_for(path)
    if not way.is_proxy and config.tls.require_client_certificate and _is_encrypted_everywhere(server):
        return None
    if allowed is None:
        return "server.allowed_callers has no list for it"
    if not way.is_proxy or not config.tls.require_client_certificate:
        return None
    return _allowed_as_proxy(manifests, server, way, allowed)


def _is_encrypted_everywhere(server: Server) -> bool:
    return all(listener.tls is not False for listener in server.config.server.listen)


def _allowed_as_proxy(
    manifests: Manifests, server: Server, way: Entrance, allowed: frozenset[str]
) -> str | None:
    """Return why the certificate of the proxy itself is enough, if it is."""
    known = [name for name in allowed if not name.startswith(_TOKEN)]
    if not known:
        return None
    certificates = _names_of_proxy(manifests, way)
    if certificates is None:
        return f"it is not said here which certificate the proxy has, and {_shown(known)} may call it"
    proxies = set(map(parse_caller, server.config.server.proxies))
    for names in certificates:  # of several it may show any
        if not names & proxies and (shared := names & allowed):
            return f"the proxy itself, {_shown(shared)}, may call it for whoever comes"
    return None


def _shown(names: frozenset[str] | list[str]) -> str:
    return " and ".join(sorted(names))


def _names_of_proxy(manifests: Manifests, way: Entrance) -> list[frozenset[str]] | None:
    """Return the SANs of each certificate that a proxy may show the server, None if one is not known."""
    secrets = list(_secrets_of_proxy(manifests, way))
    certificates = {get(each, "spec.secretName"): each for each in manifests.of_kind("Certificate")}
    if not secrets or any(secret not in certificates for secret in secrets):
        return None
    return [frozenset(_sans(certificates[secret])) for secret in secrets]


def _secrets_of_proxy(manifests: Manifests, way: Entrance) -> Iterator[str]:
    """Yield the Secrets with the certificates that a proxy shows the server."""
    namespace = metadata(way.manifest, "namespace")
    match way.manifest["kind"]:
        case "IngressRoute":
            transport = manifests.named("ServersTransport", way.transport or "", namespace) or {}
            yield from (name for _, name in find(transport, "spec.certificatesSecrets[]"))
        case "IngressRouteTCP":
            transport = manifests.named("ServersTransportTCP", way.transport or "", namespace) or {}
            yield from (name for _, name in find(transport, "spec.tls.certificatesSecrets[]"))
        case "Ingress":
            if name := annotations(way.manifest).get(f"{_NGINX}proxy-ssl-secret"):
                yield name.rpartition("/")[2]
        case "GRPCRoute" | "HTTPRoute":
            for proxy in manifests.of_kind("EnvoyProxy"):
                yield from (name for _, name in find(proxy, "spec.backendTLS.clientCertificateRef.name"))


def _sans(certificate: Manifest) -> Iterator[str]:
    fields = {
        "dnsNames": SanKind.DNS,
        "uris": SanKind.URI,
        "ipAddresses": SanKind.IP,
        "emailAddresses": SanKind.EMAIL,
    }
    for field, kind in fields.items():
        yield from (str(San.of(kind, name)) for _, name in find(certificate, f"spec.{field}[]"))


def _asks_for_certificates(manifests: Manifests, way: Entrance) -> bool:
    """Return whether the proxy itself refuses whoever has no certificate."""
    match way.manifest["kind"]:
        case "IngressRoute":
            return _traefik_asks(manifests, way)
        case "Ingress":
            return _nginx_asks(way)
        case "GRPCRoute" | "HTTPRoute":
            parents = [parent for _, parent in find(way.manifest, "spec.parentRefs[]")]
            return bool(parents) and all(_gateway_asks(manifests, way.manifest, each) for each in parents)
        case "VirtualService":
            modes = {get(each, "tls.mode") for each in istio_servers(manifests, way.manifest)}
            return modes == {"MUTUAL"}
    return False


def _traefik_asks(manifests: Manifests, way: Entrance) -> bool:
    """Return whether the TLSOption of a route holds for all whom it takes: it does for its hosts alone.

    Where routes of a host have different options, Traefik takes its default ones for all of them.
    """
    name, namespace = option = _option(way.manifest)
    found = manifests.named("TLSOption", name, namespace) or {}
    if get(found, "spec.clientAuth.clientAuthType") != "RequireAndVerifyClientCert":
        return False
    [rule] = [rule for field, rule in find(way.manifest, "spec.routes[]") if field == way.field]
    routes = [each for each in manifests.of_kind("IngressRoute") if get(each, "spec.tls") is not None]
    others = [match for each in routes if _option(each) != option for match in _matches(each)]
    theirs = {host for match in others for host in hosts(match)}
    return needs_host(rule["match"]) and not hosts(rule["match"]) & theirs


def _matches(route: Manifest) -> list[str]:
    return [match for _, match in find(route, "spec.routes[].match")]


def _option(route: Manifest) -> tuple[str, str]:
    options = get(route, "spec.tls.options") or {}
    return options.get("name", ""), options.get("namespace") or metadata(route, "namespace")


def _nginx_asks(way: Entrance) -> bool:
    """Return whether nginx asks callers for certificates: it does over TLS, and lets nobody in without."""
    given = annotations(way.manifest)
    if f"{_NGINX}auth-tls-secret" not in given or given.get(f"{_NGINX}auth-tls-verify-client", "on") != "on":
        return False
    redirects = [given.get(f"{_NGINX}{name}ssl-redirect", default) for name, default in _REDIRECTS.items()]
    if "true" not in redirects:
        return False
    rules = [rule for field, rule in find(way.manifest, "spec.rules[]") if way.field.startswith(f"{field}.")]
    encrypted = [tls.get("hosts") or [] for _, tls in find(way.manifest, "spec.tls[]")]
    return any(rule.get("host") in tls or not tls for rule in rules if rule.get("host") for tls in encrypted)


def _gateway_asks(manifests: Manifests, route: Manifest, parent: Manifest) -> bool:
    """Return whether Envoy Gateway asks callers of a Gateway, or of one listener, for certificates."""
    found = listeners(manifests, route, parent)
    if any(each.get("protocol") == "HTTP" for each in found):
        return False
    names = [each["name"] for each in found] or [parent.get("sectionName")]
    return all(_listener_asks(manifests, parent["name"], name) for name in names)


def _listener_asks(manifests: Manifests, gateway: str, section: str | None) -> bool:
    """Return whether the policy of a listener asks for certificates; it replaces that of its Gateway."""
    policies = [
        (target.get("sectionName"), get(policy, "spec.tls.clientValidation") or {"optional": True})
        for policy in manifests.of_kind("ClientTrafficPolicy")
        for _, target in find(policy, "spec.targetRefs[]")
        if target["name"] == gateway
    ]
    own = [asked for name, asked in policies if name == section]
    found = own or [asked for name, asked in policies if name is None]
    return bool(found) and not any(asked.get("optional") for asked in found)


def start_with_the_callers_that_they_name(manifests: Manifests) -> Iterator[Problem]:
    """No server names callers that it can't know, or methods that it does not serve: it would not start."""
    for server in servers(manifests):
        try:
            found = access(server.config.server, ())
            if found:
                found.check_patterns(_SERVED)
        except StartError as error:
            for line in str(error).splitlines():
                yield server.problem("env", line, "see `Who calls` in libs/grpc_common/README.md")
