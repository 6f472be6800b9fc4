"""A real Prometheus scrapes real servers as the PodMonitor says, and answers what is asked of it."""

import asyncio
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import REGISTRY, CollectorRegistry
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

import grpc_common
from grpc_common.core.calls import Call, CallType, Method
from grpc_common.observe.metrics import client_metrics, server_metrics
from grpc_common.observe.metrics_page import serve_metrics
from grpc_common.testing.certificates import CertificateDirectory
from k8s.checks.manifests import Manifests, get
from k8s.checks.monitoring import (
    EXTERNAL,
    adapter_query,
    adapter_rule,
    dashboard,
    dashboard_queries,
    groups,
    metric_name,
    nodes,
    rules,
    selector_text,
    selectors,
    variable_queries,
)
from k8s.checks.prometheus import PATIENCE, running_prometheus, scrape_config
from k8s.checks.rendered import load
from tests.programs import running_server

PROD = Manifests(load("prod"))
RULE = adapter_rule(PROD)
SERIES = "grpc_server_handled_total"
BUSY, BROKEN, IDLE, CALLER = "pod-0", "pod-1", "pod-2", "pod-3"
OPERATIONS = Path("docs/operations.md")
CALLS = 200
"""GetUser calls that BUSY gets while it is scraped."""

DASHBOARD = dashboard(PROD)
PANELS = dashboard_queries(DASHBOARD)
RULES = {
    f"{rule.get('alert') or rule['record']} {number}": rule["expr"] for number, rule in enumerate(rules(PROD))
}
DOCUMENTED = dict(
    enumerate(re.findall(r"^```promql\n(.*?)^```", OPERATIONS.read_text(), re.MULTILINE | re.DOTALL))
)
ADAPTER = adapter_query(RULE, SERIES, "user-service", BUSY, BROKEN, IDLE)
QUERIES = (
    {"adapter": ADAPTER} | RULES | PANELS | {f"operations.md {n}": query for n, query in DOCUMENTED.items()}
)

each_query = pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """Run a Prometheus that has seen a busy pod, one that fails, one without calls, and a caller."""
    folder = tmp_path_factory.mktemp("prometheus")
    certificates = CertificateDirectory(folder / "certs", trustme.CA())
    with ExitStack() as stack:
        # It takes connections, and never answers.
        database = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        url = f"postgresql://user@127.0.0.1:{database.getsockname()[1]}/users"
        servers = [
            stack.enter_context(server)
            for server in (
                running_server(folder / "busy.db"),
                running_server(url, DATABASE_CONNECT_TIMEOUT="1s", MAX_CONCURRENT_CALLS="1"),
                running_server(folder / "idle.db", TLS_DIRECTORY=str(certificates.path)),
            )
        ]
        (monitor,) = PROD.of_kind("PodMonitor")
        deployment = PROD.named("Deployment", "user-service", "user-service")
        ports = [server.port("metrics_port") for server in servers]
        ports.append(stack.enter_context(calling(servers[0].target)))
        scraped = scrape_config(monitor, get(deployment, "spec.template"), ports)
        prometheus = stack.enter_context(running_prometheus(folder, scraped, rules=groups(PROD)))
        call_busy(prometheus, stack.enter_context(servers[0].channel()))
        call_broken(prometheus, stack.enter_context(servers[1].channel()))
        prometheus.wait_for(f'sum(up{{pod=~"{IDLE}|{CALLER}"}})', 2)
        yield prometheus


@contextmanager
def calling(target: str) -> Iterator[int]:
    """Open a channel to a server, by its name; yield the port of its own metrics."""
    registry, opened, ended = CollectorRegistry(), threading.Event(), threading.Event()

    async def keep_open() -> None:
        name = target.replace("127.0.0.1", "localhost")
        async with grpc_common.channel(f"dns:///{name}", observers=[client_metrics(registry)]):
            opened.set()
            await asyncio.to_thread(ended.wait)

    port, stop = serve_metrics(0, registry)
    thread = threading.Thread(target=asyncio.run, args=[keep_open()])
    thread.start()
    try:
        assert opened.wait(PATIENCE)
        yield port
    finally:
        ended.set()
        thread.join()
        stop()


def call_busy(prometheus, channel):
    """Make calls of each kind, and as many health checks again."""
    users, health = UserServiceStub(channel), health_pb2_grpc.HealthStub(channel)
    user = users.CreateUser(pb.CreateUserRequest(name="Ada", email="ada@example.com"))
    list(users.ListUsers(pb.ListUsersRequest()))
    users.GetUser(pb.GetUserRequest(id=user.id))
    health.Check(health_pb2.HealthCheckRequest())
    handled = f'sum by (grpc_method) ({SERIES}{{pod="{BUSY}", grpc_method="%s"}})'
    prometheus.wait_for(handled % "Check", 1)
    for _ in range(CALLS):
        users.GetUser(pb.GetUserRequest(id=user.id))
        health.Check(health_pb2.HealthCheckRequest())
    prometheus.wait_for(handled % "GetUser", 1 + CALLS)


def call_broken(prometheus, channel):
    """Have a call refused while another waits for the database in vain."""

    def call(_number):
        with pytest.raises(grpc.RpcError) as caught:
            UserServiceStub(channel).GetUser(pb.GetUserRequest(id="019b2f60-7c00-7000-8000-000000000000"))
        return caught.value.code()

    both = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
    codes = []
    with ThreadPoolExecutor() as threads:
        # On a busy machine the second may come when the first, which waits for a second, has ended.
        while set(codes) != both and len(codes) < 10:
            codes += threads.map(call, range(2))
    assert set(codes) == both
    prometheus.wait_for(f'sum({SERIES}{{pod="{BROKEN}", grpc_service="user.UserService"}})', len(codes))


def test_adapter_tells_the_calls_that_were_made(prometheus):
    """It is the mean of a minute; health checks don't count, and a pod without calls has 0."""
    # First of all tests, or the calls would be out of that minute.
    rates = {labels["pod"]: rate for labels, rate in prometheus.results(QUERIES["adapter"], 3)}
    # The rate goes on for up to a scrape after the last one; health checks would double it.
    assert CALLS / 60 <= rates[BUSY] < 1.8 * CALLS / 60
    assert rates.keys() == {BUSY, BROKEN, IDLE}
    assert rates[IDLE] == 0


def test_pods_have_the_labels_that_queries_select(prometheus):
    """The PodMonitor gives each pod's series its namespace, its name, and the job of the alerts."""
    (labels,) = prometheus.series(f'up{{pod="{BUSY}"}}')
    ours = {"namespace": "user-service", "job": "user-service", "container": "user-service"}
    assert labels.items() >= ours.items()


@each_query
def test_queries_select_what_servers_export(prometheus, query):
    """No name of a metric, and no label or value, is other than a server has it."""
    for selector in selectors(prometheus.parse(query)):
        if metric_name(selector) not in EXTERNAL:
            assert prometheus.series(selector_text(selector)), selector_text(selector)


def test_what_others_export_is_named(prometheus):
    """No name is declared external that a server exports, or that no query has."""
    trees = [prometheus.parse(query) for query in QUERIES.values()]
    assert {metric_name(each) for tree in trees for each in selectors(tree)} >= EXTERNAL
    assert not any(prometheus.series(name) for name in EXTERNAL)


@each_query
def test_queries_group_by_labels_that_are_there(prometheus, query):
    """A label that is misspelled would add everything up."""
    for aggregation in nodes(prometheus.parse(query), "aggregation"):
        assert not aggregation["without"]
        for selector in selectors(aggregation["expr"]):
            for labels in prometheus.series(selector_text(selector)):
                assert set(aggregation["grouping"]) <= set(labels)


@each_query
def test_codes_are_spelled_as_servers_spell_them(prometheus, query):
    """A code that no server has would never be counted."""
    known = codes_as_exported()
    for selector in selectors(prometheus.parse(query)):
        for matcher in selector["matchers"]:
            if matcher["name"] == "grpc_code":
                assert set(matcher["value"].split("|")) <= known


def codes_as_exported():
    """Return the label of every status."""
    method = Method("test.Codes", "Call", CallType.UNARY)
    for code in grpc.StatusCode:
        server_metrics().ended(Call(method, code=code))
    samples = (sample for metric in REGISTRY.collect() for sample in metric.samples)
    return {sample.labels["grpc_code"] for sample in samples if "grpc_code" in sample.labels}


@each_query
def test_queries_can_be_evaluated(prometheus, query):
    """Prometheus answers each."""
    prometheus.query(query)


@pytest.mark.parametrize("title", PANELS)
def test_panels_show_something(prometheus, title):
    """Each panel has data, and names each line by labels that it has."""
    results = prometheus.results(PANELS[title], 1)
    (legend,) = (
        target["legendFormat"]
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
        if f"{panel['title']} {target['refId']}" == title
    )
    for labels, _ in results:
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= set(labels)


def test_variables_have_values(prometheus):
    """The dashboard finds the namespace and the pods."""
    values = [
        sorted({labels[label] for labels in prometheus.series(selector)})
        for selector, label in variable_queries(DASHBOARD)
    ]
    assert values == [["user-service"], [BUSY, BROKEN, IDLE, CALLER]]


def test_adapter_finds_the_series(prometheus):
    """The rule discovers the counter of calls in all pods, and makes the autoscaler's metric of it."""
    found = prometheus.series(RULE["seriesQuery"])
    assert {labels["pod"] for labels in found} == {BUSY, BROKEN, IDLE}
    (autoscaler,) = PROD.of_kind("HorizontalPodAutoscaler")
    wanted = [metric["pods"]["metric"]["name"] for metric in get(autoscaler, "spec.metrics")[1:]]
    assert {re.sub(RULE["name"]["matches"], RULE["name"]["as"], labels["__name__"]) for labels in found} == {
        *wanted
    }
