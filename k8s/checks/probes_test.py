import pytest

from k8s.checks import probes
from k8s.checks.testing import REMOVED, changed, texts

DEPLOYMENT = "Deployment/user-service"
PATH = "spec.template.spec.containers.0"
FIELD = f"{DEPLOYMENT}: spec.template.spec.containers[user-service]"


@pytest.mark.parametrize(
    ("probe", "value", "right"),
    [
        ("livenessProbe", "readiness", "liveness"),
        ("startupProbe", "readiness", "liveness"),
        ("readinessProbe", "liveness", "readiness"),
        ("readinessProbe", "ready", "readiness"),
    ],
)
def test_probe_that_asks_for_something_else(probe, value, right):
    """A lost database must restart no pod, and a pod without its database must get no calls."""
    manifests = changed("prod", (DEPLOYMENT, f"{PATH}.{probe}.grpc.service", value))
    assert texts(probes.ask_for_what_follows, manifests) == [
        f"{FIELD}.{probe}.grpc.service: is {value}; set it to {right}"
    ]


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_probe_that_is_missing(probe):
    """A server has all three."""
    [text] = texts(probes.ask_for_what_follows, changed("dev", (DEPLOYMENT, f"{PATH}.{probe}", REMOVED)))
    assert text.startswith(f"{FIELD}.{probe}.grpc.service: is missing; ")


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
@pytest.mark.parametrize(("value", "seconds"), [(REMOVED, 1), (2, 2)])
def test_probe_that_does_not_wait(probe, value, seconds):
    """A second is Kubernetes' default, and too short for a server that has little of a CPU."""
    manifests = changed("dev", (DEPLOYMENT, f"{PATH}.{probe}.timeoutSeconds", value))
    assert texts(probes.wait_for_an_answer, manifests) == [
        (
            f"{FIELD}.{probe}.timeoutSeconds: {seconds} s is less than a server takes that has little CPU; "
            "3 or more"
        )
    ]
