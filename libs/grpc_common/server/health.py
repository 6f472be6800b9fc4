"""What a server says of its health over grpc.health.v1.

The name `liveness` is the process, which a supervisor restarts if it does not answer;
`readiness` is whether it can do its work, with all that it requires. The empty name and
the services' own follow readiness, so that balancing clients leave a server that can't.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from grpc_common.core.background import supervise
from grpc_common.core.errors import excerpt
from grpc_common.server.dependencies import Dependency

log = structlog.get_logger()

LIVENESS = "liveness"
READINESS = "readiness"

type Status = int
"""One of HealthCheckResponse's."""

type Context = grpc.aio.ServicerContext[Any, Any]


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Answers with the statuses that it was told.

    grpcio-health-checking's own holds a lock while it writes to a watcher, so that a single client that
    does not read stops every change of its service's health, and with it the drain.

    Args:
        listed: whether List tells which names there are.

    """

    def __init__(self, *, listed: bool = True) -> None:
        self._listed = listed
        self._statuses: dict[str, Status] = {}
        self._changed = asyncio.Event()

    def set(self, names: Iterable[str], status: Status) -> None:
        """Answer with `status` for `names` from now on, and tell those who watch them."""
        self._statuses |= dict.fromkeys(names, status)
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(  # noqa: N802 (gRPC's)
        self, request: HealthCheckRequest, context: Context
    ) -> HealthCheckResponse:
        """Return the status of one name, or end the call with NOT_FOUND."""
        if request.service not in self._statuses:
            await context.abort(grpc.StatusCode.NOT_FOUND, _unknown(request.service))
        return HealthCheckResponse(status=self._statuses[request.service])

    async def List(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Return the status of every name."""
        del request  # it has no fields
        if not self._listed:
            message = "this server does not tell its services (server.reflection is off)"
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, message)
        answers = {name: HealthCheckResponse(status=status) for name, status in self._statuses.items()}
        return health_pb2.HealthListResponse(statuses=answers)  # type: ignore[attr-defined]  # not in the stubs

    async def Watch(  # noqa: N802
        self, request: HealthCheckRequest, context: Context
    ) -> AsyncIterator[HealthCheckResponse]:
        """Yield the status of one name now and whenever it has changed; SERVICE_UNKNOWN is one too."""
        del context
        last = None
        while True:
            changed = self._changed  # first: what changes while a response is written must not be missed
            status = self._statuses.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)
            if status != last:
                yield HealthCheckResponse(status=status)
                last = status
            await changed.wait()


def _unknown(service: str) -> str:
    return (
        f'no service "{excerpt(service, 100)}" is known here; ask for "", "{LIVENESS}", "{READINESS}" '
        "or the full name of a service, as in package.Service"
    )


class Health:
    """The health of one server, and what it depends on.

    Args:
        listed: whether clients may ask for all names.

    """

    def __init__(self, *, listed: bool = True) -> None:
        self.servicer = HealthServicer(listed=listed)
        self._names = ["", READINESS]
        self._dependencies: list[Dependency] = []
        self._open = False
        self.servicer.set([LIVENESS], HealthCheckResponse.SERVING)
        self._publish()

    def add_service(self, name: str) -> None:
        """Let the service `name` have a health, which follows readiness."""
        self._names.append(name)
        self._publish()

    def add_dependency(self, dependency: Dependency) -> None:
        """Follow one thing more, on which readiness depends if it is required."""
        self._dependencies.append(dependency)
        self._publish()

    @asynccontextmanager
    async def follow_dependencies(self) -> AsyncIterator[None]:
        """Ask all dependencies once before the block begins, then again and again until it ends."""
        async with AsyncExitStack() as stack:
            for dependency in self._dependencies:
                stack.callback(dependency.stop)
            # So that the log's line "serving" is true; a dependency that fails is in the log before it.
            await asyncio.gather(*(dependency.ask() for dependency in self._dependencies))
            self._publish()
            for dependency in self._dependencies:
                following = supervise(f"dependency {dependency.name}", partial(self._follow, dependency))
                stack.callback(asyncio.create_task(following).cancel)
            yield

    def open(self) -> None:
        """Be ready from now on if the dependencies are; before it calls are not taken yet."""
        self._open = True
        self._publish()

    def drain(self) -> None:
        """Be not ready from now on, whatever the dependencies say."""
        self._open = False
        self._publish()

    async def _follow(self, dependency: Dependency) -> None:
        while True:
            await asyncio.sleep(dependency.pause)
            if not await dependency.ask():
                continue
            if dependency.required:
                log.info("readiness", dependency=dependency.name, ready=dependency.up)
                self._publish()
            else:
                log.info("dependency", dependency=dependency.name, up=dependency.up)

    @property
    def ready(self) -> bool:
        """Whether the server can do its work."""
        return self._open and all(each.up for each in self._dependencies if each.required)

    @property
    def dependencies(self) -> dict[str, bool]:
        """What the server depends on, by name, and whether that is up; of two with one name, both."""
        up: dict[str, bool] = {}
        for dependency in self._dependencies:
            up[dependency.name] = dependency.up and up.get(dependency.name, True)
        return up

    @property
    def slow_dependencies(self) -> set[str]:
        """Those of the dependencies that are up and answer late."""
        return {dependency.name for dependency in self._dependencies if dependency.slow}

    def _publish(self) -> None:
        status = HealthCheckResponse.SERVING if self.ready else HealthCheckResponse.NOT_SERVING
        self.servicer.set(self._names, status)
