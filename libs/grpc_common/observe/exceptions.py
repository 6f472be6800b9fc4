"""What the span of a call tells of the exception that has ended it."""

import traceback
from itertools import islice

from opentelemetry.trace import Span

from grpc_common.core.errors import StatusError, excerpt, leaves

_MOST = 5
"""Exceptions of a group that a span tells."""

_FRAMES = 30
"""Frames of a traceback that a span tells, the innermost: a recursion without end has a thousand."""

_LONGEST = 1000
"""Characters of a status' message."""


def record(span: Span, error: BaseException) -> None:
    """Add an event to `span` for `error`, or for each exception of a group, as OpenTelemetry describes it.

    Of a StatusError it has the code and the message, which the caller gets too. Of any other it has the type
    and where it was raised, but not its text, which may hold what the caller must not see, such as a row
    or a password: that is in the log alone.
    """
    for each in islice(leaves(error), _MOST):
        span.add_event("exception", _attributes(each))


def _attributes(error: BaseException) -> dict[str, str]:
    if isinstance(error, StatusError):
        message = f"{error.code.name}: {excerpt(error.message, _LONGEST)}"
        return {"exception.type": "StatusError", "exception.message": message}
    name = type(error).__qualname__
    module = type(error).__module__
    return {
        "exception.type": name if module == "builtins" else f"{module}.{name}",
        "exception.stacktrace": "".join(traceback.format_tb(error.__traceback__, -_FRAMES)),
    }
