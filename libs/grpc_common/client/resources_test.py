import asyncio
import gc
import os
from contextlib import contextmanager

import grpc
import pytest

from grpc_common.client.channel import channel
from grpc_common.testing.pods import Load, Words, pods, until

ECHO, HOLD = "/test.Backend/Echo", "/test.Backend/Hold"
NAME = "kubernetes:///backend.test:50051"


def descriptors():
    """Return how many this process has."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (of which a Path is made for each)


def own_tasks():
    """Return the tasks of channels."""
    codes = {task.get_coro().cr_code.co_filename: task for task in asyncio.all_tasks()}
    return [task for name, task in codes.items() if "/client/" in name and not name.endswith("_test.py")]


@contextmanager
def no_garbage_collection():
    """What is in a circle stays there."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def end_well(opened, _pod):
    """Make a call that ends well."""
    await opened.unary_unary(ECHO)(b"")


async def fail(opened, pod):
    """Make a call that the server refuses."""
    pod.failures, pod.code = 1, grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError):
        await opened.unary_unary(ECHO)(b"")


async def be_too_late(opened, _pod):
    """Make a call that is not over in time."""
    with pytest.raises(grpc.aio.AioRpcError):
        await opened.unary_unary(HOLD)(b"", timeout=0.05)


async def cancel(opened, pod):
    """Cancel a call that is on its way."""
    call = opened.unary_unary(HOLD)(b"")
    await pod.entered.wait()
    call.cancel()


async def cancel_who_waits(opened, pod):
    """Cancel the task that waits for a call."""

    async def wait():
        await opened.unary_unary(HOLD)(b"")

    task = asyncio.ensure_future(wait())
    await pod.entered.wait()
    task.cancel()
    await asyncio.wait([task])


async def leave_it(opened, pod):
    """Make a call that nobody ends."""
    opened.unary_unary(HOLD)(b"").add_done_callback(lambda _: None)
    await pod.entered.wait()


@pytest.mark.parametrize("use", [end_well, fail, be_too_late, cancel, cancel_who_waits, leave_it])
async def test_nothing_is_left_of_a_channel(use):
    """No task, and no connection that lasts until garbage is collected, however its calls have ended."""
    async with pods(1) as fleet:
        with no_garbage_collection():
            async with channel(NAME, endpoints=Words(fleet)) as opened:
                await use(opened, fleet[0])
            await until(lambda: not any(pod.open for pod in fleet), seconds=10)
            assert own_tasks() == []


@pytest.mark.parametrize("use", [end_well, fail, be_too_late, cancel])
async def test_nothing_is_left_of_an_endpoint(use):
    """The connection to a removed endpoint ends with its last call."""
    async with pods(2) as fleet:
        words = Words(fleet[:1])
        async with channel(NAME, endpoints=words) as opened:
            with no_garbage_collection():
                await use(opened, fleet[0])
                await words.say(fleet[1:])
                await until(lambda: not fleet[0].open, seconds=10)


async def test_thousand_changes():
    """They leave no task, no connection and no descriptor behind."""
    async with pods(4) as fleet:
        words = Words(fleet)
        async with channel(NAME, endpoints=words) as opened, Load(opened).of(2) as load:
            await until(lambda: all(pod.calls for pod in fleet), seconds=10)
            tasks, files = len(asyncio.all_tasks()), descriptors()
            for number in range(1000):
                await words.say(fleet[: 1 + number % 4])
            await until(lambda: all(pod.open == 1 for pod in fleet), seconds=10)
            await until(lambda: len(asyncio.all_tasks()) <= tasks + 4, seconds=10)
            await until(lambda: descriptors() <= files + 4, seconds=10)
        assert load.failures == []
