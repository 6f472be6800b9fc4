import pytest

from k8s.checks import timing
from k8s.checks.testing import REMOVED, changed, texts

DEPLOYMENT = "Deployment/user-service"
POD = "spec.template.spec"
PATH = f"{POD}.containers.0"
FIELD = f"{POD}.containers[user-service]"


def with_variables(**variables):
    """Return the change of dev's Deployment that gives the server variables."""
    variables |= {"CONFIG_FILE": "/etc/user-service/config.yaml"}
    env = [{"name": name, "value": value} for name, value in variables.items()]
    return DEPLOYMENT, f"{PATH}.env", env


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            (DEPLOYMENT, f"{POD}.terminationGracePeriodSeconds", 319),
            "319 s is less than preStop + drain.delay + drain.grace + 5 s = 320 s; ",
        ),
        (
            (DEPLOYMENT, f"{POD}.terminationGracePeriodSeconds", REMOVED),
            "30 s is less than preStop + drain.delay + drain.grace + 5 s = 320 s; ",
        ),
        (
            (DEPLOYMENT, f"{PATH}.lifecycle.preStop.sleep.seconds", 16),
            "330 s is less than preStop + drain.delay + drain.grace + 5 s = 331 s; ",
        ),
        (
            with_variables(DRAIN_DELAY="11s"),
            "330 s is less than preStop + drain.delay + drain.grace + 5 s = 331 s; ",
        ),
        (
            with_variables(DRAIN_GRACE="321s"),
            "330 s is less than preStop + drain.delay + drain.grace + 5 s = 331 s; ",
        ),
    ],
)
def test_server_that_is_killed_in_its_drain(change, found):
    """All that happens between a pod's deletion and its end counts, variables over the file."""
    [text] = texts(timing.end_before_killed, changed("dev", change))
    assert text.startswith(f"{DEPLOYMENT}: {POD}.terminationGracePeriodSeconds: {found}")


@pytest.mark.parametrize(
    ("name", "field", "value", "found"),
    [
        ("dev", "progressDeadlineSeconds", 300, "300 s is not more than {} + the old pod's end = 390 s"),
        ("dev", "minReadySeconds", 300, "600 s is not more than {} + the old pod's end = 680 s"),
        ("prod", "progressDeadlineSeconds", 70, "70 s is not more than {} = 70 s"),
        ("prod", "progressDeadlineSeconds", REMOVED, None),
    ],
)
def test_rollout_that_is_given_up_too_early(name, field, value, found):
    """The deadline covers a slow start, and where pods are replaced one by one the drain of the old one."""
    manifests = changed(name, (DEPLOYMENT, f"spec.{field}", value))
    path = f"{DEPLOYMENT}: spec.progressDeadlineSeconds: "
    what = found and path + found.format("startupProbe + minReadySeconds")
    assert [each.partition(";")[0] for each in texts(timing.roll_out_before_the_deadline, manifests)] == [
        each for each in [what] if each
    ]


def test_drain_that_is_shorter_than_a_connection():
    """Clients that ignore health leave when their connection is too old, so the drain waits for that."""
    [text] = texts(timing.drain_every_connection, changed("dev", with_variables(DRAIN_GRACE="32s")))
    assert text == (
        f"{DEPLOYMENT}: {FIELD}.env: drain.grace 32 s is less than 1.1 x max_connection_age, 33 s; "
        "make drain.grace longer, or max_connection_age shorter"
    )
    change = with_variables(KEEPALIVE_MAX_CONNECTION_AGE="282s")
    assert len(texts(timing.drain_every_connection, changed("dev", change))) == 1


@pytest.mark.parametrize(
    ("variables", "grace", "longest"),
    [({"DRAIN_GRACE": "40s"}, 40, 300), ({"DEFAULT_STREAM_DEADLINE": "10m"}, 310, 600)],
)
def test_drain_that_is_shorter_than_a_stream(variables, grace, longest):
    """Variables over the file: a rollout would end a stream that may take so long by the configuration."""
    [text] = texts(timing.drain_every_stream, changed("dev", with_variables(**variables)))
    assert text == (
        f"{DEPLOYMENT}: {FIELD}.env: drain.grace {grace} s cuts streams, which may take {longest} s; "
        "make it and terminationGracePeriodSeconds longer, or default_stream_deadline shorter"
    )


@pytest.mark.parametrize(("value", "waits"), [(9, 9), (REMOVED, 0)])
def test_rollout_that_goes_on_over_pods_that_fail(value, waits):
    """A version that fails on its first calls would take the place of every pod before anybody knows."""
    manifests = changed("prod", (DEPLOYMENT, "spec.minReadySeconds", value))
    assert texts(timing.stop_at_pods_that_fail, manifests) == [
        (
            f"{DEPLOYMENT}: spec.minReadySeconds: {waits} s is over before a pod that fails at once "
            "is found out, in 10 s; 10 or more"
        )
    ]


def test_rollout_that_ends_the_old_pod_first():
    """With Recreate nothing is left to go back to."""
    manifests = changed("dev", (DEPLOYMENT, "spec.minReadySeconds", REMOVED))
    assert texts(timing.stop_at_pods_that_fail, manifests) == []


@pytest.mark.parametrize(
    ("key", "value", "seconds"),
    [("periodSeconds", 14, 31), ("failureThreshold", 6, 33), ("timeoutSeconds", 21, 31)],
)
def test_readiness_probe_that_is_slower_than_clients(key, value, seconds):
    """A broken server is out of the endpoints before a call of 30 s gives up."""
    manifests = changed("dev", (DEPLOYMENT, f"{PATH}.readinessProbe.{key}", value))
    [text] = texts(timing.leave_broken_servers_in_time, manifests)
    assert text == (
        f"{DEPLOYMENT}: {FIELD}.readinessProbe: period x threshold + timeout is {seconds} s, "
        "clients give up after 30 s; 30 s or less"
    )


def test_startup_probe_that_is_faster_than_the_database():
    """A server that waits for its database when it starts is not killed meanwhile."""
    manifests = changed("dev", with_variables(DATABASE_CONNECT_TIMEOUT="61s"))
    [text] = texts(timing.start_before_killed, manifests)
    assert text == (
        f"{DEPLOYMENT}: {FIELD}.startupProbe: "
        "period x threshold is 60 s, database.connect_timeout is 61 s; more than 61 s"
    )


def test_server_that_cuts_off_pinging_clients():
    """Clients ping every 10 s unless they are told otherwise."""
    [text] = texts(timing.take_clients_pings, changed("dev", with_variables(KEEPALIVE_MIN_TIME="11s")))
    assert text == (
        f"{DEPLOYMENT}: {FIELD}.env: keepalive.min_time 11 s cuts off clients, which ping every 10 s; "
        "10 s or less"
    )


@pytest.mark.parametrize(("value", "problems"), [("4s", 1), ("5s", 0), ("0s", 0), (REMOVED, 0)])
def test_server_that_cuts_off_a_pinging_traefik(value, problems):
    """Traefik pings a server that has said nothing for readIdleTimeout."""
    path = "spec.forwardingTimeouts.readIdleTimeout"
    manifests = changed("prod", ("ServersTransport/user-service", path, value))
    text = f"{path}: 4 s, and a server with keepalive.min_time 5 s hangs up; 5 s or more"
    found = texts(timing.take_proxies_pings, manifests)
    assert found == problems * [f"ServersTransport/user-service: {text}"]


@pytest.mark.parametrize(
    ("variables", "grace", "longest"),
    [
        ({"KEEPALIVE_MAX_CONNECTION_AGE_GRACE": "5s"}, 5, 300),
        ({"DEFAULT_STREAM_DEADLINE": "10m"}, 310, 600),
    ],
)
def test_connection_that_ends_before_its_streams(variables, grace, longest):
    """The guide's grace of 5 s cuts every stream that is longer than 35 s."""
    [text] = texts(timing.let_streams_end, changed("dev", with_variables(**variables)))
    assert text == (
        f"{DEPLOYMENT}: {FIELD}.env: max_connection_age_grace {grace} s cuts streams, "
        f"which may take {longest} s; make it default_stream_deadline or more"
    )


def test_file_counts_as_variables_do():
    """Settings in the ConfigMap are read by grpc_common's own loader."""
    [config_map] = [each["metadata"]["name"] for each in changed("dev").of_kind("ConfigMap")]
    text = "server: {drain: {grace: 10m}, default_stream_deadline: 11m}"
    manifests = changed("dev", (f"ConfigMap/{config_map}", "data[config.yaml]", text))
    assert len(texts(timing.end_before_killed, manifests)) == 1
    assert len(texts(timing.drain_every_stream, manifests)) == 1


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        (timing.end_before_killed, (DEPLOYMENT, f"{POD}.terminationGracePeriodSeconds", 320)),
        (timing.end_before_killed, (DEPLOYMENT, f"{PATH}.lifecycle", REMOVED)),
        (timing.drain_every_connection, with_variables(DRAIN_GRACE="33s")),
        (timing.drain_every_stream, with_variables(DRAIN_GRACE="300s")),
        (timing.leave_broken_servers_in_time, (DEPLOYMENT, f"{PATH}.readinessProbe.timeoutSeconds", 20)),
        (timing.start_before_killed, with_variables(DATABASE_CONNECT_TIMEOUT="60s")),
        (timing.take_clients_pings, with_variables(KEEPALIVE_MIN_TIME="10s")),
        (timing.let_streams_end, with_variables(KEEPALIVE_MAX_CONNECTION_AGE_GRACE="300s")),
    ],
)
def test_times_that_just_fit(rule, change):
    """The bounds themselves are allowed."""
    assert texts(rule, changed("dev", change)) == []


def test_probes_with_the_defaults_of_kubernetes():
    """What a probe does not say is Kubernetes' default: 10 s, 3 times, 1 s."""
    manifests = changed("dev", (DEPLOYMENT, f"{PATH}.readinessProbe", {"grpc": {"port": 50051}}))
    [text] = texts(timing.leave_broken_servers_in_time, manifests)
    assert "period x threshold + timeout is 31 s" in text


def test_pod_that_ends_before_anybody_knows():
    """Endpoints, kube-proxy and ingresses take some seconds to hear of it."""
    manifests = changed("dev", (DEPLOYMENT, f"{PATH}.lifecycle.preStop.sleep.seconds", 4))
    assert texts(timing.take_calls_until_all_have_heard, manifests) == [
        (
            f"{DEPLOYMENT}: {FIELD}.lifecycle.preStop.sleep.seconds: preStop.sleep + drain.delay is 4 s, "
            "and proxies still send it calls; 5 s or more in all"
        )
    ]
    manifests = changed("dev", (DEPLOYMENT, f"{PATH}.lifecycle", REMOVED))
    assert len(texts(timing.take_calls_until_all_have_heard, manifests)) == 1


def test_delay_of_the_drain_counts():
    """A server may wait by itself instead of its pod."""
    manifests = changed("dev", (DEPLOYMENT, f"{PATH}.lifecycle", REMOVED), with_variables(DRAIN_DELAY="5s"))
    assert texts(timing.take_calls_until_all_have_heard, manifests) == []
