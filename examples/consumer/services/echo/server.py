"""An Echo service: a servicer, and the lines that serve it."""

from collections.abc import AsyncIterator

import grpc
from echo import echo_pb2 as pb
from echo import echo_pb2_grpc

import grpc_common


class Echo(echo_pb2_grpc.EchoServicer):
    """Says what it is told."""

    async def Echo(self, request: pb.EchoRequest, _context: grpc.aio.ServicerContext) -> pb.EchoResponse:
        return pb.EchoResponse(text=request.text)

    async def Repeat(
        self, request: pb.RepeatRequest, _context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.EchoResponse]:
        if not 1 <= request.times <= 1000:  # noqa: PLR2004 (as the .proto file says)
            raise grpc_common.invalid_argument({"times": f"must be 1 to 1000, not {request.times}"})
        for _ in range(request.times):
            yield pb.EchoResponse(text=request.text)


async def serve(config: grpc_common.ServerConfig) -> int:
    """Serve until SIGTERM or SIGINT, drain, and return the exit code."""
    server = grpc_common.Server(config)
    server.add(Echo(), echo_pb2_grpc.add_EchoServicer_to_server)
    return await server.run()


main = grpc_common.command(serve, grpc_common.ServerConfig)

if __name__ == "__main__":
    main()
