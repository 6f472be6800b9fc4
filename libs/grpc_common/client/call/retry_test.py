import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest

from grpc_common.client.channel import ChannelConfig, channel
from grpc_common.client.service_config import RetryPolicy, RetryThrottling, ServiceConfig
from grpc_common.testing.backends import Backend, FedEndpoints
from grpc_common.testing.odd_server import REFUSED_STREAM, OddCall, OddServer

TARGET = "kubernetes:///backend.test:50051"
ATTEMPTS = "grpc-previous-rpc-attempts"
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

type Answer = Callable[[OddCall], Awaitable[None]]

SHAPES = {"Echo": "unary_unary", "Watch": "unary_stream", "Collect": "stream_unary", "Chat": "stream_stream"}
RETRYABLE = tuple(f"test.Backend/{name}" for name in SHAPES)
SOON = RetryPolicy(initial_backoff=0.01, max_backoff=0.01)


def config(**settings) -> ChannelConfig:
    """Return a configuration with retries of all but Create, which come soon, and no health checks."""
    settings = {"retryable_methods": RETRYABLE, "retry": SOON, "health_check_service": None} | settings
    return ChannelConfig(service=ServiceConfig(**settings))


def failing(times: float = 1, code: grpc.StatusCode = UNAVAILABLE, **trailers: str):
    """Return what has a backend fail."""
    pairs = tuple((name.replace("_", "-"), value) for name, value in trailers.items())

    def prepare(backend: Backend) -> None:
        backend.failures, backend.code, backend.trailers = times, code, pairs

    return prepare


async def code_of(call) -> grpc.StatusCode:
    """Use a call to its end; return its code."""
    try:
        if hasattr(call, "__aiter__"):
            [_ async for _ in call]
        else:
            await call
    except grpc.aio.AioRpcError as error:
        assert error.code() is await call.code()
    return await call.code()


def start(client: grpc.aio.Channel, name: str, **options):
    """Start a call of a method of test.Backend, with requests that are not awaited for."""
    request = [b"a", b"b"] if name in {"Collect", "Chat"} else b"a"
    return getattr(client, SHAPES.get(name, "unary_unary"))(f"/test.Backend/{name}")(request, **options)


@asynccontextmanager
async def beside(answer: Answer):
    """Yield a channel whose calls go to an odd server first, that server, and a good one beside it."""
    is_proven, before = False, 0

    async def proven(call: OddCall) -> None:
        if is_proven:
            await answer(call)
        else:
            call.headers()
            call.message(b"")
            call.status(0)

    async with OddServer.serving(proven) as odd, Backend.serving(has_health=False) as (good, address):
        good.release.set()
        source = FedEndpoints([address])
        first = config(load_balancing="round_robin")
        async with channel(TARGET, endpoints=source, config=first, observers=[]) as client:
            source.put([odd.address, address])
            while not (odd.calls and good.calls > before):  # the next one in turn is the odd one
                before = good.calls
                assert await code_of(start(client, "Create")) is grpc.StatusCode.OK
            is_proven = True
            odd.calls = good.calls = 0
            yield client, odd, good


async def hang_up(call: OddCall) -> None:
    """End the connection."""
    call.hang_up()


async def hang_up_after_headers(call: OddCall) -> None:
    """End the connection when the answer has begun."""
    call.headers()
    call.hang_up()


async def refuse(call: OddCall) -> None:
    """Say in HTTP/2 that the call is not taken."""
    call.reset(REFUSED_STREAM)


async def unavailable(call: OddCall) -> None:
    """Answer with a status."""
    call.status(14)


async def go_away(call: OddCall) -> None:
    """Say that the connection ends, and that the call was not seen."""
    call.goaway(is_seen=False)


async def go_away_seen(call: OddCall) -> None:
    """End the connection, with the word that the call was seen."""
    call.goaway(is_seen=True)
    call.hang_up()


BROKEN = [hang_up, hang_up_after_headers, refuse, unavailable, go_away, go_away_seen]


@pytest.mark.parametrize("name", ["Echo", "Watch"])
@pytest.mark.parametrize("answer", BROKEN)
async def test_broken_call_is_made_on_another_endpoint(answer, name):
    """Whichever way a server breaks off, the call is answered by the other one."""
    async with beside(answer) as (client, odd, good):
        assert await code_of(start(client, name)) is grpc.StatusCode.OK
        assert (odd.calls, good.calls) == (
            2 if answer is go_away else 1,
            1,
        )  # C-core tries GOAWAY again itself


@pytest.mark.parametrize("name", ["Collect", "Chat"])
@pytest.mark.parametrize("answer", BROKEN)
async def test_stream_is_repeated_whole_or_not_at_all(answer, name):
    """A stream that breaks off ends with the server's status, or another one gets each request exactly once.

    (Which of the two is a matter of time: the first request may have been sent, or not.)
    """
    async with beside(answer) as (client, odd, _good):
        for number in range(1, 4):
            call = start(client, name)
            try:
                answers = b"".join([each async for each in call]) if name == "Chat" else await call
            except grpc.aio.AioRpcError as error:
                assert error.code() is UNAVAILABLE, error
            else:
                assert answers == b"ab"
            assert 1 <= odd.calls <= 2 * number


@pytest.mark.parametrize("answer", BROKEN)
async def test_create_is_never_repeated(answer):
    """A method that is not idempotent is made once, if a server may have seen it."""
    async with beside(answer) as (client, odd, good):
        assert await code_of(start(client, "Create")) is UNAVAILABLE
        assert (odd.calls, good.calls) == (2 if answer is go_away else 1, 0)


@pytest.mark.parametrize("is_own", [False, True])
async def test_text_of_a_relay_is_no_reason_to_repeat(is_own):
    """A server that passes on the text of a failed call of its own has seen the call."""

    async def relay(call: OddCall) -> None:
        address = odd.address if is_own else "127.0.0.1:1"
        text = f"last error: UNKNOWN: ipv4:{address}: Failed to connect to remote host"
        call.status(14, f"connections to all backends failing; {text}")

    async with beside(relay) as (client, odd, good):
        assert await code_of(start(client, "Create")) is UNAVAILABLE
        assert (odd.calls, good.calls) == (1, 0)


async def test_call_that_reached_no_server_goes_elsewhere():
    """A server that is gone costs no call of any type, repeatable or not, as long as another one is there."""
    async with Backend.serving() as (good, address), AsyncExitStack() as stack:
        good.release.set()
        async with Backend.serving() as (_gone, gone_address):
            source = FedEndpoints([gone_address])
            client = await stack.enter_async_context(channel(TARGET, endpoints=source, observers=[]))
            source.put([address, gone_address])
            while not good.calls:
                assert await code_of(start(client, "Create")) is grpc.StatusCode.OK
        for _ in range(20):
            for name in [*SHAPES, "Create"]:
                assert await code_of(start(client, name)) is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("prepare", "calls"),
    [
        (failing(3), 4),
        (failing(9), 4),
        (failing(9, grpc_retry_pushback_ms="0"), 4),
        (failing(9, grpc_retry_pushback_ms="1"), 4),
        (failing(9, grpc_retry_pushback_ms="-1"), 1),
        (failing(9, grpc_retry_pushback_ms="soon"), 1),
        (failing(9, grpc_retry_pushback_ms="1.5"), 1),
        (failing(9, grpc_retry_pushback_ms=""), 1),
        (failing(9, grpc_retry_pushback_ms="9" * 400), 1),
        (failing(9, grpc_retry_pushback_ms="9" * 5000), 1),
        (failing(9, grpc.StatusCode.ABORTED), 1),
        (failing(9, grpc.StatusCode.DEADLINE_EXCEEDED), 1),
        (failing(9, grpc.StatusCode.CANCELLED), 1),
    ],
)
async def test_attempts_end(prepare, calls):
    """max_attempts, a server that pushes back, and codes that are an answer end the attempts."""
    async with (
        Backend.serving(has_health=False) as (backend, address),
        channel(address, config=config(), observers=[]) as client,
    ):
        prepare(backend)
        code = await code_of(start(client, "Echo"))
        assert backend.calls == calls
        assert code is (backend.code if backend.failures else grpc.StatusCode.OK)


async def test_codes_are_those_of_the_configuration():
    """A code that is configured is retried, and UNAVAILABLE is not if it is left out."""
    retry = SOON.model_copy(update={"retryable_codes": ("ABORTED",)})
    async with (
        Backend.serving(has_health=False) as (backend, address),
        channel(address, config=config(retry=retry), observers=[]) as client,
    ):
        failing(1, grpc.StatusCode.ABORTED)(backend)
        assert await code_of(start(client, "Echo")) is grpc.StatusCode.OK
        failing(1)(backend)
        assert await code_of(start(client, "Echo")) is UNAVAILABLE


@pytest.mark.parametrize("pushback", [None, "60000"])
async def test_no_wait_goes_past_the_deadline(pushback):
    """A call whose next attempt would come too late ends at once, with the error of the last one."""
    retry = RetryPolicy(initial_backoff=60, max_backoff=60)
    async with (
        Backend.serving(has_health=False) as (backend, address),
        channel(address, config=config(retry=retry), observers=[]) as client,
    ):
        failing(9, **({"grpc_retry_pushback_ms": pushback} if pushback else {}))(backend)
        async with asyncio.timeout(20):
            assert await code_of(start(client, "Echo", timeout=30)) is UNAVAILABLE
        assert backend.calls == 1


async def test_attempts_share_one_deadline():
    """The second attempt has what is left of the call's time."""
    retry = RetryPolicy(initial_backoff=1, max_backoff=1)
    async with (
        Backend.serving(has_health=False) as (backend, address),
        channel(address, config=config(retry=retry), observers=[]) as client,
    ):
        failing(1)(backend)
        assert await code_of(start(client, "Echo", timeout=5)) is grpc.StatusCode.OK
        assert backend.calls == 2
        assert backend.deadline < 4.5


async def test_throttling_stops_retries():
    """Once half of the tokens are spent calls are made once, until successes have earned new ones."""
    throttling = RetryThrottling(max_tokens=10, token_ratio=1)
    async with (
        Backend.serving(has_health=False) as (backend, address),
        channel(address, config=config(retry_throttling=throttling), observers=[]) as client,
    ):
        failing(1000)(backend)
        for _ in range(20):
            assert await code_of(start(client, "Echo")) is UNAVAILABLE
        assert backend.calls == 20 + 3  # the fifth failure leaves half of the tokens
        backend.failures = 0
        for _ in range(7):
            assert await code_of(start(client, "Echo")) is grpc.StatusCode.OK
        failing(1)(backend)
        assert await code_of(start(client, "Echo")) is grpc.StatusCode.OK
        failing(1000)(backend)
        await code_of(start(client, "Create"))
        assert backend.failures == 999


async def test_server_is_told_of_earlier_attempts():
    """Where C-core leaves it in, each attempt but the first says how many there were."""
    told = []

    class Told(Backend):
        def _remember(self, context) -> None:
            super()._remember(context)
            told.append(dict(self.metadata).get(ATTEMPTS))

    args = {"channel_args": {"grpc.enable_retries": 0}}
    async with (
        Told.serving(has_health=False) as (backend, address),
        channel(address, config=config().model_copy(update=args), observers=[]) as client,
    ):
        failing(3)(backend)
        assert await code_of(start(client, "Echo")) is grpc.StatusCode.OK
    assert told == [None, "1", "2", "3"]
