import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from grpc_common.config.durations import parse_duration
from k8s.checks.manifests import Manifests, find, get
from k8s.checks.monitoring import adapter_rule, alerts, dashboard, groups, rules, write_rules
from k8s.checks.prometheus import program
from k8s.checks.rendered import load
from k8s.checks.resources import quantity
from k8s.checks.servers import servers

TESTS = sorted(Path("k8s/components/monitoring/tests").glob("*_test.yaml"))

PROD = Manifests(load("prod"))
STAGING = Manifests(load("staging"))
(SERVER,) = servers(PROD)
ALERTS = alerts(PROD)
DASHBOARD = dashboard(PROD)


def alert(name):
    """Return the only alert of a name."""
    (found,) = (each for each in ALERTS if each["alert"] == name)
    return found


def promtool(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run promtool on prod's rules, which are in rules.yaml."""
    write_rules(PROD, folder)
    return subprocess.run(
        [program("promtool"), *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


def test_prometheus_takes_the_rules(tmp_path):
    """Prometheus' own check finds no fault in them."""
    result = promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yaml", folder=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.name)
def test_alerts_fire_over_their_limits_and_only_there(tmp_path, test):
    """Each alert has its thresholds and windows, and its words, as the file of its theme has them."""
    shutil.copy(test, tmp_path)
    result = promtool("test", "rules", test.name, folder=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("overlay", [PROD, STAGING], ids=["prod", "staging"])
def test_every_rule_is_of_its_own_namespace(overlay):
    """The first label of each expression is the overlay's namespace: two overlays share a Prometheus."""
    (namespace,) = (get(each, "metadata.name") for each in overlay.of_kind("Namespace"))
    for rule in rules(overlay):
        assert re.match(rf'[^"]*{{namespace="{namespace}"', rule["expr"]), rule["expr"]


def test_nothing_is_critical_in_staging():
    """Staging has prod's alerts, and all of them are warnings."""
    assert [each["alert"] for each in alerts(STAGING)] == [each["alert"] for each in ALERTS]
    assert {each["labels"]["severity"] for each in alerts(STAGING)} == {"warning"}
    assert {each["labels"]["severity"] for each in ALERTS} == {"warning", "critical"}


def test_calls_are_counted_by_the_interval_of_their_rates():
    """A sum of rates times the interval is a number of calls; with another interval it would not be."""
    burning = [each for each in ALERTS if each["alert"] == "UserServiceErrorBudgetBurns"]
    (group,) = (each for each in groups(PROD) if burning[0] in each["rules"])
    for each in burning:
        (factor,) = re.findall(r"(\d+) \* sum_over_time\(user_service:missed:rate1m", each["expr"])
        assert float(factor) == parse_duration(group["interval"])


def test_saturation_is_four_fifths_of_the_servers_bound():
    """The alert comes before the server refuses calls, whatever its configuration says."""
    limit = SERVER.config.server.max_concurrent_calls
    saturated = alert("UserServiceSaturated")
    assert f"> {limit * 4 // 5}" in saturated["expr"]
    assert f"over {limit}." in saturated["annotations"]["description"]


def test_certificates_are_renewed_before_the_alert():
    """The alert says that a renewal failed, not that one is due."""
    expiring = [each for each in ALERTS if each["alert"] == "UserServiceCertificateExpires"]
    days = [int(*re.findall(r"< (\d+) \* 24 \* 3600", each["expr"])) for each in expiring]
    renewals = [get(c, "spec.renewBefore") for c in PROD.of_kind("Certificate") if get(c, "spec.renewBefore")]
    assert renewals
    assert min(map(parse_duration, renewals)) >= (max(days) + 7) * 24 * 3600


def test_a_migration_is_slow_before_kubernetes_ends_it():
    """The alert leaves as much time again to look at what the migration waits for."""
    job = PROD.named("Job", "user-service-migrate", "user-service")
    slow = alert("UserServiceMigrationSlow")
    assert f'job_name="{get(job, "metadata.name")}"' in slow["expr"]
    assert f"> {get(job, 'spec.activeDeadlineSeconds') // 2}\n" in slow["expr"]


def test_pods_may_take_their_time_to_begin_and_to_end():
    """A pod that waits for the migration, or drains, is not ready, and that alone alerts nobody."""
    job = PROD.named("Job", "user-service-migrate", "user-service")
    pod = get(PROD.named("Deployment", "user-service", "user-service"), "spec.template.spec")
    longest = max(get(job, "spec.activeDeadlineSeconds"), pod["terminationGracePeriodSeconds"])
    assert parse_duration(alert("UserServicePodNotReady")["for"]) >= longest


def test_rates_have_four_scrapes():
    """Each window has four scrapes in it, so that a lost one leaves a rate."""
    (monitor,) = PROD.of_kind("PodMonitor")
    interval = parse_duration(monitor["spec"]["podMetricsEndpoints"][0]["interval"])
    expressions = [adapter_rule(PROD)["metricsQuery"], *(rule["expr"] for rule in rules(PROD))]
    windows = re.findall(r"\[(\w+[smh])\]", " ".join(expressions))
    assert windows
    assert min(map(parse_duration, windows)) >= 4 * interval


def test_clients_have_left_a_pod_before_the_next_ones_go():
    """Between two steps down every connection ends, so that the load of the pods that went has moved."""
    (scaler,) = PROD.of_kind("HorizontalPodAutoscaler")
    age = 1.1 * SERVER.config.server.keepalive.max_connection_age
    for policy in get(scaler, "spec.behavior.scaleDown.policies"):
        assert policy["periodSeconds"] >= age


def test_calls_are_scaled_as_cpu_is():
    """At 0.7 ms of CPU a call both metrics want a further pod at the same load: a share of the request."""
    [scaler] = PROD.of_kind("HorizontalPodAutoscaler")
    [utilization] = [
        each for _, each in find(scaler, "spec.metrics[].containerResource.target.averageUtilization")
    ]
    [calls] = [each for _, each in find(scaler, "spec.metrics[].pods.target.averageValue")]
    request = quantity(SERVER.container["resources"]["requests"]["cpu"])
    assert round(request * utilization / 100 / 0.0007) == int(calls)


def test_dashboard_has_a_place_for_every_panel():
    """Panels have an id of their own, and none covers another."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [cell for panel in panels for cell in _cells(panel["gridPos"])]
    assert len(set(cells)) == len(cells)
    assert all(x < 24 for x, _ in cells), "Grafana has 24 columns"


def _cells(place):
    columns = range(place["x"], place["x"] + place["w"])
    return itertools.product(columns, range(place["y"], place["y"] + place["h"]))


def test_dashboard_uses_variables_that_it_has():
    """Each `$name` in the dashboard is one of its variables, or Grafana's own."""
    names = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    config = PROD.named("ConfigMap", "user-service-dashboard", "user-service")
    assert config
    used = set(re.findall(r"\$\{?(\w+)", config["data"]["user-service.json"]))
    assert {name for name in used if not name.startswith("__")} == names


def test_dashboard_is_found_by_grafana():
    """The ConfigMap has the label that the sidecar looks for, and the same name in every version."""
    config = PROD.named("ConfigMap", "user-service-dashboard", "user-service")
    assert config
    assert get(config, "metadata.labels").items() >= {"grafana_dashboard": "1"}.items()
