"""The orders service's process: each extension point of grpc_common once, see README.md."""

from contextlib import AbstractAsyncContextManager

import grpc
from opentelemetry import trace
from orders.orders_pb2_grpc import add_OrdersServicer_to_server
from prometheus_client import REGISTRY, CollectorRegistry
from pydantic import Field
from user import user_service_pb2

import grpc_common
from examples.orders.calls import ApiKeys, CallsByCaller, failures_logged
from examples.orders.servicer import ERRORS, Orders
from examples.orders.store import Store

_USER_SERVICE = user_service_pb2.DESCRIPTOR.services_by_name["UserService"]


class OrdersConfig(grpc_common.ServerConfig):
    """Settings of the orders service: those of every server, and these."""

    users: grpc_common.ChannelSection
    """The channel to user.UserService."""

    api_keys: dict[str, str] = Field(default_factory=dict)
    """{caller: SHA-256 of the caller's key, in hexadecimal}."""


def users_channel(config: OrdersConfig) -> AbstractAsyncContextManager[grpc.aio.Channel]:
    """Return the channel to user.UserService, which need not be up yet."""
    return grpc_common.channel(
        config.users.for_services(_USER_SERVICE),  # retries what the .proto file calls idempotent
        interceptors=[failures_logged],
        ready_timeout=None,
    )


def make_server(
    config: OrdersConfig, store: Store, users: grpc.aio.Channel, registry: CollectorRegistry = REGISTRY
) -> grpc_common.Server:
    """Return the server, of which a test can have several: each with a registry of its own."""
    server = grpc_common.Server(
        config,
        authenticators=[ApiKeys(config.api_keys)],
        interceptors=[failures_logged],
        observers=[CallsByCaller(registry)],
        errors=ERRORS,
        registry=registry,
    )
    tracer = trace.get_tracer("orders", tracer_provider=server.tracing.provider if server.tracing else None)
    server.add(Orders(store, users, tracer), add_OrdersServicer_to_server)
    server.use(store.opened())
    server.depend_on("store", store.ping)
    return server


async def serve(config: OrdersConfig) -> int:
    """Serve orders.Orders until SIGTERM or SIGINT, then drain."""
    async with users_channel(config) as users:
        return await make_server(config, Store(), users).run()


main = grpc_common.command(serve, OrdersConfig)

if __name__ == "__main__":
    main()
