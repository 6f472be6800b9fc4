import pytest

from k8s.checks import selection
from k8s.checks.testing import REMOVED, changed, texts

LABEL = "app.kubernetes.io/name"
DEPLOYMENT = "Deployment/user-service"
WRONG = {"matchLabels": {LABEL: "users"}}


@pytest.mark.parametrize(
    ("overlay", "manifest", "field"),
    [
        ("prod", "PodDisruptionBudget/user-service", "spec.selector"),
        ("prod", "NetworkPolicy/user-service", "spec.podSelector"),
        ("prod", "PodMonitor/user-service", "spec.selector"),
        ("istio", "AuthorizationPolicy/user-service", "spec.selector"),
        ("istio", "PeerAuthentication/user-service", "spec.selector"),
        ("istio", "DestinationRule/user-service", "spec.workloadSelector"),
    ],
)
def test_selector_of_no_pod(overlay, manifest, field):
    """A selector that matches no pod is told, with the labels that it asks for."""
    [text] = texts(selection.select_pods, changed(overlay, (manifest, field, WRONG)))
    assert text == (
        f"{manifest}: {field}: {WRONG} matches no pod; "
        "give the pods these labels, or select the ones they have"
    )


def test_service_of_no_pod():
    """A Service has labels alone as its selector."""
    manifests = changed("prod", ("Service/user-service", "spec.selector", {LABEL: "users"}))
    [text] = texts(selection.select_pods, manifests)
    assert text.startswith(f"Service/user-service: spec.selector: {{'{LABEL}': 'users'}} matches no pod; ")


def test_service_in_another_namespace():
    """Pods are selected in the selector's own namespace."""
    manifests = changed("prod", ("Service/user-service", "metadata.namespace", "other"))
    assert len(texts(selection.select_pods, manifests)) == 1


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ({"operator": "In", "values": ["user-service", "x"]}, True),
        ({"operator": "In", "values": ["x"]}, False),
        ({"operator": "NotIn", "values": ["x"]}, True),
        (
            {"operator": "NotIn", "values": ["user-service", "user-service-migrate", "user-service-smoke"]},
            False,
        ),
        ({"operator": "Exists"}, True),
        ({"operator": "DoesNotExist"}, False),
        ({"operator": "exists", "key": "absent"}, False),
    ],
)
def test_expressions(expression, found):
    """Expressions match as Kubernetes says, which has no more operators; all pods of prod have the label."""
    selector = {"matchExpressions": [{"key": LABEL, **expression}]}
    manifests = changed("prod", ("NetworkPolicy/user-service", "spec.podSelector", selector))
    assert (texts(selection.select_pods, manifests) == []) is found


def test_peers_are_not_selectors():
    """The callers that a NetworkPolicy lets in are not in the overlay."""
    path = "spec.ingress.0.from.0.podSelector.matchLabels"
    manifests = changed("prod", ("NetworkPolicy/user-service", path, {"caller": "elsewhere"}))
    assert texts(selection.select_pods, manifests) == []


def test_service_monitor_of_no_service():
    """A ServiceMonitor selects Services, by their own labels."""
    manifests = changed(
        "prod",
        ("PodMonitor/user-service", "spec", {"selector": WRONG}),
        ("PodMonitor/user-service", "kind", "ServiceMonitor"),
    )
    assert texts(selection.select_services, manifests) == [
        f"ServiceMonitor/user-service: spec.selector: {WRONG} matches no Service; select one's labels"
    ]


def test_deployment_that_does_not_select_its_pods():
    """The API server would refuse it."""
    manifests = changed("prod", (DEPLOYMENT, "spec.selector", WRONG))
    [text] = texts(selection.select_own_pods, manifests)
    assert text.startswith(f"{DEPLOYMENT}: spec.selector: {WRONG} does not match the template's labels")


def test_spread_over_other_pods():
    """A spread constraint that does not count the pod itself spreads nothing."""
    path = "spec.template.spec.topologySpreadConstraints.0.labelSelector"
    [text] = texts(selection.select_own_pods, changed("prod", (DEPLOYMENT, path, WRONG)))
    assert text.startswith(
        f"{DEPLOYMENT}: spec.template.spec.topologySpreadConstraints[0].labelSelector: "
        f"{WRONG} does not match the pod itself"
    )


def test_anti_affinity_to_nobody():
    """An anti-affinity that matches no pod keeps no two apart."""
    terms = "spec.template.spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution"
    manifests = changed("prod", (DEPLOYMENT, f"{terms}.0.podAffinityTerm.labelSelector", WRONG))
    [text] = texts(selection.keep_to_pods, manifests)
    assert text.startswith(f"{DEPLOYMENT}: {terms}[0].podAffinityTerm.labelSelector: {WRONG} matches no pod")


def test_service_that_sends_calls_to_the_migration():
    """A Job's pods with a Service's labels would get its calls."""
    path = f"spec.template.metadata.labels[{LABEL}]"
    manifests = changed("prod", ("Job/user-service-migrate", path, "user-service"))
    assert texts(selection.send_no_calls_to_jobs, manifests) == [
        f"Service/{name}: spec.selector: matches the pods of Job/user-service-migrate, which serve no calls; "
        "give those pods another label"
        for name in ("user-service", "user-service-headless")
    ]


def test_service_without_a_selector():
    """A Service may lead to endpoints that no pod is behind."""
    manifests = changed("prod", ("Service/user-service", "spec.selector", REMOVED))
    assert texts(selection.select_pods, manifests) == []


def test_service_monitor_of_a_service():
    """One that selects a Service is fine."""
    spec = {"selector": {"matchLabels": {LABEL: "user-service"}}}
    changes = [
        ("PodMonitor/user-service", "spec", spec),
        ("PodMonitor/user-service", "kind", "ServiceMonitor"),
    ]
    assert texts(selection.select_services, changed("prod", *changes)) == []


def test_affinity_to_pods_that_are_there():
    """An affinity to another workload's pods is fine."""
    terms = "spec.template.spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution"
    migration = {"labelSelector": {"matchLabels": {LABEL: "user-service-migrate"}}}
    assert texts(selection.keep_to_pods, changed("prod", (DEPLOYMENT, terms, [migration]))) == []
    assert (
        len(texts(selection.keep_to_pods, changed("prod", (DEPLOYMENT, terms, [{"labelSelector": WRONG}]))))
        == 1
    )


@pytest.mark.parametrize(
    ("workload", "path"),
    [
        ("Deployment/user-service", "spec.selector.matchLabels"),
        ("PodDisruptionBudget/user-service", "spec.selector.matchLabels"),
        ("NetworkPolicy/user-service", "spec.podSelector.matchLabels"),
        ("Service/user-service", "spec.selector"),
    ],
)
@pytest.mark.parametrize("label", ["app.kubernetes.io/version", "helm.sh/chart"])
def test_selector_with_a_label_that_changes(workload, path, label):
    """A Deployment with another selector is refused, and a Service would send no calls in a rollout."""
    manifests = changed("prod", (workload, f"{path}[{label}]", "1.2.3"))
    [text] = texts(selection.select_by_what_stays, manifests)
    field = path.removesuffix(".matchLabels")
    assert text.startswith(f"{workload}: {field}[{label}]: changes with a version or a tool, ")


@pytest.mark.parametrize(("version", "found"), [("1.2.3", 1), ("000000000000", 0), ("abcdef", 1)])
def test_version_that_does_not_run(version, found):
    """The label agrees with the image, by its tag or by its digest."""
    label = "spec.template.metadata.labels[app.kubernetes.io/version]"
    manifests = changed("prod", ("Deployment/user-service", label, version))
    assert len(texts(selection.tell_the_version_that_runs, manifests)) == found


def test_version_that_is_a_tag():
    """An image by tag has its version there."""
    deployment, spec = "Deployment/user-service", "spec.template"
    manifests = changed(
        "prod",
        (deployment, f"{spec}.metadata.labels[app.kubernetes.io/version]", "1.2.3"),
        (deployment, f"{spec}.spec.containers.0.image", "registry.example.com/user-service:1.2.3"),
    )
    assert texts(selection.tell_the_version_that_runs, manifests) == []
