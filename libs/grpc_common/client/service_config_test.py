import asyncio
import json
import time
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from grpc_common.client.channel import ChannelConfig, channel
from grpc_common.client.service_config import OutlierDetection, RetryPolicy, RetryThrottling, ServiceConfig
from grpc_common.testing.backends import NOT_SERVING, SERVING, Backend, FedEndpoints

ECHO, CREATE = "/test.Backend/Echo", "/test.Backend/Create"
QUICK = RetryPolicy(initial_backoff=0.01)


def backend_descriptor():
    """Return a descriptor in which Echo has no side effects, Collect is idempotent, and Create neither."""
    file = descriptor_pb2.FileDescriptorProto(name="test.proto", package="test")
    file.message_type.add(name="Message")
    service = file.service.add(name="Backend")
    for name, level in (
        ("Echo", "NO_SIDE_EFFECTS"),
        ("Collect", "IDEMPOTENT"),
        ("Create", "IDEMPOTENCY_UNKNOWN"),
    ):
        method = service.method.add(name=name, input_type=".test.Message", output_type=".test.Message")
        method.options.idempotency_level = descriptor_pb2.MethodOptions.IdempotencyLevel.Value(level)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool.FindServiceByName("test.Backend")


@asynccontextmanager
async def serving(service: ServiceConfig, count: int = 1, **settings):
    """Serve `count` backends; yield what calls Echo and Create, and the backends."""
    async with AsyncExitStack() as stack:
        served = [await stack.enter_async_context(Backend.serving(**settings)) for _ in range(count)]
        client = await stack.enter_async_context(
            channel(
                "kubernetes:///backend.test:1",
                endpoints=FedEndpoints([address for _, address in served]),
                config=ChannelConfig(service=service),
            )
        )
        yield client.unary_unary(ECHO), client.unary_unary(CREATE), *(backend for backend, _ in served)


def test_default():
    """Calls are spread over healthy servers, and nothing is repeated."""
    assert json.loads(ServiceConfig().to_json()) == {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
    }


def test_methods_that_may_be_repeated_are_read_from_the_proto():
    """They are the idempotent ones and no other."""
    service = ServiceConfig.for_services(backend_descriptor())
    assert service.retryable_methods == ("test.Backend/Echo", "test.Backend/Collect")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RetryPolicy(max_attempts=6), r"max_attempts\n.* less than or equal to 5"),
        (lambda: RetryPolicy(max_attempts=1), r"max_attempts\n.* greater than or equal to 2"),
        (lambda: RetryPolicy(initial_backoff=0), r"initial_backoff\n.* greater than 0"),
        (lambda: RetryThrottling(max_tokens=1001), r"max_tokens\n.* less than or equal to 1000"),
        (lambda: OutlierDetection(interval=-1), r"interval\n.* greater than 0"),
        (
            lambda: OutlierDetection(failure_percentage=101),
            r"failure_percentage\n.* or equal to 100",
        ),
        (
            lambda: ServiceConfig(retryable_methods=("Echo",)),
            "method 'Echo' is not of the form package.Service/",
        ),
        (lambda: ServiceConfig(retryable_methods=(ECHO,)), "method '/test.Backend/Echo' is not of the form"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    """A value that gRPC would ignore or change in silence is an error."""
    with pytest.raises(ValueError, match=message):
        make()


async def test_idempotent_method_is_repeated():
    """Two failures with UNAVAILABLE are not seen by the caller."""
    async with serving(ServiceConfig.for_services(backend_descriptor(), retry=QUICK)) as (echo, _, backend):
        backend.failures = 2
        assert await echo(b"a") == b"a"
        assert backend.calls == 3


async def test_other_method_is_never_repeated():
    """A method that creates something gets one attempt, and its caller the error."""
    async with serving(ServiceConfig.for_services(backend_descriptor(), retry=QUICK)) as (_, create, backend):
        backend.failures = 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await create(b"")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert backend.calls == 1


async def test_other_codes_are_not_repeated():
    """An answer other than UNAVAILABLE is the caller's, of an idempotent method too."""
    async with serving(ServiceConfig.for_services(backend_descriptor(), retry=QUICK)) as (echo, _, backend):
        backend.failures, backend.code = 1, grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError):
            await echo(b"")
        assert backend.calls == 1


async def test_server_forbids_a_repetition():
    """A negative grpc-retry-pushback-ms ends the retries."""
    async with serving(ServiceConfig.for_services(backend_descriptor(), retry=QUICK)) as (echo, _, backend):
        backend.failures, backend.trailers = 1, (("grpc-retry-pushback-ms", "-1"),)
        with pytest.raises(grpc.aio.AioRpcError):
            await echo(b"")
        assert backend.calls == 1


async def test_server_puts_off_a_repetition():
    """A grpc-retry-pushback-ms is the time until the next attempt."""
    async with serving(ServiceConfig.for_services(backend_descriptor(), retry=QUICK)) as (echo, _, backend):
        backend.failures, backend.trailers = 1, (("grpc-retry-pushback-ms", "300"),)
        start = time.monotonic()
        await echo(b"")
        assert time.monotonic() - start >= 0.3
        assert backend.calls == 2


async def test_retries_stop_when_too_many_calls_fail():
    """With half of the tokens gone, calls get one attempt only."""
    throttling = RetryThrottling(max_tokens=10)
    service = ServiceConfig.for_services(backend_descriptor(), retry=QUICK, retry_throttling=throttling)
    async with serving(service) as (echo, _, backend):
        backend.failures = float("inf")
        for _ in range(20):
            with pytest.raises(grpc.aio.AioRpcError):
                await echo(b"")
        assert 20 < backend.calls < 20 + 10


@pytest.mark.parametrize("name", ["", "test.Backend"])
async def test_traffic_leaves_a_server_that_is_not_serving(name):
    """No call fails when one of two servers stops being healthy, and it gets none until it is again."""
    async with serving(ServiceConfig(health_check_service=name), 2) as (echo, _, first, second):
        await _until_called(echo, first, second)
        await first.health.set(name, NOT_SERVING)
        await _until_not_called(echo, first)
        await first.health.set(name, SERVING)
        await _until_called(echo, first, second)


async def test_server_without_health_service_counts_as_healthy():
    """The default works with servers of all kinds."""
    async with serving(ServiceConfig(), has_health=False) as (echo, _, _backend):
        assert await echo(b"a") == b"a"


async def test_failing_server_is_left_out_for_a_while():
    """A server that says it is healthy and fails gets no calls, until it is tried again."""
    # Times in which a busy machine makes the calls that it takes to eject, and those that show it.
    outliers = OutlierDetection(interval=0.5, base_ejection_time=1, failure_percentage=50, request_volume=5)
    async with serving(ServiceConfig(outlier_detection=outliers), 3) as (echo, _, first, *_others):
        await _until_called(echo, first)
        first.failures, first.code = float("inf"), grpc.StatusCode.INTERNAL
        await _until_not_called(echo, first)
        first.failures = 0
        await _until_called(echo, first)


async def _until_called(echo, *backends: Backend) -> None:
    """Call until each of `backends` has had a call more."""
    before = [backend.calls for backend in backends]
    async with asyncio.timeout(20):
        while any(backend.calls <= calls for backend, calls in zip(backends, before, strict=True)):
            await echo(b"")


async def _until_not_called(echo, backend: Backend) -> None:
    """Call until 20 calls one after the other have gone elsewhere."""
    calls_elsewhere = 0
    async with asyncio.timeout(20):
        while calls_elsewhere < 20:
            before = backend.calls
            try:
                await echo(b"")
            except grpc.aio.AioRpcError as error:
                assert error.code() is backend.code
                assert backend.failures
            calls_elsewhere = calls_elsewhere + 1 if backend.calls == before else 0
