"""Who may call what: by the subject alternative names (SANs) of the callers' certificates."""

import difflib
from collections.abc import Collection, Iterable, Mapping

import grpc
from grpc_health.v1 import health

from grpc_common.config.callers import San, parse_allowed_callers
from grpc_common.core.errors import StartError, StatusError, printable
from grpc_common.server.identity import identity

_HEALTH = f"/{health.SERVICE_NAME}/*"


class Authorizer:
    """Checks callers against a list for each method.

    The most specific pattern decides: `/user.UserService/CreateUser`, then `/user.UserService/*`,
    then `*`. A method without one is open to everyone whom TLS lets in; an empty list lets nobody call, so
    `"*": []` refuses all that has no pattern of its own. `*` does not close grpc.health.v1.Health, which
    probes and clients' health checks need; its own patterns do.

    Args:
        allowed_callers: {pattern: SANs}; a caller with one of the SANs may call. A SAN with `://` or `urn:`
            is only ever equal to a URI of a certificate (`spiffe://cluster.local/ns/default/sa/web`), one
            with `@` to an e-mail address, an IP address to an IP address, and any other to a DNS name.
            They are compared whole; case matters, but not in domains. A certificate's wildcard is no match.

    Raises:
        ValueError: a pattern or SAN can't be right; the text names all of them.

    """

    def __init__(self, allowed_callers: Mapping[str, Collection[str]]) -> None:
        self._allowed = parse_allowed_callers(allowed_callers)

    def check_patterns(self, services: Mapping[str, Collection[str] | None]) -> None:
        """Return if every pattern is for something that is served.

        Args:
            services: {name: names of its methods}, None for methods that can't be known.

        Raises:
            StartError: one is not; the text names all of them, and for each the nearest that is.

        """
        mistakes = [
            f"server.tls.allowed_callers: {pattern} is not served; {_hint(pattern, services)}"
            for pattern in self._allowed
            if not _is_served(pattern, services)
        ]
        if mistakes:
            raise StartError("\n".join(mistakes))

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
        caller = identity(auth_context)
        if allowed.isdisjoint(caller.names):
            raise StatusError(
                grpc.StatusCode.PERMISSION_DENIED, f"{printable(method)} is not allowed for {caller}"
            )

    def _allowed_for(self, method: str) -> frozenset[San] | None:
        service = f"{method.rpartition('/')[0]}/*"
        for pattern in (method, service):
            if pattern in self._allowed:
                return self._allowed[pattern]
        return None if service == _HEALTH else self._allowed.get("*")


def _is_served(pattern: str, services: Mapping[str, Collection[str] | None]) -> bool:
    if pattern == "*":
        return True
    service, method = pattern[1:].split("/")
    if service not in services:
        return False
    methods = services[service]
    return method == "*" or methods is None or method in methods


def _hint(pattern: str, services: Mapping[str, Collection[str] | None]) -> str:
    names = ["*"] if pattern.endswith("/*") else None
    served = [
        f"/{service}/{name}" for service, methods in services.items() for name in names or methods or ()
    ]
    without_case = {path.lower(): path for path in served}
    near = difflib.get_close_matches(pattern.lower(), without_case, 1)
    return f"did you mean {without_case[near[0]]}?" if near else f"there are {', '.join(sorted(services))}"
