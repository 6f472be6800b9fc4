"""Outages and a quiet night, as prod's and staging's rules see them."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from k8s.checks.manifests import Manifests
from k8s.checks.monitoring import alerts, beside_prometheus, write_rules
from k8s.checks.rendered import load
from k8s.checks.scenarios import all_outages, outages, quiet_night, table, with_table

PROD, STAGING = Manifests(load("prod")), Manifests(load("staging"))
NAMESPACES = "user-service", "user-service-staging"
OPERATIONS = Path("docs/operations.md")
OUTAGES = outages()
ANY = "firing|pending"

each_outage = pytest.mark.parametrize("outage", OUTAGES, ids=lambda outage: outage.name)


@pytest.fixture(scope="module")
def prods(tmp_path_factory):
    """Write prod's rules."""
    return write_rules(PROD, tmp_path_factory.mktemp("prod"))


@pytest.fixture(scope="module")
def rung(prods):
    """Have each outage happen to prod while staging is well, and return what rings by their names."""
    with ThreadPoolExecutor(2) as threads:
        found = threads.map(lambda each: each.rings(prods, *NAMESPACES), OUTAGES)
        return dict(zip((each.name for each in OUTAGES), found, strict=True))


@each_outage
def test_outages_ring_in_time(rung, outage):
    """Each is told by the alert that is meant for it, within its time."""
    seconds = {alert: after for (alert, _), after in rung[outage.name].items()}
    assert seconds[outage.expected] <= outage.within


def test_every_alert_rings_in_an_outage(rung):
    """No alert is without a state in which it fires, of any severity but those that take days."""
    found = {key for rings in rung.values() for key in rings}
    expected = {
        (each["alert"], each["labels"]["severity"])
        for each in alerts(PROD) + alerts(beside_prometheus())
        if each["labels"].get("window") not in ("1d", "3d")
    }
    assert found | {("UserServiceCertificateExpires", "critical")} == expected


def test_a_quiet_night_rings_nothing(prods):
    """Neither do no calls, one that fails, a scale-down and a release."""
    assert quiet_night().rings(prods, *NAMESPACES) == {}


def test_what_is_beside_prometheus_rings_for_prod_alone(prods):
    """It is silent in a quiet night, and whatever happens to staging."""
    beside = prods.with_name("beside-prometheus.yaml")
    assert quiet_night().rings(beside, *NAMESPACES) == {}
    assert all_outages().rings(beside, *reversed(NAMESPACES), state=ANY) == {}


def test_prod_does_not_ring_for_staging(prods):
    """Whatever happens to staging under the same Prometheus, prod's rules are silent."""
    assert all_outages().rings(prods, *reversed(NAMESPACES), state=ANY) == {}


def test_staging_rings_for_itself(tmp_path):
    """Its rules tell of the same outages in its namespace, as warnings."""
    rules = write_rules(STAGING, tmp_path)
    rings = all_outages().rings(rules, *reversed(NAMESPACES))
    assert {"UserServiceNotReady", "UserServiceDown", "UserServiceErrorBudgetBurns"} <= {
        alert for alert, _ in rings
    }
    assert {severity for _, severity in rings} == {"warning"}


def test_the_table_in_the_document_is_what_rings(rung):
    """docs/operations.md has the seconds that the rules need now."""
    document = OPERATIONS.read_text()
    assert document == with_table(document, table(rung)), "tools/bazel run //k8s/checks:update_outages"
