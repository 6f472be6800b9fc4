"""Who may call what: by the subject alternative names (SANs) of the callers' certificates."""

import re
from collections.abc import Collection, Iterable, Mapping

import grpc

from grpc_common.core.errors import StatusError

_PATTERN = re.compile(r"\*|/[A-Za-z_][\w.]*/(\*|[A-Za-z_]\w*)", re.ASCII)
_HEALTH = "/grpc.health.v1.Health/*"


class Authorizer:
    """Checks callers against a list for each method.

    The most specific pattern decides: `/user.UserService/CreateUser`, then `/user.UserService/*`,
    then `*`. A method without one is open to everyone whom TLS lets in. `*` does not close
    grpc.health.v1.Health, which probes and clients' health checks need; its own patterns do.

    Args:
        allowed_callers: {pattern: SANs}; a caller with one of the SANs may call. They are compared as
            they are: DNS names, URIs such as `spiffe://cluster.local/ns/default/sa/web`, or IP addresses.

    Raises:
        ValueError: a pattern or SAN can't be right; the text names all of them, one a line.

    """

    def __init__(self, allowed_callers: Mapping[str, Collection[str]]) -> None:
        mistakes = [*_mistakes(allowed_callers)]
        if mistakes:
            raise ValueError("\n".join(mistakes))
        self._allowed = {pattern: frozenset(sans) for pattern, sans in allowed_callers.items()}

    def check(self, method: str, auth_context: Mapping[str, Iterable[bytes]]) -> None:
        """Return if the caller may call `method`.

        Args:
            method: the path, as `/user.UserService/CreateUser`.
            auth_context: what the servicer context's auth_context() returns.

        Raises:
            StatusError: PERMISSION_DENIED.

        """
        allowed = self._allowed_for(method)
        if allowed is None:
            return
        sans = [san.decode(errors="replace") for san in auth_context.get("x509_subject_alternative_name", ())]
        if allowed.isdisjoint(sans):
            caller = ", ".join(sans) or "a caller without SANs"
            raise StatusError(grpc.StatusCode.PERMISSION_DENIED, f"{method} is not allowed for {caller}")

    def _allowed_for(self, method: str) -> frozenset[str] | None:
        service = f"{method.rpartition('/')[0]}/*"
        for pattern in (method, service):
            if pattern in self._allowed:
                return self._allowed[pattern]
        return None if service == _HEALTH else self._allowed.get("*")


def _mistakes(allowed_callers: Mapping[str, Collection[str]]) -> Iterable[str]:
    for pattern, sans in allowed_callers.items():
        if not _PATTERN.fullmatch(pattern):
            yield f'{pattern!r} is not a method; write "/package.Service/Method", "/package.Service/*" or "*"'
        if not sans:
            yield f"{pattern!r} has no callers; name at least one SAN, or leave it out to let everyone call"
        for san in sans:
            if not san or "*" in san or san.strip() != san:
                yield f"{pattern!r} has the caller {san!r}; write one whole SAN, without wildcards or spaces"
