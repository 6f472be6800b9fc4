import pytest

from k8s.checks import resources
from k8s.checks.testing import REMOVED, changed, configured, texts

DEPLOYMENT = "Deployment/user-service"
POD = "spec.template.spec"
PATH = f"{POD}.containers.0"
FIELD = f"{POD}.containers[user-service]"


@pytest.mark.parametrize(
    "bound",
    [
        "requests.cpu",
        "requests.memory",
        "requests.ephemeral-storage",
        "limits.memory",
        "limits.ephemeral-storage",
    ],
)
def test_container_without_bounds(bound):
    """Each container says what it needs, and the most that it takes."""
    manifests = changed("prod", (DEPLOYMENT, f"{PATH}.resources.{bound}", REMOVED))
    assert texts(resources.bound_resources, manifests) == [
        f"{DEPLOYMENT}: {FIELD}.resources.{bound}: is missing; measure it, and set it"
    ]


@pytest.mark.parametrize(
    ("workload", "field"),
    [(DEPLOYMENT, FIELD), ("Job/user-service-migrate", f"{POD}.containers[migrate]")],
)
def test_memory_that_is_not_promised(workload, field):
    """What a pod uses above its request makes it the first to go when its node has none left."""
    manifests = changed("prod", (workload, f"{PATH}.resources.requests.memory", "128Mi"))
    [text] = texts(resources.keep_the_memory_that_is_promised, manifests)
    assert text == (
        f"{workload}: {field}.resources.requests.memory: is 128Mi of the limit 256Mi; "
        "what is above ends the pod when its node is full; set it to 256Mi"
    )


def test_the_same_memory_in_another_unit():
    """Quantities are compared, not texts."""
    manifests = changed("prod", (DEPLOYMENT, f"{PATH}.resources.requests.memory", "0.25Gi"))
    assert texts(resources.keep_the_memory_that_is_promised, manifests) == []


@pytest.mark.parametrize(
    ("text", "number"),
    [("256Mi", 2**28), ("100m", 0.1), ("2", 2), (2, 2), ("1e3", 1000), ("1.5G", 1.5e9), ("5k", 5000)],
)
def test_quantities(text, number):
    """Quantities are read as Kubernetes reads them."""
    assert resources.quantity(text) == number


@pytest.mark.parametrize(
    ("name", "settings", "what"),
    [
        ("prod", {"max_recv_msg_size": "10MiB"}, "= 10156Mi; "),
        ("prod", {"max_connections": 2000}, "max_recv_msg_size + 120Mi = 279Mi; "),
        ("dev", {"max_recv_msg_size": "1MiB"}, "= 1125Mi; "),
    ],
)
def test_clients_that_may_send_more_than_the_memory_holds(name, settings, what):
    """Whoever may connect may use all of it at once: a server with 10 MiB a message took 1.1 GiB."""
    [text] = texts(resources.have_memory_for_what_clients_may_send, configured(name, **settings))
    assert text.startswith(f"{DEPLOYMENT}: {FIELD}.resources.limits.memory: 256Mi is less than ")
    assert what in text


def test_server_with_a_limit_of_cpu():
    """A limit stops a server for the rest of a period of 0.1 s, whatever its node has left."""
    manifests = changed("prod", (DEPLOYMENT, f"{PATH}.resources.limits.cpu", "500m"))
    [text] = texts(resources.leave_servers_their_cpu, manifests)
    assert text.startswith(f"{DEPLOYMENT}: {FIELD}.resources.limits.cpu: 500m throttles the server, ")


@pytest.mark.parametrize(("limit", "found"), [("1073Mi", 1), ("1074Mi", 0), ("40Mi", 1)])
def test_volume_and_logs_that_are_more_than_is_allowed(limit, found):
    """The kubelet ends a pod whose volumes and logs are together above the limits of its containers."""
    manifests = changed("dev", (DEPLOYMENT, f"{PATH}.resources.limits.ephemeral-storage", limit))
    text = f"all limits are {limit}, and volumes and logs may take 1074Mi; 1074Mi or more in all"
    assert texts(resources.store_no_more_than_is_allowed, manifests) == found * [
        f"{DEPLOYMENT}: {FIELD}.resources.limits.ephemeral-storage: {text}"
    ]


@pytest.mark.parametrize("empty", [{}, {"medium": "Memory"}])
def test_volume_without_a_bound(empty):
    """A volume may fill neither the node's disk nor the memory of the pod."""
    manifests = changed("dev", (DEPLOYMENT, f"{POD}.volumes", [{"name": "data", "emptyDir": empty}]))
    [text] = texts(resources.store_no_more_than_is_allowed, manifests)
    assert text == (
        f"{DEPLOYMENT}: {POD}.volumes[data].emptyDir.sizeLimit: "
        "is missing, and the volume may fill the node's disk or the pod's memory; set it"
    )
