"""What a server says of its health over grpc.health.v1.

The name `liveness` is the process, which a supervisor restarts if it does not answer;
`readiness` is whether it can do its work, with all that it depends on. The empty name and
the services' own follow readiness, so that balancing clients leave a server that can't.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckResponse

log = structlog.get_logger()

LIVENESS = "liveness"
READINESS = "readiness"

type Probe = Callable[[], Awaitable[object]]


@dataclass
class Dependency:
    """Something without which the server is not ready, asked in the background."""

    name: str
    probe: Probe
    """Raises an exception when the dependency can't be used."""

    interval: float
    """Seconds between two probes."""

    timeout: float
    """Seconds after which a probe has failed."""

    failures: int
    """How many probes fail in a row before the server is not ready: one alone may be chance."""

    ready: bool = field(default=False, init=False)
    _failed: int = field(default=0, init=False)

    async def ask(self) -> bool:
        """Probe once, and return whether `ready` changed."""
        was_ready = self.ready
        try:
            async with asyncio.timeout(self.timeout):
                await self.probe()
        except Exception as error:  # noqa: BLE001 (whatever it is, the dependency failed)
            self._failed += 1
            self.ready = self.ready and self._failed < self.failures
            reason = str(error) or type(error).__name__
            log.warning("dependency failed", dependency=self.name, reason=reason, times=self._failed)
        else:
            self._failed = 0
            self.ready = True
        return self.ready != was_ready


class Health:
    """The health of one server."""

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()
        self._names = ["", READINESS]
        self._dependencies: list[Dependency] = []
        self._draining = False

    def add_service(self, name: str) -> None:
        """Let the service `name` have a health, which follows readiness."""
        self._names.append(name)

    def add_dependency(self, dependency: Dependency) -> None:
        """Make readiness depend on one thing more."""
        self._dependencies.append(dependency)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Answer, and ask the dependencies: once before the block begins, then until it ends."""
        await self._set([LIVENESS], serving=True)
        await self._publish()
        # So that the log's line "serving" is true; a dependency that fails is in the log before it.
        await asyncio.gather(*(dependency.ask() for dependency in self._dependencies))
        await self._publish()
        asking = [asyncio.create_task(self._watch(dependency)) for dependency in self._dependencies]
        try:
            yield
        finally:
            for task in asking:
                task.cancel()

    async def drain(self) -> None:
        """Be not ready from now on, whatever the dependencies say."""
        self._draining = True
        await self._publish()

    async def _watch(self, dependency: Dependency) -> None:
        while True:
            await asyncio.sleep(dependency.interval)
            if await dependency.ask():
                log.info("readiness", dependency=dependency.name, ready=dependency.ready)
                await self._publish()

    async def _publish(self) -> None:
        ready = all(dependency.ready for dependency in self._dependencies)
        await self._set(self._names, serving=ready and not self._draining)

    async def _set(self, names: Iterable[str], *, serving: bool) -> None:
        status = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
        for name in names:
            await self.servicer.set(name, status)
