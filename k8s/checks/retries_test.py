import pytest

from k8s.checks import retries
from k8s.checks.methods import UNSAFE
from k8s.checks.testing import REMOVED, changed, overlay, texts, without
from k8s.checks.traefik import traefik_answers

CREATE = "/user.UserService/CreateUser"
VIRTUAL = "VirtualService/user-service"
GRPC_ROUTE = "GRPCRoute/user-service"
MIDDLEWARE = "Middleware/user-service-retry"


def test_create_user_is_the_unsafe_method():
    """What may be repeated is said in the .proto file."""
    assert UNSAFE == [CREATE]


@pytest.mark.parametrize(("value", "found"), [(2, "is 2"), (REMOVED, "is missing, so Istio takes 2")])
def test_mesh_that_repeats_create_user(value, found):
    """The route that takes CreateUser has no retries, and says so: Istio's default is two."""
    manifests = changed("istio", (VIRTUAL, "spec.http.2.retries.attempts", value))
    [text] = texts(retries.repeat_nothing_unsafe_in_a_mesh, manifests)
    assert text == (
        f"{VIRTUAL}: spec.http[other-methods].retries.attempts: {found}, and the route may take {CREATE}, "
        "which must not be repeated; set it to 0"
    )


@pytest.mark.parametrize(
    ("match", "problems"),
    [
        (None, 1),
        ([{"uri": {"prefix": "/user.UserService/"}}], 1),
        ([{"uri": {"regex": "/user[.]UserService/(Get|Create)User"}}], 1),
        ([{"headers": {"x": {"exact": "y"}}}], 1),
        ([{"uri": {"exact": "/user.UserService/GetUser"}}], 0),
        ([{"uri": {"prefix": "/other.Service/"}}], 0),
        ([{"uri": {"regex": "/user[.]UserService/Create"}}], 0),
        ([{"uri": {"exact": "/a"}}, {"uri": {"exact": CREATE}, "headers": {"x": {"exact": "y"}}}], 1),
    ],
)
def test_routes_that_may_take_create_user(match, problems):
    """A route with retries before the one without: any that may take the call is told."""
    first = {"name": "first", "retries": {"attempts": 2}} | ({"match": match} if match else {})
    last = {"name": "last", "retries": {"attempts": 0}}
    manifests = changed("istio", (VIRTUAL, "spec.http", [first, last]))
    assert len(texts(retries.repeat_nothing_unsafe_in_a_mesh, manifests)) == problems


def test_routes_after_the_one_that_takes_all():
    """A route that is never reached is no problem."""
    routes = [
        {"match": [{"uri": {"exact": CREATE}}], "retries": {"attempts": 0}},
        {"retries": {"attempts": 2}},
    ]
    assert (
        texts(retries.repeat_nothing_unsafe_in_a_mesh, changed("istio", (VIRTUAL, "spec.http", routes))) == []
    )


@pytest.mark.parametrize("missing", ["user-service", "user-service-headless"])
def test_name_that_a_mesh_does_not_route(missing):
    """Calls to a name that no VirtualService has are repeated as Istio does by default."""
    hosts = [name for name in ("user-service", "user-service-headless") if name != missing]
    [text] = texts(retries.route_every_name_in_a_mesh, changed("istio", (VIRTUAL, "spec.hosts", hosts)))
    assert text == (
        f"Service/{missing}: metadata.name: is no host of a VirtualService, so Istio repeats {CREATE} twice; "
        "add it to the VirtualService's hosts"
    )


def test_mesh_without_routes():
    """Without a VirtualService that is so for every name; without a mesh nobody repeats anything."""
    assert len(texts(retries.route_every_name_in_a_mesh, without("istio", VIRTUAL))) == 2
    assert texts(retries.route_every_name_in_a_mesh, overlay("prod")) == []


def test_long_names_that_a_mesh_routes():
    """A host may be written as DNS has it."""
    hosts = [f"{name}.user-service.svc.cluster.local" for name in ("user-service", "user-service-headless")]
    assert texts(retries.route_every_name_in_a_mesh, changed("istio", (VIRTUAL, "spec.hosts", hosts))) == []


def test_nginx_that_repeats_what_was_sent():
    """`non_idempotent` repeats POST, and every gRPC call is one."""
    key = "nginx.ingress.kubernetes.io/configuration-snippet"
    snippet = "grpc_next_upstream error timeout non_idempotent;"
    change = ("Ingress/user-service", f"metadata.annotations[{key}]", snippet)
    [text] = texts(retries.repeat_nothing_unsafe_behind_nginx, changed("nginx-ingress", change))
    assert text == (
        f"Ingress/user-service: metadata.annotations[{key}]: "
        f"non_idempotent repeats every call, {CREATE} too; leave it out"
    )


@pytest.mark.parametrize("option", [{"retryNonIdempotentMethod": True}, {"status": ["503"]}])
def test_traefik_that_repeats_what_was_sent(option):
    """A middleware that repeats more than what was not sent stays off the routes of CreateUser."""
    change = (MIDDLEWARE, "spec.retry", {"attempts": 3, **option})
    [text] = texts(retries.repeat_nothing_unsafe_behind_traefik, changed("prod", change))
    assert text.startswith(
        "IngressRoute/user-service: spec.routes[0].middlewares: user-service-retry repeats "
        f"{CREATE}, which must not be repeated; "
    )
    rule = "Host(`grpc.example.com`) && Path(`/user.UserService/GetUser`)"
    route = ("IngressRoute/user-service", "spec.routes.0.match", rule)
    assert texts(retries.repeat_nothing_unsafe_behind_traefik, changed("prod", change, route)) == []


@pytest.mark.parametrize(
    ("rule", "answers"),
    [
        ("PathPrefix(`/user.UserService/`)", {True}),
        ("PathPrefix(`/x`, `/user.`)", {True}),
        ("Path(`/user.UserService/CreateUser`)", {True}),
        ('Path("/user.UserService/GetUser")', {False}),
        ("PathRegexp(`^/user[.].*/Create`)", {True}),
        ("Host(`a`)", {True, False}),
        ("Host(`a`) && !Path(`/user.UserService/CreateUser`)", {False}),
        ("Path(`/a`) || Path(`/b`) || PathPrefix(`/`)", {True}),
        ("!(Path(`/a`) || Host(`b`)) && Method(`POST`)", {True, False}),
        ("(Path(`/a`))", {False}),
        ("Path(`/user.UserService/CreateUser`) || Path(`/a`)", {True}),
        ("Path(`/a`) && PathPrefix(`/`)", {False}),
    ],
)
def test_rules_of_traefik(rule, answers):
    """Rules are read with their operators; whatever is not about the path may be either."""
    assert traefik_answers(rule, CREATE) == answers


@pytest.mark.parametrize(
    "rule", ["Path(`/a`) and Path(`/b`)", "Path(`/a`) Path(`/b`)", "Path(/a)", "Path(`/a`) &&", "!", ""]
)
def test_rules_that_traefik_would_not_read(rule):
    """What is no rule is refused by its text."""
    with pytest.raises(ValueError, match="is no rule of Traefik's"):
        traefik_answers(rule, CREATE)


@pytest.mark.parametrize(
    "change",
    [
        ("BackendTrafficPolicy/user-service-get-user", "spec.targetRefs.0.sectionName", REMOVED),
        ("BackendTrafficPolicy/user-service-get-user", "spec.targetRefs.0.sectionName", "other-methods"),
        ("BackendTrafficPolicy/user-service", "spec.retry", {"numRetries": 1}),
    ],
)
def test_gateway_that_repeats_create_user(change):
    """Retries are for the rules of the reads alone; a policy of the route or the Gateway is for all."""
    [text] = texts(retries.repeat_nothing_unsafe_behind_a_gateway, changed("gateway-api", change))
    policy = change[0].partition("/")[2]
    assert text.startswith(
        f"{GRPC_ROUTE}: spec.rules[other-methods]: BackendTrafficPolicy {policy} repeats {CREATE}; "
    )


@pytest.mark.parametrize(
    ("method", "problems"),
    [
        ({"service": "user.UserService", "method": "CreateUser"}, 1),
        # Of two that match, the one with the longer service takes the call.
        ({"method": "CreateUser"}, 0),
        ({"type": "RegularExpression", "service": "user[.]User.*", "method": ".*User"}, 1),
        ({"type": "RegularExpression", "method": "Get.*"}, 0),
        ({"service": "other.Service"}, 0),
        ({"service": "other.LongerService", "method": "CreateUser"}, 0),
        ({"service": "user.UserServic.", "method": "CreateUser"}, 0),
    ],
)
def test_rules_of_a_gateway_that_may_take_create_user(method, problems):
    """The rule with retries is told if it may take CreateUser, however it says so."""
    change = (GRPC_ROUTE, "spec.rules.0.matches", [{"method": method}])
    found = texts(retries.repeat_nothing_unsafe_behind_a_gateway, changed("gateway-api", change))
    assert len(found) == problems


def test_gateway_rule_without_matches_takes_what_is_left():
    """A rule without matches takes every call that no other one does."""
    change = (GRPC_ROUTE, "spec.rules", [{"name": "get-user", "backendRefs": []}])
    [text] = texts(retries.repeat_nothing_unsafe_behind_a_gateway, changed("gateway-api", change))
    assert text.startswith(f"{GRPC_ROUTE}: spec.rules[get-user]: ")


def test_gateway_rule_that_asks_for_headers():
    """A rule with headers may take the call, and so may the next one."""
    match = {"method": {"service": "user.UserService"}, "headers": [{"name": "x", "value": "y"}]}
    change = (GRPC_ROUTE, "spec.rules.0", {"name": "get-user", "matches": [match]})
    assert len(texts(retries.repeat_nothing_unsafe_behind_a_gateway, changed("gateway-api", change))) == 1


@pytest.mark.parametrize(
    ("rule", "name", "change"),
    [
        (
            retries.repeat_nothing_unsafe_behind_nginx,
            "nginx-ingress",
            (
                "Ingress/user-service",
                "metadata.annotations[nginx.ingress.kubernetes.io/configuration-snippet]",
                "grpc_next_upstream error; proxy_next_upstream non_idempotent;",
            ),
        ),
        (
            retries.repeat_nothing_unsafe_behind_traefik,
            "prod",
            ("IngressRoute/user-service", "spec.routes.0.middlewares", [{"name": "of-another-file"}]),
        ),
        (
            retries.repeat_nothing_unsafe_behind_traefik,
            "prod",
            ("IngressRoute/user-service", "spec.routes.0.middlewares", REMOVED),
        ),
        (
            retries.repeat_nothing_unsafe_behind_a_gateway,
            "gateway-api",
            ("BackendTrafficPolicy/user-service", "spec.retry", {"numRetries": 0}),
        ),
    ],
)
def test_what_repeats_nothing(rule, name, change):
    """What repeats no call that was sent is fine on every route."""
    assert texts(rule, changed(name, change)) == []
