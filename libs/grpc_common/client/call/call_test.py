import asyncio
import multiprocessing
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from grpc_common.client.channel import ChannelConfig, channel
from grpc_common.client.service_config import RetryPolicy, ServiceConfig
from grpc_common.core.calls import Call
from grpc_common.testing.backends import Backend, FedEndpoints, serve_in_process

TARGET = "kubernetes:///backend.test:50051"
ECHO, CREATE, HOLD, WATCH, COLLECT, CHAT = (
    f"/test.Backend/{name}" for name in ("Echo", "Create", "Hold", "Watch", "Collect", "Chat")
)
CANCELLED, DEADLINE_EXCEEDED = grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED

STARTS = {
    "unary": lambda client, path, **options: client.unary_unary(path)(b"a", **options),
    "server_stream": lambda client, path, **options: client.unary_stream(path)(b"a", **options),
    "client_stream": lambda client, path, **options: client.stream_unary(path)(endless(), **options),
    "bidi_stream": lambda client, path, **options: client.stream_stream(path)(endless(), **options),
}


async def endless() -> AsyncIterator[bytes]:
    """Yield a request, and then wait for ever."""
    yield b"a"
    await asyncio.Event().wait()


class Told:
    """An observer that counts how often each call begins and ends."""

    def __init__(self) -> None:
        self.begun: Counter[Call] = Counter()
        self.over: Counter[Call] = Counter()

    def started(self, call: Call) -> None:
        """Count a beginning."""
        self.begun[call] += 1

    def ended(self, call: Call) -> None:
        """Count an end."""
        self.over[call] += 1

    def codes(self) -> list[grpc.StatusCode | None]:
        """Return how the calls have ended, each of which was told of twice."""
        assert self.begun == self.over
        assert set(self.over.values()) <= {1}
        return [call.code for call in self.over]


def retrying(backoff: float) -> ChannelConfig:
    """Return a configuration that repeats all but Create."""
    methods = tuple(path.removeprefix("/") for path in (ECHO, WATCH, COLLECT, CHAT))
    retry = RetryPolicy(initial_backoff=backoff, max_backoff=backoff)
    service = ServiceConfig(retryable_methods=methods, retry=retry)
    return ChannelConfig(service=service)


@asynccontextmanager
async def waiting_for_an_endpoint(told: Told):
    """Yield a call that waits for an endpoint to come, what ends its channel, and its deadline's options."""
    source = FedEndpoints([])
    async with channel(TARGET, endpoints=source, observers=[told], ready_timeout=None) as client:
        yield client, {"wait_for_ready": True}


@asynccontextmanager
async def waiting_for_the_answer(told: Told):
    """Yield a channel whose calls are never answered."""
    async with Backend.serving() as (_backend, address), channel(address, observers=[told]) as client:
        yield client, {}


PATHS = {"unary": HOLD, "server_stream": WATCH, "client_stream": COLLECT, "bidi_stream": CHAT}
PHASES = [waiting_for_an_endpoint, waiting_for_the_answer]


async def use(call: grpc.aio.Call) -> object:
    """Use a call to its end."""
    if isinstance(call, (grpc.aio.UnaryStreamCall, grpc.aio.StreamStreamCall)):
        return [each async for each in call]
    return await call


@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize("phase", PHASES)
async def test_cancelled_call_ends_at_once(phase, kind):
    """Whatever a call waits for, cancel() ends it, and its observers are told once."""
    told = Told()
    async with phase(told) as (client, options):
        call = STARTS[kind](client, PATHS[kind], **options)
        using = asyncio.create_task(use(call))
        await asyncio.sleep(0.01)
        assert call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(using, 20)
        assert told.codes() == [CANCELLED]
        assert call.done()
        assert call.cancelled()


@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize("phase", PHASES)
async def test_cancelled_task_cancels_its_call(phase, kind):
    """The task that waits for a call takes it with it, and a timeout around it is a TimeoutError."""
    told = Told()
    async with phase(told) as (client, options):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await use(STARTS[kind](client, PATHS[kind], **options))
        assert told.codes() == [CANCELLED]


@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize("phase", PHASES)
async def test_deadline_ends_a_call(phase, kind):
    """Whatever a call waits for, it is over when its time is."""
    told = Told()
    async with phase(told) as (client, options):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(use(STARTS[kind](client, PATHS[kind], timeout=0.1, **options)), 20)
        assert caught.value.code() is DEADLINE_EXCEEDED
        assert told.codes() == [DEADLINE_EXCEEDED]


@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize("phase", PHASES)
async def test_closed_channel_ends_a_call(phase, kind):
    """Whatever a call waits for, close() ends it CANCELLED and says why, after the grace if there is one."""
    for grace in None, 0.05:
        told = Told()
        async with phase(told) as (client, options):
            using = asyncio.create_task(use(STARTS[kind](client, PATHS[kind], **options)))
            await asyncio.sleep(0.01)
            await asyncio.wait_for(client.close(grace), 20)
            with pytest.raises(grpc.aio.AioRpcError, match="closed") as caught:
                await asyncio.wait_for(using, 20)
            assert caught.value.code() is CANCELLED
            assert told.codes() == [CANCELLED]


async def test_call_may_end_within_the_grace():
    """close() waits for it no longer than it takes; a call that begins meanwhile is refused."""
    async with Backend.serving() as (backend, address), channel(address, observers=[]) as client:
        call = client.unary_unary(HOLD)(b"a")
        await backend.entered.wait()
        closing = asyncio.create_task(client.close(60))
        await asyncio.sleep(0)
        with pytest.raises(grpc.aio.AioRpcError, match="closed"):
            await client.unary_unary(ECHO)(b"a")
        backend.release.set()
        assert await call == b"a"
        await asyncio.wait_for(closing, 20)
    assert backend.calls == 1


@pytest.mark.parametrize("how", ["cancel", "task", "close", "deadline"])
async def test_call_ends_between_two_attempts(how):
    """A call that waits to be repeated ends as any other."""
    told = Told()
    async with (
        Backend.serving() as (backend, address),
        channel(address, config=retrying(30), observers=[told]) as client,
    ):
        backend.failures = 9
        call = client.unary_unary(ECHO)(b"a", timeout=600 if how != "deadline" else 5)
        using = asyncio.create_task(use(call))
        await backend.entered.wait()
        while not call._call.attempt.done():  # noqa: SLF001 (nothing else tells that it has failed)
            await asyncio.sleep(0.001)
        if how == "cancel":
            call.cancel()
        elif how == "task":
            using.cancel()
        elif how == "close":
            await client.close()
        await asyncio.wait([using], timeout=20)
        if how == "deadline":  # it does not even wait
            assert told.codes() == [grpc.StatusCode.UNAVAILABLE]
        else:
            assert told.codes() == [CANCELLED]
        assert backend.calls == 1


@pytest.mark.parametrize("waits", [False, True])
async def test_interceptor_may_close_the_channel(waits):
    """A call that ends before it has begun to wait for anything is as good as any."""

    @asynccontextmanager
    async def closing(_call: Call) -> AsyncIterator[None]:
        await client.close()
        if waits:
            await asyncio.Event().wait()
        yield

    told = Told()
    async with (
        Backend.serving() as (backend, address),
        channel(address, observers=[told], interceptors=[closing]) as client,
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="closed"):
            await asyncio.wait_for(client.unary_unary(ECHO)(b"a"), 20)
        assert told.codes() == [CANCELLED]
        assert backend.calls == 0


async def test_every_call_is_told_of_once_whatever_ends_it():
    """Calls that fail, are repeated, cancelled and given up at random times each begin once and end once."""
    told = Told()
    dice = random.Random(15)  # noqa: S311 (no secret)
    async with (
        Backend.serving() as (backend, address),
        channel(address, config=retrying(0.005), observers=[told]) as client,
    ):

        async def one(kind: str) -> None:
            path = ECHO if kind == "unary" else PATHS[kind]
            backend.failures = dice.choice([0, 0, 1, 5])
            call = STARTS[kind](client, path, timeout=dice.choice([0, 0.02, 5]))
            using = asyncio.create_task(use(call))
            after, how = dice.uniform(0, 0.03), dice.choice([call.cancel, using.cancel])
            await asyncio.sleep(after)
            how()
            await asyncio.wait([using], timeout=20)
            assert using.done()
            assert await asyncio.wait_for(call.code(), 20) is not None

        for _ in range(10):
            await asyncio.gather(*(one(kind) for kind in list(STARTS) * 5))
        assert len(told.codes()) == 200
        assert not client._calls.running  # noqa: SLF001
        (subchannel,) = client.balancer.subchannels.values()
        assert subchannel.in_flight == 0


async def test_killed_server_costs_only_the_calls_that_it_had():
    """A process that is killed takes no call with it that may be repeated, and of the others those it had."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=serve_in_process, args=(sender,), daemon=True)
    process.start()
    gone = await asyncio.to_thread(receiver.recv)
    async with Backend.serving() as (good, address):
        source = FedEndpoints([gone, address])
        async with channel(TARGET, endpoints=source, config=retrying(0.01), observers=[]) as client:
            echo, create = client.unary_unary(ECHO), client.unary_unary(CREATE)
            codes: Counter[grpc.StatusCode] = Counter()

            async def load() -> None:
                for number in range(300):
                    assert await echo(b"a") == b"a"
                    try:
                        await create(b"%d" % number)
                        codes[grpc.StatusCode.OK] += 1
                    except grpc.aio.AioRpcError as error:
                        codes[error.code()] += 1

            loads = [asyncio.create_task(load()) for _ in range(4)]
            while codes[grpc.StatusCode.OK] < 200:
                await asyncio.sleep(0)
            assert process.pid
            os.kill(process.pid, signal.SIGKILL)
            await asyncio.gather(*loads)
    await asyncio.to_thread(process.join)
    assert codes.total() == 1200
    assert codes[grpc.StatusCode.OK] >= 1200 - 4  # one at most for each task
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert good.calls > 600
