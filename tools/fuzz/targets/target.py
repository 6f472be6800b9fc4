"""Targets of channels."""

import re

from grpc_common.client.resolver.endpoint_check import checked
from grpc_common.client.resolver.target import (
    DnsTarget,
    KubernetesTarget,
    StaticTarget,
    endpoint_uri,
    parse_target,
)
from tools.fuzz.properties import check_shown


def fuzz(data: bytes) -> None:
    """A target that is taken means what its parts, written out, mean."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        target = parse_target(text)
    except ValueError as error:
        check_shown(str(error), 10 * len(data) + 1000)
        return
    check_shown(text, len(text))
    match target:
        case KubernetesTarget():
            check_kubernetes(target)
        case DnsTarget():
            again = parse_target(f"dns://{target.resolver or ''}/{target.name}:{target.port}")
            assert isinstance(again, DnsTarget)
            assert (again.name, again.port, again.resolver) == (target.name, target.port, target.resolver)
        case StaticTarget():
            _, refused = checked(target.addresses)
            assert refused == []
            for address in target.addresses:
                again = parse_target(endpoint_uri(address))
                assert isinstance(again, StaticTarget)
                # Of the slashes in front of a path some are those of a URI.
                assert [re.sub("/+", "/", each) for each in again.addresses] == [re.sub("/+", "/", address)]


def check_kubernetes(target: KubernetesTarget) -> None:
    """Write a target out in both forms."""
    port = f":{target.port}" if target.port else ""
    again = parse_target(f"kubernetes:///{target.name}{port}")
    assert again == target
    if target.namespace:
        outer = parse_target(f"kubernetes://{target.namespace}/{target.service}{port}")
        assert isinstance(outer, KubernetesTarget)
        assert (outer.service, outer.namespace, outer.port) == (target.service, target.namespace, target.port)
