"""orders.Orders: requests in, orders or a status out."""

from typing import Any

import grpc
import structlog
from opentelemetry.trace import Tracer
from orders import orders_pb2 as pb
from orders import orders_pb2_grpc as pb_grpc
from user import user_service_pb2 as user_pb
from user.user_service_pb2_grpc import UserServiceStub

import grpc_common
from examples.orders.store import NoSuchOrderError, Store, StoredOrder

log = structlog.get_logger()

type _Context = grpc.aio.ServicerContext[Any, Any]


class Orders(pb_grpc.OrdersServicer):
    """The servicer of orders.Orders; what its methods do is said in the .proto file."""

    def __init__(self, store: Store, users: grpc.aio.Channel, tracer: Tracer) -> None:
        self._store = store
        self._users = UserServiceStub(users)
        self._tracer = tracer

    async def PlaceOrder(self, request: pb.PlaceOrderRequest, _context: _Context) -> pb.Order:
        if not request.item:
            raise grpc_common.invalid_argument({"item": "is empty"})
        await self._check_user(request.user_id)
        call = grpc_common.current_call()
        with self._tracer.start_as_current_span("store"):  # a child of the call's own span
            order = self._store.place(request.item, placed_by=call.caller)
        call.run_in_background(self._store.confirm(order))  # the drain waits for it, the caller does not
        # The line has the method, the caller and the trace id by itself.
        log.info("order placed", order=order.id, seconds_left=call.time_remaining())
        return _message(order)

    async def GetOrder(self, request: pb.GetOrderRequest, _context: _Context) -> pb.Order:
        return _message(self._store.get(request.id))

    async def _check_user(self, user_id: str) -> None:
        """Ask user.UserService, which gets what is left of the caller's deadline, and its request id."""
        try:
            await self._users.GetUser(user_pb.GetUserRequest(id=user_id))
        except grpc.aio.AioRpcError as error:
            if error.code() in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}:
                raise grpc_common.failed_precondition({f"user/{user_id}": "is not known"}) from None
            raise  # as ERRORS says


def _message(order: StoredOrder) -> pb.Order:
    return pb.Order(id=order.id, item=order.item, placed_by=order.placed_by)


def _no_such_order(error: NoSuchOrderError) -> grpc_common.StatusError:
    return grpc_common.not_found(str(error), resource_type="orders.Order", resource_name=error.order_id)


def _no_users(_error: grpc.aio.AioRpcError) -> grpc_common.StatusError:
    return grpc_common.unavailable("the users can't be asked now", retry_after=1)


ERRORS: grpc_common.Errors = {NoSuchOrderError: _no_such_order, grpc.aio.AioRpcError: _no_users}
"""The statuses of exceptions that no handler has to catch."""
