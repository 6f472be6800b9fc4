"""What a servicer's coroutine is given as its context."""

from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, NoReturn

import grpc

from grpc_common.core.errors import CODES, StatusError
from grpc_common.server.call import ServerCall
from grpc_common.server.codec import Codec
from grpc_common.server.metadata import Metadata, checked


class Context(grpc.aio.ServicerContext[Any, Any]):
    """grpc.aio's ServicerContext, checked.

    gRPC would leave the caller without a status for what this refuses: metadata that can't be sent,
    an abort that the servicer swallows, and would crash for what is asked after the call's end.
    """

    def __init__(self, call: ServerCall, codec: Codec) -> None:
        self.call = call
        self._codec = codec
        self._inner = call.rpc.context

    async def read(self) -> Any:
        """Return the next request, or grpc.aio.EOF after the last one."""
        self._check_open()
        message = await self.call.read()
        return grpc.aio.EOF if message is None else self._codec.parse(message)

    async def write(self, message: Any) -> None:
        """Send a response."""
        self._check_open()
        await self.call.write(self._codec.serialize(message))

    async def send_initial_metadata(self, initial_metadata: Metadata) -> None:
        """Send the headers, which otherwise go with the first response."""
        self._check_open()
        await self.call.rpc.open(checked(initial_metadata))

    def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Metadata = (),
    ) -> Coroutine[Any, Any, NoReturn]:
        """End the call with a status, and the servicer by an exception once it awaits the result.

        The status is decided at once: a servicer that forgets to await denies its caller all the same.
        """
        return self._end(self.aborted(code, details, trailing_metadata))

    async def _end(self, error: StatusError) -> NoReturn:
        if not self.call.runs_here:  # the servicer would go on for nobody
            self.call.rpc.interrupt()
        await self.call.end(error)
        self._raise_aborted()

    def abort_with_status(self, status: grpc.Status) -> Coroutine[Any, Any, NoReturn]:
        """End the call with a status."""
        return self.abort(status.code, status.details, status.trailing_metadata or ())

    def aborted(self, code: Any, details: str, trailing_metadata: Metadata) -> StatusError:
        """Decide the status of the call, and return it."""
        if self.call.is_over:
            self._raise_aborted()
        code = status_code(code)
        if code is grpc.StatusCode.OK:  # as grpc.server has it
            code, details = grpc.StatusCode.UNKNOWN, ""
        if trailing_metadata:
            self.set_trailing_metadata(trailing_metadata)
        self.call.failure = StatusError(code, details or self.details() or "")
        return self.call.failure

    def set_trailing_metadata(self, trailing_metadata: Metadata) -> None:
        """Set what is sent with the status.

        Raises:
            ValueError: gRPC can't send it.

        """
        self._inner.set_trailing_metadata(checked(trailing_metadata))

    def trailing_metadata(self) -> Any:
        """Return what is sent with the status."""
        return self._inner.trailing_metadata()

    def set_code(self, code: Any) -> None:
        """Set the status code, as a grpc.StatusCode or as its number."""
        self._inner.set_code(status_code(code))

    def code(self) -> Any:
        """Return the code that was set, or None."""
        return self._inner.code()

    def set_details(self, details: str) -> None:
        """Set the text of the status."""
        self._inner.set_details(details.encode(errors="replace").decode())

    def details(self) -> str:
        """Return the text that was set."""
        return self._inner.details()

    def invocation_metadata(self) -> Any:
        """Return what the caller has sent."""
        return tuple(self.call.metadata)

    def peer(self) -> str:
        """Return the caller's address."""
        return self.call.peer

    def time_remaining(self) -> Any:
        """Return the seconds until the caller's deadline, or None."""
        return self._inner.time_remaining()

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return what TLS knows of the caller."""
        self._check_open()
        return self._inner.auth_context()

    def peer_identities(self) -> Iterable[bytes] | None:
        """Return the names of the caller."""
        self._check_open()
        return self._inner.peer_identities()

    def peer_identity_key(self) -> str | None:
        """Return of what kind these names are."""
        self._check_open()
        return self._inner.peer_identity_key()

    def set_compression(self, compression: grpc.Compression) -> None:
        """Compress the responses; before the first one only."""
        self._inner.set_compression(grpc.Compression(compression))

    def disable_next_message_compression(self) -> None:
        """Send the next response as it is."""
        self._inner.disable_next_message_compression()

    def add_done_callback(self, callback: Any) -> None:
        """Call `callback` with this context once the call is over."""
        self._inner.add_done_callback(lambda _inner: callback(self))  # type: ignore[arg-type]  # grpc's own

    def done(self) -> bool:
        """Return whether the call is over."""
        return self.call.is_over or self._inner.done()

    def cancelled(self) -> bool:
        """Return whether the call was cancelled."""
        return self.call.code is grpc.StatusCode.CANCELLED

    def _check_open(self) -> None:
        if self.call.is_over:
            self._raise_aborted()

    def _raise_aborted(self) -> NoReturn:
        raise grpc.aio.AbortError(f"the call of {self.call.method.path} is over")


def status_code(code: Any) -> grpc.StatusCode:
    """Return the code that a servicer means: gRPC takes numbers, too, and UNKNOWN for whatever is none."""
    if isinstance(code, grpc.StatusCode):
        return code
    return CODES.get(code, grpc.StatusCode.UNKNOWN) if isinstance(code, int) else grpc.StatusCode.UNKNOWN
