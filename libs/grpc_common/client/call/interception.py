"""The interceptors of a channel, which stay entered from before a call starts until it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import grpc

from grpc_common.client.call.errors import rpc_error, rpc_error_of
from grpc_common.core.background import is_cancelled
from grpc_common.core.calls import Call, Interceptor
from grpc_common.core.errors import StatusError, status_of

_LEAVING = 1.0
"""Seconds that interceptors have after the deadline of their call, to see its end."""


async def intercepted(
    interceptors: Sequence[Interceptor], call: Call, end: float, run: Callable[[], Awaitable[None]]
) -> None:
    """Run a call in its interceptors, and raise what they make of its end.

    Args:
        interceptors: the first one is outermost.
        call: what they are told of.
        end: its deadline, by the event loop's clock.
        run: the call; its error is raised inside the interceptors.

    Raises:
        grpc.aio.AioRpcError: the call's own error, or that of an interceptor.

    """
    has_begun, own = False, None
    path = call.method.path
    with _as_rpc_error(path):
        async with _ending(path, end), AsyncExitStack() as stack:
            await _enter_all(stack, interceptors, call, end)
            has_begun = True
            try:
                await run()
            except BaseException as error:
                own = error
                raise
        if own is not None:  # an interceptor can't make a success of it
            raise own
        if not has_begun:
            raise StatusError(
                grpc.StatusCode.INTERNAL, f"an interceptor of {path} has suppressed an exception"
            )


async def _enter_all(
    stack: AsyncExitStack, interceptors: Sequence[Interceptor], call: Call, end: float
) -> None:
    scope, awaited = asyncio.timeout_at(end), ""
    try:
        async with scope:
            for interceptor in interceptors:
                awaited = _name(interceptor)
                await _enter(stack, interceptor, call)
    except TimeoutError:
        if not scope.expired():
            raise
        text = f"the interceptor {awaited} was not ready within {call.deadline:g} s"
        raise rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, text) from None


async def _enter(stack: AsyncExitStack, interceptor: Interceptor, call: Call) -> None:
    try:
        await stack.enter_async_context(interceptor(call))
    except asyncio.CancelledError as error:
        if is_cancelled():
            raise
        # It is that of a task which the interceptor has awaited: this call is not cancelled.
        raise rpc_error_of(status_of(error, call.method.path)) from error


@asynccontextmanager
async def _ending(path: str, end: float) -> AsyncIterator[None]:
    scope = asyncio.timeout_at(max(end, asyncio.get_running_loop().time()) + _LEAVING)
    try:
        async with scope:
            yield
    except TimeoutError:
        if not scope.expired():
            raise
        text = f"an interceptor of {path} did not end with its call"
        raise StatusError(grpc.StatusCode.DEADLINE_EXCEEDED, text) from None


@contextmanager
def _as_rpc_error(path: str) -> Iterator[None]:
    """Make a status of what an interceptor raises, SystemExit too: in a task it would end the loop."""
    try:
        yield
    except (grpc.aio.AioRpcError, asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise rpc_error_of(status_of(error, path)) from error


def _name(interceptor: Interceptor) -> str:
    """Return the name of a function, or of an object's class."""
    name: str = getattr(interceptor, "__name__", type(interceptor).__name__)
    return name
