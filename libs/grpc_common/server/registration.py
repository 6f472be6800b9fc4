"""What a server serves, as it is registered."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import grpc

from grpc_common.core.calls import Method
from grpc_common.core.errors import StartError
from grpc_common.server.handler import BUILT_IN, type_of

type Methods = Mapping[str, grpc.RpcMethodHandler[Any, Any]]
type AddToServer[Servicer] = Callable[[Servicer, grpc.aio.Server], object]


class Services:
    """The services of a server: each is registered once, and none after it has started to serve."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self.methods: dict[str, Methods | None] = {}
        """{service: {method: handler}}; None where a handler of another kind than grpc's own hides them."""
        self._server = server
        self.closed = False

    def add[Servicer](self, servicer: Servicer, add_to_server: AddToServer[Servicer]) -> list[str]:
        """Serve what `add_to_server` registers for `servicer`, and return the services' names.

        Raises:
            StartError: that is nothing, has no name, is served already, or comes too late.

        """
        recorder = _Recorder()
        add_to_server(servicer, cast("grpc.aio.Server", recorder))
        new = {_name(handler): handler for handler in recorder.handlers}
        if not new:
            raise StartError(
                f"{_called(add_to_server)} registers no service; give what was generated for one"
            )
        if self.closed:
            raise StartError(f"{', '.join(new)}: the server already serves; add it before")
        twice = [*(self.methods.keys() & new), *_repeated(map(_name, recorder.handlers))]
        if twice:
            raise StartError(f"{', '.join(twice)}: is served already; add each service once")
        self.methods |= {name: _methods(name, handler) for name, handler in new.items()}
        self._server.add_generic_rpc_handlers(recorder.handlers)
        return list(new)

    def described(self) -> Iterator[Method]:
        """Yield the methods that are known, but those of health and reflection."""
        for service, methods in self.methods.items():
            for name, handler in (methods or {}).items() if service not in BUILT_IN else ():
                yield Method(service, name, type_of(handler))

    def close(self) -> None:
        """Refuse what is added from now on, since gRPC takes nothing more once it has started."""
        self.closed = True


class _Recorder:
    """Stands in for a server, and keeps what generated code registers with it."""

    def __init__(self) -> None:
        self.handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self.handlers += generic_rpc_handlers

    def add_registered_method_handlers(self, service_name: str, method_handlers: Methods) -> None:
        """Do as grpc.aio does, nothing: generated code registers the same as generic handlers."""


def _name(handler: grpc.GenericRpcHandler) -> str:
    if not isinstance(handler, grpc.ServiceRpcHandler):
        raise StartError(
            f"{type(handler).__name__} does not say which service it is; "
            "derive it from grpc.ServiceRpcHandler, or make it by grpc.method_handlers_generic_handler"
        )
    name: str = handler.service_name()
    return name


def _methods(service: str, handler: grpc.GenericRpcHandler) -> Methods | None:
    # gRPC has no public way to list what method_handlers_generic_handler was given.
    handlers: Methods | None = getattr(handler, "_method_handlers", None)
    return handlers and {path.removeprefix(f"/{service}/"): each for path, each in handlers.items()}


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1]


def _called(function: Callable[..., object]) -> str:
    return getattr(function, "__name__", repr(function))
