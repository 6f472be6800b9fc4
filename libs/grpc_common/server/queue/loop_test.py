import asyncio
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from grpc_common.server.queue.loop import QueueLoop
from grpc_common.testing.server import serving

PATIENCE = 20
"""Seconds."""


def run(work, *, debug=False):
    """Run a coroutine in a loop of its own."""

    async def bounded():
        async with asyncio.timeout(PATIENCE):
            return await work

    with asyncio.Runner(loop_factory=QueueLoop, debug=debug) as runner:
        return runner.run(bounded())


@asynccontextmanager
async def echo():
    """Serve Echo; yield what calls it."""
    async with serving() as (port, _), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/test.Methods/Echo")
        assert await call(b"1") == b"1"
        yield call


async def echoes(times=1):
    """Serve Echo, and call it."""
    async with echo() as call:
        assert [await call(b"%d" % each) for each in range(times)] == [b"%d" % each for each in range(times)]


@pytest.mark.parametrize("debug", [False, True])
def test_calls(debug):
    """Calls are served, in asyncio's debug mode too."""
    run(echoes(20), debug=debug)


def test_timers_come_in_order():
    """Timers are neither early nor out of order while the loop waits for the queue."""

    async def work():
        loop, fired = asyncio.get_running_loop(), []
        start = loop.time()
        for delay in (0.03, 0.01, 0.02, 0):
            loop.call_later(delay, lambda each: fired.append((each, loop.time() - start)), delay)
        await asyncio.sleep(0.05)
        assert [delay for delay, _ in fired] == [0, 0.01, 0.02, 0.03]
        assert all(took >= delay - 0.001 for delay, took in fired)

    run(work())


def test_threads_wake_the_loop():
    """What a thread gives to the loop is run at once: not when the queue's own wait of 200 ms ends."""

    async def work():
        async with echo():
            for _ in range(200):
                await asyncio.to_thread(os.getpid)

    run(work())  # 40 s if it were not


def test_sockets_and_subprocesses():
    """Descriptors are seen while the loop waits for calls."""

    async def work():
        async with echo() as call:
            ours, theirs = socket.socketpair()
            reader, writer = await asyncio.open_connection(sock=ours)
            thread = threading.Thread(target=lambda: [theirs.sendall(theirs.recv(5)) for _ in range(200)])
            thread.start()
            for _ in range(200):
                writer.write(b"hello")
                assert await reader.readexactly(5) == b"hello"
            thread.join()
            writer.close()
            theirs.close()
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", "print('out')", stdout=asyncio.subprocess.PIPE
            )
            assert await process.communicate() == (b"out\n", None)
            assert await call(b"x") == b"x"

    run(work())


def test_signals():
    """A signal's handler runs while nothing else happens."""

    async def work():
        async with echo():
            received = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, received.set)
            threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGUSR2]).start()
            await received.wait()

    run(work())


def test_descriptors_have_their_turn_under_load():
    """Calls that never cease hold up neither timers nor sockets."""

    async def work():
        ours, theirs = socket.socketpair()
        async with echo() as call:
            is_over = asyncio.Event()

            async def caller():
                while not is_over.is_set():
                    await call(b"x")

            callers = [asyncio.create_task(caller()) for _ in range(100)]
            reader, writer = await asyncio.open_connection(sock=ours)
            for _ in range(50):
                await asyncio.sleep(0.001)
                theirs.sendall(b"hello")
                assert await reader.readexactly(5) == b"hello"
            is_over.set()
            await asyncio.gather(*callers)
            writer.close()
            theirs.close()

    run(work())


def test_a_stream_gives_way():
    """A handler that writes without a pause leaves other tasks their turn."""

    async def work():
        turns, counted = 0, 0

        async def count():
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        async def flow(_request, _context):
            for each in range(20_000):
                yield b"%d" % each

        methods = {"Flow": grpc.unary_stream_rpc_method_handler(flow)}
        async with (
            serving(methods) as (port, _),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            counting = asyncio.create_task(count())
            async for _message in channel.unary_stream("/test.Methods/Flow")(b""):
                counted += 1
            counting.cancel()
        assert counted == 20_000
        assert turns > 100

    run(work())


def test_a_completion_that_fails_ends_no_other(caplog):
    """An exception is logged, as that of any callback of a loop, and calls go on."""

    async def work():
        loop = asyncio.get_running_loop()
        async with echo() as call:

            class Event:
                success = True

                @staticmethod
                def tag(_event):
                    raise ValueError("a bug")

            loop.waiter.completed.append(Event)
            assert await call(b"x") == b"x"

    run(work())
    assert "exception in a completion of gRPC" in caplog.text


def test_an_interrupted_turn_loses_nothing():
    """What completed beside a KeyboardInterrupt is run by whoever goes on with the loop."""
    loop, ran = QueueLoop(), []

    class Event:
        def __init__(self, tag):
            self.tag = tag

    def interrupt(_event):
        raise KeyboardInterrupt

    loop.waiter.completed += [Event(interrupt), Event(ran.append), Event(ran.append)]
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(asyncio.sleep(PATIENCE))
    loop.run_until_complete(asyncio.sleep(0.01))
    assert len(ran) == 2
    loop.close()


def test_an_answer_that_fails_holds_up_no_other():
    """A batch that C-core refuses, or that is none, tells its call alone."""

    class Refusing:
        @staticmethod
        def start_server_batch(_operations, _tag):
            return 1

    async def work():
        told, loop = asyncio.Queue(), asyncio.get_running_loop()
        async with echo() as call:
            for refusing in (Refusing, None):
                loop.call_soon(loop.waiter.put_off, refusing, (), told.put_nowait)
                await told.get()
            assert await call(b"x") == b"x"

    run(work())


def test_an_answer_waits_for_no_handler_that_takes_long():
    """Answers are sent together, but not behind a turn in which other handlers take their time."""
    together = [0]

    async def slow(request, _context):
        end = time.perf_counter() + 0.02
        while time.perf_counter() < end:
            pass
        return request

    async def work():
        methods = {"Slow": grpc.unary_unary_rpc_method_handler(slow)}
        async with (
            serving(methods) as (port, _),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            waiter = asyncio.get_running_loop().waiter
            put_off, begin_put_off = waiter.put_off, waiter.begin_put_off

            def counted(*batch):
                together.append(together.pop() + 1)
                put_off(*batch)

            def begin():
                together.append(0)
                begin_put_off()

            waiter.put_off, waiter.begin_put_off = counted, begin
            slow_call = channel.unary_unary("/test.Methods/Slow")
            await asyncio.gather(*(slow_call(b"x") for _ in range(10)))
        assert sum(together) == 10
        assert max(together) <= 2

    run(work())


def test_a_call_without_a_message_begins_its_life():
    """A client that sends headers alone is seen, and ended by the server's deadline."""

    async def work():
        async with (
            serving(DEFAULT_DEADLINE="200ms") as (port, _),
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            call = channel.stream_unary("/test.Methods/Echo")()
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    run(work())


def test_loops_of_several_threads():
    """Each has a queue of its own, and serves."""
    with ThreadPoolExecutor(4) as pool:
        for result in [pool.submit(lambda: run(echoes(50))) for _ in range(8)]:
            result.result(PATIENCE)


def test_nothing_is_left():
    """Loops that are closed leave no thread and no descriptor."""
    run(echoes())
    threads, descriptors = threading.active_count(), len(list(Path("/dev/fd").iterdir()))
    for _ in range(10):
        run(echoes())
    end = time.monotonic() + PATIENCE  # C-core closes in threads of its own
    while (
        threading.active_count() > threads
        or len(list(Path("/dev/fd").iterdir())) > descriptors + 3  # gRPC's own, which it keeps for the next
    ):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_loop_that_is_closed_under_its_server():
    """A program that ends without stopping its server ends, and soon."""

    async def work():
        server = await serving().__aenter__()
        assert server

    run(work())


def test_work_from_a_thread_after_the_end():
    """The loop refuses it as asyncio's own does."""
    loop = QueueLoop()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon_threadsafe(print)
