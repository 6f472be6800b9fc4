"""EndpointSlices, as an API server may send them: a list, or the lines of a watch."""

import asyncio
import json

from pydantic import ValidationError

from grpc_common.client.resolver.endpoint_check import checked
from grpc_common.client.resolver.endpoint_slices import merge, why_empty
from grpc_common.client.resolver.known_slices import KnownSlices
from grpc_common.client.resolver.kubernetes_api import WatchEvent, read_list
from grpc_common.client.resolver.target import KubernetesTarget, parse_target
from tools.fuzz.properties import check_shown

_loop = asyncio.new_event_loop()


def fuzz(data: bytes) -> None:
    """Whatever is sent, what is known is good: endpoints that can be dialled, or a reason for none.

    The first line is the target's port, the second a list, each other an event.
    """
    port, _, rest = data.partition(b"\n")
    try:
        target = parse_target(f"kubernetes:///a:{port.decode('latin-1')}" if port else "kubernetes:///a")
    except ValueError:
        return
    assert isinstance(target, KubernetesTarget)
    _loop.run_until_complete(follow(target.port, rest.split(b"\n")))


async def follow(port: int | str | None, lines: list[bytes]) -> None:
    """Take note of what is sent, as a resolver does."""
    known = KnownSlices(port)
    try:
        text = lines[0].decode()
        listed = await read_list(text)
        await known.replace(listed)
    except ValueError:
        return
    if text.count('"items"') == 1:  # of several the first counts, which a list of Kubernetes has not
        assert listed.items == (json.loads(text)["items"] or [])
    check(known, port)
    for line in lines[1:]:
        try:
            await known.apply(WatchEvent.model_validate_json(line))
        except (ValidationError, ValueError) as error:
            known.failed(error)
        check(known, port)


def check(known: KnownSlices, port: int | str | None) -> None:
    """Look at what is known."""
    endpoints = merge(known.slices.values())
    good, refused = checked(endpoints)
    assert (good, refused) == (endpoints, [])
    assert len({endpoint.address for endpoint in endpoints}) == len(endpoints)
    assert not any("%" in endpoint.address for endpoint in endpoints)  # a zone is another one on each machine
    if not endpoints:
        check_shown(why_empty(known.slices.values(), port), 10_000)
