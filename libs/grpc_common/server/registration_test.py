from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import grpc_common
from grpc_common.server.registration import Services
from grpc_common.testing import configure


async def echo(request: bytes, _context) -> bytes:
    """Answer with the request."""
    return request


def handler(name: str, *methods: str) -> grpc.GenericRpcHandler:
    """Return what generated code makes of a service."""
    handlers = {method: grpc.unary_unary_rpc_method_handler(echo) for method in methods}
    return grpc.method_handlers_generic_handler(name, handlers)


class OwnHandler(grpc.ServiceRpcHandler):
    """A service without a list of its methods."""

    def service_name(self) -> str:
        return "test.Own"

    def service(self, _handler_call_details):
        return grpc.unary_unary_rpc_method_handler(echo)


class Nameless(grpc.GenericRpcHandler):
    """Answers whatever is called."""

    def service(self, _handler_call_details):
        return grpc.unary_unary_rpc_method_handler(echo)


def registering(*handlers: grpc.GenericRpcHandler):
    """Return a function that registers what is given."""

    def add_test_to_server(_servicer, server) -> None:
        for each in handlers:
            server.add_generic_rpc_handlers((each,))

    return add_test_to_server


def new_server(**settings) -> grpc_common.Server:
    """Return a server with free ports."""
    return grpc_common.Server(configure(server=settings))


@asynccontextmanager
async def serving(server: grpc_common.Server):
    """Serve; yield a channel."""
    async with server.serving() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


async def health(channel: grpc.aio.Channel, service: str) -> int:
    """Ask for a service's health."""
    request = health_pb2.HealthCheckRequest(service=service)
    return (await health_pb2_grpc.HealthStub(channel).Check(request)).status


async def test_name_is_taken_from_what_is_registered():
    """A server serves, and has the health of, each service that is registered, by one function or by many."""
    server = new_server()
    server.add(None, registering(handler("test.A", "Echo"), handler("test.B", "Echo")))
    server.add(None, registering(OwnHandler()))
    async with serving(server) as channel:
        for service in ("test.A", "test.B", "test.Own"):
            assert await channel.unary_unary(f"/{service}/Echo")(b"hello") == b"hello"
            assert await health(channel, service) == health_pb2.HealthCheckResponse.SERVING


async def test_methods_of_what_is_registered():
    """Methods are known by name, unless a handler of a kind of its own does not tell them."""
    services = Services(grpc.aio.server())
    services.add(None, registering(handler("test.A", "Read", "Write"), OwnHandler()))
    services.add(None, registering(handler("test.Empty")))
    assert set(services.methods["test.A"]) == {"Read", "Write"}
    assert services.methods["test.Own"] is None
    assert services.methods["test.Empty"] == {}


async def test_generated_code():
    """What protoc generates registers each service once, though it registers its methods in two ways."""
    services = Services(grpc.aio.server())
    names = services.add(health_pb2_grpc.HealthServicer(), health_pb2_grpc.add_HealthServicer_to_server)
    assert names == ["grpc.health.v1.Health"]
    assert set(services.methods["grpc.health.v1.Health"]) == {"Check", "List", "Watch"}


@pytest.mark.parametrize("name", ["test.A", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"])
async def test_service_that_is_registered_twice(name):
    """A second servicer of a service would never be called: it is refused, as is one of the server's own."""
    server = new_server()
    server.add(None, registering(handler("test.A", "Echo")))
    with pytest.raises(grpc_common.StartError, match=f"{name}: is served already; add each service once"):
        server.add(None, registering(handler("test.B", "Echo"), handler(name, "Echo")))
        async with serving(server):
            pass


async def test_service_that_is_registered_twice_at_once():
    """So it is within one function, and then nothing of it is served."""
    server = new_server()
    with pytest.raises(grpc_common.StartError, match=r"test\.A: is served already"):
        server.add(None, registering(handler("test.B", "Echo"), handler("test.A"), handler("test.A")))
    async with serving(server) as channel:
        call = channel.unary_unary("/test.B/Echo")(b"")
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_reflection_of_ones_own():
    """Where the server's reflection is off, a service may bring its own."""
    server = new_server(reflection=False)
    server.add(None, registering(handler("grpc.reflection.v1.ServerReflection", "Echo")))
    async with serving(server) as channel:
        assert await channel.unary_unary("/grpc.reflection.v1.ServerReflection/Echo")(b"a") == b"a"


async def test_late_service():
    """What is added to a server that serves would never be called: it is refused."""
    server = new_server()
    async with serving(server):
        with pytest.raises(
            grpc_common.StartError, match=r"test\.A: the server already serves; add it before"
        ):
            server.add(None, registering(handler("test.A", "Echo")))


def test_nothing_is_registered():
    """A function that registers nothing is not the right one, and is named."""
    with pytest.raises(grpc_common.StartError, match="add_test_to_server registers no service"):
        Services(None).add(None, registering())


def test_handler_without_a_name():
    """A handler that does not say which service it is can have no health, and no list of callers."""
    with pytest.raises(grpc_common.StartError, match=r"Nameless does not say .* grpc\.ServiceRpcHandler"):
        Services(None).add(None, registering(Nameless()))
