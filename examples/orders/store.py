"""Where orders are kept: a part of the domain, which knows nothing of gRPC."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

log = structlog.get_logger()


class NoSuchOrderError(Exception):
    """There is no order with the id `order_id`."""

    def __init__(self, order_id: str) -> None:
        super().__init__(f"no order has the id {order_id!r}")
        self.order_id = order_id


@dataclass(frozen=True)
class StoredOrder:
    """What somebody has ordered."""

    id: str
    item: str
    placed_by: str


class Store:
    """Keeps orders in memory, in the place of a database and of a queue for the mails."""

    def __init__(self) -> None:
        self._orders: dict[str, StoredOrder] | None = None
        self.confirmed: list[str] = []
        """The ids of the orders whose mail has been sent."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open the store until the end of the block, as one opens a pool."""
        self._orders = {}
        yield
        log.info("store closed", orders=len(self._orders), confirmed=len(self.confirmed))
        self._orders = None

    async def ping(self) -> None:
        """Return if the store can be used."""
        assert self._orders is not None

    def place(self, item: str, placed_by: str) -> StoredOrder:
        """Keep a new order."""
        assert self._orders is not None
        order = StoredOrder(str(uuid.uuid7()), item, placed_by)
        self._orders[order.id] = order
        return order

    def get(self, order_id: str) -> StoredOrder:
        """Return an order.

        Raises:
            NoSuchOrderError: there is none with this id.

        """
        assert self._orders is not None
        if order_id not in self._orders:
            raise NoSuchOrderError(order_id)
        return self._orders[order_id]

    async def confirm(self, order: StoredOrder) -> None:
        """Send the mail that confirms an order, which takes a while."""
        await asyncio.sleep(0.2)
        self.confirmed.append(order.id)
        log.info("order confirmed", order=order.id)
