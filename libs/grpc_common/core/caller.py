"""Who calls: what a certificate, a token or a scheme of one's own says of a caller."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True, slots=True)
class Caller:
    """Who has made a call."""

    name: str
    """For logs and errors: who to ask about the call; never a secret."""

    names: frozenset[str] = frozenset()
    """What `server.allowed_callers` compares, with its kind: `subject:NAME` and `scope:NAME`; of a
    certificate `DNS:NAME`, `URI:NAME`, `IP:ADDRESS` and `email:ADDRESS`."""

    claims: Mapping[str, Any] = field(default=MappingProxyType({}), repr=False, compare=False)
    """What the token says, once it is verified; empty without one."""

    def __str__(self) -> str:
        return self.name
