"""What is named exists: ConfigMaps and Secrets with their keys, accounts, roles, middleware, issuers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from k8s.checks.gateways import istio_name
from k8s.checks.manifests import (
    External,
    Manifest,
    Manifests,
    Pod,
    Problem,
    annotations,
    content,
    find,
    get,
    metadata,
)
from k8s.checks.rate_limits import LIMITED_BY
from k8s.checks.selection import external_pods
from k8s.checks.servers import servers, volume_at

_PAIR = ("tls.crt", "tls.key")
_DECLARE = "add the object to the overlay, or say in external.yaml who makes it"


@dataclass(frozen=True)
class Use:
    """A place that names another object."""

    manifest: Manifest
    field: str
    kind: str
    name: str
    keys: Sequence[str] = ()
    """What it takes of a ConfigMap or Secret."""
    namespace: str | None = None
    """Where the object is, if not beside the manifest."""


_NAMES: Mapping[str, Sequence[tuple[str, str]]] = {
    "StatefulSet": [("spec.serviceName", "Service")],
    "GRPCRoute": [("spec.parentRefs[].name", "Gateway")],
    "HTTPRoute": [("spec.parentRefs[].name", "Gateway")],
    "Gateway": [("spec.gatewayClassName", "GatewayClass")],
    "Ingress": [("spec.ingressClassName", "IngressClass")],
    "IngressRoute": [
        ("spec.routes[].middlewares[].name", "Middleware"),
        ("spec.routes[].services[].serversTransport", "ServersTransport"),
        ("spec.tls.options.name", "TLSOption"),
    ],
}
"""Fields with nothing but the name of an object of one kind beside it."""

_TYPED = {
    "BackendTLSPolicy": ["spec.targetRefs[]"],
    "BackendTrafficPolicy": ["spec.targetRefs[]"],
    "Certificate": ["spec.issuerRef"],
    "ClientTrafficPolicy": ["spec.targetRefs[]"],
    "ExternalSecret": ["spec.secretStoreRef"],
    "ClusterRoleBinding": ["roleRef", "subjects[]"],
    "RoleBinding": ["roleRef", "subjects[]"],
    "HorizontalPodAutoscaler": ["spec.scaleTargetRef"],
}
"""Fields with kind and name of an object."""

_UNSAID = {"ExternalSecret": "SecretStore"}
"""What is meant where no kind is said, if not an Issuer."""

_SECTIONS = {
    "Gateway": "spec.listeners[].name",
    "GRPCRoute": "spec.rules[].name",
    "HTTPRoute": "spec.rules[].name",
    "Service": "spec.ports[].name",
}
"""What the sectionName beside the name of an object means."""

_DATA: Mapping[str, Sequence[tuple[str, str, Sequence[str]]]] = {
    "BackendTLSPolicy": [("spec.validation.caCertificateRefs[]", "ConfigMap", ("ca.crt",))],
    "Bundle": [("spec.sources[].secret", "Secret", ("ca.crt",))],
    "ClusterIssuer": [("spec.ca.secretName", "Secret", _PAIR)],
    "Gateway": [
        ("spec.listeners[].tls.certificateRefs[]", "Secret", _PAIR),
        ("spec.servers[].tls.credentialName", "Secret", _PAIR),
    ],
    "Ingress": [("spec.tls[].secretName", "Secret", _PAIR)],
    "IngressRoute": [("spec.tls.secretName", "Secret", _PAIR)],
    "Issuer": [("spec.ca.secretName", "Secret", _PAIR)],
    "ServersTransport": [
        ("spec.certificatesSecrets[]", "Secret", _PAIR),
        ("spec.rootCAs[].secret", "Secret", ("ca.crt",)),
        ("spec.rootCAs[].configMap", "ConfigMap", ("ca.crt",)),
    ],
    "TLSOption": [("spec.clientAuth.secretNames[]", "Secret", ("ca.crt",))],
}
"""Fields with the name of a Secret or ConfigMap, and what is taken of it."""


def name_what_exists(manifests: Manifests) -> Iterator[Problem]:
    """Each object that is named exists, and each ConfigMap and Secret has the keys that are taken."""
    for use in uses(manifests):
        namespace = use.namespace or metadata(use.manifest, "namespace")
        keys = _keys(manifests, use.kind, use.name, namespace)
        known = manifests.exists(use.kind, use.name, namespace) or _from_store(manifests, use.kind, use.name)
        if keys is None and not known:
            yield Problem(use.manifest, use.field, f"there is no {use.kind} {use.name}", _DECLARE)
        for key in use.keys:
            if keys is not None and key not in keys:
                what = f"{use.kind} {use.name} has no key {key}, only {', '.join(sorted(keys))}"
                yield Problem(use.manifest, use.field, what, "take one of these, or add the key")


def name_sections_that_exist(manifests: Manifests) -> Iterator[Problem]:
    """Each sectionName is there: a policy of a rule that is not would hold for nothing."""
    for manifest in manifests.objects:
        for path in ("spec.parentRefs[]", "spec.targetRefs[]"):
            for field, reference in find(manifest, path):
                section = reference.get("sectionName")
                names = _sections(manifests, reference, metadata(manifest, "namespace"))
                if section and names is not None and section not in names:
                    what = f"{reference['name']} has no {section}"
                    fix = f"take one of {', '.join(names)}" if names else f"name one of its parts {section}"
                    yield Problem(manifest, f"{field}.sectionName", what, fix)


def _sections(manifests: Manifests, reference: Manifest, namespace: str) -> list[str] | None:
    """Return the names that a sectionName may be, None if they are unknown here."""
    kind = reference.get("kind", "Gateway")
    found = manifests.named(kind, reference["name"], reference.get("namespace") or namespace)
    return [name for _, name in find(found, _SECTIONS[kind])] if found and kind in _SECTIONS else None


def unused(external: Iterable[External], overlays: Iterable[Manifests]) -> list[External]:
    """Return what is declared external and that no overlay names."""
    overlays = list(overlays)
    named = {(use.kind, use.name) for manifests in overlays for use in uses(manifests)}
    named |= {("Pod", pod.name) for manifests in overlays for pod in _selected(manifests)}
    return [each for each in external if (each.kind, each.name) not in named]


def _selected(manifests: Manifests) -> Iterator[External]:
    for policy in manifests.of_kind("NetworkPolicy"):
        if selector := get(policy, "spec.podSelector"):
            yield from external_pods(manifests, selector)


def uses(manifests: Manifests) -> Iterator[Use]:
    """Yield each place that names another object."""
    for pod in manifests.pods:
        yield from _of_pod(pod)
    yield from _of_servers(manifests)
    for manifest in manifests.objects:
        yield from _of_manifest(manifest)
    for ingress in manifests.of_kind("Ingress"):
        yield from _of_nginx(ingress)
    for service in manifests.of_kind("VirtualService"):
        yield from _of_istio(service)


def _keys(manifests: Manifests, kind: str, name: str, namespace: str) -> set[str] | None:
    """Return the keys that a ConfigMap or Secret has or will have, None if it is unknown here."""
    if found := manifests.named(kind, name, namespace):
        return set(content(found)) if kind in ("ConfigMap", "Secret") else set()
    for certificate in manifests.of_kind("Certificate"):
        if kind == "Secret" and get(certificate, "spec.secretName") == name:
            return {*_PAIR} | (set() if is_acme(manifests, certificate) else {"ca.crt"})
    if made := _from_store(manifests, kind, name):
        return _keys_from_store(made)
    return next(
        (set(each.keys) for each in manifests.external if (each.kind, each.name) == (kind, name)), None
    )


def _from_store(manifests: Manifests, kind: str, name: str) -> Manifest | None:
    """Return the ExternalSecret that makes a Secret."""
    for made in manifests.of_kind("ExternalSecret"):
        if kind == "Secret" and secret_from_store(made) == name:
            return made
    return None


def secret_from_store(made: Manifest) -> str:
    """Return the name of the Secret that an ExternalSecret makes."""
    return str(get(made, "spec.target.name") or metadata(made, "name"))


def _keys_from_store(made: Manifest) -> set[str] | None:
    """Return the keys of the Secret that an ExternalSecret makes, None if only the store knows them."""
    if template := get(made, "spec.target.template.data"):
        return set(template)
    known = get(made, "spec.dataFrom") is None and get(made, "spec.target.template") is None
    return {key for _, key in find(made, "spec.data[].secretKey")} if known else None


def is_acme(manifests: Manifests, certificate: Manifest) -> bool:
    """Return whether a public authority issues it: it names no ca.crt, and signs no client certificate."""
    issuer = get(certificate, "spec.issuerRef") or {}
    found = manifests.named(issuer.get("kind", "Issuer"), issuer["name"], metadata(certificate, "namespace"))
    if found is not None:
        return get(found, "spec.acme") is not None
    external = [
        each for each in manifests.external if (each.kind, each.name) == (issuer.get("kind"), issuer["name"])
    ]
    return bool(external and external[0].keys and "ca.crt" not in external[0].keys)


def _of_manifest(manifest: Manifest) -> Iterator[Use]:
    for path, kind in _NAMES.get(manifest["kind"], []):
        for field, name in find(manifest, path):
            if "@" not in name:  # Traefik's names for what other providers have, as in "gzip@file"
                yield Use(manifest, field, kind, name)
    for path in _TYPED.get(manifest["kind"], []):
        for field, reference in find(manifest, path):
            kind = reference.get("kind") or _UNSAID.get(manifest["kind"], "Issuer")
            if kind not in ("Group", "User"):
                yield Use(manifest, field, kind, reference["name"], (), reference.get("namespace"))
    for path, kind, keys in _DATA.get(manifest["kind"], []):
        for field, reference in find(manifest, path):
            named = {"name": reference} if isinstance(reference, str) else reference
            if "name" in named:  # else it is chosen by its labels
                yield Use(manifest, field, named.get("kind", kind), named["name"], keys)


def _of_pod(pod: Pod) -> Iterator[Use]:
    for field, name in pod.find("spec.serviceAccountName"):
        if name != "default":  # which every namespace has
            yield Use(pod.workload, field, "ServiceAccount", name)
    for field, secret in pod.find("spec.imagePullSecrets[]"):
        yield Use(pod.workload, field, "Secret", secret.get("name", ""))
    for field, volume in pod.find("spec.volumes[]"):
        for source in [volume, *(get(volume, "projected.sources") or [])]:
            yield from _of_volume(pod, field, source)
    for field, container in pod.containers:
        for variable in container.get("env") or []:
            where = f"{field}.env[{variable['name']}]"
            yield from _of_key(pod, where, variable.get("valueFrom") or {}, "secretKeyRef", "Secret")
            yield from _of_key(pod, where, variable.get("valueFrom") or {}, "configMapKeyRef", "ConfigMap")
        for source in container.get("envFrom") or []:
            yield from _of_key(pod, f"{field}.envFrom", source, "secretRef", "Secret")
            yield from _of_key(pod, f"{field}.envFrom", source, "configMapRef", "ConfigMap")


def _of_volume(pod: Pod, field: str, source: Manifest) -> Iterator[Use]:
    if claim := get(source, "persistentVolumeClaim.claimName"):
        yield Use(pod.workload, field, "PersistentVolumeClaim", claim)
    for kind, key in (("Secret", "secret"), ("ConfigMap", "configMap")):
        reference = source.get(key)
        if reference and not reference.get("optional"):
            name = reference.get("secretName") or reference.get("name", "")
            keys = [item["key"] for item in reference.get("items") or []]
            yield Use(pod.workload, field, kind, name, keys)


def _of_key(pod: Pod, field: str, source: Manifest, key: str, kind: str) -> Iterator[Use]:
    reference = source.get(key)
    if reference and not reference.get("optional"):
        keys = [reference["key"]] if "key" in reference else []
        yield Use(pod.workload, field, kind, reference.get("name", ""), keys)


def _of_servers(manifests: Manifests) -> Iterator[Use]:
    """The certificates that a server with TLS reads."""
    for server in servers(manifests):
        tls = server.config.server.tls
        found = volume_at(server.pod, server.container, str(tls.directory)) if tls.directory else None
        if found and (name := get(found[1], "secret.secretName")):
            keys = (*_PAIR, "ca.crt") if tls.require_client_certificate else _PAIR
            yield Use(server.pod.workload, found[0], "Secret", name, keys)


def _of_istio(service: Manifest) -> Iterator[Use]:
    for field, gateway in find(service, "spec.gateways[]"):
        if gateway != "mesh":
            name, namespace = istio_name(gateway, service)
            yield Use(service, field, "Gateway", name, (), namespace)
    if limit := annotations(service).get(LIMITED_BY):
        name, namespace = istio_name(limit, service)
        yield Use(service, f"metadata.annotations[{LIMITED_BY}]", "EnvoyFilter", name, (), namespace)


def _of_nginx(ingress: Manifest) -> Iterator[Use]:
    for annotation, keys in (("auth-tls-secret", ("ca.crt",)), ("proxy-ssl-secret", (*_PAIR, "ca.crt"))):
        key = f"nginx.ingress.kubernetes.io/{annotation}"
        if value := annotations(ingress).get(key):
            namespace, _, name = value.rpartition("/")
            yield Use(ingress, f"metadata.annotations[{key}]", "Secret", name, keys, namespace or None)
