import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from grpc_common.config.durations import parse_duration
from k8s.checks.manifests import Manifests, get
from k8s.checks.monitoring import adapter_rule, alerts, dashboard
from k8s.checks.prometheus import program
from k8s.checks.rendered import load
from k8s.checks.servers import servers

ALERTS_TEST = Path("k8s/components/monitoring/alerts_test.yaml")

PROD = Manifests(load("prod"))
(SERVER,) = servers(PROD)
ALERTS = {alert["alert"]: alert for alert in alerts(PROD)}
DASHBOARD = dashboard(PROD)


def promtool(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run promtool on the overlay's alerts, which are in rules.yaml."""
    (rule,) = PROD.of_kind("PrometheusRule")
    (folder / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    return subprocess.run(
        [program("promtool"), *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


def test_prometheus_takes_the_alerts(tmp_path):
    """Prometheus' own check finds no fault in the alerts."""
    result = promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yaml", folder=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_alerts_fire_when_they_should_and_only_then(tmp_path):
    """Each alert behaves as alerts_test.yaml has it, down to what it tells the person on call."""
    shutil.copy(ALERTS_TEST, tmp_path)
    result = promtool("test", "rules", ALERTS_TEST.name, folder=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("fires", [True, False])
def test_no_alert_is_without_a_test(fires):
    """For each alert there is a time at which it fires, and one at which it does not."""
    tests = yaml.safe_load(ALERTS_TEST.read_text())["tests"]
    cases = itertools.chain.from_iterable(test["alert_rule_test"] for test in tests)
    assert {case["alertname"] for case in cases if ("exp_alerts" in case) is fires} == set(ALERTS)


def test_alerts_are_in_the_runbook():
    """For each alert README.md says what to do."""
    rows = re.findall(
        r"^\| `(\w+)` \|", Path("k8s/components/monitoring/README.md").read_text(), re.MULTILINE
    )
    assert sorted(rows) == sorted(ALERTS)


@pytest.mark.parametrize("alert", ALERTS.values(), ids=ALERTS)
def test_ratios_hold_longer_than_their_window(alert):
    """A burst that is over leaves the window before the alert fires."""
    windows = [parse_duration(window) for window in re.findall(r"\[(\w+)\]", alert["expr"])]
    assert parse_duration(alert["for"]) > max(windows, default=0)


def test_saturation_is_four_fifths_of_the_servers_bound():
    """The alert comes before the server refuses calls, whatever its configuration says."""
    limit = SERVER.config.server.max_concurrent_calls
    alert = ALERTS["UserServiceSaturated"]
    assert f"> {limit * 4 // 5}" in alert["expr"]
    assert f"over {limit}." in alert["annotations"]["description"]


def test_certificates_are_renewed_before_the_alert():
    """The alert says that a renewal failed, not that one is due."""
    days = re.search(r"< (\d+) \* 24 \* 3600", ALERTS["UserServiceCertificateExpires"]["expr"])
    renewals = [get(c, "spec.renewBefore") for c in PROD.of_kind("Certificate") if get(c, "spec.renewBefore")]
    assert days
    assert renewals
    assert min(map(parse_duration, renewals)) >= 2 * int(days[1]) * 24 * 3600


def test_rates_have_four_scrapes():
    """Each window has four scrapes in it, so that a lost one leaves a rate."""
    (monitor,) = PROD.of_kind("PodMonitor")
    interval = parse_duration(monitor["spec"]["podMetricsEndpoints"][0]["interval"])
    expressions = [adapter_rule(PROD)["metricsQuery"], *(alert["expr"] for alert in ALERTS.values())]
    windows = re.findall(r"\[(\w+)\]", " ".join(expressions))
    assert windows
    assert min(map(parse_duration, windows)) >= 4 * interval


def test_clients_have_left_a_pod_before_the_next_ones_go():
    """Between two steps down every connection ends, so that the load of the pods that went has moved."""
    (scaler,) = PROD.of_kind("HorizontalPodAutoscaler")
    age = 1.1 * SERVER.config.server.keepalive.max_connection_age
    for policy in get(scaler, "spec.behavior.scaleDown.policies"):
        assert policy["periodSeconds"] >= age


def test_cpu_is_scaled_by_what_a_pod_can_use():
    """Utilization, which is a share of the request, is one of the limit as well."""
    resources = SERVER.container["resources"]
    assert resources["requests"]["cpu"] == resources["limits"]["cpu"]


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
    assert get(config, "metadata.labels") == {"grafana_dashboard": "1"}
