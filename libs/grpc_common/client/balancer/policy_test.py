from grpc_common.client.balancer.policy import choice_of
from grpc_common.client.resolver.endpoint import Endpoint
from grpc_common.client.resolver.target import endpoint_uri
from grpc_common.client.service_config import ServiceConfig


def together(*addresses):
    """Return what pick_first makes of endpoints, as C-core's target."""
    (one,) = choice_of(ServiceConfig(load_balancing="pick_first"))([Endpoint(each) for each in addresses])
    return endpoint_uri(one.address)


def test_endpoints_of_two_families():
    """A target of grpc takes one family at a time; of a dual-stack service the IPv4 addresses are enough."""
    assert together("[fd00::7]:1", "10.0.0.7:1", "10.0.0.8:1") == "ipv4:10.0.0.7:1,10.0.0.8:1"
    assert together("[fd00::7]:1", "[fd00::8]:1") == "ipv6:[fd00::7]:1,[fd00::8]:1"
