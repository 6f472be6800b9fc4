"""The user service's process: configuration, storage and server put together."""

from user.user_service_pb2_grpc import add_UserServiceServicer_to_server

import grpc_common
from services.user.config import UserServiceConfig
from services.user.servicer import UserService
from services.user.storage import StorageError, open_sqlite


async def serve(config: UserServiceConfig) -> int:
    """Serve user.UserService until SIGTERM or SIGINT, then drain."""
    path = config.database.path
    try:
        async with open_sqlite(path) as storage:
            server = grpc_common.Server(config)
            server.add(UserService(storage), add_UserServiceServicer_to_server, name="user.UserService")
            return await server.run(database=str(path))
    except StorageError as error:
        raise grpc_common.StartError(str(error)) from None


main = grpc_common.command(serve, UserServiceConfig)

if __name__ == "__main__":
    main()
