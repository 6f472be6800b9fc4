"""The autoscaler scales what is there, on metrics that something produces, and leaves room for a drain."""

import math
import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import yaml

from k8s.checks.manifests import Manifest, Manifests, Pod, Problem, annotations, content, find, get, metadata
from k8s.checks.mesh import has_sidecar
from k8s.checks.servers import servers

type Exported = Mapping[str, AbstractSet[str]]
"""The labels of each metric that a server exports, by its name."""

_SCRAPED = {"namespace", "pod"}
"""Labels that Prometheus adds when it scrapes a pod."""

CONNECTIONS = "grpc-on-kubernetes/database-connections"
"""The annotation of a Deployment that says how many connections the database has for it."""

_CONNECTIONS = 97
"""Without it: PostgreSQL's default for max_connections, less the three that are kept for superusers."""

_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")


@dataclass(frozen=True)
class AdapterRule:
    """A rule of prometheus-adapter: the metric of Kubernetes that it makes of one of Prometheus."""

    config_map: Manifest
    field: str
    series: str
    """The metric of Prometheus."""
    labels: AbstractSet[str]
    """The labels that the queries ask for, and that the server must export."""
    produces: str


def adapter_rules(manifests: Manifests) -> Iterator[AdapterRule]:
    """Yield the rules of each ConfigMap that has some, as the adapter's config.yaml."""
    for config_map in manifests.of_kind("ConfigMap"):
        for number, rule in enumerate(_rules(content(config_map).get("config.yaml", ""))):
            query = rule["seriesQuery"]
            series = query.partition("{")[0]
            labels = {*_LABEL.findall(query), *_LABEL.findall(rule["metricsQuery"])} - _SCRAPED
            field = f"data[config.yaml].rules[{number}].seriesQuery"
            yield AdapterRule(config_map, field, series, labels, _name(rule["name"], series))


def _rules(text: str) -> list[dict[str, Any]]:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError:
        return []  # of something else, and configuration.py tells of it
    return document.get("rules", []) if isinstance(document, dict) else []


def _name(name: Mapping[str, Any], series: str) -> str:
    """Return what the adapter calls the metric; in `as`, `${1}` is a group of `matches`."""
    template = re.sub(r"\$\{?(\d+)\}?", r"\\g<\1>", name["as"])
    return re.sub(name.get("matches", "^.*$"), template, series)


def scale_on_produced_metrics(manifests: Manifests) -> Iterator[Problem]:
    """Each Pods metric of an autoscaler is made by a rule of prometheus-adapter."""
    produced = sorted({rule.produces for rule in adapter_rules(manifests)})
    for scaler in manifests.of_kind("HorizontalPodAutoscaler"):
        for field, name in find(scaler, "spec.metrics[].pods.metric.name"):
            if name not in produced:
                what = f"no rule of prometheus-adapter produces {name}"
                yield Problem(
                    scaler, field, what, f"the rules here produce: {', '.join(produced) or 'nothing'}"
                )


def produce_from_exported_metrics(manifests: Manifests, exported: Exported) -> Iterator[Problem]:
    """Each rule of prometheus-adapter takes a metric, by labels, that a server exports."""
    for rule in adapter_rules(manifests):
        if rule.series not in exported:
            what, fix = f"no server exports {rule.series}", "name a metric of /metrics"
            yield Problem(rule.config_map, rule.field, what, fix)
            continue
        for label in sorted(rule.labels - exported[rule.series]):
            fix = f"take one of {', '.join(sorted(exported[rule.series]))}"
            yield Problem(rule.config_map, rule.field, f"{rule.series} has no label {label}", fix)


def _scaled(manifests: Manifests) -> Iterator[tuple[Manifest, Manifest]]:
    for scaler in manifests.of_kind("HorizontalPodAutoscaler"):
        target = get(scaler, "spec.scaleTargetRef") or {}
        namespace = metadata(scaler, "namespace")
        workload = manifests.named(target.get("kind", ""), target.get("name", ""), namespace)
        if workload:
            yield scaler, workload


def scale_on_one_container(manifests: Manifests) -> Iterator[Problem]:
    """No metric of a whole pod scales what has a sidecar, and one of a container names one that is there.

    A sidecar waits while the server computes, and the average of both stays low.
    """
    for scaler, workload in _scaled(manifests):
        for pod in (each for each in manifests.pods if each.workload is workload):
            names = _running(pod)
            for field, metric in find(scaler, "spec.metrics[]"):
                if metric["type"] == "Resource" and (len(names) > 1 or has_sidecar(manifests, pod)):
                    fix = f"take ContainerResource, with container {' or '.join(names)}"
                    yield Problem(scaler, f"{field}.type", "is Resource, and a sidecar counts there too", fix)
                container = get(metric, "containerResource.container")
                if container is not None and container not in names:
                    where, fix = f"{field}.containerResource.container", f"take one of {', '.join(names)}"
                    yield Problem(scaler, where, f"no container is called {container}", fix)


def _running(pod: Pod) -> list[str]:
    """Return the names of the containers that run as long as the pod does."""
    return [
        container["name"]
        for field, container in pod.containers
        if ".initContainers[" not in field or container.get("restartPolicy") == "Always"
    ]


def leave_replicas_to_the_autoscaler(manifests: Manifests) -> Iterator[Problem]:
    """What is scaled says no number itself, or each deployment would set it back."""
    for scaler, workload in _scaled(manifests):
        replicas = get(workload, "spec.replicas")
        if replicas is not None:
            what = f"is {replicas}, and HorizontalPodAutoscaler {metadata(scaler, 'name')} decides it"
            yield Problem(workload, "spec.replicas", what, "leave it out")


def keep_a_pod_in_a_drain(manifests: Manifests) -> Iterator[Problem]:
    """A PodDisruptionBudget lets some of the fewest replicas go, and never all."""
    for scaler, workload in _scaled(manifests):
        least = get(scaler, "spec.minReplicas") or 1
        for budget in manifests.of_kind("PodDisruptionBudget"):
            pods = manifests.select(get(budget, "spec.selector") or {}, metadata(budget, "namespace"))
            allowed = _allowed(budget["spec"], least)
            if workload in [pod.workload for pod in pods] and not 0 < allowed < least:
                what = f"with minReplicas {least}, a budget lets {allowed} of them go"
                yield Problem(budget, "spec", what, "set maxUnavailable to 1, and minReplicas to 2 or more")


def keep_all_pods_in_a_rollout(manifests: Manifests) -> Iterator[Problem]:
    """A rollout takes no pod away before there is another one, and does not go one by one over twenty."""
    scaled = [workload for _, workload in _scaled(manifests)]
    for server in servers(manifests):
        workload = server.pod.workload
        rolling = get(workload, "spec.strategy.rollingUpdate") or {}
        if workload["kind"] != "Deployment" or get(workload, "spec.strategy.type") == "Recreate":
            continue
        field = "spec.strategy.rollingUpdate"
        if (missing := rolling.get("maxUnavailable", "25%")) not in (0, "0%"):
            what = f"is {missing}, by which a rollout takes away what the load needs"
            yield Problem(workload, f"{field}.maxUnavailable", what, "set it to 0")
        surge = rolling.get("maxSurge", "25%")
        if workload in scaled and not str(surge).endswith("%"):
            what = f"is {surge} however many replicas there are, and a rollout of many takes long"
            yield Problem(workload, f"{field}.maxSurge", what, "set a share, as 25%")


def leave_connections_for_all_pods(manifests: Manifests) -> Iterator[Problem]:
    """PostgreSQL has connections for the new pods of a rollout and all old ones, which may still drain."""
    for server in servers(manifests):
        if not server.config.database.is_postgresql:
            continue
        workload = server.pod.workload
        most = max([get(workload, "spec.replicas") or 1, *_most(manifests, workload)])
        pods = most if get(workload, "spec.strategy.type") == "Recreate" else 2 * most
        needed = pods * (server.config.database.pool_size + 1)
        allowed = int(annotations(workload).get(CONNECTIONS, _CONNECTIONS))
        if needed > allowed:
            each = f"{pods} pods in a rollout, each with pool_size + 1,"
            what = f"is {allowed}, and {each} may have {needed} connections"
            fix = "give the database more and say so here, or lower DATABASE_POOL_SIZE or maxReplicas"
            yield Problem(workload, f"metadata.annotations[{CONNECTIONS}]", what, fix)


def _most(manifests: Manifests, workload: Manifest) -> Iterator[int]:
    return (get(scaler, "spec.maxReplicas") for scaler, each in _scaled(manifests) if each is workload)


def _allowed(spec: Manifest, replicas: int) -> int:
    """Return how many pods may go at once; Kubernetes rounds percentages up."""

    def pods(value: int | str) -> int:
        if isinstance(value, str):
            return math.ceil(replicas * int(value.removesuffix("%")) / 100)
        return value

    if "maxUnavailable" in spec:
        return pods(spec["maxUnavailable"])
    return replicas - pods(spec.get("minAvailable", 1))
