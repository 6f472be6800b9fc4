"""Calls that come to grpc.aio by each of the ways that there are."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest
from structlog.testing import capture_logs

from grpc_common import Server
from grpc_common.server import accepting
from grpc_common.testing.loopback import configure
from grpc_common.testing.server import Methods, serving_handlers

LARGE = b"x" * 100_000


class OwnHandler(grpc.ServiceRpcHandler):
    """A generic handler of a service's own, which finds its methods when they are called."""

    def __init__(self, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        self._handlers = handlers

    def service_name(self) -> str:
        """Return the name of the service."""
        return "test.Methods"

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Return a method."""
        return self._handlers.get(handler_call_details.method.removeprefix("/test.Methods/"))


async def _fail(_request, context):
    await context.abort(grpc.StatusCode.NOT_FOUND, "no user")


def handlers() -> dict[str, grpc.RpcMethodHandler]:
    """Return one method of each type, and one that fails."""
    methods = Methods()
    return {
        "Echo": grpc.unary_unary_rpc_method_handler(methods.echo),
        "Join": grpc.stream_unary_rpc_method_handler(methods.join),
        "Repeat": grpc.unary_stream_rpc_method_handler(methods.repeat),
        "Chat": grpc.stream_stream_rpc_method_handler(methods.chat),
        "Fail": grpc.unary_unary_rpc_method_handler(_fail),
    }


@asynccontextmanager
async def known():
    """Serve what is registered as generated code does it."""
    async with serving_handlers(handlers(), ENGINE="grpc-aio") as channel:
        yield channel


@asynccontextmanager
async def looked_up():
    """Serve what only a handler of the service's own knows."""
    server = Server(configure(ENGINE="grpc-aio"))
    server.add(None, lambda _, aio: aio.add_generic_rpc_handlers([OwnHandler(handlers())]))
    async with (
        server.serving() as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield channel


@asynccontextmanager
async def without_the_private_names():
    """Serve with a grpcio that has not what a faster server needs."""
    with pytest.MonkeyPatch.context() as patch, capture_logs() as logs:
        patch.setattr(accepting, "_METHODS", ("no_such_method",))
        async with known() as channel:
            yield channel
    assert any("slower" in line["event"] for line in logs)


@pytest.mark.parametrize("way", [known, looked_up, without_the_private_names])
async def test_calls_of_each_type(way):
    """Messages, small and large, and statuses are the same whichever way a call comes."""
    async with way() as channel:
        for message in (b"", b"x", LARGE, b"x"):
            assert await channel.unary_unary("/test.Methods/Echo")(message) == message
            assert await channel.stream_unary("/test.Methods/Join")(iter([message] * 2)) == message * 2
            repeat = channel.unary_stream("/test.Methods/Repeat")(message)
            assert [answer async for answer in repeat] == [message] * 2
            chat = channel.stream_stream("/test.Methods/Chat")(iter([message] * 2))
            assert [answer async for answer in chat] == [message] * 2
        for name, code in {"Fail": grpc.StatusCode.NOT_FOUND, "No": grpc.StatusCode.UNIMPLEMENTED}.items():
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(f"/test.Methods/{name}")(b"x")
            assert caught.value.code() is code


async def test_names_that_are_not_ascii():
    """C-core registers no such method; it is served all the same."""
    handlers = {"Größe": grpc.unary_unary_rpc_method_handler(Methods().echo)}
    async with serving_handlers(handlers, ENGINE="grpc-aio") as channel:
        assert await channel.unary_unary("/test.Methods/Größe")(b"x") == b"x"


async def test_methods_that_nobody_calls_cost_a_task_each():
    """A server of many methods does not begin with many tasks for each."""
    many = {f"M{n}": grpc.unary_unary_rpc_method_handler(Methods().echo) for n in range(200)}
    before = len(asyncio.all_tasks())
    async with serving_handlers(many, ENGINE="grpc-aio") as channel:
        assert await channel.unary_unary("/test.Methods/M7")(b"x") == b"x"
        assert len(asyncio.all_tasks()) - before < 2 * len(many) + 100
