"""What the person on call reads."""

import re
from pathlib import Path

import pytest

from k8s.checks.manifests import Manifests, get
from k8s.checks.monitoring import alerts, beside_prometheus, dashboard
from k8s.checks.rendered import load
from k8s.checks.servers import servers

PROD = Manifests(load("prod"))
ALERTS = {each["alert"]: each for each in alerts(PROD) + alerts(beside_prometheus())}
DOCUMENT = Path("docs/operations.md").read_text()
PAGES = dict(re.findall(r"^### ([^\n]+)\n(.*?)(?=^### |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL))


def test_every_alert_has_its_page():
    """For each alert docs/operations.md has a page, and none for what is no alert."""
    assert sorted(PAGES) == sorted(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_alerts_lead_to_their_pages(name):
    """The link ends with the anchor that GitHub makes of the page's heading: its small letters."""
    document = get(
        PROD.named("PrometheusRule", "user-service", "user-service"), "metadata.annotations.runbooks"
    )
    assert document.endswith("/docs/operations.md")
    assert ALERTS[name]["annotations"]["runbook_url"] == f"{document}#{name.lower()}"


@pytest.mark.parametrize("name", PAGES)
def test_pages_say_what_it_means_where_to_look_and_what_to_do(name):
    """Each page has the three parts, in this order, and none is empty."""
    parts = re.split(r"^\*\*(\w+)\*\*: ", PAGES[name], flags=re.MULTILINE)
    assert parts[1::2] == ["Means", "Look", "Do"]
    assert all(len(part.split()) > 5 for part in parts[2::2])


def test_commands_ask_for_all_lines_of_several_pods():
    """With a selector kubectl shows ten lines of a pod, whatever --since says, unless --tail is there."""
    commands = re.findall(r"^ {4}k logs --selector .*", DOCUMENT, re.MULTILINE)
    assert commands
    assert [each for each in commands if " --tail " not in each] == []


def test_pages_name_panels_that_are_there():
    """What is set in italics is a panel of the dashboard, or what a log says."""
    titles = {panel["title"] for panel in dashboard(PROD)["panels"]}
    looks = " ".join(re.findall(r"\*\*Look\*\*:(.*?)\*\*Do\*\*", DOCUMENT, re.DOTALL))
    named = set(re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", looks))
    assert named
    assert named <= titles


def test_the_picture_shows_the_panels_that_are_there():
    """docs/dashboard.svg has the titles of all panels, in their order."""
    shown = re.findall(r'class="title"[^>]*>([^<]+)<', Path("docs/dashboard.svg").read_text())
    titles = [panel["title"] for panel in dashboard(PROD)["panels"]]
    assert shown == titles, "tools/bazel run //tools/dashboard:picture"


def section(title):
    """Return the text below a heading of the second level, in one line."""
    [text] = re.findall(rf"^## {title}\n(.*?)(?=^## )", DOCUMENT, re.MULTILINE | re.DOTALL)
    return " ".join(text.split())


def test_the_document_has_the_figures_of_memory_and_cpu():
    """What it says of memory, messages, connections and CPU is what the manifests have."""
    [server], text = servers(PROD), section("Memory and CPU")
    settings, resources = server.config.server, server.container["resources"]
    assert resources["limits"]["memory"] == resources["requests"]["memory"] == "256Mi"
    assert "**Memory** is 256 MiB, requested and allowed" in text
    assert f"`max_recv_msg_size` is {settings.max_recv_msg_size // 2**10} KiB" in text
    assert f"`max_connections` {settings.max_connections}." in text
    assert f"with an autoscaler {resources['requests']['cpu']}, of which" in text
    startup = server.container["startupProbe"]
    assert f"probe's {startup['periodSeconds'] * startup['failureThreshold']};" in text


def test_the_document_has_the_times_of_a_rollout():
    """What it says of a rollout and of a pod's end is what the manifests and the configuration have."""
    [server], text = servers(PROD), section("Rollouts and drained nodes")
    spec, drain = server.pod.workload["spec"], server.config.server.drain
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": "25%", "maxUnavailable": 0}
    assert f"ready for {spec['minReadySeconds']} s" in text
    assert f"{server.container['lifecycle']['preStop']['sleep']['seconds']} s of preStop" in text
    assert f"after up to {drain.grace:g} s while a stream goes on" in text
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 330, "five minutes and a half"
