"""Who calls: what a certificate, a token or a scheme of one's own says of a caller."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from grpc_common.core.errors import excerpt

_LONGEST_NAME = 1000
"""Characters of a caller's name in logs and errors."""


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
        """Return the name as logs and errors have it: printable, and not too long."""
        return excerpt(self.name, _LONGEST_NAME)
