"""Certificates of cert-manager have the names that clients dial, and are of a kind that gRPC takes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from k8s.checks.backends import backends
from k8s.checks.manifests import (
    Manifest,
    Manifests,
    Problem,
    annotations,
    find,
    get,
    metadata,
    title,
)
from k8s.checks.references import is_acme
from k8s.checks.servers import Server, servers, volume_at

_HOST = re.compile(r"\bHost\(([^)]*)\)")


@dataclass(frozen=True)
class Dial:
    """A name that clients dial, and the Secret with the certificate that answers them."""

    manifest: Manifest
    """What makes them dial it."""
    secret: str
    name: str


def have_the_names_that_are_dialled(manifests: Manifests) -> Iterator[Problem]:
    """Each certificate has every name that a client or a proxy expects where it is used."""
    for dial in _dials(manifests):
        certificate = _certificate(manifests, dial.secret)
        names = get(certificate, "spec.dnsNames") if certificate else None
        if certificate and not any(_covers(name, dial.name) for name in names or []):
            what = f"{dial.name}, which clients of {title(dial.manifest)} expect, is missing"
            yield Problem(certificate, "spec.dnsNames", what, "add it")


def are_of_a_kind_that_grpc_takes(manifests: Manifests) -> Iterator[Problem]:
    """Each key is RSA, or ECDSA of P-256 or P-384: gRPC fails with others."""
    for certificate in manifests.of_kind("Certificate"):
        key = get(certificate, "spec.privateKey") or {}
        algorithm, size = key.get("algorithm", "RSA"), key.get("size", 256)
        if algorithm != "RSA" and (algorithm, size) not in (("ECDSA", 256), ("ECDSA", 384)):
            what = f"gRPC can't use {algorithm} {size}"
            yield Problem(certificate, "spec.privateKey", what, "take RSA, or ECDSA with size 256 or 384")


def replace_their_keys(manifests: Manifests) -> Iterator[Problem]:
    """Each renewal brings a new key; that of an authority is another matter, as others hang on it."""
    for certificate in manifests.of_kind("Certificate"):
        policy = get(certificate, "spec.privateKey.rotationPolicy")
        if policy != "Always" and not get(certificate, "spec.isCA"):
            field = "spec.privateKey.rotationPolicy"
            yield Problem(certificate, field, f"is {policy}", "set it to Always")


def may_be_used_as_they_are(manifests: Manifests) -> Iterator[Problem]:
    """A certificate that servers present is for server auth, one that clients present for client auth.

    A public authority decides the usages itself, and no longer signs those of clients.
    """
    used = [("server auth", dial.secret) for dial in _dials(manifests)]
    used += [("client auth", secret) for secret in _client_secrets(manifests)]
    for usage, secret in sorted(set(used)):
        certificate = _certificate(manifests, secret)
        if certificate and not is_acme(manifests, certificate):
            usages = get(certificate, "spec.usages") or []
            if usage not in usages:
                what = f"has no {usage}, for which Secret {secret} is used"
                yield Problem(certificate, "spec.usages", what, "add it")
    for certificate in manifests.of_kind("Certificate"):
        if is_acme(manifests, certificate) and "client auth" in (get(certificate, "spec.usages") or []):
            what = "public authorities sign no client certificates"
            yield Problem(certificate, "spec.usages", what, "leave client auth out")


def _certificate(manifests: Manifests, secret: str) -> Manifest | None:
    certificates = manifests.of_kind("Certificate")
    return next((each for each in certificates if get(each, "spec.secretName") == secret), None)


def _covers(pattern: str, name: str) -> bool:
    """Return whether a name of a certificate stands for `name`: `*` is one label, and the first."""
    return pattern == name or (pattern.startswith("*.") and pattern[1:] == "." + name.partition(".")[2])


def _dials(manifests: Manifests) -> Iterator[Dial]:
    for server in servers(manifests):
        directory = server.config.server.tls.directory
        volume = volume_at(server.pod, server.container, str(directory)) if directory else None
        if volume and (secret := get(volume[1], "secret.secretName")):
            yield from (Dial(manifest, secret, name) for manifest, name in _names(manifests, server))
    yield from _edges(manifests)


def _names(manifests: Manifests, server: Server) -> Iterator[tuple[Manifest, str]]:
    """Yield each name by which a server is dialled: those of its Services, and what proxies expect."""
    for service in [each for each in manifests.services_of(server.pod) if any(server.ports_of(each))]:
        name, namespace = metadata(service, "name"), metadata(service, "namespace")
        # kubernetes:///name.namespace expects the second.
        for suffix in ("", f".{namespace}", f".{namespace}.svc", f".{namespace}.svc.cluster.local"):
            yield service, name + suffix
        yield from _expected_by_proxies(manifests, name)


def _expected_by_proxies(manifests: Manifests, service: str) -> Iterator[tuple[Manifest, str]]:
    for backend in backends(manifests):
        if backend.service != service:
            continue
        if name := annotations(backend.manifest).get("nginx.ingress.kubernetes.io/proxy-ssl-name"):
            yield backend.manifest, name
        if name := get(backend.manifest, "spec.trafficPolicy.tls.sni"):
            yield backend.manifest, name
        transport = backend.reference.get("serversTransport", "")
        found = manifests.named("ServersTransport", transport, backend.namespace)
        if found and (name := get(found, "spec.serverName")):
            yield found, name
    for policy in manifests.of_kind("BackendTLSPolicy"):
        if service in [name for _, name in find(policy, "spec.targetRefs[].name")]:
            yield policy, get(policy, "spec.validation.hostname")


def _edges(manifests: Manifests) -> Iterator[Dial]:
    for ingress in manifests.of_kind("Ingress"):
        for _, tls in find(ingress, "spec.tls[]"):
            hosts = tls.get("hosts") or [host for _, host in find(ingress, "spec.rules[].host")]
            yield from (Dial(ingress, tls["secretName"], host) for host in hosts)
    for route in manifests.of_kind("IngressRoute"):
        if secret := get(route, "spec.tls.secretName"):
            rules = " ".join(rule for _, rule in find(route, "spec.routes[].match"))
            hosts = re.findall(r"[`\"]([^`\"]+)[`\"]", " ".join(_HOST.findall(rules)))
            yield from (Dial(route, secret, host) for host in hosts)
    for gateway in manifests.of_kind("Gateway"):
        for _, listener in find(gateway, "spec.listeners[]"):
            for _, secret in find(listener, "tls.certificateRefs[].name"):
                names = _hosts(manifests, gateway, listener)
                yield from (Dial(manifest, secret, host) for manifest, host in names)


def _hosts(manifests: Manifests, gateway: Manifest, listener: Manifest) -> Iterator[tuple[Manifest, str]]:
    if hostname := listener.get("hostname"):
        yield gateway, hostname
    for route in manifests.of_kind("GRPCRoute", "HTTPRoute"):
        for _, parent in find(route, "spec.parentRefs[]"):
            section = parent.get("sectionName", listener["name"])
            if (parent["name"], section) == (metadata(gateway, "name"), listener["name"]):
                yield from ((route, host) for _, host in find(route, "spec.hostnames[]"))


def _client_secrets(manifests: Manifests) -> Iterator[str]:
    """Yield the Secrets with certificates that proxies present to servers."""
    for transport in manifests.of_kind("ServersTransport"):
        yield from (secret for _, secret in find(transport, "spec.certificatesSecrets[]"))
    for ingress in manifests.of_kind("Ingress"):
        if secret := annotations(ingress).get("nginx.ingress.kubernetes.io/proxy-ssl-secret"):
            yield secret.rpartition("/")[2]
    for rule in manifests.of_kind("DestinationRule"):
        yield from (secret for _, secret in find(rule, "spec.trafficPolicy.tls.credentialName"))
