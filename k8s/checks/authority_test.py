import pytest

from k8s.checks.lint import RULES
from k8s.checks.manifests import find, get
from k8s.checks.testing import overlay, texts

NAMES = {"prod": "user-service-ca", "staging": "user-service-ca-staging"}


def authority(name):
    """Return the objects of an authority."""
    return overlay(f"authority/{name}")


@pytest.mark.parametrize("name", NAMES)
def test_no_authority_has_a_problem(name):
    """The rules of the overlays find nothing in what is applied before them."""
    assert [text for rule in RULES for text in texts(rule, authority(name))] == []


@pytest.mark.parametrize("name", NAMES)
def test_an_overlay_has_its_own_authority(name):
    """Servers, edge and clients of an environment are signed by its authority, and trust no other."""
    manifests, ca = overlay(name), NAMES[name]
    issuers = [
        get(each, "spec.issuerRef")
        for each in manifests.of_kind("Certificate")
        if not get(each, "spec.issuerRef.name").startswith("letsencrypt-")
    ]
    assert issuers == [{"kind": "ClusterIssuer", "name": ca}] * 3
    [transport] = manifests.of_kind("ServersTransport")
    assert get(transport, "spec.rootCAs") == [{"configMap": ca}]
    assert ca in {each["metadata"]["name"] for each in authority(name).of_kind("ClusterIssuer")}


@pytest.mark.parametrize("name", NAMES)
def test_the_bundle_comes_to_the_namespace(name):
    """The authority's own certificate, and nothing else of it, comes to namespaces with the label."""
    [bundle] = authority(name).of_kind("Bundle")
    [namespace] = overlay(name).of_kind("Namespace")
    labels = get(bundle, "spec.target.namespaceSelector.matchLabels")
    assert labels == {NAMES[name]: "true"}
    assert labels.items() <= namespace["metadata"]["labels"].items()
    assert [key for _, key in find(bundle, "spec.sources[].secret.key")] == ["ca.crt"]
    assert bundle["metadata"]["name"] == NAMES[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_key_stays_where_it_is(name):
    """The key of an authority is in cert-manager's namespace alone, and no overlay makes an authority."""
    made = [
        each["metadata"]["namespace"]
        for manifests in (authority(name), overlay(name))
        for each in manifests.of_kind("Certificate")
        if get(each, "spec.isCA")
    ]
    assert made == ["cert-manager"]
    assert overlay(name).of_kind("Issuer", "ClusterIssuer") == []


def test_authorities_share_nothing():
    """Two environments in one cluster have no object of an authority in common."""
    names = [{(each["kind"], each["metadata"]["name"]) for each in authority(name).objects} for name in NAMES]
    assert names[0].isdisjoint(names[1])
    secrets = [
        get(each, "spec.secretName") for name in NAMES for each in authority(name).of_kind("Certificate")
    ]
    assert len({*secrets}) == 2


@pytest.mark.parametrize("name", NAMES)
def test_all_objects_say_whom_they_belong_to(name):
    """As those of the overlays do; what brings the certificate selects by other labels."""
    labels = [get(each, "metadata.labels") for each in authority(name).objects]
    [expected] = {tuple(each.items()) for each in labels}
    assert {*expected} == {
        ("app.kubernetes.io/managed-by", "kustomize"),
        ("app.kubernetes.io/part-of", "user-service"),
    }
