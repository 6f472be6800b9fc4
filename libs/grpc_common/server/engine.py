"""Which engine drives the calls of a server: C-core's completion queue in the loop's thread, or grpc.aio."""

import asyncio
from collections.abc import Callable
from typing import cast

import grpc
import structlog

from grpc_common.config.sections import ServerSection
from grpc_common.core.errors import StartError
from grpc_common.server.accepting import accepting_server
from grpc_common.server.aio import AioEngine
from grpc_common.server.lifecycle import Lifecycle
from grpc_common.server.options import options
from grpc_common.server.queue import private

log = structlog.get_logger()


def loop_factory(engine: str = "auto") -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the event loop that `server.engine` needs, for asyncio.run; None for asyncio's own.

    Raises:
        StartError: the engine was asked for, and this grpcio can't have it.

    """
    if engine == "grpc-aio":
        return None
    reason = private.reason_against()
    if reason is None:
        from grpc_common.server.queue.loop import QueueLoop  # noqa: PLC0415 (takes the private names)

        return QueueLoop
    if engine == "completion-queue":
        raise StartError(f"server.engine: {reason}; set it to auto or grpc-aio")
    log.info("calls are driven by grpc.aio", reason=reason)
    return None


def new_server(config: ServerSection, lifecycle: Lifecycle) -> grpc.aio.Server:
    """Return a server whose calls `lifecycle` lives, by the engine that the running loop is for.

    Raises:
        StartError: the engine was asked for, and the loop is not for it.

    """
    if config.engine != "grpc-aio" and private.reason_against() is None:
        from grpc_common.server.queue.loop import QueueLoop  # noqa: PLC0415 (takes the private names)
        from grpc_common.server.queue.server import QueueServer  # noqa: PLC0415 (as above)

        if isinstance(loop := _running_loop(), QueueLoop):
            return cast("grpc.aio.Server", QueueServer(options(config), lifecycle, loop))
    if config.engine == "completion-queue":
        raise StartError(
            "server.engine: completion-queue needs its event loop; run the service by grpc_common.command, "
            'or by asyncio.run(main(), loop_factory=grpc_common.loop_factory("completion-queue"))'
        )
    return accepting_server(options(config), AioEngine(lifecycle))


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:  # a server may be made before it runs, with grpc.aio
        return None
