import pytest

from k8s.checks import images
from k8s.checks.lint import RULES
from k8s.checks.manifests import get, title
from k8s.checks.rendered import OVERLAYS
from k8s.checks.servers import servers
from k8s.checks.testing import overlay, texts
from services.user.storage.postgresql_migration import PATIENCE


def test_all_overlays_are_checked():
    """The test was given every overlay of the repository."""
    assert {"dev", "gateway-api", "istio", "nginx-ingress", "prod", "staging", "traefik"} <= {*OVERLAYS}


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_overlay_has_the_server(name):
    """Rules about settings have something to look at: the one server, and its configuration."""
    [server] = servers(overlay(name))
    assert server.pod.workload["metadata"]["name"] == "user-service"


@pytest.mark.parametrize("name", ["staging", "prod"])
def test_migration_says_why_before_its_job_ends(name):
    """`server migrate` gives up a lock, and says who has it, in half the time that Kubernetes gives it."""
    [job] = [each for each in overlay(name).objects if title(each) == "Job/user-service-migrate"]
    assert job["spec"]["activeDeadlineSeconds"] / 2 >= PATIENCE


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_overlay_has_a_problem(name):
    """No rule finds anything in any overlay."""
    assert [text for rule in RULES for text in texts(rule, overlay(name))] == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_images_have_digests(name):
    """What runs is named by digest, that of others too: a tag is another image tomorrow."""
    assert texts(images.have_a_digest, overlay(name)) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_containers_have_all_probes(name):
    """What runs for ever has time to start, gets calls when it is ready, and is restarted when it hangs."""
    found = [
        f"{title(pod.workload)}: {field} has no {probe}"
        for pod in overlay(name).pods
        if pod.workload["kind"] in ("DaemonSet", "Deployment", "StatefulSet")
        for field, container in pod.find("spec.containers[]")
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
        if probe not in container
    ]
    assert found == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_secrets_are_not_in_the_repository(name):
    """No overlay makes a Secret, and no database takes whoever comes: each has a password of its own."""
    assert overlay(name).of_kind("Secret") == []
    containers = [container for pod in overlay(name).pods for _, container in pod.containers]
    variables = {variable["name"] for each in containers for variable in each.get("env") or []}
    assert "POSTGRES_HOST_AUTH_METHOD" not in variables


def test_staging_is_production_with_other_values():
    """Staging has every object of production, and no other: what is new in one is in both."""
    prod, staging = ([title(each) for each in overlay(name).objects] for name in ("prod", "staging"))
    assert {*staging} ^ {*prod} == {"Namespace/user-service", "Namespace/user-service-staging"}


def overlay_namespace(name):
    """Return the namespace of an overlay."""
    [namespace] = overlay(name).of_kind("Namespace")
    return namespace["metadata"]["name"]


@pytest.mark.parametrize("name", ["staging", "prod"])
def test_public_certificate_of_an_environment(name):
    """What staging tries out uses up none of the certificates that the authority gives production's host."""
    certificate = overlay(name).named("Certificate", "user-service-edge", overlay_namespace(name))
    assert get(certificate, "spec.issuerRef") == {"kind": "ClusterIssuer", "name": f"letsencrypt-{name}"}


@pytest.mark.parametrize("name", ["staging", "prod"])
def test_names_of_the_namespace(name):
    """The server's certificate and every rule name the namespace of their own environment."""
    namespace = overlay_namespace(name)
    certificate = overlay(name).named("Certificate", "user-service", namespace)
    assert f"user-service-headless.{namespace}.svc" in get(certificate, "spec.dnsNames")
    groups = [group for rule in overlay(name).of_kind("PrometheusRule") for group in rule["spec"]["groups"]]
    expressions = [rule["expr"] for group in groups for rule in group["rules"]]
    assert expressions
    assert [each for each in expressions if f'namespace="{namespace}"' not in each] == []


def test_developers_may_ask():
    """The developers' server has reflection and debug logs, and else what production has."""
    [server] = servers(overlay("dev"))
    assert (server.config.server.reflection, server.config.logging.level) == (True, "debug")
    assert server.config.server.default_stream_deadline == 300


@pytest.mark.parametrize("name", OVERLAYS)
def test_services_take_both_families_and_keep_calls_in_their_zone(name):
    """Each Service of the server has IPv6 where the cluster has; all versions know the name of the policy."""
    manifests = overlay(name)
    [server] = servers(manifests)
    services = {each["metadata"]["name"]: each["spec"] for each in manifests.services_of(server.pod)}
    assert {"user-service", "user-service-headless"} <= services.keys()
    assert {spec.get("ipFamilyPolicy") for spec in services.values()} == {"PreferDualStack"}
    balanced = [spec for spec in services.values() if spec.get("clusterIP") != "None"]
    assert {spec.get("trafficDistribution") for spec in balanced} == {"PreferClose"}


RECOMMENDED = {"app.kubernetes.io/part-of": "user-service", "app.kubernetes.io/managed-by": "kustomize"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_all_objects_say_whom_they_belong_to(name):
    """Each object and each pod does, and nothing that can't be changed: no selector, no volume claim."""
    manifests = overlay(name)
    for labels in [each["metadata"].get("labels", {}) for each in manifests.objects]:
        assert labels.items() >= RECOMMENDED.items()
    for pod in manifests.pods:
        assert pod.labels.items() >= RECOMMENDED.items()
        fixed = [pod.workload["spec"].get(field) for field in ("selector", "volumeClaimTemplates")]
        assert not [label for label in RECOMMENDED if label in str(fixed)]


def test_pods_of_production_have_users_of_their_own():
    """Servers and migration are nobody on their nodes; base leaves it out for older ones."""
    found = {name: {pod.spec.get("hostUsers") for pod in overlay(name).pods} for name in OVERLAYS}
    assert {name for name, values in found.items() if values == {False}} == {"prod", "staging"}
