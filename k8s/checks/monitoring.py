"""What the components hpa and monitoring ask of Prometheus."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from k8s.checks.manifests import Manifest, Manifests

# What Grafana fills in.
_VARIABLES = {"$namespace": "user-service", "$pod": ".*"}

EXTERNAL = {
    "kube_deployment_spec_replicas",
    "kube_horizontalpodautoscaler_spec_max_replicas",
    "kube_horizontalpodautoscaler_spec_min_replicas",
    "kube_horizontalpodautoscaler_status_desired_replicas",
    "kube_job_failed",
    "kube_job_status_active",
    "kube_job_status_start_time",
}
"""Series of kube-state-metrics, which no server exports."""

_BESIDE = Path("k8s/components/monitoring/beside-prometheus.yaml")

_VARIABLE_QUERY = "label_values("


def groups(manifests: Manifests) -> list[Manifest]:
    """Return the groups of all PrometheusRules of the overlay."""
    return [group for rule in manifests.of_kind("PrometheusRule") for group in rule["spec"]["groups"]]


def rules(manifests: Manifests) -> list[Manifest]:
    """Return all rules of the overlay, those that record and those that alert."""
    return [rule for group in groups(manifests) for rule in group["rules"]]


def alerts(manifests: Manifests) -> list[Manifest]:
    """Return the overlay's alerts; some names have several, of different severities or windows."""
    return [rule for rule in rules(manifests) if "alert" in rule]


def beside_prometheus() -> Manifests:
    """Return the rule that is in no overlay, so that it is not deleted with one."""
    return Manifests([yaml.safe_load(_BESIDE.read_text("utf-8"))])


def write_rules(manifests: Manifests, folder: Path) -> Path:
    """Write an overlay's rules into `rules.yaml`, as Prometheus reads them, and beside it those of none."""
    file = folder / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": groups(manifests)}))
    (folder / _BESIDE.name).write_text(yaml.safe_dump({"groups": groups(beside_prometheus())}))
    return file


def dashboard(manifests: Manifests) -> dict[str, Any]:
    """Return Grafana's model of the overlay's dashboard."""
    config = manifests.named("ConfigMap", "user-service-dashboard", "user-service")
    assert config
    model: dict[str, Any] = json.loads(config["data"]["user-service.json"])
    return model


def dashboard_queries(model: Mapping[str, Any], rate_interval: str = "1m") -> dict[str, str]:
    """Return the queries of all panels by their titles, as Grafana sends them."""
    return {
        f"{panel['title']} {target['refId']}": _filled_in(target["expr"]).replace(
            "$__rate_interval", rate_interval
        )
        for panel in model["panels"]
        for target in panel["targets"]
    }


def variable_queries(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the selector and the label of each variable whose values Prometheus tells."""
    for variable in model["templating"]["list"]:
        if variable["type"] == "query":
            query = variable["query"]["query"]
            assert query.startswith(_VARIABLE_QUERY), query
            selector, _, label = query.removeprefix(_VARIABLE_QUERY).removesuffix(")").rpartition(",")
            yield _filled_in(selector), label.strip()


def _filled_in(expression: str) -> str:
    for name, value in _VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def adapter_rule(manifests: Manifests) -> Manifest:
    """Return the overlay's rule of prometheus-adapter."""
    config = manifests.named("ConfigMap", "user-service-prometheus-adapter", "user-service")
    assert config
    (rule,) = yaml.safe_load(config["data"]["config.yaml"])["rules"]
    return dict(rule)


def adapter_query(rule: Manifest, series: str, namespace: str, *pods: str) -> str:
    """Return what prometheus-adapter asks when the autoscaler wants the metric of these pods."""
    labels = {resource["resource"]: label for label, resource in rule["resources"]["overrides"].items()}
    matchers = f'{labels["namespace"]}="{namespace}",{labels["pod"]}=~"{"|".join(pods)}"'
    query: str = rule["metricsQuery"]
    for field, value in (("Series", series), ("LabelMatchers", matchers), ("GroupBy", labels["pod"])):
        query = query.replace(f"<<.{field}>>", value)
    return query


def nodes(tree: Any, *types: str) -> Iterator[Manifest]:
    """Yield the nodes of these types in Prometheus' syntax tree of an expression."""
    if isinstance(tree, Mapping):
        if tree.get("type") in types:
            yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for child in tree:
            yield from nodes(child, *types)


def selectors(tree: Any) -> Iterator[Manifest]:
    """Yield what selects series in a syntax tree."""
    return nodes(tree, "vectorSelector", "matrixSelector")


def selector_text(selector: Manifest) -> str:
    """Return a selector as PromQL."""
    matchers = (f"{each['name']}{each['type']}{json.dumps(each['value'])}" for each in selector["matchers"])
    return "{" + ",".join(matchers) + "}"


def metric_name(selector: Manifest) -> str:
    """Return what a selector selects, without its labels."""
    return next(str(each["value"]) for each in selector["matchers"] if each["name"] == "__name__")
