import copy
import json
import re
import urllib.request

import pytest

from k8s.checks.rendered import load
from tests.edges import gateway
from tests.edges.envoy import control_planes


@pytest.mark.parametrize("kind", ["Gateway", "GRPCRoute", "BackendTrafficPolicy", "ClientTrafficPolicy"])
def test_field_that_is_not_translated(kind, tmp_path):
    """A field that the translation would pass over is an error."""
    objects = copy.deepcopy(load("gateway-api"))
    for found in objects:
        if found["kind"] == kind:
            found["spec"]["surprise"] = True
    with pytest.raises(ValueError, match="surprise: this test does not translate it"):
        gateway.proxy(objects, [1], tmp_path)


def test_kind_of_object_that_is_not_translated(tmp_path):
    """So is an object of a kind that it would."""
    group = "gateway.networking.k8s.io/v1"
    route = {"apiVersion": group, "kind": "HTTPRoute", "metadata": {"name": "surprise"}}
    with pytest.raises(ValueError, match="HTTPRoute surprise: this test does not translate it"):
        gateway.proxy([*load("gateway-api"), route], [1], tmp_path)


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    """Return what Envoy says that Envoy Gateway has it do for the overlay, by the kind of configuration."""
    with (
        control_planes(tmp_path_factory.mktemp("planes")) as planes,
        planes.envoy_gateway.running(load("gateway-api"), [1]) as envoy,
        urllib.request.urlopen(f"http://{envoy.admin}/config_dump", timeout=10) as answer,
    ):
        return {each["@type"].rpartition(".")[2]: each for each in json.load(answer)["configs"]}


@pytest.fixture
def translated(tmp_path):
    """Return the translation: the listener's HTTP connection manager, the routes, the clusters."""
    listener, clusters = gateway.proxy(load("gateway-api"), [1], tmp_path)
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return manager, manager["route_config"]["virtual_hosts"][0]["routes"], clusters


def test_routes(dumped, translated):
    """The translation has the routes of Envoy Gateway, with their times, retries and limits."""
    [dump] = dumped["RoutesConfigDump"]["dynamic_route_configs"]
    [host] = dump["route_config"]["virtual_hosts"]
    theirs = {json.dumps(route["match"]): route for route in host["routes"]}
    for ours in copy.deepcopy(translated[1]):
        del ours["route"]["cluster"]
        assert differences(ours, theirs.pop(json.dumps(ours["match"]))) == []
    assert not theirs


def test_clusters(dumped, translated):
    """So it has the clusters, with the outlier detection."""
    theirs = [each["cluster"] for each in dumped["ClustersConfigDump"]["dynamic_active_clusters"]]
    by_rule = {
        each["metadata"]["filter_metadata"]["envoy-gateway"]["resources"][0]["sectionName"]: each
        for each in theirs
        if each["name"].startswith("grpcroute/")
    }
    for each in translated[2]:
        ours = {name: value for name, value in each.items() if name not in OUR_OWN}
        assert differences(ours, by_rule.pop(each["name"])) == []
    assert not by_rule


OUR_OWN = ("name", "type", "load_assignment", "lb_policy")
"""Of a cluster: how it finds servers; Envoy Gateway names the balancer in a newer way."""


def test_listener(dumped, translated):
    """And the sizes and the trust of the listener."""
    listeners = [
        each["active_state"]["listener"] for each in dumped["ListenersConfigDump"]["dynamic_listeners"]
    ]
    [theirs] = [each for each in listeners if each["name"].endswith("/grpc")]
    [chain] = theirs["filter_chains"]
    manager = next(
        each["typed_config"] for each in chain["filters"] if "http_filters" in each["typed_config"]
    )
    ours = {name: translated[0][name] for name in ("http2_protocol_options", "use_remote_address")}
    assert differences(ours, manager) == []


def differences(ours, theirs, where=""):
    """Return where `theirs` is not as `ours` says; it may say more."""
    if isinstance(ours, dict):
        return [
            line
            for name, value in ours.items()
            for line in differences(
                value, theirs.get(name) if isinstance(theirs, dict) else None, f"{where}.{name}"
            )
        ]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [
            line
            for number, pair in enumerate(zip(ours, theirs, strict=True))
            for line in differences(*pair, f"{where}.{number}")
        ]
    return [] if plain(ours) == plain(theirs) else [f"{where}: {ours!r}, but {theirs!r}"]


def plain(value):
    """Return a value as text, however it is written: 2s as 2.000s, 5 as "5"."""
    text = str(value)
    return f"{float(text[:-1])}s" if re.fullmatch(r"[0-9.]+s", text) else text
