import os
import re
import subprocess
import sys
import urllib.request

import grpc
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from k8s.checks import autoscaling
from k8s.checks.rendered import OVERLAYS
from k8s.checks.testing import REMOVED, changed, overlay, texts, with_variables
from services.user import server

ADAPTER = "ConfigMap/user-service-prometheus-adapter"
DEPLOYMENT = "Deployment/user-service"
SCALER = "HorizontalPodAutoscaler/user-service"
WAIT = 30
"""Seconds, for what takes one."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return the labels of each metric of the server, which runs and has answered a call."""
    environ = {
        "DATABASE_URL": f"sqlite:///{tmp_path_factory.mktemp('data')}/users.db",
        "GRPC_PORT": "0",
        "METRICS_PORT": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, server.__file__]
    with subprocess.Popen(command, env=os.environ | environ, stderr=subprocess.PIPE, text=True) as process:
        try:
            first = process.stderr.readline()
            port, metrics_port = (
                re.search(rf"{name}=(\d+)", first)[1] for name in ("grpc_port", "metrics_port")
            )
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                list(UserServiceStub(channel).ListUsers(pb.ListUsersRequest(), timeout=WAIT))
            with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=WAIT) as page:
                text = page.read().decode()
        finally:
            process.kill()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name: {*sample.labels} for sample in samples}


def test_adapter_takes_what_a_running_server_exports(exported):
    """Each rule of prometheus-adapter takes a metric, with labels, that the server has at /metrics."""
    manifests = overlay("prod")
    assert [rule.produces for rule in autoscaling.adapter_rules(manifests)] == ["grpc_requests_per_second"]
    assert texts(autoscaling.produce_from_exported_metrics, manifests, exported) == []


@pytest.mark.parametrize(
    ("series", "query", "what"),
    [
        ("grpc_handled", "", "no server exports grpc_handled; name a metric of /metrics"),
        (
            "grpc_server_in_flight",
            'sum(x{grpc_code="OK"})',
            "grpc_server_in_flight has no label grpc_code; take one of grpc_method, grpc_service, grpc_type",
        ),
    ],
)
def test_adapter_takes_what_no_server_exports(exported, series, query, what):
    """A rule over a misspelt metric or label is told what is not there."""
    manifests = changed("prod", (ADAPTER, "data[config.yaml]", adapter_config(series, query)))
    field = "data[config.yaml].rules[0].seriesQuery"
    assert texts(autoscaling.produce_from_exported_metrics, manifests, exported) == [
        f"{ADAPTER}: {field}: {what}"
    ]


def adapter_config(series: str, query: str = "", **name: str) -> str:
    """Return the adapter's config.yaml with one rule."""
    name = name or {"as": "calls"}
    rule = {"seriesQuery": f'{series}{{namespace!="",pod!=""}}', "metricsQuery": query, "name": name}
    return yaml.safe_dump({"rules": [rule]})


def test_autoscaler_on_a_metric_that_nothing_produces():
    """Without the rule the autoscaler would never scale, and say so in its status alone."""
    name = {"matches": "^grpc_(.*)_total$", "as": "${1}_per_second"}
    config = adapter_config("grpc_server_handled_total", **name)
    manifests = changed("prod", (ADAPTER, "data[config.yaml]", config))
    [text] = texts(autoscaling.scale_on_produced_metrics, manifests)
    assert text == (
        f"{SCALER}: spec.metrics[1].pods.metric.name: no rule of prometheus-adapter produces "
        "grpc_requests_per_second; the rules here produce: server_handled_per_second"
    )


def test_replicas_beside_an_autoscaler():
    """A number of replicas in the Deployment would undo the autoscaler's with each deployment."""
    manifests = changed("prod", ("Deployment/user-service", "spec.replicas", 3))
    [text] = texts(autoscaling.leave_replicas_to_the_autoscaler, manifests)
    assert text == (
        "Deployment/user-service: spec.replicas: is 3, and HorizontalPodAutoscaler user-service decides it; "
        "leave it out"
    )


@pytest.mark.parametrize(
    ("spec", "least", "allowed"),
    [
        ({"maxUnavailable": 3}, 3, 3),
        ({"maxUnavailable": 0}, 3, 0),
        ({"maxUnavailable": "70%"}, 3, 3),
        ({"minAvailable": 3}, 3, 0),
        ({"minAvailable": "30%"}, 1, 0),
    ],
)
def test_budget_that_lets_all_or_none_go(spec, least, allowed):
    """With the fewest replicas a node's drain must neither take the last pod nor wait for ever."""
    selector = overlay("prod").named("PodDisruptionBudget", "user-service", "user-service")["spec"][
        "selector"
    ]
    manifests = changed(
        "prod",
        ("PodDisruptionBudget/user-service", "spec", {**spec, "selector": selector}),
        (SCALER, "spec.minReplicas", least),
    )
    [text] = texts(autoscaling.keep_a_pod_in_a_drain, manifests)
    assert text == (
        f"PodDisruptionBudget/user-service: spec: with minReplicas {least}, a budget lets {allowed} of them "
        "go; set maxUnavailable to 1, and minReplicas to 2 or more"
    )


def test_some_overlay_has_an_autoscaler():
    """The rules above have something to look at."""
    scaled = [name for name in OVERLAYS if overlay(name).of_kind("HorizontalPodAutoscaler")]
    assert scaled == ["istio", "prod", "staging"]


def test_budget_of_other_pods():
    """Budgets of other pods are others' affair."""
    selector = {"matchLabels": {"app.kubernetes.io/name": "user-service-migrate"}}
    change = ("PodDisruptionBudget/user-service", "spec", {"maxUnavailable": 3, "selector": selector})
    assert texts(autoscaling.keep_a_pod_in_a_drain, changed("prod", change)) == []


def test_autoscaler_of_something_else():
    """What is not here is not looked at; references.py tells of it."""
    manifests = changed("prod", (SCALER, "spec.scaleTargetRef.name", "other"))
    assert texts(autoscaling.leave_replicas_to_the_autoscaler, manifests) == []


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("maxUnavailable", 1, "is 1, by which a rollout takes away what the load needs; set it to 0"),
        ("maxUnavailable", REMOVED, "is 25%, by which a rollout takes away what the load needs; set it to 0"),
        (
            "maxSurge",
            1,
            "is 1 however many replicas there are, and a rollout of many takes long; set a share, as 25%",
        ),
    ],
)
def test_rollout_that_takes_pods_away_or_goes_one_by_one(field, value, what):
    """A rollout under load has all pods, and of twenty it does not bring one at a time."""
    path = f"spec.strategy.rollingUpdate.{field}"
    manifests = changed("prod", ("Deployment/user-service", path, value))
    assert texts(autoscaling.keep_all_pods_in_a_rollout, manifests) == [
        f"Deployment/user-service: {path}: {what}"
    ]


def test_rollout_of_a_fixed_number():
    """Without an autoscaler whoever sets the replicas sets the surge."""
    manifests = changed("traefik", ("Deployment/user-service", "spec.strategy.rollingUpdate.maxSurge", 1))
    assert texts(autoscaling.keep_all_pods_in_a_rollout, manifests) == []


@pytest.mark.parametrize(
    ("name", "change", "numbers"),
    [
        ("prod", (DEPLOYMENT, f"metadata.annotations[{autoscaling.CONNECTIONS}]", "119"), (119, 40, 120)),
        ("prod", (DEPLOYMENT, "metadata.annotations", REMOVED), (97, 40, 120)),
        ("prod", (SCALER, "spec.maxReplicas", 21), (120, 42, 126)),
        ("traefik", (DEPLOYMENT, "spec.replicas", 17), (97, 34, 102)),
    ],
)
def test_pools_of_more_pods_than_the_database_has_connections_for(name, change, numbers):
    """The new pods of a rollout and all old ones, each with its pool and its probe's connection, find one."""
    allowed, pods, needed = numbers
    assert texts(autoscaling.leave_connections_for_all_pods, changed(name, change)) == [
        (
            f"{DEPLOYMENT}: metadata.annotations[{autoscaling.CONNECTIONS}]: is {allowed}, "
            f"and {pods} pods in a rollout, each with pool_size + 1, may have {needed} connections; "
            "give the database more and say so here, or lower DATABASE_POOL_SIZE or maxReplicas"
        )
    ]


def test_larger_pools():
    """The pool counts as the server will read it, and one more for the probe."""
    manifests = with_variables(changed("traefik"), DATABASE_POOL_SIZE="16")
    [text] = texts(autoscaling.leave_connections_for_all_pods, manifests)
    assert "may have 102 connections" in text


WHOLE_POD = (SCALER, "spec.metrics.0", {"type": "Resource", "resource": {"name": "cpu"}})
LABELS = "spec.template.metadata.labels"


@pytest.mark.parametrize(
    ("kind", "field", "value", "count"),
    [
        ("Deployment", "spec.template.metadata.labels[sidecar.istio.io/inject]", "true", 1),
        ("Deployment", "spec.template.metadata.labels[sidecar.istio.io/inject]", "false", 0),
        ("Deployment", "spec.template.metadata.annotations[sidecar.istio.io/inject]", "true", 1),
        (
            "Deployment",
            "spec.template.spec.initContainers",
            [{"name": "proxy", "restartPolicy": "Always"}],
            1,
        ),
        ("Deployment", "spec.template.spec.initContainers", [{"name": "once"}], 0),
        ("Namespace", "metadata.labels[istio-injection]", "enabled", 1),
        ("Namespace", "metadata.labels[istio.io/rev]", "stable", 1),
        ("Namespace", "metadata.labels[istio-injection]", "disabled", 0),
    ],
)
def test_sidecar_counts(kind, field, value, count):
    """CPU of the whole pod is told of where a sidecar is in it, or Istio puts one there."""
    manifests = changed("prod", (f"{kind}/user-service", field, value), WHOLE_POD)
    found = texts(autoscaling.scale_on_one_container, manifests)
    assert len(found) == count
    start = (
        f"{SCALER}: spec.metrics[0].type: is Resource, and a sidecar counts there too; take ContainerResource"
    )
    assert all(text.startswith(start) and text.endswith("user-service") for text in found)


def test_pod_decides_over_its_namespace():
    """A pod that refuses the sidecar has none."""
    manifests = changed(
        "prod",
        ("Namespace/user-service", "metadata.labels[istio-injection]", "enabled"),
        ("Deployment/user-service", f"{LABELS}[sidecar.istio.io/inject]", "false"),
        WHOLE_POD,
    )
    assert texts(autoscaling.scale_on_one_container, manifests) == []


def test_container_that_is_not_there():
    """A metric of a container that the pods have not would never have a value."""
    manifests = changed("prod", (SCALER, "spec.metrics.0.containerResource.container", "server"))
    [text] = texts(autoscaling.scale_on_one_container, manifests)
    assert text == (
        f"{SCALER}: spec.metrics[0].containerResource.container: no container is called server; "
        "take one of user-service"
    )
