"""A team's own exceptions as statuses, so that its domain need not know of gRPC."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from grpc_common.core.errors import StatusError

type Answer = grpc.StatusCode | Callable[[Any], StatusError]
type Errors = Mapping[type[Exception], Answer]
"""{exception: its code, or a function that makes a StatusError of it}."""

_TEXTS = {
    grpc.StatusCode.CANCELLED: "the operation was cancelled",
    grpc.StatusCode.UNKNOWN: "the operation failed",
    grpc.StatusCode.INVALID_ARGUMENT: "the request is not valid",
    grpc.StatusCode.DEADLINE_EXCEEDED: "the operation took too long",
    grpc.StatusCode.NOT_FOUND: "what the request asks for does not exist",
    grpc.StatusCode.ALREADY_EXISTS: "what the request would create exists already",
    grpc.StatusCode.PERMISSION_DENIED: "the caller may not do this",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "there is no room for this now",
    grpc.StatusCode.FAILED_PRECONDITION: "the state of the system does not allow this",
    grpc.StatusCode.ABORTED: "the operation was in conflict with another one; begin it anew",
    grpc.StatusCode.OUT_OF_RANGE: "the request goes past the end of what there is",
    grpc.StatusCode.UNIMPLEMENTED: "the operation is not implemented",
    grpc.StatusCode.INTERNAL: "internal error",
    grpc.StatusCode.UNAVAILABLE: "the service can't do this now; try again later",
    grpc.StatusCode.DATA_LOSS: "data is lost or damaged",
    grpc.StatusCode.UNAUTHENTICATED: "the caller has no valid credentials",
}
"""What a caller is told for a mere code: an exception's own text may hold what is not for callers."""


class ErrorMap:
    """Finds the status of an exception by its class, or else by the nearest of the classes it derives from.

    Args:
        errors: {exception: its code, or a function that makes a StatusError of it}. With a code the caller
            gets a general sentence, and nothing of the exception's text.

    Raises:
        TypeError: a value is neither a code nor a plain function; or a key is no class of exceptions, or
            one that means something to the server already: a StatusError, a group (each exception in it is
            looked up), or what is no Exception, such as CancelledError and SystemExit.
        ValueError: a code is OK.

    """

    def __init__(self, errors: Errors) -> None:
        for error, answer in errors.items():
            _check_class(error)
            _check_answer(error, answer)
        self._answers = dict(errors)

    def has(self, error: BaseException) -> bool:
        """Return whether there is a status for `error`."""
        return self._find(error) is not None

    def status(self, error: BaseException) -> StatusError:
        """Return the status of `error`, for which there is one.

        Raises:
            TypeError: the function for it returns no StatusError.
            BaseException: it raises this.

        """
        answer = self._find(error)
        if isinstance(answer, grpc.StatusCode):
            return StatusError(answer, _TEXTS[answer])
        assert answer is not None
        status = answer(error)
        if not isinstance(status, StatusError):
            raise TypeError(
                f"the function for {type(error).__qualname__} returned {status!r}, no StatusError"
            )
        return status

    def _find(self, error: BaseException) -> Answer | None:
        classes: tuple[Any, ...] = type(error).__mro__
        return next((self._answers[each] for each in classes if each in self._answers), None)


def _check_class(error: Any) -> None:
    if not (isinstance(error, type) and issubclass(error, BaseException)):
        raise TypeError(f"errors: {error!r} is no class of exceptions")
    if not issubclass(error, Exception):
        raise TypeError(f"errors: {error.__qualname__} ends a task or the process; take an Exception")
    if issubclass(error, StatusError):
        raise TypeError(f"errors: {error.__qualname__} is a StatusError, which has its status")
    if issubclass(error, ExceptionGroup):
        raise TypeError(f"errors: {error.__qualname__} is a group; name the exceptions that are in it")


def _check_answer(error: type[Exception], answer: Any) -> None:
    name = error.__qualname__
    if answer is grpc.StatusCode.OK:
        raise ValueError(f"errors: {name} can't be OK, which is no error")
    if isinstance(answer, grpc.StatusCode):
        return
    if not callable(answer) or inspect.iscoroutinefunction(answer):
        raise TypeError(
            f"errors: {name} has {answer!r}; take one of grpc.StatusCode, or a plain function that makes "
            "a StatusError of it"
        )
