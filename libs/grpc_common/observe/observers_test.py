import asyncio

import grpc
import prometheus_client
import pytest
from structlog.testing import capture_logs

from grpc_common.config.sections import ServerConfig
from grpc_common.core.calls import Call, CallType, Method
from grpc_common.observe.observers import Observers
from grpc_common.server.engine import new_server
from grpc_common.server.lifecycle import Lifecycle


class Broken:
    """Observes nothing."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def started(self, _call: Call) -> None:
        raise self.error

    def ended(self, _call: Call) -> None:
        raise self.error


class Working:
    """Takes note of all calls."""

    def __init__(self) -> None:
        self.codes: list[grpc.StatusCode] = []

    def started(self, call: Call) -> None:
        assert call.code is None

    def ended(self, call: Call) -> None:
        self.codes.append(call.code)


def failures() -> float:
    """Return how often Broken was counted."""
    return (
        prometheus_client.REGISTRY.get_sample_value("grpc_observer_failures_total", {"observer": "Broken"})
        or 0
    )


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), asyncio.CancelledError(), SystemExit(1), StopIteration()], ids=repr
)
async def test_observer_that_raises_changes_no_call(error):
    """Each failure of an observer is counted, the first is logged, and calls and other observers go on."""
    working, before = Working(), failures()

    async def echo(request, _context):
        return request

    lifecycle = Lifecycle(ServerConfig().server, observers=[Broken(error), working])
    server = new_server(ServerConfig().server, lifecycle)
    methods = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Methods", methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with capture_logs() as logs:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for _ in range(3):
                assert await channel.unary_unary("/test.Methods/Echo")(b"x", timeout=10) == b"x"
    await server.stop(None)
    assert working.codes == [grpc.StatusCode.OK] * 3
    assert failures() - before == 6
    assert [(line["event"], line["observer"]) for line in logs] == [
        ("observer failed, calls go on", "Broken")
    ]


def test_order():
    """Observers are told in the order in which they were given."""
    told = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def started(self, _call: Call) -> None:
            told.append(f"{self.name} started")

        def ended(self, _call: Call) -> None:
            told.append(f"{self.name} ended")

    observers = Observers([Named("a"), Named("b")])
    call = Call(Method("test.Methods", "Echo", CallType.UNARY))
    observers.started(call)
    observers.ended(call)
    assert told == ["a started", "b started", "a ended", "b ended"]
