"""How far a call has come: what its caller waits for, and how it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from grpc_common.client.call.errors import copy_of


class Progress:
    """The newest attempt of a call, and its end.

    Args:
        seconds: until its deadline.

    """

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self.deadline = self._loop.time() + seconds
        """By the event loop's clock."""
        self.response: Any = None
        self.error: BaseException | None = None
        self.attempt: Any = None
        """The newest one, a call of grpc.aio's; None before there is any."""
        self.is_done = self.is_cancelled = False
        self.is_committed = False
        """Whether a caller or a server has seen something of it, so that it can't be made again."""
        self._moved: asyncio.Future[None] | None = None
        self._on_end: list[Callable[[], object]] = []

    def over(self, error: BaseException | None) -> None:
        """Take note of the end, and wake those who wait for it."""
        self.is_done = True
        self.error = error
        self.moved()

    def code(self) -> grpc.StatusCode:
        """Return the code with which it has ended."""
        if isinstance(self.error, grpc.aio.AioRpcError):
            code: grpc.StatusCode = self.error.code()
            return code
        return grpc.StatusCode.OK if self.error is None else grpc.StatusCode.INTERNAL

    def on_end(self, callback: Callable[[], object]) -> None:
        """Call `callback` once the call has ended, or now."""
        if self.is_done:
            callback()
        else:
            self._on_end.append(callback)

    def tell_end(self) -> None:
        """Call what waits for the end."""
        for callback in self._on_end:
            callback()
        self._on_end.clear()

    def moved(self) -> None:
        """Wake those who wait for the next attempt, or the end."""
        if self._moved is not None:
            self._moved.set_result(None)
            self._moved = None

    async def move(self) -> None:
        """Wait for the next attempt, or the end."""
        if self._moved is None:
            self._moved = self._loop.create_future()
        await asyncio.shield(self._moved)

    async def current(self) -> Any:
        """Return the newest attempt, once there is one; None if the call has ended without."""
        while self.attempt is None and not self.is_done:
            await self.move()
        return self.attempt

    async def is_last(self, attempt: Any) -> bool:
        """Return whether the call ends, or has ended, with an attempt that is over."""
        while self.attempt is attempt and not self.is_done:
            await self.move()
        return self.attempt is attempt

    async def end(self) -> None:
        """Wait for the end."""
        while not self.is_done:
            await self.move()

    def raise_error(self) -> None:
        """Raise the error with which it has ended, if there is one."""
        if self.is_cancelled:
            raise asyncio.CancelledError
        if isinstance(self.error, grpc.aio.AioRpcError):
            raise copy_of(self.error)
        if self.error is not None:
            raise self.error
