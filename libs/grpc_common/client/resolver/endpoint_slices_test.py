import pytest

from grpc_common.client.resolver.endpoint_slices import EndpointSlice, merge
from grpc_common.testing.api_server import endpoint_slice


def parse(*arguments, **settings) -> EndpointSlice:
    """Return a slice as it is read from the wire."""
    piece = endpoint_slice(*arguments, **settings)
    piece["metadata"]["resourceVersion"] = "1"
    return EndpointSlice.model_validate(piece)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, True),
        ({"ready": None}, True),
        ({"ready": True}, True),
        ({"ready": False}, False),
        ({"ready": True, "serving": True, "terminating": False}, True),
        ({"ready": False, "serving": True, "terminating": True}, False),
        ({"ready": True, "serving": True, "terminating": True}, False),
        ({"ready": True, "serving": False}, False),
    ],
)
def test_conditions(conditions, expected):
    """Unknown means ready; not ready, not serving and terminating endpoints take no calls."""
    assert bool(merge([parse("a", ["10.0.0.1"], conditions=conditions)], 50051)) == expected


TWO = [("grpc", 50051), ("metrics", 9090)]


@pytest.mark.parametrize(
    ("ports", "wanted", "expected"),
    [
        (TWO, 50051, 50051),
        (TWO, "grpc", 50051),
        (TWO, "metrics", 9090),
        (TWO, 80, None),
        (TWO, "http", None),
        ([("", 50051)], 80, 50051),
        ([("", 50051)], "grpc", None),
        ([], 50051, 50051),
        ([], "grpc", None),
    ],
)
def test_port(ports, wanted, expected):
    """A name or number of the slice; any number for the only port; every number without ports."""
    assert parse("a", [], ports=ports).target_port(wanted) == expected


def test_ports_are_those_of_each_slice():
    """During a change of a named port, each slice has its own number."""
    slices = [parse("a", ["10.0.0.1"], ports=[("grpc", 1)]), parse("b", ["10.0.0.2"], ports=[("grpc", 2)])]
    assert merge(slices, "grpc") == ["10.0.0.1:1", "10.0.0.2:2"]


def test_udp_is_not_for_grpc():
    """A port of the same name for UDP is passed over."""
    piece = endpoint_slice("a", ["10.0.0.1"])
    piece["metadata"]["resourceVersion"] = "1"
    piece["ports"] = [
        {"name": "x", "port": 1, "protocol": "UDP"},
        {"name": "x", "port": 2, "protocol": "TCP"},
    ]
    assert merge([EndpointSlice.model_validate(piece)], "x") == ["10.0.0.1:2"]


def test_ipv6_is_in_brackets():
    """The addresses are as gRPC wants them, in their canonical form."""
    assert merge([parse("a", ["FD00:0::7"], address_type="IPv6")], 50051) == ["[fd00::7]:50051"]


def test_dual_stack_pods_count_once():
    """With both families IPv4 is taken."""
    slices = [parse("a", ["10.0.0.1"]), parse("b", ["fd00::1"], address_type="IPv6")]
    assert merge(slices, 50051) == ["10.0.0.1:50051"]


def test_names_are_no_addresses():
    """Slices of the type FQDN are left out."""
    assert merge([parse("a", ["example.com"], address_type="FQDN")], 50051) == []


def test_endpoint_in_two_slices_counts_once():
    """A controller may move an endpoint between slices."""
    assert merge([parse("a", ["10.0.0.1"]), parse("b", ["10.0.0.1"])], 50051) == ["10.0.0.1:50051"]


def test_null_lists():
    """The API server writes null for an empty list."""
    piece = {"metadata": {"name": "a", "resourceVersion": "1"}, "addressType": "IPv4"}
    assert merge([EndpointSlice.model_validate(piece | {"endpoints": None, "ports": None})], 50051) == []
