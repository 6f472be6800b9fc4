"""Who may call what: by the names that certificates and tokens give callers."""

import difflib
from collections.abc import Collection, Mapping

import grpc
from grpc_health.v1 import health

from grpc_common.config.callers import parse_allowed_callers
from grpc_common.core.caller import Caller
from grpc_common.core.errors import StartError, StatusError, printable

_HEALTH_PREFIX = f"/{health.SERVICE_NAME}/"
_HEALTH = f"{_HEALTH_PREFIX}*"


class Authorizer:
    """Checks callers against a list for each method.

    The most specific pattern decides: `/user.UserService/CreateUser`, then `/user.UserService/*`,
    then `*`. A method without one is open to everyone; an empty list lets nobody call, so
    `"*": []` refuses all that has no pattern of its own. `*` does not close grpc.health.v1.Health, which
    probes and clients' health checks need; its own patterns do.

    Args:
        allowed_callers: {pattern: names}; a caller with one of the names may call. `subject:NAME` and
            `scope:NAME` are those of a token; of a certificate it is a SAN. One with `://` or `urn:`
            is only ever equal to a URI of a certificate (`spiffe://cluster.local/ns/default/sa/web`), one
            with `@` to an e-mail address, an IP address to an IP address, and any other to a DNS name.
            They are compared whole; case matters, but not in domains. A certificate's wildcard is no match.

    Raises:
        ValueError: a pattern or name can't be right; the text names all of them.

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
            f"server.allowed_callers: {pattern} is not served; {_hint(pattern, services)}"
            for pattern in self._allowed
            if not _is_served(pattern, services)
        ]
        if mistakes:
            raise StartError("\n".join(mistakes))

    def is_open_health(self, method: str) -> bool:
        """Return whether `method` is one of health that is open to whoever asks, as probes do."""
        return method.startswith(_HEALTH_PREFIX) and self.allowed_for(method) is None

    def check(self, method: str, caller: Caller | None) -> None:
        """Return if the caller, None for one without a credential, may call `method`.

        Args:
            method: the path, as `/user.UserService/CreateUser`.
            caller: who calls.

        Raises:
            StatusError: UNAUTHENTICATED or PERMISSION_DENIED.

        """
        allowed = self.allowed_for(method)
        if allowed is None:
            return
        if caller is None:
            text = f"{printable(method)} is not open to callers without a credential"
            raise StatusError(grpc.StatusCode.UNAUTHENTICATED, text)
        if allowed.isdisjoint(caller.names):
            text = f"{printable(method)} is not allowed for {caller}"
            raise StatusError(grpc.StatusCode.PERMISSION_DENIED, text)

    def allowed_for(self, method: str) -> frozenset[str] | None:
        """Return the names that may call `method`, None if it is open to everyone."""
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
