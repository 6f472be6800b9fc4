"""A plugin of pytest with the fixture `serve`.

It is there wherever the wheel is installed; with Bazel a test file says
`pytest_plugins = ["grpc_common.testing.pytest_plugin"]`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from importlib.util import find_spec
from typing import Any

import grpc
import pytest

type Serve = Callable[..., Awaitable[grpc.aio.Channel]]
"""Takes what `grpc_common.testing.serve_on_loopback` takes."""

_OTHER_LOOP = (
    "the fixture serve has another event loop than the test;"
    " set asyncio_default_fixture_loop_scope of pytest-asyncio to the loop_scope of the test"
)


async def _serve() -> AsyncIterator[Serve]:
    """Return a function that serves a servicer until the end of the test, however that ends.

    async def test_echo(serve):
        stub = EchoStub(await serve(Echo(), add_EchoServicer_to_server, errors=ERRORS))

    It takes what `serve_on_loopback` takes, may be called several times, and returns a channel.
    """
    from grpc_common.core.errors import StartError  # noqa: PLC0415 (few tests have a server)
    from grpc_common.testing.loopback import serve_on_loopback  # noqa: PLC0415

    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    running: set[asyncio.Task[None]] = set()

    async def serve(*servicer: Any, **options: Any) -> grpc.aio.Channel:
        __tracebackhide__ = True  # what can't start is shown in the test's own line
        if asyncio.get_running_loop() is not loop:  # the fixture's end could not wait for the server's
            raise RuntimeError(_OTHER_LOOP)
        started: asyncio.Future[grpc.aio.Channel] = loop.create_future()
        # A task of its own: pytest-asyncio may run the fixture's end in another one than the test.
        task = asyncio.create_task(_hold(serve_on_loopback(*servicer, **options), started, over))
        running.add(task)  # before it is waited for, since the test may give up
        either: list[asyncio.Future[Any]] = [task, started]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            running.remove(task)
            try:
                task.result()
            except StartError as error:  # where the library has raised it would tell nothing
                raise error.with_traceback(None) from None
        return started.result()

    try:
        yield serve
    finally:
        over.set()
        await asyncio.gather(*running)


async def _hold(
    served: AbstractAsyncContextManager[grpc.aio.Channel],
    started: asyncio.Future[grpc.aio.Channel],
    over: asyncio.Event,
) -> None:
    async with served as channel:
        started.set_result(channel)
        await over.wait()


if find_spec("pytest_asyncio"):
    import pytest_asyncio

    serve = pytest_asyncio.fixture(_serve, name="serve")
else:

    @pytest.fixture(name="serve")
    def missing() -> None:
        """Say what the fixture needs."""
        pytest.fail("serve needs pytest-asyncio: pip install grpc-on-kubernetes-common[testing]")
