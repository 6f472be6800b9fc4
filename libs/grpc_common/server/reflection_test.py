import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from grpc_common.server.reflection import SERVICE_NAMES, add_reflection

V1, V1ALPHA = SERVICE_NAMES

EXTENDED = FileDescriptorProto(
    name="test/extended.proto",
    package="test",
    dependency=["test/base.proto"],
    extension=[
        {
            "name": "more",
            "extendee": ".test.Base",
            "number": 100,
            "type": "TYPE_INT32",
            "label": "LABEL_OPTIONAL",
        }
    ],
)
BASE = FileDescriptorProto(
    name="test/base.proto",
    package="test",
    message_type=[{"name": "Base", "extension_range": [{"start": 100, "end": 200}]}],
)


@pytest.fixture(scope="module", autouse=True)
def files():
    """Give the process two files, one of which extends a message of the other."""
    for file in (BASE, EXTENDED):
        descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


@pytest.fixture
async def reflect():
    """Serve reflection; return what asks one of its services any number of questions on one stream."""
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    add_reflection([health.SERVICE_NAME], server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def reflect(service, questions) -> list[ServerReflectionResponse]:
        method = channel.stream_stream(
            f"/{service}/ServerReflectionInfo",
            ServerReflectionRequest.SerializeToString,
            ServerReflectionResponse.FromString,
        )
        return [response async for response in method(iter(questions), timeout=60)]

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield reflect
    await server.stop(None)


@pytest.fixture
def ask(reflect):
    """Return what asks one question."""

    async def ask(service, **question) -> ServerReflectionResponse:
        (response,) = await reflect(service, [ServerReflectionRequest(**question)])
        return response

    return ask


def files_in(response: ServerReflectionResponse) -> list[FileDescriptorProto]:
    """Return the files of an answer."""
    files = response.file_descriptor_response.file_descriptor_proto
    return [FileDescriptorProto.FromString(file) for file in files]


def names_in(response: ServerReflectionResponse) -> list[str]:
    """Return the names of the files of an answer."""
    return [file.name for file in files_in(response)]


@pytest.mark.parametrize("service", SERVICE_NAMES)
async def test_services_are_listed(ask, service):
    """Clients of the newer and of the older protocol are told all services, both reflections among them."""
    response = await ask(service, list_services="")
    names = [listed.name for listed in response.list_services_response.service]
    assert names == ["grpc.health.v1.Health", V1, V1ALPHA]


@pytest.mark.parametrize("service", SERVICE_NAMES)
async def test_every_listed_service_is_described(ask, service):
    """What List names, the other questions know: service, methods, and the types of their messages."""
    listed = await ask(service, list_services="")
    for name in (each.name for each in listed.list_services_response.service):
        (file,) = files_in(await ask(service, file_containing_symbol=name))
        assert file.package == name.rpartition(".")[0]
        [described] = file.service
        for method in described.method:
            symbols = (f"{name}.{method.name}", method.input_type[1:], method.output_type[1:])
            for symbol in symbols:
                assert names_in(await ask(service, file_containing_symbol=symbol)) == [file.name]
        assert names_in(await ask(service, file_by_filename=file.name)) == [file.name]


async def test_file_of_v1_stands_alone(ask):
    """The description of v1 has nothing of v1alpha, and is not called deprecated."""
    (file,) = files_in(await ask(V1, file_containing_symbol=V1))
    assert "v1alpha" not in str(file)
    assert not file.options.deprecated
    assert {message.name for message in file.message_type} >= {"ServerReflectionRequest", "ErrorResponse"}


async def test_program_may_have_compiled_the_file_of_v1_itself():
    """The process's own pool of descriptors has no file of ours in it."""
    add_reflection([], grpc.aio.server())
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileByName("grpc/reflection/v1/reflection.proto")


@pytest.mark.parametrize(
    "symbol",
    [
        "grpc.health.v1.Health",
        "grpc.health.v1.Health.Check",
        "grpc.health.v1.HealthCheckRequest",
        "grpc.health.v1.HealthCheckRequest.service",
        "grpc.health.v1.HealthCheckResponse.ServingStatus",
        "grpc.health.v1.HealthCheckResponse.SERVING",
        "grpc.health.v1.HealthListResponse.StatusesEntry.key",
        "grpc.reflection.v1.ServerReflectionRequest.message_request",
        "grpc.reflection.v1.ServerReflection.ServerReflectionInfo",
    ],
)
async def test_symbols_are_found(ask, symbol):
    """Services, methods, messages, nested ones, fields, oneofs, enums and their values lead to their file."""
    response = await ask(V1, file_containing_symbol=symbol)
    (name,) = names_in(response)
    assert name.endswith(("v1/health.proto", "v1/reflection.proto"))


async def test_file_comes_with_what_it_imports(ask):
    """A client gets all that it needs in one answer."""
    assert names_in(await ask(V1, file_by_filename="test/extended.proto")) == [
        "test/extended.proto",
        "test/base.proto",
    ]


async def test_extensions(ask):
    """A message's extensions are listed by number, and each leads to its file."""
    numbers = await ask(V1, all_extension_numbers_of_type="test.Base")
    assert list(numbers.all_extension_numbers_response.extension_number) == [100]
    extension = {"containing_type": "test.Base", "extension_number": 100}
    response = await ask(V1, file_containing_extension=extension)
    assert names_in(response) == ["test/extended.proto", "test/base.proto"]
    none = await ask(V1, all_extension_numbers_of_type="grpc.reflection.v1.ErrorResponse")
    assert none.all_extension_numbers_response.base_type_name == "grpc.reflection.v1.ErrorResponse"
    assert not none.all_extension_numbers_response.extension_number


UNKNOWN = ["", ".", "no.such.Thing", "grpc.health.v1", "a\x00b", "\N{BELL}\n", "x" * 10**5]


@pytest.mark.parametrize("name", UNKNOWN, ids=lambda name: repr(name[:20]))
async def test_unknown_names_are_not_found(reflect, name):
    """A name that nothing has is an answer, to each kind of question, and not the end of the stream."""
    questions = [
        ServerReflectionRequest(file_by_filename=name),
        ServerReflectionRequest(file_containing_symbol=name),
        ServerReflectionRequest(all_extension_numbers_of_type=name),
        ServerReflectionRequest(file_containing_extension={"containing_type": name, "extension_number": 1}),
        *(
            ServerReflectionRequest(
                file_containing_extension={"containing_type": type_name, "extension_number": number}
            )
            for type_name in ("test.Base", "grpc.reflection.v1.ErrorResponse")
            for number in (-(2**31), 0, 101, 2**31 - 1)
        ),
    ]
    responses = await reflect(V1, questions)
    codes = [response.error_response.error_code for response in responses]
    assert codes == [grpc.StatusCode.NOT_FOUND.value[0]] * len(questions)
    assert [response.original_request for response in responses] == questions


async def test_empty_question_is_invalid(ask):
    """A question that asks nothing is told so, and the stream goes on."""
    response = await ask(V1)
    assert response.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


async def test_many_questions_on_one_stream(reflect):
    """Ten thousand are answered in their order."""
    symbols = ["grpc.health.v1.Health", "no.such.Thing"] * 5000
    responses = await reflect(V1, [ServerReflectionRequest(file_containing_symbol=name) for name in symbols])
    assert [response.original_request.file_containing_symbol for response in responses] == symbols
