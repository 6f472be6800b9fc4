import pytest

from k8s.checks import images, references
from k8s.checks.lint import EXTERNAL, RULES, read_external
from k8s.checks.manifests import title
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
    [job] = [each for each in overlay(name).of_kind("Job") if title(each) == "Job/user-service-migrate"]
    assert job["spec"]["activeDeadlineSeconds"] / 2 >= PATIENCE


@pytest.mark.parametrize("name", OVERLAYS)
def test_no_overlay_has_a_problem(name):
    """No rule finds anything in any overlay."""
    assert [text for rule in RULES for text in texts(rule, overlay(name))] == []


@pytest.mark.parametrize("name", ["staging", "prod"])
def test_images_have_digests(name):
    """What is released is named by digest."""
    assert texts(images.have_a_digest, overlay(name)) == []


def test_nothing_is_declared_external_for_nobody():
    """Each entry of external.yaml is named by an overlay, and says why it is there."""
    external = read_external(EXTERNAL)
    assert references.unused(external, map(overlay, OVERLAYS)) == []
    assert all(each.why for each in external)
