"""Pods keep to Kubernetes' Pod Security Standard "restricted", and to a little more.

The standard: https://kubernetes.io/docs/concepts/security/pod-security-standards/.
"""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from k8s.checks.manifests import Manifest, Manifests, Pod, Problem, find, get, metadata
from k8s.checks.servers import pods_of_programs

STANDARD = "v1.34"
"""The Kubernetes whose standard is checked here."""

_LABEL = "pod-security.kubernetes.io/"
_PINNED = re.compile(r"v1\.\d+")

_OFF = (None, False)
_UNSET = (None, "")
_PROFILES = (None, "RuntimeDefault", "Localhost")

_ANY_CONTEXT: Mapping[str, tuple[Any, ...]] = {
    "securityContext.appArmorProfile.type": _PROFILES,
    "securityContext.seccompProfile.type": _PROFILES,
    "securityContext.seLinuxOptions.type": (
        *_UNSET,
        "container_t",
        "container_init_t",
        "container_kvm_t",
        "container_engine_t",
    ),
    "securityContext.seLinuxOptions.user": _UNSET,
    "securityContext.seLinuxOptions.role": _UNSET,
    "securityContext.windowsOptions.hostProcess": _OFF,
}

_POD = {**_ANY_CONTEXT, "hostNetwork": _OFF, "hostPID": _OFF, "hostIPC": _OFF}

_HANDLERS = ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop")

_CONTAINER = {
    **_ANY_CONTEXT,
    "securityContext.privileged": _OFF,
    "securityContext.procMount": (None, "Default"),
    "securityContext.allowPrivilegeEscalation": (False,),
    # Ours, not the standard's.
    "securityContext.readOnlyRootFilesystem": (True,),
    **{
        f"{handler}.{action}.host": _UNSET for handler, action in product(_HANDLERS, ("httpGet", "tcpSocket"))
    },
}

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}

_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
}

_APP_ARMOR = "container.apparmor.security.beta.kubernetes.io/"


def have_the_api_server_restrict_pods(manifests: Manifests) -> Iterator[Problem]:
    """Each namespace has the API server keep its pods to a version of the standard."""
    for namespace in manifests.of_kind("Namespace"):
        labels = get(namespace, "metadata.labels") or {}
        for mode in ("enforce", "audit", "warn"):
            level, version = labels.get(_LABEL + mode), labels.get(f"{_LABEL}{mode}-version", "latest")
            if level != "restricted":
                field = f"metadata.labels[{_LABEL}{mode}]"
                yield Problem(namespace, field, f"is {level or 'missing'}", "set it to restricted")
            if not _PINNED.fullmatch(version):
                field = f"metadata.labels[{_LABEL}{mode}-version]"
                what = f"is {version}, and an upgrade of the cluster may refuse pods that it took"
                yield Problem(namespace, field, what, f"set it to {STANDARD}, which the rules here check")


def restrict_pods(manifests: Manifests) -> Iterator[Problem]:
    """Each pod keeps to the standard, in what its spec says of the pod."""
    for pod in manifests.pods:
        yield from _values(pod, "spec", pod.spec, _POD)
        for field, volume in find(pod.spec, "volumes[]"):
            for kind in volume.keys() - _VOLUMES - {"name"}:
                what = f"{kind} reaches out of the pod"
                yield pod.problem(f"spec.{field}", what, f"take one of {', '.join(sorted(_VOLUMES))}")
        for field, sysctl in find(pod.spec, "securityContext.sysctls[].name"):
            if sysctl not in _SYSCTLS:
                yield pod.problem(f"spec.{field}", f"{sysctl} is unsafe", "leave it out")
        for key, profile in (get(pod.template, "metadata.annotations") or {}).items():
            if key.startswith(_APP_ARMOR) and not profile.startswith(("runtime/default", "localhost/")):
                fix = "set it to runtime/default"
                yield pod.problem(f"metadata.annotations[{key}]", f"is {profile}", fix)


def restrict_containers(manifests: Manifests) -> Iterator[Problem]:
    """Each container keeps to the standard, and can't write to its image."""
    for pod in manifests.pods:
        for kind in ("initContainers", "containers", "ephemeralContainers"):
            for field, container in find(pod.spec, f"{kind}[]"):
                yield from _values(pod, f"spec.{field}", container, _CONTAINER)
                yield from _capabilities(pod, f"spec.{field}.securityContext.capabilities", container)
                yield from _inherited(pod, f"spec.{field}.securityContext", container)
                for where, port in find(container, "ports[].hostPort"):
                    if port:
                        what = f"{port} is a port of the node"
                        yield pod.problem(f"spec.{field}.{where}", what, "leave it out")


def _values(
    pod: Pod, field: str, part: Manifest, allowed: Mapping[str, tuple[Any, ...]]
) -> Iterator[Problem]:
    for path, values in allowed.items():
        value = get(part, path)
        if value not in values:
            what = "is missing" if value is None else f"is {json.dumps(value)}"
            fix = " or ".join("nothing" if value is None else json.dumps(value) for value in values)
            yield pod.problem(f"{field}.{path}", what, f"allowed is {fix}")


def _capabilities(pod: Pod, field: str, container: Manifest) -> Iterator[Problem]:
    capabilities = get(container, "securityContext.capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []):
        yield pod.problem(f"{field}.drop", "is not [ALL]", "drop ALL")
    added = {*(capabilities.get("add") or [])} - {"NET_BIND_SERVICE"}
    if added:
        yield pod.problem(f"{field}.add", f"adds {', '.join(sorted(added))}", "leave them out")


def _inherited(pod: Pod, field: str, container: Manifest) -> Iterator[Problem]:
    """What the pod's context may say for its containers."""

    def effective(key: str) -> Any:
        own = get(container, f"securityContext.{key}")
        return get(pod.spec, f"securityContext.{key}") if own is None else own

    if effective("runAsNonRoot") is not True:
        yield pod.problem(f"{field}.runAsNonRoot", "is not true, here or for the pod", "set it to true")
    if effective("runAsUser") == 0:
        yield pod.problem(f"{field}.runAsUser", "is 0, root", "take another number, such as 65532")
    if effective("seccompProfile.type") is None:
        fix = "set it to RuntimeDefault"
        yield pod.problem(f"{field}.seccompProfile.type", "is missing, here and for the pod", fix)


def read_no_service_links(manifests: Manifests) -> Iterator[Problem]:
    """Our programs get no variables of Services: METRICS_PORT of a Service `metrics` is a setting."""
    for pod in pods_of_programs(manifests):
        if pod.spec.get("enableServiceLinks") is not False:
            yield pod.problem("spec.enableServiceLinks", "is not false", "set it to false")


def hold_no_needless_token(manifests: Manifests) -> Iterator[Problem]:
    """A pod gets the token of its account only if a binding gives that account a role."""
    bound = {
        subject["name"]
        for binding in manifests.of_kind("ClusterRoleBinding", "RoleBinding")
        for _, subject in find(binding, "subjects[]")
    }
    for pod in manifests.pods:
        name = pod.spec.get("serviceAccountName", "default")
        account = manifests.named("ServiceAccount", name, metadata(pod.workload, "namespace")) or {}
        mounts = pod.spec.get("automountServiceAccountToken", account.get("automountServiceAccountToken"))
        if mounts is not False and name not in bound:
            what = f"is not false, and no binding gives {name} a role"
            yield pod.problem("spec.automountServiceAccountToken", what, "set it to false")
