"""Endpoints of a Kubernetes Service, followed through the API server's watch on EndpointSlices.

The pod's service account needs a Role in the namespace of the Service:

    rules:
      - apiGroups: [discovery.k8s.io]
        resources: [endpointslices]
        verbs: [get, list, watch]
"""

from __future__ import annotations

import asyncio
import importlib
import random
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from grpc_common.client.resolver.api_error import ApiError, ConfigurationError
from grpc_common.client.resolver.endpoint import Endpoint
from grpc_common.client.resolver.endpoint_slices import first_error, merge, why_empty
from grpc_common.client.resolver.known_slices import KnownSlices
from grpc_common.core.errors import printable

if TYPE_CHECKING:
    from kubernetes_asyncio.client import DiscoveryV1Api

    from grpc_common.client.resolver.kubernetes_api import Loader

log = structlog.get_logger()

# Seconds from a change until it is published together with those that followed: a rollout comes
# in bursts, and a new endpoint shall have traffic within a second.
_DEBOUNCE = 0.05

# Seconds of full-jitter backoff: the bound of the first wait, which doubles, and the last bound
# (client-go's reflector waits up to 30 too).
_FIRST_WAIT, _LAST_WAIT = 0.2, 30.0

# Seconds after which a connection counts as good, so that the next wait is the first again.
_STABLE = 5.0

# Seconds without an event until a watch counts as broken. The API server sends bookmarks every minute, if
# its storage has changed since; in a cluster that is so quiet, a list from the cache costs little.
_SILENCE = 90.0


class KubernetesEndpoints:
    """The EndpointSource of targets `kubernetes:///service.namespace:port`.

    Args:
        service: name of the Service.
        namespace: its namespace; None for one's own.
        port: name of a port of the Service, or number of a port of its pods; a Service with a
            single port takes any number, and None.
        load: finds the API server and credentials; by default KUBECONFIG, the pod's service
            account, or ~/.kube/config.
        silence: seconds without an event until the watch is opened anew.

    """

    def __init__(
        self,
        service: str,
        namespace: str | None,
        port: int | str | None,
        *,
        load: Loader | None = None,
        silence: float = _SILENCE,
    ) -> None:
        self.updated: float | None = None
        """When the API server last said something, bookmarks included, by time.monotonic(); None if never."""

        self._service = service
        self._namespace = namespace
        self._port = port
        self._load = load
        self._silence = silence
        self._failure = ""
        self._empty = ""

    @property
    def reason(self) -> str:
        """Why the endpoints can't be followed, or why there are none; empty if all is well."""
        return self._failure or self._empty

    async def watch(self) -> AsyncIterator[list[Endpoint]]:
        """Yield all endpoints that take calls, first at once and then each time they change.

        An error never changes the endpoints: the last ones hold until the API server is back.

        Raises:
            ConfigurationError: neither service account nor kubeconfig can be used.

        """
        state = KnownSlices(self._port)
        follower = asyncio.create_task(self._follow(state))
        follower.add_done_callback(lambda _: state.changed.set())
        published = None
        try:
            while True:
                await state.changed.wait()
                if follower.done():
                    await follower
                if published is not None:
                    await asyncio.sleep(_DEBOUNCE)
                state.changed.clear()
                endpoints = merge(state.slices.values())
                self._empty = "" if endpoints else why_empty(state.slices.values(), self._port)
                if endpoints != published:
                    self._log_endpoints(endpoints)
                    yield endpoints
                    published = endpoints
        finally:
            follower.cancel()
            await asyncio.wait([follower])

    async def _follow(self, state: KnownSlices) -> None:
        """Keep `state` current, one connection after the other."""
        attempt = 0
        while True:
            started = time.monotonic()
            retry_after = await self._connection(state)
            if time.monotonic() - started > _STABLE:
                attempt = 0
            await asyncio.sleep(max(backoff(attempt), min(retry_after, _LAST_WAIT)))
            attempt += 1

    async def _connection(self, state: KnownSlices) -> float:
        """List if need be, then watch until the end; return the seconds to wait at least."""
        try:
            await self._list_and_watch(state)
        except ConfigurationError as error:
            if self.updated is None:
                raise
            self._failed(error)
        except Exception as error:  # noqa: BLE001 (whatever it is, nothing may end the following)
            state.failed(error)
            self._failed(error)
            return error.retry_after if isinstance(error, ApiError) else 0.0
        return 0.0

    async def _list_and_watch(self, state: KnownSlices) -> None:
        # A third of a second and 47 MB that only this kind of target shall pay for; in a thread, since
        # calls may be served meanwhile.
        await asyncio.to_thread(importlib.import_module, "grpc_common.client.resolver.kubernetes_api")
        from grpc_common.client.resolver import kubernetes_api  # noqa: PLC0415

        async with kubernetes_api.connect(self._load or kubernetes_api.load_configuration) as api:
            if self._namespace is None:
                self._namespace = kubernetes_api.own_namespace()
            if state.not_before is not None:
                listed = await kubernetes_api.list_slices(
                    api, self._service, self._namespace, state.not_before
                )
                await state.replace(listed)
                self._succeeded()
            await self._watch(api, self._namespace, state)

    async def _watch(self, api: DiscoveryV1Api, namespace: str, state: KnownSlices) -> None:
        from grpc_common.client.resolver import kubernetes_api  # noqa: PLC0415

        opened = kubernetes_api.watch_slices(api, self._service, namespace, state.version, self._silence)
        async with opened as events:
            self._succeeded()
            async for event in events:
                await state.apply(event)
                self._succeeded()

    def _succeeded(self) -> None:
        self.updated, self._failure = time.monotonic(), ""

    def _log_endpoints(self, endpoints: list[Endpoint]) -> None:
        if endpoints:
            log.info("endpoints changed", service=self._name, endpoints=len(endpoints))
        else:
            log.warning("no endpoints", service=self._name, reason=self._empty)

    def _failed(self, error: Exception) -> None:
        advice = error.advice(self._namespace or "") if isinstance(error, ApiError) else ""
        text = first_error(error) if isinstance(error, ValidationError) else printable(str(error))
        text = f"{type(error).__name__}: {text}"
        self._failure = f"the endpoints of {self._name} can't be followed: {text}"
        self._failure += f"; needed: {advice}" if advice else ""
        log.warning(
            "endpoints can't be watched, the last ones stay in use",
            service=self._name,
            error=text,
            **({"needs": advice} if advice else {}),
        )

    @property
    def _name(self) -> str:
        return f"{self._service}.{self._namespace}" if self._namespace else self._service


def backoff(attempt: int) -> float:
    """Return the seconds to wait after the failure number `attempt`, from 0: at random, to spread a fleet."""
    bound = min(_LAST_WAIT, _FIRST_WAIT * 2 ** min(attempt, 10))
    return random.uniform(0, bound)  # noqa: S311
