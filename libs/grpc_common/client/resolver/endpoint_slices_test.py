import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpc_common.client.resolver.endpoint import Endpoint
from grpc_common.client.resolver.endpoint_slices import EndpointSlice, merge, read_slice, why_empty
from grpc_common.testing.api_server import endpoint_slice


def parse(*arguments, port=50051, version=1, change=None, **settings) -> EndpointSlice:
    """Return a slice as it is read from the wire; `change` replaces some of its fields."""
    piece = endpoint_slice(*arguments, **settings)
    piece["metadata"]["resourceVersion"] = str(version)
    return asyncio.run(read_slice(piece | (change or {}), port))


def addresses(*slices):
    """Return the addresses of all slices."""
    return [endpoint.address for endpoint in merge(slices)]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (None, "ready"),
        ({}, "ready"),
        ({"ready": None}, "ready"),
        ({"ready": True}, "ready"),
        ({"ready": False}, None),
        ({"ready": False, "serving": True}, None),
        ({"ready": True, "serving": False}, None),
        ({"ready": True, "serving": True, "terminating": False}, "ready"),
        ({"ready": False, "serving": True, "terminating": True}, "terminating"),
        ({"ready": True, "serving": True, "terminating": True}, "terminating"),
        ({"ready": False, "serving": False, "terminating": True}, None),
        ({"ready": True, "serving": False, "terminating": True}, None),
        ({"ready": False, "terminating": True}, None),
    ],
)
def test_conditions(conditions, expected):
    """Unknown means ready; what terminates is kept, and marked, while it serves; the rest takes no calls."""
    pod = {"addresses": ["10.0.0.1"], "conditions": conditions}
    endpoints = merge([parse("a", [], change={"endpoints": [pod]})])
    found = {False: "ready", True: "terminating"}[endpoints[0].terminating] if endpoints else None
    assert found == expected


def test_attributes():
    """The place of a pod, and whose clients it is meant for, are told with its address."""
    hints = {"forZones": [{"name": "b"}, {"name": "c"}], "forNodes": None}
    piece = parse("a", ["10.0.0.1"], zone="a", nodeName="node-1", hints=hints)
    assert merge([piece]) == [Endpoint("10.0.0.1:50051", zone="a", node="node-1", for_zones=("b", "c"))]


@pytest.mark.parametrize("hints", [None, {}, {"forZones": None}, {"forZones": []}])
def test_null_attributes(hints):
    """What the API server leaves out or writes as null is unknown."""
    piece = parse("a", ["10.0.0.1"], zone=None, nodeName=None, hints=hints)
    assert merge([piece]) == [Endpoint("10.0.0.1:50051")]


TWO = [("grpc", 50051), ("metrics", 9090)]


@pytest.mark.parametrize(
    ("ports", "wanted", "expected"),
    [
        (TWO, 50051, 50051),
        (TWO, "grpc", 50051),
        (TWO, "metrics", 9090),
        (TWO, 80, None),
        (TWO, "http", None),
        (TWO, None, None),
        ([("", 50051)], 80, 50051),
        ([("", 50051)], "grpc", None),
        ([("", 50051)], None, 50051),
        ([("grpc", 50051), ("grpc-web", 50051)], None, 50051),
        ([], 50051, 50051),
        ([], "grpc", None),
        ([], None, None),
        ([("grpc", 0), ("big", 65536), ("ok", 65535)], None, 65535),
        ([("grpc", 65536)], 50051, None),
        ([("grpc", None)], "grpc", None),
        ([("grpc", None)], 50051, None),
        ([("grpc", 10**30)], "grpc", None),
    ],
)
def test_port(ports, wanted, expected):
    """A name or number of the slice; any number, and none, for the only port; every number without ports."""
    assert parse("a", [], ports=ports, port=wanted).port == expected


def test_ports_are_those_of_each_slice():
    """During a change of a named port, each slice has its own number."""
    slices = [parse(str(pod), [f"10.0.0.{pod}"], ports=[("grpc", pod)], port="grpc") for pod in (1, 2)]
    assert addresses(*slices) == ["10.0.0.1:1", "10.0.0.2:2"]


@pytest.mark.parametrize("wanted", ["x", None])
def test_other_protocols_are_not_for_grpc(wanted):
    """A port of the same name for UDP or SCTP is passed over."""
    ports = [{"name": "x", "port": 1, "protocol": "UDP"}, {"name": "x", "port": 2, "protocol": "TCP"}]
    ports.append({"name": "x", "port": 3, "protocol": "SCTP"})
    assert addresses(parse("a", ["10.0.0.1"], port=wanted, change={"ports": ports})) == ["10.0.0.1:2"]


def test_ipv6_is_in_brackets():
    """The addresses are as gRPC wants them, in their canonical form."""
    assert addresses(parse("a", ["FD00:0::7"], address_type="IPv6")) == ["[fd00::7]:50051"]


def test_dual_stack_pods_count_once():
    """With both families IPv4 is taken."""
    slices = [parse("a", ["10.0.0.1"]), parse("b", ["fd00::1"], address_type="IPv6")]
    assert addresses(*slices) == ["10.0.0.1:50051"]


def test_endpoint_in_two_slices_counts_once():
    """A controller may move an endpoint between slices; the slice that was changed last is right."""
    old = parse("a", ["10.0.0.1"], zone="old", version=7)
    new = parse("b", ["10.0.0.1"], zone="new", version=8)
    for slices in ([old, new], [new, old]):
        assert merge(slices) == [Endpoint("10.0.0.1:50051", zone="new")]


@pytest.mark.parametrize("change", [{"endpoints": None}, {"ports": None}, {"endpoints": None, "ports": None}])
def test_null_lists(change):
    """The API server writes null for an empty list; a Service without ports takes the target's number."""
    piece = parse("a", ["10.0.0.1"], change=change)
    assert addresses(piece) == ([] if "endpoints" in change else ["10.0.0.1:50051"])
    assert not piece.complaint


GOOD = {"addresses": ["10.0.0.1"]}


@pytest.mark.parametrize(
    ("pod", "complaint"),
    [
        ({"addresses": []}, "addresses: List should have at least 1 item"),
        ({"addresses": None}, "addresses: "),
        ({}, "addresses: Field required"),
        (None, "valid dictionary"),
        ([], "valid dictionary"),
        ({"addresses": ["example.com"]}, "addresses: Value error, 'example.com' is no IP address"),
        ({"addresses": ["10.0.0.1:50051"]}, "is no IP address"),
        ({"addresses": ["10.0.0.1\n"]}, "is no IP address"),
        ({"addresses": ["10.0.0.01"]}, "is no IP address"),
        ({"addresses": [""]}, "is no IP address"),
        ({"addresses": ["fe80::1%\n"]}, "is an address with a zone"),
        ({"addresses": [7]}, "addresses.0: "),
        (GOOD | {"conditions": []}, "conditions: "),
        (GOOD | {"conditions": {"ready": "perhaps"}}, "conditions.ready: "),
        (GOOD | {"zone": 7}, "zone: "),
        (GOOD | {"hints": {"forZones": [None]}}, "hints.forZones.0: "),
    ],
)
def test_bad_endpoint_is_left_out_alone(pod, complaint):
    """The other endpoints of its slice stay, and the complaint says what is wrong on one line."""
    piece = parse("a", [], change={"endpoints": [{"addresses": ["10.0.0.9"]}, pod, pod]})
    assert addresses(piece) == ["10.0.0.9:50051"]
    assert piece.complaint.startswith("2 of its endpoints left out, the first: ")
    assert complaint in piece.complaint
    assert piece.complaint.isprintable()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"addressType": "FQDN"}, "addressType 'FQDN'"),
        ({"addressType": "IPv9\n"}, "addressType 'IPv9"),
        ({"addressType": None}, "addressType: "),
        ({"endpoints": {}}, "endpoints: "),
        ({"ports": "50051"}, "ports: "),
        ({"ports": [None]}, "ports.0: "),
        ({"ports": [{"port": "x"}]}, "ports.0.port: "),
        ({"metadata": None}, "metadata: "),
        ({"metadata": {"resourceVersion": "1"}}, "metadata.name: Field required"),
        ({"metadata": {"name": "a", "resourceVersion": "x"}}, "metadata.resourceVersion: "),
    ],
)
def test_bad_slice_is_left_out_alone(change, complaint):
    """The other slices stay, and the complaint says what is wrong on one line."""
    bad, good = parse("a", ["10.0.0.1"], change=change), parse("b", ["10.0.0.2"])
    assert addresses(bad, good) == ["10.0.0.2:50051"]
    assert bad.complaint.startswith("left out: ")
    assert complaint in bad.complaint
    assert bad.complaint.isprintable()
    assert bad.complaint in why_empty([bad], 50051)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def often(good):
    """Return `good` in most cases, or anything."""
    return st.one_of(*[good] * 5, JSON)


def part(**fields):
    """Return an object in which each field may be missing, or be anything."""
    return often(st.fixed_dictionaries({}, optional={name: often(each) for name, each in fields.items()}))


FLAG = st.none() | st.booleans()
PODS = part(
    addresses=st.lists(often(st.ip_addresses().map(str)), max_size=2),
    conditions=part(ready=FLAG, serving=FLAG, terminating=FLAG),
    hints=part(forZones=st.lists(part(name=st.just("a")), max_size=2)),
    nodeName=st.text(max_size=3),
    zone=st.just("a"),
)
PORTS = part(name=st.just("grpc"), port=st.integers(-1, 70000), protocol=st.sampled_from(["TCP", "UDP"]))
SLICES = part(
    metadata=part(name=st.sampled_from("abc"), resourceVersion=st.integers(0, 9).map(str)),
    addressType=st.sampled_from(["IPv4", "IPv6", "FQDN"]),
    endpoints=st.lists(PODS, max_size=4),
    ports=st.lists(PORTS, max_size=3),
)


@given(contents=st.lists(SLICES, max_size=3), port=st.sampled_from([50051, "grpc", None]))
def test_no_slice_is_an_error(contents, port):
    """Whatever the API server says, the endpoints are valid, each once, and a good slice's among them."""
    slices = [asyncio.run(read_slice(content, port)) for content in contents]
    good = parse("good", ["192.0.2.1"], port=port)
    found = merge([*slices, good])
    assert "192.0.2.1:50051" in [endpoint.address for endpoint in found]
    assert len({endpoint.address for endpoint in found}) == len(found)
    assert all(0 < int(endpoint.address.rpartition(":")[2]) < 65536 for endpoint in found)
    assert why_empty(slices, port).isprintable()
    assert all(piece.complaint.isprintable() for piece in slices)


@pytest.mark.parametrize(
    ("slices", "port", "reason"),
    [
        ([], 1, "the Service does not exist, has no selector, or selects no pod"),
        ([parse("a", [], port="grpc", change={"ports": None})], "grpc", "selects no pod"),
        ([parse("a", ["10.0.0.1"], conditions={"ready": False})], 50051, "no pod of the Service is ready"),
        (
            [parse("a", ["10.0.0.1"], ports=TWO, port=80)],
            80,
            "the Service has no port 80; its pods' ports are 50051 (grpc), 9090 (metrics)",
        ),
        (
            [parse("a", ["10.0.0.1"], ports=TWO, port=None)],
            None,
            "the Service has several ports; the target must name one of 50051 (grpc), 9090 (metrics)",
        ),
        (
            [parse("a", ["10.0.0.1"], ports=[], port=None)],
            None,
            "the Service names no TCP port; the target must have the number of the pods' port",
        ),
    ],
)
def test_reason_of_no_endpoints(slices, port, reason):
    """It says what would help."""
    assert merge(slices) == []
    assert reason in why_empty(slices, port)
