import pytest

from k8s.checks import timeouts
from k8s.checks.testing import REMOVED, changed, texts

VIRTUAL = "VirtualService/user-service"
GET, LIST, CREATE = (f"/user.UserService/{name}" for name in ("GetUser", "ListUsers", "CreateUser"))
UNARY = "{} s ends calls of {}, which may take 30 s; 30 s or more"
STREAM = "{} s ends calls of {}, which may take 300 s; 300 s or more"


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("0.timeout", "29s", f"spec.http[get-user].timeout: {UNARY.format(29, GET)}"),
        ("2.timeout", "29s", f"spec.http[other-methods].timeout: {UNARY.format(29, CREATE)}"),
        ("1.timeout", "4m59s", f"spec.http[list-users].timeout: {STREAM.format(299, LIST)}"),
        (
            "1.retries.perTryTimeout",
            "30s",
            f"spec.http[list-users].retries.perTryTimeout: {STREAM.format(30, LIST)}",
        ),
    ],
)
def test_mesh_that_ends_calls_early(path, value, text):
    """A route's timeout is not shorter than the client's deadline, or than the longest stream."""
    manifests = changed("istio", (VIRTUAL, f"spec.http.{path}", value))
    assert texts(timeouts.outlast_calls_in_a_mesh, manifests) == [f"{VIRTUAL}: {text}"]


@pytest.mark.parametrize("value", [REMOVED, "0s", "310s"])
def test_mesh_without_a_timeout(value):
    """No timeout ends nothing."""
    manifests = changed("istio", (VIRTUAL, "spec.http.1.timeout", value))
    assert texts(timeouts.outlast_calls_in_a_mesh, manifests) == []


def test_tries_that_do_not_fit():
    """Three tries of 10 s fill a timeout of 30 s: the last would never end."""
    manifests = changed("istio", (VIRTUAL, "spec.http.0.retries.perTryTimeout", "10s"))
    [text] = texts(timeouts.leave_time_for_each_try, manifests)
    assert text == (
        f"{VIRTUAL}: spec.http[get-user].retries.perTryTimeout: 3 tries take up to 30 s, "
        "and the timeout is 30 s; make it shorter, or the timeout longer"
    )


@pytest.mark.parametrize(("value", "seconds"), [("299", 299), (REMOVED, 60)])
@pytest.mark.parametrize("direction", ["read", "send"])
def test_nginx_that_ends_streams_early(direction, value, seconds):
    """ingress-nginx's default of 60 s ends a quiet stream, and so would any value below the longest."""
    key = f"metadata.annotations[nginx.ingress.kubernetes.io/proxy-{direction}-timeout]"
    manifests = changed("nginx-ingress", ("Ingress/user-service", key, value))
    assert texts(timeouts.outlast_calls_behind_nginx, manifests) == [
        f"Ingress/user-service: {key}: {STREAM.format(seconds, LIST)}"
    ]


def test_nginx_with_a_timeout_that_it_does_not_read():
    """ingress-nginx takes a bare number of seconds, and drops an annotation with a unit."""
    key = "metadata.annotations[nginx.ingress.kubernetes.io/proxy-read-timeout]"
    manifests = changed("nginx-ingress", ("Ingress/user-service", key, "60s"))
    assert texts(timeouts.outlast_calls_behind_nginx, manifests) == [
        f"Ingress/user-service: {key}: '60s' is no number; write seconds, without a unit"
    ]


def test_nginx_of_a_path_without_streams():
    """Where no stream passes, the client's deadline is what counts."""
    change = ("Ingress/user-service", "spec.rules.0.http.paths.0.path", GET)
    annotations = ("Ingress/user-service", "metadata.annotations", {})
    assert texts(timeouts.outlast_calls_behind_nginx, changed("nginx-ingress", change, annotations)) == []


def test_traefik_that_ends_streams_early():
    """A stream's head may come as late as the stream's end."""
    field = "spec.forwardingTimeouts.responseHeaderTimeout"
    manifests = changed("prod", ("ServersTransport/user-service", field, "30s"))
    assert texts(timeouts.outlast_calls_behind_traefik, manifests) == [
        f"ServersTransport/user-service: {field}: {STREAM.format(30, LIST)}"
    ]


@pytest.mark.parametrize(
    ("value", "texts_of_rules"),
    [
        ("0s", []),
        ("60s", [f"spec.rules[list-users] (requestTimeout): {STREAM.format(60, LIST)}"]),
        (
            REMOVED,
            [
                f"spec.rules[get-user] (requestTimeout): {UNARY.format(15, GET)}",
                f"spec.rules[list-users] (requestTimeout): {STREAM.format(15, LIST)}",
                f"spec.rules[other-methods] (requestTimeout): {UNARY.format(15, CREATE)}",
            ],
        ),
    ],
)
def test_gateway_that_ends_calls_early(value, texts_of_rules):
    """Without a policy's requestTimeout Envoy ends calls after 15 s."""
    change = ("BackendTrafficPolicy/user-service", "spec.timeout.http.requestTimeout", value)
    found = texts(timeouts.outlast_calls_behind_a_gateway, changed("gateway-api", change))
    assert sorted(found) == sorted(f"GRPCRoute/user-service: {text}" for text in texts_of_rules)


def test_gateway_policy_that_replaces_another():
    """Without mergeType the policy of a rule replaces that of the Gateway, timeouts included."""
    change = ("BackendTrafficPolicy/user-service-get-user", "spec.mergeType", REMOVED)
    found = texts(timeouts.outlast_calls_behind_a_gateway, changed("gateway-api", change))
    assert found
    assert all(text.startswith("GRPCRoute/user-service: spec.rules[get-user]") for text in found)


def test_server_that_is_gone_before_health_checks_hear_of_it():
    """Behind active health checks a server drains for interval x threshold and a second more."""
    check = {"interval": "5s", "unhealthyThreshold": 2}
    change = ("BackendTrafficPolicy/user-service", "spec.healthCheck.active", check)
    [text] = texts(timeouts.leave_draining_servers_in_time, changed("gateway-api", change))
    assert text == (
        "BackendTrafficPolicy/user-service: spec.healthCheck.active: "
        "finds an unhealthy server in 10 s, drain.delay 0 s ends earlier; "
        "set DRAIN_DELAY to 11 s or more, or check more often"
    )


@pytest.mark.parametrize(
    ("rule", "name", "change"),
    [
        (timeouts.outlast_calls_in_a_mesh, "istio", (VIRTUAL, "spec.http.0.timeout", "30s")),
        (timeouts.outlast_calls_in_a_mesh, "istio", (VIRTUAL, "spec.http.1.retries.perTryTimeout", "300s")),
        (timeouts.leave_time_for_each_try, "istio", (VIRTUAL, "spec.http.0.retries.perTryTimeout", "9s")),
        (timeouts.leave_time_for_each_try, "istio", (VIRTUAL, "spec.http.0.retries.attempts", REMOVED)),
        (timeouts.leave_time_for_each_try, "istio", (VIRTUAL, "spec.http.0.timeout", REMOVED)),
        (
            timeouts.outlast_calls_behind_nginx,
            "nginx-ingress",
            (
                "Ingress/user-service",
                "metadata.annotations[nginx.ingress.kubernetes.io/proxy-read-timeout]",
                "300",
            ),
        ),
        (timeouts.outlast_calls_behind_nginx, "nginx-ingress", ("Ingress/user-service", "spec.rules", [])),
        (
            timeouts.outlast_calls_behind_traefik,
            "prod",
            ("ServersTransport/user-service", "spec.forwardingTimeouts", {"responseHeaderTimeout": "300s"}),
        ),
        (timeouts.outlast_calls_behind_traefik, "prod", ("ServersTransport/user-service", "spec", {})),
        (
            timeouts.outlast_calls_behind_a_gateway,
            "gateway-api",
            ("BackendTrafficPolicy/user-service", "spec.timeout.http.requestTimeout", "300s"),
        ),
    ],
)
def test_timeouts_that_just_fit(rule, name, change):
    """The bounds themselves are allowed."""
    assert texts(rule, changed(name, change)) == []


@pytest.mark.parametrize(("delay", "problems"), [("9s", 1), ("10s", 0)])
def test_health_checks_with_the_defaults_of_envoy_gateway(delay, problems):
    """Envoy Gateway checks every 3 s, and three times."""
    env = [
        {"name": "CONFIG_FILE", "value": "/etc/user-service/config.yaml"},
        {"name": "DRAIN_DELAY", "value": delay},
    ]
    check = ("BackendTrafficPolicy/user-service", "spec.healthCheck.active", {"type": "GRPC"})
    server = ("Deployment/user-service", "spec.template.spec.containers.0.env", env)
    found = texts(timeouts.leave_draining_servers_in_time, changed("gateway-api", check, server))
    assert len(found) == problems


def test_gateway_that_ends_tries_of_streams_early():
    """A try of a stream may take as long as the stream: the first user may come at its end."""
    change = ("BackendTrafficPolicy/user-service-list-users", "spec.retry.perRetry", {"timeout": "8s"})
    [text] = texts(timeouts.outlast_calls_behind_a_gateway, changed("gateway-api", change))
    assert (
        text == f"GRPCRoute/user-service: spec.rules[list-users] (perRetry.timeout): {STREAM.format(8, LIST)}"
    )
