import asyncio
import threading
from contextlib import suppress

import pytest
from structlog.testing import capture_logs

from grpc_common import Server
from grpc_common.server.dependencies import Dependency
from grpc_common.testing import configure


class Fatal(BaseException):
    """What extension modules raise past `except Exception`."""


class UnprintableError(Exception):
    """An error whose text is an error."""

    def __str__(self) -> str:
        raise ValueError("no text")


def raises(error: BaseException):
    """Return a probe that raises `error`."""

    async def probe() -> None:
        raise error

    return probe


async def awaits_a_cancelled_task() -> None:
    """Raise CancelledError although this task is not cancelled."""
    task = asyncio.create_task(asyncio.Event().wait())
    task.cancel()
    await task


async def fails_in_a_task_group() -> None:
    """Raise an ExceptionGroup."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(raises(ConnectionError("no route"))())


async def cancels_itself() -> None:
    """Cancel the task that runs the probe."""
    asyncio.current_task().cancel()
    await asyncio.Event().wait()


async def never_answers() -> None:
    """Take longer than any timeout."""
    await asyncio.Event().wait()


def raises_at_once() -> None:
    """Raise before there is anything to await."""
    raise ConnectionError("no route")


BAD_PROBES = {
    "bug": (raises(KeyError("host")), "'host'"),
    "without text": (raises(ConnectionError()), "ConnectionError"),
    "text that fails": (raises(UnprintableError()), "UnprintableError"),
    "forged line": (raises(ConnectionError("no\nroute\x1b[2J\ud800")), r"no\nroute\x1b[2J\ud800"),
    "long text": (raises(ConnectionError("x" * 10**6)), f"{'x' * 200}... (1000000 characters)"),
    "CancelledError": (raises(asyncio.CancelledError()), "CancelledError"),
    "cancelled task": (awaits_a_cancelled_task, "CancelledError"),
    "cancels itself": (cancels_itself, "CancelledError"),
    "task group": (fails_in_a_task_group, "unhandled errors in a TaskGroup (1 sub-exception)"),
    "SystemExit": (raises(SystemExit(1)), "1"),
    "GeneratorExit": (raises(GeneratorExit()), "GeneratorExit"),
    "BaseException": (raises(Fatal("lost")), "lost"),
    "never answers": (never_answers, "no answer within 50ms"),
    "TimeoutError": (raises(TimeoutError("took longer than 5s")), "took longer than 5s"),
    "plain function": (
        lambda: None,
        "the probe returned NoneType instead of an awaitable; write it as async def",
    ),
    "plain function that raises": (raises_at_once, "no route"),
}


@pytest.mark.parametrize(("probe", "reason"), BAD_PROBES.values(), ids=BAD_PROBES)
async def test_every_failure_of_a_probe_is_a_reason(probe, reason):
    """Whatever a probe does is one line in the log, bounded and printable, and no exception."""
    dependency = Dependency("database", probe, interval=1, timeout=0.05, failures=1)
    with capture_logs() as logs:
        assert not await dependency.ask()
    assert not dependency.up
    assert [(line["dependency"], line["reason"]) for line in logs] == [("database", reason)]


async def test_probe_that_ignores_its_cancellation_is_left_behind():
    """It holds nobody up, and there is never a second one of it at the same time."""
    started, ended = 0, asyncio.Event()

    async def probe() -> None:
        nonlocal started
        started += 1
        while not ended.is_set():
            with suppress(asyncio.CancelledError):
                await ended.wait()

    dependency = Dependency("database", probe, interval=1, timeout=0.01, failures=1, patience=0.02)
    with capture_logs() as logs:
        for _ in range(4):
            await dependency.ask()
    assert started == 1
    assert [line["reason"] for line in logs] == [
        "no answer within 10ms",
        "no answer within 20ms",
        *["the probe before has not ended yet, although it was cancelled"] * 2,
    ]
    ended.set()
    await asyncio.sleep(0.01)  # for the first one to see it
    assert await dependency.ask()
    assert started == 2


async def test_probe_that_blocks_a_thread_holds_nobody_up():
    """The thread goes on, and the server with it."""
    release = threading.Event()
    dependency = Dependency(
        "database", lambda: asyncio.to_thread(release.wait), interval=1, timeout=0.05, failures=1
    )
    with capture_logs() as logs:
        await dependency.ask()
    dependency.stop()
    release.set()
    assert [line["reason"] for line in logs] == ["no answer within 50ms"]


@pytest.mark.parametrize(
    "error",
    [asyncio.CancelledError(), SystemExit(1), Fatal(), ConnectionError()],
    ids=repr,
)
async def test_server_outlives_its_probes(error):
    """A probe that raises anything, first at the start and then in the middle, is asked again."""
    good, failing = asyncio.Event(), True

    async def probe() -> None:
        if failing:
            raise error
        good.set()

    server = Server(configure())
    server.depend_on("database", probe, interval=0.01, timeout=60, failures=2)
    with capture_logs() as logs:
        async with asyncio.timeout(20), server.serving():
            for _ in range(2):
                failing = False
                good.clear()
                await good.wait()
                failing = True
                await asyncio.sleep(0.05)
            failing = False
            good.clear()
            await good.wait()
    allowed = {"dependency failed", "readiness", "serving", "draining", "stopped"}
    # A busy machine may hold up the event loop, which the log tells.
    assert {line["event"] for line in logs} - {"event loop blocked", "event loop runs again"} <= allowed
