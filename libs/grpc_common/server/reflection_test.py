import grpc
import pytest
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from grpc_common.server.reflection import SERVICE_NAMES, add_reflection


@pytest.fixture
async def ask():
    """Serve reflection; return what asks one question of one of its services."""
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    add_reflection([health.SERVICE_NAME], server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def ask(service, **question) -> ServerReflectionResponse:
        reflect = channel.stream_stream(
            f"/{service}/ServerReflectionInfo",
            ServerReflectionRequest.SerializeToString,
            ServerReflectionResponse.FromString,
        )
        return await reflect(iter([ServerReflectionRequest(**question)]), timeout=5).read()

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield ask
    await server.stop(None)


@pytest.mark.parametrize("service", SERVICE_NAMES)
async def test_services_are_listed(ask, service):
    """Clients of the newer and of the older protocol are told the services."""
    response = await ask(service, list_services="")
    names = [listed.name for listed in response.list_services_response.service]
    assert names == ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]


@pytest.mark.parametrize(
    "symbol",
    ["grpc.health.v1.Health", "grpc.health.v1.Health.Check", "grpc.health.v1.HealthCheckRequest.service"],
)
async def test_symbols_are_found(ask, symbol):
    """A service, a method and a field lead to their file."""
    response = await ask(SERVICE_NAMES[0], file_containing_symbol=symbol)
    assert len(response.file_descriptor_response.file_descriptor_proto) == 1


async def test_unknown_symbol(ask):
    """A name that nothing has is not found."""
    response = await ask(SERVICE_NAMES[0], file_containing_symbol="no.such.Thing")
    assert response.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
