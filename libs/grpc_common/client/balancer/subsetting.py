"""Each client of a large fleet connects to some of the servers, and all clients together to all of them."""

import re
from collections.abc import Sequence
from hashlib import blake2b

from grpc_common.client.resolver.endpoint import Endpoint

# 2^64 divided by the golden ratio: its multiples, modulo 2^64, are spread evenly however many there are
# (Knuth, The Art of Computer Programming, 6.4: Fibonacci hashing).
_STEP = 0x9E3779B97F4A7C15
_CIRCLE = 1 << 64


def subset(endpoints: Sequence[Endpoint], size: int, client: str) -> list[Endpoint]:
    """Return the `size` endpoints that a client of this name takes; all if there are no more.

    The endpoints stand on a circle, ordered by a hash of their address, and a client takes those next to
    each other from a point on: it knows its own without asking anybody. One endpoint that comes or goes
    makes a client exchange two at most. (gRFC A68's random_subsetting exchanges fewer, but spreads the
    clients as unevenly as dice do.)

    The point is the golden ratio times the number that the name ends in, as the pods of a StatefulSet have
    one (`web-3`): with the numbers from 0 on, an endpoint's clients are no more than four above or below
    the mean, however many of up to a thousand clients there are. Any other name is hashed, which is dice
    again: with few clients there are endpoints without any.

    Where prefer_zone picks among them, most calls go to the few of the client's own zone: with three zones
    a `size` three times as great is as even as without it.
    """
    if len(endpoints) <= size:
        return list(endpoints)
    circle = sorted(endpoints, key=lambda endpoint: (_hash(endpoint.address), endpoint.address))
    start = _point(client) * len(circle) >> 64
    return (circle + circle)[start : start + size]


def _point(client: str) -> int:
    # Nine digits are more than any StatefulSet has.
    numbered = re.fullmatch("(.*-)([0-9]{1,9})", client, re.DOTALL)
    if not numbered:
        return _hash(client)
    # The clients of another StatefulSet begin elsewhere.
    return (_hash(numbered[1]) + int(numbered[2]) * _STEP) % _CIRCLE


def _hash(text: str) -> int:
    """Return 64 bits that are the same in every process, as those of hash() are not."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
