"""Whether a version that was rolled out answers its callers: `server smoke`, which changes nothing."""

import time
import uuid

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

import grpc_common
from services.user.config import SmokeConfig, UserServiceConfig

_SERVICE = pb.DESCRIPTOR.services_by_name["UserService"].full_name

_NOBODY = str(uuid.UUID(int=0))
"""The id of no user: the service makes other ones."""


async def smoke(config: UserServiceConfig) -> int:
    """Call the service that `smoke.target` names as its clients do, and exit with 1 if it does not work.

    It asks for the health of user.UserService, and for a user that does not exist, which takes a look into
    the database. Nothing is changed.
    """
    start = time.perf_counter()
    tls = grpc_common.ClientTLS(config.smoke.tls_directory) if config.smoke.tls_directory else None
    try:
        async with grpc_common.channel(
            config.smoke.target, tls=tls, observers=[], ready_timeout=None
        ) as channel:
            await _check_health(channel, config.smoke)
            answer = await _get_nobody(channel, config.smoke)
    except (ValueError, grpc_common.TlsError) as error:
        raise grpc_common.StartError(f"smoke: {error}") from None
    seconds = time.perf_counter() - start
    click.echo(f"{config.smoke.target}: {_SERVICE} is SERVING, GetUser answered {answer}, in {seconds:.3f} s")
    return 0


async def _check_health(channel: grpc.aio.Channel, config: SmokeConfig) -> None:
    request = health_pb2.HealthCheckRequest(service=_SERVICE)
    try:
        # The first call waits for a connection.
        response = await health_pb2_grpc.HealthStub(channel).Check(
            request, timeout=config.timeout, wait_for_ready=True
        )
    except grpc.aio.AioRpcError as error:
        raise _failure(config, "the health check", error) from None
    if response.status != health_pb2.HealthCheckResponse.SERVING:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
        raise grpc_common.StartError(f"{config.target}: {_SERVICE} is {status}")


async def _get_nobody(channel: grpc.aio.Channel, config: SmokeConfig) -> str:
    try:
        await UserServiceStub(channel).GetUser(pb.GetUserRequest(id=_NOBODY), timeout=config.timeout)
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise _failure(config, "GetUser", error) from None
        return "NOT_FOUND"
    return "OK"


def _failure(config: SmokeConfig, call: str, error: grpc.aio.AioRpcError) -> grpc_common.StartError:
    # Another's words must not look like lines of their own.
    details = (error.details() or "").encode("unicode_escape").decode()
    return grpc_common.StartError(f"{config.target}: {call} failed: {error.code().name}: {details}")
