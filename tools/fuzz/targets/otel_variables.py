"""OpenTelemetry's variables, whose headers and addresses may hold secrets."""

from functools import cache

from grpc_common.core.errors import StartError
from grpc_common.observe import otel_variables
from grpc_common.observe.otel_variables import check
from tools.fuzz.properties import SECRET, check_shown

otel_variables.entry_points = cache(
    otel_variables.entry_points
)  # it looks into hundreds of folders each time
_HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")


def fuzz(data: bytes) -> None:
    """Variables, one a line, are taken or are an error that shows none of the headers."""
    lines = data.replace(b"\0", b"").decode("utf-8", "surrogateescape").split("\n")
    environ = {name: value for name, equals, value in (line.partition("=") for line in lines) if equals}
    others = "".join(name if name in _HEADERS else name + value for name, value in environ.items())
    try:
        check(environ)
    except StartError as error:
        check_shown(str(error))
        assert SECRET in others or SECRET not in str(error)
