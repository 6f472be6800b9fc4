"""Endpoints of a Kubernetes Service, followed through the API server's watch on EndpointSlices.

The pod's service account needs a Role in the namespace of the Service:

    rules:
      - apiGroups: [discovery.k8s.io]
        resources: [endpointslices]
        verbs: [get, list, watch]
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from grpc_common.client.resolver.endpoint_slices import (
    ApiError,
    ConfigurationError,
    EndpointSlice,
    EndpointSliceList,
    ListMetadata,
    Metadata,
    WatchEvent,
    merge,
    why_empty,
)

if TYPE_CHECKING:
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

# Seconds without an event until a watch counts as broken; the API server sends bookmarks every minute.
_SILENCE = 90.0


class KubernetesEndpoints:
    """The EndpointSource of targets `kubernetes:///service.namespace:port`.

    Args:
        service: name of the Service.
        namespace: its namespace.
        port: name of a port of the Service, or number of a port of its pods; a Service with a
            single port takes any number.
        load: finds the API server and credentials; by default KUBECONFIG, the pod's service
            account, or ~/.kube/config.
        silence: seconds without an event until the watch is opened anew.

    """

    def __init__(
        self,
        service: str,
        namespace: str,
        port: int | str,
        *,
        load: Loader | None = None,
        silence: float = _SILENCE,
    ) -> None:
        self._service = service
        self._namespace = namespace
        self._port = port
        self._load = load
        self._silence = silence

    async def watch(self) -> AsyncIterator[list[str]]:
        """Yield all endpoints that take calls, first at once and then each time they change.

        An error never changes the endpoints: the last ones hold until the API server is back.

        Raises:
            ConfigurationError: neither service account nor kubeconfig can be used.

        """
        state = _State()
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
                endpoints = merge(state.slices.values(), self._port)
                if endpoints != published:
                    self._log_endpoints(endpoints, state)
                    yield endpoints
                    published = endpoints
        finally:
            follower.cancel()
            await asyncio.wait([follower])

    async def _follow(self, state: _State) -> None:
        """Keep `state` current, one connection after the other."""
        attempt = 0
        while True:
            started = time.monotonic()
            retry_after = await self._connection(state)
            if time.monotonic() - started > _STABLE:
                attempt = 0
            await asyncio.sleep(max(backoff(attempt), min(retry_after, _LAST_WAIT)))
            attempt += 1

    async def _connection(self, state: _State) -> float:
        """List if need be, then watch until the end; return the seconds to wait at least."""
        try:
            await self._list_and_watch(state)
        except OSError as error:
            self._log_error(error)
        except ConfigurationError as error:
            if not state.version and not state.slices:
                raise
            self._log_error(error)
        except Exception as error:  # noqa: BLE001
            # 410 Gone above all; but whatever else the API server said or we did not understand,
            # a new list settles it best, and nothing may end the following.
            state.version = 0
            self._log_error(error)
            return error.retry_after if isinstance(error, ApiError) else 0.0
        return 0.0

    async def _list_and_watch(self, state: _State) -> None:
        # A third of a second and 47 MB that only this kind of target shall pay for.
        from grpc_common.client.resolver import kubernetes_api  # noqa: PLC0415

        service, namespace = self._service, self._namespace
        async with kubernetes_api.connect(self._load or kubernetes_api.load_configuration) as api:
            if not state.version:
                state.replace(await kubernetes_api.list_slices(api, service, namespace))
            events = kubernetes_api.watch_slices(api, service, namespace, state.version, self._silence)
            async with aclosing(events):
                async for event in events:
                    state.apply(event)

    def _log_endpoints(self, endpoints: list[str], state: _State) -> None:
        service = f"{self._service}.{self._namespace}"
        if endpoints:
            log.info("endpoints changed", service=service, endpoints=len(endpoints))
        else:
            reason = why_empty(state.slices.values(), self._port)
            log.warning("no endpoints", service=service, reason=reason)

    def _log_error(self, error: Exception) -> None:
        advice = error.advice(self._namespace) if isinstance(error, ApiError) else ""
        log.warning(
            "endpoints can't be watched, the last ones stay in use",
            service=f"{self._service}.{self._namespace}",
            error=f"{type(error).__name__}: {error}",
            **({"needs": advice} if advice else {}),
        )


def backoff(attempt: int) -> float:
    """Return the seconds to wait after the failure number `attempt`, from 0: at random, to spread a fleet."""
    bound = min(_LAST_WAIT, _FIRST_WAIT * 2 ** min(attempt, 10))
    return random.uniform(0, bound)  # noqa: S311


@dataclass
class _State:
    """The slices of a service as the API server told them."""

    slices: dict[str, EndpointSlice] = field(default_factory=dict)
    version: int = 0
    """Where the next watch starts; 0 for a new list."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def replace(self, listed: EndpointSliceList) -> None:
        """Take a list as the truth, whatever was known before."""
        self.slices = {piece.metadata.name: piece for piece in listed.items}
        self.version = listed.metadata.resource_version
        self.changed.set()

    def apply(self, event: WatchEvent) -> None:
        """Take note of an event.

        Raises:
            ValueError: it makes no sense, or is older than what is known, as after a
                restored backup.

        """
        version = ListMetadata.model_validate(event.object.get("metadata")).resource_version
        if version < self.version:
            raise ValueError(f"the API server went back from version {self.version} to {version}")
        if event.type in ("ADDED", "MODIFIED"):
            piece = EndpointSlice.model_validate(event.object)
            self.slices[piece.metadata.name] = piece
        elif event.type == "DELETED":
            self.slices.pop(Metadata.model_validate(event.object["metadata"]).name, None)
        self.version = version
        self.changed.set()
