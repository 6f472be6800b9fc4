"""The user service's process: configuration, storage and server put together."""

import asyncio
import sys

import click
from user.user_service_pb2_grpc import add_UserServiceServicer_to_server

import grpc_common
from services.user.config import UserServiceConfig
from services.user.servicer import UserService
from services.user.storage import StorageError, open_sqlite


@click.command()
def main() -> None:
    """Serve user.UserService until SIGTERM or SIGINT, then drain.

    \b
    Environment variables:
      GRPC_PORT     where gRPC is served; 0 takes a free port [default: 50051]
      METRICS_PORT  where /metrics is served; 0 takes a free port [default: 9090]
      DATABASE_URL  sqlite:///PATH [default: users.db in the user's data directory]
      DRAIN_DELAY   seconds from NOT_SERVING to the end of new calls [default: 0]
      DRAIN_GRACE   seconds that calls in flight get to finish [default: 10]
    """  # noqa: D301 (click's mark for a paragraph that is not to be wrapped)
    grpc_common.configure_logging()
    try:
        config = grpc_common.load(UserServiceConfig)
        sys.exit(asyncio.run(_serve(config)))
    except (grpc_common.ConfigError, grpc_common.BindError, StorageError) as error:
        raise click.ClickException(str(error)) from None


async def _serve(config: UserServiceConfig) -> int:
    path = config.database_path
    async with open_sqlite(path) as storage:
        server = grpc_common.Server(config)
        server.add(UserService(storage), add_UserServiceServicer_to_server, name="user.UserService")
        return await server.run(database=str(path))


if __name__ == "__main__":
    main(prog_name="server")
