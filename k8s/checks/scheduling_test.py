import pytest

from k8s.checks import scheduling
from k8s.checks.testing import REMOVED, changed, overlay, texts

POD = "spec.template.spec"
FIELD = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
TERMS = f"{POD}.{FIELD}"
WORKLOADS = ["Deployment/user-service", "Job/user-service-migrate"]


def term(**values):
    """Return a term with an expression for each label of a platform: os, arch."""
    keys = {f"kubernetes.io/{key}": each for key, each in values.items()}
    expressions = [{"key": key, "operator": "In", "values": each} for key, each in keys.items()]
    return {"matchExpressions": expressions}


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize(
    ("terms", "label", "able"),
    [
        ([term(os=["linux"])], "kubernetes.io/arch", "amd64 or arm64"),
        ([term(os=["linux"], arch=["amd64", "s390x"])], "kubernetes.io/arch", "amd64 or arm64"),
        ([term(arch=["amd64"])], "kubernetes.io/os", "linux"),
        ([term(os=["linux"], arch=["amd64"]), term(arch=["arm64"])], "kubernetes.io/os", "linux"),
    ],
)
def test_pod_on_a_node_of_another_platform(workload, terms, label, able):
    """Each of the terms, of which a node needs to fulfil only one, asks for what the image is built for."""
    [text] = texts(scheduling.run_where_the_image_does, changed("prod", (workload, TERMS, terms)))
    assert text == (
        f"{workload}: {TERMS}: nodes whose {label} is not {able} are allowed, too; "
        f"ask for {label} in each term"
    )


def test_pod_on_any_node():
    """Without an affinity a pod is told of both."""
    manifests = changed("prod", (WORKLOADS[0], f"{POD}.affinity.nodeAffinity", REMOVED))
    assert len(texts(scheduling.run_where_the_image_does, manifests)) == 2


def test_node_selector():
    """The short form is as good."""
    selector = {"kubernetes.io/os": "linux", "kubernetes.io/arch": "arm64"}
    change = (WORKLOADS[0], f"{POD}.affinity.nodeAffinity", REMOVED)
    manifests = changed("prod", change, (WORKLOADS[0], f"{POD}.nodeSelector", selector))
    assert texts(scheduling.run_where_the_image_does, manifests) == []


def test_other_images():
    """The trial's PostgreSQL is built for more."""
    assert overlay("istio").of_kind("StatefulSet")
    assert texts(scheduling.run_where_the_image_does, overlay("istio")) == []
