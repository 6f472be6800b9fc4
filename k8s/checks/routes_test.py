import pytest

from k8s.checks import routes
from k8s.checks.manifests import title
from k8s.checks.testing import changed, texts

PATHS = [f"/user.UserService/{method}" for method in ("CreateUser", "GetUser", "ListUsers")]


@pytest.mark.parametrize(
    ("overlay", "object_", "path", "value", "field"),
    [
        (
            "staging",
            "IngressRoute/user-service",
            "spec.routes.0.match",
            "Host(`a`) && PathPrefix(`/user.Users/`)",
            "spec.routes",
        ),
        (
            "nginx-ingress",
            "Ingress/user-service",
            "spec.rules.0.http.paths.0.path",
            "/user.Users/",
            "spec.rules",
        ),
    ],
)
def test_path_that_is_misspelt(overlay, object_, path, value, field):
    """Clients would get UNIMPLEMENTED or PERMISSION_DENIED for every call."""
    found = texts(routes.let_every_method_through, changed(overlay, (object_, path, value)))
    assert sorted(found) == [
        f"{object_}: {field}: {each} is not let through; name /user.UserService/ there" for each in PATHS
    ]


@pytest.mark.parametrize(
    ("overlay", "object_", "list_"),
    [
        ("istio", "VirtualService/user-service", "spec.http"),
        ("istio", "VirtualService/user-service-gateway", "spec.http"),
        ("gateway-api", "GRPCRoute/user-service", "spec.rules"),
    ],
)
def test_method_without_a_route(overlay, object_, list_):
    """Without the route for all other methods CreateUser has none."""
    manifests = changed(overlay)
    [found] = [each for each in manifests.objects if title(each) == object_]
    found["spec"][list_.removeprefix("spec.")].pop()
    assert texts(routes.let_every_method_through, manifests) == [
        f"{object_}: {list_}: /user.UserService/CreateUser is not let through; name /user.UserService/ there"
    ]


@pytest.mark.parametrize("pattern", ["*", "/user.UserService/*", "*User*", "*User"])
def test_patterns_of_istio(pattern):
    """A star at the beginning or at the end stands for anything."""
    manifests = changed(
        "istio",
        ("AuthorizationPolicy/user-service", "spec.rules.0.to.0.operation.paths", [pattern]),
        ("AuthorizationPolicy/user-service-gateway", "spec.action", "DENY"),
    )
    taken = {"*": 3, "/user.UserService/*": 3, "*User*": 0, "*User": 2}[pattern]
    assert len(texts(routes.let_every_method_through, manifests)) == 3 - taken


def test_method_that_is_open_to_some():
    """A method may be closed to the gateway, or to callers in the mesh, as long as somebody may call it."""
    policies = {"user-service": ["/user.UserService/GetUser"], "user-service-gateway": PATHS[2:]}
    changes = [
        (f"AuthorizationPolicy/{name}", "spec.rules.0.to.0.operation.paths", paths)
        for name, paths in policies.items()
    ]
    [text] = texts(routes.let_every_method_through, changed("istio", *changes))
    assert "/user.UserService/CreateUser is not let through" in text
