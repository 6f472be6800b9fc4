import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from grpc_common import ChannelConfig, ServiceConfig, StatusError, channel, error_details, invalid_argument
from grpc_common.core.status_size import cut_text
from grpc_common.testing.server import serving

FAILED = grpc.StatusCode.FAILED_PRECONDITION
RETRY = error_details_pb2.RetryInfo()
RETRY.retry_delay.FromSeconds(3)

TEXTS = {
    "ASCII": "a" * 12_000,
    "percent signs": "%" * 12_000,
    "non-ASCII": "字" * 12_000,
    "emoji": "👍" * 12_000,
    "control characters": "\0\r\n\x1b" * 3_000,
    "half surrogate pairs": "\udcff" * 12_000,
    "ten megabytes": "a" * 10_000_000,
}
VIOLATIONS = {f"users[{number}].email": "is not an address; write name@example.com" for number in range(200)}


@pytest.fixture(params=["grpc.aio", "ours"])
async def fail(request):
    """Return a function that raises an error in a servicer, and returns what a client gets."""
    raised: list = []

    async def method(_request, context):
        error, trailers = raised[-1]
        context.set_trailing_metadata(trailers)
        raise error

    async with serving({"Fail": grpc.unary_unary_rpc_method_handler(method)}) as (port, _):
        target = f"127.0.0.1:{port}"
        config = ChannelConfig(service=ServiceConfig(health_check_service=None))
        opened = (
            channel(target, config=config) if request.param == "ours" else grpc.aio.insecure_channel(target)
        )

        async def call(error, trailers=()):
            raised.append((error, trailers))
            failures = []
            for _ in range(20):  # C-core's refusal of what is a little too large is a matter of chance
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await stub(b"")
                failures.append(caught.value)
            assert {failure.code() for failure in failures} == {error.code}
            assert rpc_status.from_call(failures[0]).message == failures[0].details()
            return failures[0]

        async with opened as opened_channel:
            stub = opened_channel.unary_unary("/test.Methods/Fail")
            yield call


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_long_text_arrives_cut(fail, text):
    """The code arrives, with the beginning of the text and how much of it is missing."""
    received = await fail(StatusError(FAILED, text))
    beginning, cut = received.details().rsplit("… ", 1)
    assert text.encode(errors="replace").decode().startswith(beginning)
    assert len(beginning) > 100
    assert cut == f"({len(text.encode(errors='replace')) - len(beginning.encode())} bytes cut)"


async def test_text_of_two_kilobytes_arrives_whole(fail):
    """What fits is not changed."""
    assert (await fail(StatusError(FAILED, "a" * 2_000))).details() == "a" * 2_000


async def test_many_violations_arrive_in_part(fail):
    """Of 200 violations the first arrive, each of them whole."""
    received = await fail(invalid_argument(VIOLATIONS))
    (bad_request,) = error_details(received)
    violations = [(violation.field, violation.description) for violation in bad_request.field_violations]
    assert violations == list(VIOLATIONS.items())[: len(violations)]
    assert len(violations) > 30
    assert received.details().endswith(" bytes cut)")


async def test_large_details_are_left_out_whole(fail):
    """Details of 100 kB do not arrive; a small one after them does."""
    large = error_details_pb2.DebugInfo(detail="x" * 100_000)
    received = await fail(StatusError(FAILED, "text", large, StringValue(value="x" * 100_000), RETRY))
    assert (received.details(), error_details(received)) == ("text", [RETRY])


@pytest.mark.parametrize("size", [1_000, 4_000, 6_500])
async def test_the_servicers_own_trailers_count(fail, size):
    """Trailers of the servicer's own arrive, and the status takes what they leave."""
    trailers = (("x-request", "v" * size),)
    received = await fail(StatusError(FAILED, "字" * 12_000, RETRY), trailers)
    assert ("x-request", "v" * size) in list(received.trailing_metadata())
    assert received.details().endswith(" bytes cut)")


@pytest.mark.parametrize("limit", [40, 100, 1000])
@pytest.mark.parametrize("text", ["a" * 2000, "字" * 2000, "a字%\n" * 500], ids=["ASCII", "CJK", "mixed"])
def test_cut_text_is_never_longer_than_its_limit(text, limit):
    """As gRPC encodes it, with the note included."""
    sent = "".join(
        chr(b) if 0x20 <= b <= 0x7E and b != 0x25 else "%XX" for b in cut_text(text, limit).encode()
    )
    assert len(sent) <= limit
