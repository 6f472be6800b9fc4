import grpc
import pytest
import structlog
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2, status_pb2

from grpc_common import StatusError, error_details, invalid_argument
from grpc_common.testing import serve_on_loopback

UNARY, STREAM = "/test.Raiser/Unary", "/test.Raiser/Stream"


def raiser(error: Exception):
    """Return the registration of a service whose methods raise `error`."""

    async def unary(_request, _context):
        raise error

    async def stream(request, _context):
        yield request
        raise error

    def add(_servicer, server):
        serde = {
            "request_deserializer": StringValue.FromString,
            "response_serializer": StringValue.SerializeToString,
        }
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(unary, **serde),
            "Stream": grpc.unary_stream_rpc_method_handler(stream, **serde),
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Raiser", handlers)])

    return add


async def call(channel: grpc.aio.Channel, method: str) -> grpc.aio.AioRpcError:
    """Call `method` and return the error that ends it."""
    serde = (StringValue.SerializeToString, StringValue.FromString)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if method == STREAM:
            async for _ in channel.unary_stream(method, *serde)(StringValue(value="a")):
                pass
        else:
            await channel.unary_unary(method, *serde)(StringValue(value="a"))
    return caught.value


@pytest.mark.parametrize("method", [UNARY, STREAM])
async def test_status_error_reaches_the_caller_with_details(method):
    """Code, message and google.rpc details arrive as they were raised."""
    error = invalid_argument({"name": "is empty", "email": "has no @"})
    async with serve_on_loopback(None, raiser(error)) as channel:
        received = await call(channel, method)
    assert received.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert received.details() == "name: is empty; email: has no @"
    (bad_request,) = error_details(received)
    assert [v.field for v in bad_request.field_violations] == ["name", "email"]


@pytest.mark.parametrize("method", [UNARY, STREAM])
async def test_unexpected_exception_is_logged_and_hidden(method):
    """The caller gets INTERNAL and an id; the exception is in the log under the same id."""
    with structlog.testing.capture_logs() as logs:
        async with serve_on_loopback(None, raiser(KeyError("password=hunter2"))) as channel:
            received = await call(channel, method)
    assert received.code() == grpc.StatusCode.INTERNAL
    assert "hunter2" not in received.details()
    (entry,) = [line for line in logs if line["event"] == "unexpected exception"]
    assert entry["error_id"] in received.details()
    assert entry["method"] == method
    assert isinstance(entry["exc_info"], KeyError)


async def test_details_of_unknown_type_are_left_out():
    """A client that does not know a detail still gets the others."""
    known = error_details_pb2.ErrorInfo(reason="CLOSED")
    error = StatusError(grpc.StatusCode.FAILED_PRECONDITION, "closed", StringValue(value="x"), known)
    async with serve_on_loopback(None, raiser(error)) as channel:
        assert error_details(await call(channel, UNARY)) == [known]


async def test_unknown_method_is_unimplemented():
    """The interceptor leaves calls of methods that do not exist to grpc."""
    async with serve_on_loopback(None, raiser(KeyError())) as channel:
        received = await call(channel, "/test.Raiser/None")
    assert received.code() == grpc.StatusCode.UNIMPLEMENTED
    assert error_details(received) == []


@pytest.mark.parametrize("sent", [b"\xff", b"\x1a\x03\x0a\x01\xff"])
def test_details_that_can_not_be_parsed_are_left_out(sent):
    """Whatever a foreign server sends, the caller can look at its error."""
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", sent))
    error = grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, grpc.aio.Metadata(), trailers)
    assert error_details(error) == []


def test_a_detail_that_can_not_be_parsed_is_left_out():
    """The others are there."""
    status = status_pb2.Status(code=10)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="CLOSED"))
    status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    error = grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, grpc.aio.Metadata(), trailers)
    assert error_details(error) == [error_details_pb2.ErrorInfo(reason="CLOSED")]
