"""The Envoy of the server's own sidecar, as Istio configures it from the policies of the istio overlay.

The mapping is that of istio/istio (release 1.32), in pilot/pkg/security:
    authn/policy_applier.go (PeerAuthentication), authz/builder/builder.go, authz/model/generator.go
"""

import re
from collections.abc import Sequence
from pathlib import Path

import trustme
from cryptography import x509

from grpc_common.testing.certificates import issue
from tests.edges.envoy_tls import take_tls
from tests.edges.objects import Object, fields, of_groups, only
from tests.interop.envoy_proxy import cluster, listener, type_url

MESH = "spiffe://cluster.local/"
"""What the identities of a mesh begin with."""

_PORT = "50051"


def identity(folder: Path, ca: trustme.CA, account: str) -> Path:
    """Make what istiod gives a sidecar: the certificate of its pod's account; return its folder.

    Args:
        folder: where; it must not exist.
        ca: that of the mesh.
        account: NAMESPACE/NAME of a ServiceAccount.

    """
    namespace, name = account.split("/")
    uri = x509.UniformResourceIdentifier(f"{MESH}ns/{namespace}/sa/{name}")
    folder.mkdir()
    for file, text in issue(ca, uri).items():
        (folder / file).write_bytes(text)
    return folder


def sidecar(objects: Sequence[Object], port: int, own: Path) -> tuple[Object, list[Object]]:
    """Return the listener, for calls to the server's port from others, and the cluster of the server.

    Args:
        objects: of the overlay.
        port: of the server, on 127.0.0.1.
        own: the folder with the sidecar's identity.

    Raises:
        ValueError: an object says something that is not translated.

    """
    objects = of_groups(objects, "security.istio.io", known=["AuthorizationPolicy", "PeerAuthentication"])
    everything = {"match": {"prefix": "/"}, "route": {"cluster": "server", "timeout": "0s"}}
    result = listener([{"name": "all", "domains": ["*"], "routes": [everything]}], stream_idle_timeout="0s")
    [manager] = result["filter_chains"][0]["filters"]
    manager["typed_config"]["http_filters"].insert(0, _allow(objects))
    _take_mutual_tls(only(objects, "PeerAuthentication"), result, own)
    return result, [cluster("server", [port], connect_timeout="10s")]


def _take_mutual_tls(peers: Object, listener: Object, own: Path) -> None:
    spec = fields(peers["spec"], "PeerAuthentication user-service", "selector", "mtls", "portLevelMtls")
    assert spec["mtls"] == {"mode": "STRICT"}
    assert _PORT not in spec["portLevelMtls"]
    take_tls(listener, own, peers=MESH)


def _allow(objects: Sequence[Object]) -> Object:
    """Return the filter that lets through what some rule of some policy allows."""
    policies = {
        f"{policy['metadata']['name']}-{number}": _policy(policy, rule)
        for policy in objects
        if policy["kind"] == "AuthorizationPolicy"
        for number, rule in enumerate(_rules(policy))
    }
    rules = {"action": "ALLOW", "policies": policies}
    return {"name": "rbac", "typed_config": {"@type": type_url("filters.http.rbac.v3.RBAC"), "rules": rules}}


def _rules(policy: Object) -> list[Object]:
    """Return the rules about the port that takes calls."""
    where = f"AuthorizationPolicy {policy['metadata']['name']}"
    spec = fields(policy["spec"], where, "selector", "action", "rules")
    assert spec["selector"] == {"matchLabels": {"app.kubernetes.io/name": "user-service"}}, where
    assert spec["action"] == "ALLOW", where
    for rule in spec["rules"]:
        fields(rule, where, "from", "to")
        for to in rule["to"]:
            fields(fields(to, where, "operation")["operation"], where, "ports", "paths")
    return [rule for rule in spec["rules"] if any(_PORT in to["operation"]["ports"] for to in rule["to"])]


def _policy(policy: Object, rule: Object) -> Object:
    where, namespace = f"AuthorizationPolicy {policy['metadata']['name']}", policy["metadata"]["namespace"]
    paths = [path for to in rule["to"] for path in to["operation"]["paths"]]
    sources = [fields(each, where, "source")["source"] for each in rule["from"]]
    accounts = [
        name for each in sources for name in fields(each, where, "serviceAccounts")["serviceAccounts"]
    ]
    return {
        "permissions": [{"url_path": {"path": _path(path)}} for path in paths],
        "principals": [_principal(account, namespace) for account in accounts],
    }


def _path(pattern: str) -> Object:
    return {"prefix": pattern[:-1]} if pattern.endswith("*") else {"exact": pattern}


def _principal(account: str, namespace: str) -> Object:
    where, name = account.split("/") if "/" in account else (namespace, account)
    regex = f"spiffe://.+/ns/{re.escape(where)}/(.+/|)sa/{re.escape(name)}(/.+)?"
    return {"authenticated": {"principal_name": {"safe_regex": {"regex": regex}}}}
