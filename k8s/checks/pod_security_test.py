import pytest

from k8s.checks import pod_security
from k8s.checks.rendered import OVERLAYS
from k8s.checks.testing import REMOVED, changed, overlay, texts

DEPLOYMENT = "Deployment/user-service"
POD = "spec.template.spec"
PATH = f"{POD}.containers.0"
FIELD = f"{POD}.containers[user-service]"


NAMESPACE = "Namespace/user-service"
LABEL = "pod-security.kubernetes.io/"


@pytest.mark.parametrize("mode", ["enforce", "audit", "warn"])
@pytest.mark.parametrize(
    ("suffix", "value", "what"),
    [
        ("", REMOVED, "is missing; set it to restricted"),
        ("", "baseline", "is baseline; set it to restricted"),
        ("-version", REMOVED, "is latest, and an upgrade of the cluster may refuse pods that it took; "),
        ("-version", "latest", "is latest, and an upgrade of the cluster may refuse pods that it took; "),
    ],
)
def test_namespace_whose_pods_the_api_server_does_not_restrict(mode, suffix, value, what):
    """It enforces, audits and warns, by a version that does not change with the cluster's."""
    field = f"metadata.labels[{LABEL}{mode}{suffix}]"
    [text] = texts(pod_security.have_the_api_server_restrict_pods, changed("prod", (NAMESPACE, field, value)))
    assert text.startswith(f"{NAMESPACE}: {field}: {what}")


@pytest.mark.parametrize("name", OVERLAYS)
def test_api_server_restricts_by_the_standard_that_is_checked(name):
    """What the lint passes the API server takes, and the other way round."""
    [namespace] = overlay(name).of_kind("Namespace")
    labels = namespace["metadata"]["labels"]
    for mode in ("enforce", "audit", "warn"):
        assert labels[f"{LABEL}{mode}-version"] == pod_security.STANDARD


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        ("hostNetwork", True, "is true; allowed is nothing or false"),
        ("hostPID", True, "is true; allowed is nothing or false"),
        ("hostIPC", True, "is true; allowed is nothing or false"),
        ("securityContext.seccompProfile.type", "Unconfined", 'is "Unconfined"; allowed is nothing or'),
        ("securityContext.appArmorProfile.type", "Unconfined", 'is "Unconfined"; allowed is nothing or'),
        ("securityContext.seLinuxOptions.type", "spc_t", 'is "spc_t"; allowed is nothing or'),
        ("securityContext.seLinuxOptions.user", "system_u", 'is "system_u"; allowed is nothing or'),
        ("securityContext.seLinuxOptions.role", "system_r", 'is "system_r"; allowed is nothing or'),
        ("securityContext.windowsOptions.hostProcess", True, "is true; allowed is nothing or false"),
    ],
)
def test_pod_that_is_not_restricted(path, value, what):
    """Each control of the standard that is about the pod is checked."""
    [text] = texts(pod_security.restrict_pods, changed("prod", (DEPLOYMENT, f"{POD}.{path}", value)))
    assert text.startswith(f"{DEPLOYMENT}: {POD}.{path}: {what}")


def test_volume_of_the_node():
    """Volumes are of the kinds that stay in the pod, or come from a claim."""
    volume = {"name": "v", "hostPath": {"path": "/"}}
    [text] = texts(pod_security.restrict_pods, changed("prod", (DEPLOYMENT, f"{POD}.volumes.0", volume)))
    assert text.startswith(
        f"{DEPLOYMENT}: {POD}.volumes[v]: hostPath reaches out of the pod; take one of configMap, "
    )


def test_unsafe_sysctl():
    """Only sysctls of the pod's own namespaces may be set."""
    sysctls = [{"name": "net.ipv4.tcp_syncookies", "value": "1"}, {"name": "kernel.msgmax", "value": "1"}]
    change = (DEPLOYMENT, f"{POD}.securityContext.sysctls", sysctls)
    [text] = texts(pod_security.restrict_pods, changed("prod", change))
    field = f"{POD}.securityContext.sysctls[kernel.msgmax].name"
    assert text == f"{DEPLOYMENT}: {field}: kernel.msgmax is unsafe; leave it out"


def test_app_armor_by_annotation():
    """The old form of the profile counts too."""
    key = "container.apparmor.security.beta.kubernetes.io/user-service"
    change = (DEPLOYMENT, f"spec.template.metadata.annotations[{key}]", "unconfined")
    allowed = (DEPLOYMENT, f"spec.template.metadata.annotations[{key}]", "localhost/ours")
    assert texts(pod_security.restrict_pods, changed("prod", allowed)) == []
    assert texts(pod_security.restrict_pods, changed("prod", change)) == [
        f"{DEPLOYMENT}: spec.template.metadata.annotations[{key}]: is unconfined; set it to runtime/default"
    ]


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        ("securityContext.privileged", True, "is true"),
        ("securityContext.allowPrivilegeEscalation", True, "is true"),
        ("securityContext.allowPrivilegeEscalation", REMOVED, "is missing"),
        ("securityContext.readOnlyRootFilesystem", REMOVED, "is missing"),
        ("securityContext.procMount", "Unmasked", 'is "Unmasked"'),
        ("securityContext.seccompProfile.type", "Unconfined", 'is "Unconfined"'),
        ("securityContext.appArmorProfile.type", "Unconfined", 'is "Unconfined"'),
        ("securityContext.seLinuxOptions.type", "spc_t", 'is "spc_t"'),
        ("securityContext.windowsOptions.hostProcess", True, "is true"),
        ("securityContext.capabilities.drop", ["KILL"], "is not [ALL]"),
        ("securityContext.capabilities.add", ["NET_BIND_SERVICE", "SYS_TIME"], "adds SYS_TIME"),
        ("securityContext.runAsNonRoot", False, "is not true, here or for the pod"),
        ("securityContext.runAsUser", 0, "is 0, root"),
        ("livenessProbe.httpGet.host", "10.0.0.1", 'is "10.0.0.1"'),
        ("startupProbe.tcpSocket.host", "10.0.0.1", 'is "10.0.0.1"'),
        ("lifecycle.preStop.httpGet.host", "10.0.0.1", 'is "10.0.0.1"'),
    ],
)
def test_container_that_is_not_restricted(path, value, what):
    """Each control of the standard that is about a container is checked."""
    [text] = texts(pod_security.restrict_containers, changed("prod", (DEPLOYMENT, f"{PATH}.{path}", value)))
    assert text.startswith(f"{DEPLOYMENT}: {FIELD}.{path}: {what}; ")


def test_port_of_the_node():
    """A container takes no port of its node."""
    assert (
        texts(pod_security.restrict_containers, changed("prod", (DEPLOYMENT, f"{PATH}.ports.0.hostPort", 0)))
        == []
    )
    [text] = texts(
        pod_security.restrict_containers, changed("prod", (DEPLOYMENT, f"{PATH}.ports.0.hostPort", 80))
    )
    assert text.endswith("hostPort: 80 is a port of the node; leave it out")


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("runAsNonRoot", REMOVED, "runAsNonRoot"),
        ("runAsUser", 0, "runAsUser"),
        ("seccompProfile", REMOVED, "seccompProfile.type"),
    ],
)
def test_context_of_the_pod_holds_for_its_containers(path, value, field):
    """What a container does not say itself, the pod says for it."""
    manifests = changed("prod", (DEPLOYMENT, f"{POD}.securityContext.{path}", value))
    [text] = texts(pod_security.restrict_containers, manifests)
    assert text.startswith(f"{DEPLOYMENT}: {FIELD}.securityContext.{field}: ")


def test_context_of_a_container_is_enough():
    """A container may say so for itself."""
    manifests = changed(
        "prod",
        (DEPLOYMENT, f"{POD}.securityContext.runAsNonRoot", REMOVED),
        (DEPLOYMENT, f"{PATH}.securityContext.runAsNonRoot", True),
    )
    assert texts(pod_security.restrict_containers, manifests) == []


@pytest.mark.parametrize("kind", ["initContainers", "ephemeralContainers"])
def test_other_containers_are_restricted_too(kind):
    """Containers that run before the server, and those that people add, are as bound as it is."""
    manifests = changed("prod", (DEPLOYMENT, f"{POD}.{kind}", [{"name": "other"}]))
    found = texts(pod_security.restrict_containers, manifests)
    assert len(found) == 3
    assert all(text.startswith(f"{DEPLOYMENT}: {POD}.{kind}[other].securityContext.") for text in found)


@pytest.mark.parametrize("workload", [DEPLOYMENT, "Job/user-service-migrate"])
def test_variables_of_services(workload):
    """A Service called `metrics` would set METRICS_PORT."""
    manifests = changed("prod", (workload, f"{POD}.enableServiceLinks", REMOVED))
    assert texts(pod_security.read_no_service_links, manifests) == [
        f"{workload}: {POD}.enableServiceLinks: is not false; set it to false"
    ]


def test_token_that_nobody_needs():
    """A pod whose account has no role needs no token; the pod's word overrules its account's."""
    manifests = changed("prod", (DEPLOYMENT, f"{POD}.automountServiceAccountToken", True))
    [text] = texts(pod_security.hold_no_needless_token, manifests)
    assert text == (
        f"{DEPLOYMENT}: {POD}.automountServiceAccountToken: "
        "is not false, and no binding gives user-service a role; set it to false"
    )
    bound = ("RoleBinding/user-service-resolver", "subjects.0.name", "user-service")
    manifests = changed("prod", (DEPLOYMENT, f"{POD}.automountServiceAccountToken", True), bound)
    assert texts(pod_security.hold_no_needless_token, manifests) == []
    manifests = changed("prod", (DEPLOYMENT, f"{POD}.automountServiceAccountToken", REMOVED))
    assert texts(pod_security.hold_no_needless_token, manifests) == []
