"""The user service's process: configuration, storage and server put together."""

import math

import click
from user.user_service_pb2_grpc import add_UserServiceServicer_to_server

import grpc_common
from services.user.config import UserServiceConfig
from services.user.servicer import ERRORS, UserService
from services.user.smoke import smoke
from services.user.storage import SchemaError, StorageError, migrate_storage, open_storage
from services.user.storage.schema import VERSION

NOT_TO_BE_REPEATED = 3
"""The exit code of `server migrate` if another try would fail as well: its Job ends at once."""


async def serve(config: UserServiceConfig) -> int:
    """Serve user.UserService until SIGTERM or SIGINT, then drain."""
    try:
        async with open_storage(config.database) as storage:
            server = grpc_common.Server(config, errors=ERRORS)
            server.add(UserService(storage), add_UserServiceServicer_to_server)
            # Asked once a second after a failure: while calls wait for a restart to end, the server is ready.
            failures = 1 + math.ceil(config.database.connect_timeout)
            server.depend_on("database", storage.ping, failures=failures)
            return await server.run(database=config.database.name)
    except StorageError as error:
        raise grpc_common.StartError(str(error)) from None


async def migrate(config: UserServiceConfig) -> int:
    """Bring the database's schema up to date, and exit.

    It may run several times, and several at once; what is up to date stays as it is, and so does what a
    later program has migrated, as long as this one works with it.
    """
    try:
        found, version = await migrate_storage(config.database)
    except SchemaError as error:
        click.echo(f"Error: {error}", err=True)
        return NOT_TO_BE_REPEATED
    except StorageError as error:
        raise grpc_common.StartError(str(error)) from None
    if found and found > VERSION:
        is_newer = f"schema {found} stays: it is newer than this program's {VERSION}, which works with it"
        click.echo(f"{config.database.name}: {is_newer}")
    else:
        click.echo(f"{config.database.name}: schema {found or 'none'} -> {version}")
    return 0


main = grpc_common.command(serve, UserServiceConfig, also=[migrate, smoke])

if __name__ == "__main__":
    main()
