"""Server processes as the pods of one Service, with all that leads clients to them.

An EndpointSlice at an API server, A records for the headless name, and a ClusterIP follow what the kubelet's
probes say of each pod, as they do in a cluster.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from grpc_common.testing.api_server import Object, endpoint_slice
from tests.faults.proxy import Proxy
from tests.programs import SERVER, environment
from tools.lab.fleet.api import LOOPBACK, Api, SimulatedApi
from tools.lab.fleet.cluster_ip import ClusterIp
from tools.lab.fleet.headless_dns import HeadlessDns
from tools.lab.fleet.pod import Pod, Timing
from tools.ports import held_port

SERVICE = "user-service"
NAMESPACE = SimulatedApi.namespace
PORT_NAME = "grpc"

_ADDRESSES = [f"{LOOPBACK}{last}" for last in range(2, 251)]
"""Of pods, which take them in turn."""

_PORTS = ("GRPC_PORT", "HEALTH_PORT")


class Fleet:
    """The pods of a Service: `async with Fleet.running(3, database=url) as fleet`."""

    def __init__(self, api: Api, database: str, variables: Mapping[str, str], timing: Timing) -> None:
        self.pods: list[Pod] = []
        """All whose process runs, those that terminate too; the oldest first."""
        self.api = api
        self.dns = HeadlessDns(f"{SERVICE}-headless.{api.namespace}.svc.cluster.local", timing.dns_ttl)
        self.cluster_ip = ClusterIp()
        self.target = f"kubernetes:///{SERVICE}.{api.namespace}:{PORT_NAME}"
        """Of clients of grpc_common."""
        self.command: Sequence[str | Path] = [SERVER]
        """What new pods run: the user service, or a release or mutation of it."""
        self._database = database
        self._variables = dict(variables)
        self.timing = timing
        """Of new pods, and of the endpoints."""
        self._numbers = itertools.count(1)
        self._addresses = itertools.cycle(_ADDRESSES)
        self._ports: dict[str, int] = {}
        self._watchers: list[Callable[[Pod, str], None]] = []
        self._readers: list[Callable[[Pod, bytes], None]] = []
        self._followers: list[Callable[[Sequence[str]], None]] = []
        self._resources: dict[Pod, ExitStack] = {}
        self._published: list[Object] | None = None

    @classmethod
    @asynccontextmanager
    async def running(
        cls,
        count: int,
        *,
        database: str,
        variables: Mapping[str, str] | None = None,
        timing: Timing = Timing(),  # noqa: B008 (it is frozen)
        api: AbstractAsyncContextManager[Api] | None = None,
    ) -> AsyncIterator[Self]:
        """Run `count` pods over a database, which is migrated first, as its Job does.

        Args:
            count: how many pods are ready when the block begins.
            database: the URL of one that all share: sqlite:///FILE, or postgresql://…, to which each pod
                has a way of its own.
            variables: of the pods' environment.
            timing: of the cluster.
            api: runs the API server; None is one of grpc_common.testing.

        Raises:
            RuntimeError: a pod has not become ready, or the migration has failed; the text has its log.

        """
        async with api or SimulatedApi.running() as opened, AsyncExitStack() as stack:
            fleet = cls(opened, database, variables or {}, timing)
            await fleet._start_cluster(stack)
            await fleet.migrate()
            await fleet.scale(count)
            yield fleet

    def subscribe(self, watcher: Callable[[Pod, str], None]) -> None:
        """Have `watcher` called with each change of a pod, as Pod's `on_change`."""
        self._watchers.append(watcher)

    def read_logs(self, reader: Callable[[Pod, bytes], None]) -> None:
        """Have `reader` called with each line of each pod's log (JSON, unless LOGGING_FORMAT says else)."""
        self._readers.append(reader)

    @contextmanager
    def followed(self, follower: Callable[[Sequence[str]], None]) -> Iterator[None]:
        """Have `follower` called with HOST:PORT of each ready pod, now and with each change in the block."""
        self._followers.append(follower)
        follower(self.cluster_ip.backends)
        try:
            yield
        finally:
            self._followers.remove(follower)

    @property
    def port(self) -> int:
        """Where all pods take calls."""
        return self._ports["GRPC_PORT"]

    async def migrate(self) -> None:
        """Run `server migrate` with the variables of the pods."""
        process = await asyncio.create_subprocess_exec(
            SERVER,
            "migrate",
            env=environment(self._database, **self._variables),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"the migration has ended with {process.returncode}: {said.decode()}")

    async def scale(self, count: int) -> None:
        """Have `count` pods; wait until the new ones are ready, and those that are too many have ended."""
        present = [pod for pod in self.pods if not pod.terminating]
        async with asyncio.TaskGroup() as changes:
            for _ in range(count - len(present)):
                changes.create_task(self.add())
            for pod in present[count:]:
                changes.create_task(pod.terminate())

    async def roll(self, variables: Mapping[str, str] | None = None) -> None:
        """Replace each pod, as k8s/base/deployment.yaml says: maxSurge 25%, maxUnavailable 0.

        Args:
            variables: of the pods' environment from now on; None changes nothing.

        Raises:
            ExceptionGroup: of a RuntimeError: a new pod has not become ready. The old ones that are left go
                on, and the variables are what they were.

        """
        before = self._variables
        if variables is not None:
            self._variables = dict(variables)
        old = [pod for pod in self.pods if not pod.terminating]
        surge = math.ceil(len(old) / 4)
        try:
            async with asyncio.TaskGroup() as ends:
                for batch in itertools.batched(old, surge, strict=False):
                    await self._add_all(len(batch))
                    for pod in batch:
                        ends.create_task(pod.terminate())
        except ExceptionGroup:
            self._variables = before
            raise

    async def _add_all(self, count: int) -> None:
        """Start pods, and wait for all of them, whatever becomes of one."""
        for result in await asyncio.gather(*(self.add() for _ in range(count)), return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def add(self, variables: Mapping[str, str] | None = None) -> Pod:
        """Start one more pod, and wait until it is ready.

        Args:
            variables: of its environment, over those of all.

        """
        pod = await self._new_pod(variables or {})
        self.pods.append(pod)
        await pod.start()
        return pod

    async def _new_pod(self, own: Mapping[str, str]) -> Pod:
        with ExitStack() as stack:
            address = self._new_address(stack)
            database, url = await self._way_to_database(stack)
            ports = {name: str(port) for name, port in self._ports.items()}
            variables = {"LOGGING_FORMAT": "json", **self._variables, **own, **ports}
            pod = Pod(
                f"{SERVICE}-{next(self._numbers)}",
                self.command,
                address,
                environment=environment(url, **variables),
                database=database,
                timing=self.timing,
                on_change=self._changed,
                on_line=self._read,
            )
            self._resources[pod] = stack.pop_all()
        return pod

    async def _way_to_database(self, stack: ExitStack) -> tuple[Proxy | None, str]:
        """Return a proxy to PostgreSQL for one pod, and the URL that leads through it; none to SQLite."""
        port = urlsplit(self._database).port
        if port is None:
            return None, self._database
        proxy = Proxy(port)
        listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        stack.callback(proxy.cut)
        stack.callback(listener.close)
        own_port = listener.sockets[0].getsockname()[1]
        return proxy, self._database.replace(f":{port}/", f":{own_port}/")

    def _new_address(self, stack: ExitStack) -> str:
        """Return the next address on which the ports are free, and keep them from others.

        Raises:
            RuntimeError: there is none.

        """
        for address in itertools.islice(self._addresses, len(_ADDRESSES)):
            with suppress(OSError), ExitStack() as held:
                for name in _PORTS:
                    self._ports[name] = held.enter_context(held_port(address, self._ports.get(name, 0)))
                stack.push(held.pop_all())
                return address
        raise RuntimeError(f"no address from {_ADDRESSES[0]} to {_ADDRESSES[-1]} has its ports free")

    async def _start_cluster(self, stack: AsyncExitStack) -> None:
        await stack.enter_async_context(self.cluster_ip.serving())
        self.dns.start()
        stack.callback(self.dns.stop)
        stack.push_async_callback(self._end_all)

    async def _end_all(self) -> None:
        await asyncio.gather(*(pod.end() for pod in list(self.pods)))

    def _read(self, pod: Pod, line: bytes) -> None:
        for reader in self._readers:
            reader(pod, line)

    def _changed(self, pod: Pod, change: str) -> None:
        if change == "ended":
            self.pods.remove(pod)
            self._resources.pop(pod).close()
        asyncio.get_running_loop().call_later(self.timing.propagation, self._publish, self._endpoints())
        for watcher in self._watchers:
            watcher(pod, change)

    def _endpoints(self) -> list[Object]:
        """Return what the control plane makes of the pods: an EndpointSlice's endpoints."""
        return [
            {
                "addresses": [pod.address],
                "conditions": {
                    "ready": pod.ready and not pod.terminating,
                    "serving": pod.ready,
                    "terminating": pod.terminating,
                },
                "targetRef": {"kind": "Pod", "name": pod.name, "namespace": self.api.namespace},
            }
            for pod in self.pods
        ]

    def _publish(self, endpoints: list[Object]) -> None:
        """Tell the endpoints in all three ways."""
        if endpoints == self._published:
            return
        self._published = endpoints
        self.dns.addresses = _addresses(endpoints, "ready")
        # As kube-proxy: what terminates is better than nothing.
        backends = self.dns.addresses or _addresses(endpoints, "serving")
        self.cluster_ip.backends = [f"{address}:{self.port}" for address in backends]
        self.api.put(self._slice(endpoints))
        for follower in self._followers:
            follower(self.cluster_ip.backends)

    def _slice(self, endpoints: Sequence[Object]) -> Object:
        name, ports = f"{SERVICE}-1", [(PORT_NAME, self.port)]
        piece = endpoint_slice(name, [], service=SERVICE, namespace=self.api.namespace, ports=ports)
        told = [
            each | {"addresses": [each["addresses"][0].replace(LOOPBACK, self.api.network)]}
            for each in endpoints
        ]
        return piece | {"endpoints": told}


def _addresses(endpoints: Sequence[Object], condition: str) -> list[str]:
    return [each["addresses"][0] for each in endpoints if each["conditions"][condition]]
