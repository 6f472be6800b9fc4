"""What OpenTelemetry's environment variables must look like, told before OpenTelemetry reads them.

OpenTelemetry itself ignores much of what it can't use, or logs a traceback, or a header with its secret.
Here every mistake is one line with the variable's name. Headers and credentials are never shown.
"""

import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from urllib.parse import unquote, urlsplit

from grpc_common.core.errors import StartError, excerpt

type _Check = Callable[[str], Iterable[str]]
"""Yields what is wrong with a value."""

# All of these are described in https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
# and https://opentelemetry.io/docs/specs/otel/protocol/exporter/.
_BOTH = ("OTEL_EXPORTER_OTLP", "OTEL_EXPORTER_OTLP_TRACES")  # for all signals, and for traces alone
EXPORTERS = {
    "grpc": ("opentelemetry.exporter.otlp.proto.grpc", "tracing"),
    "http/protobuf": ("opentelemetry.exporter.otlp.proto.http", "tracing-http"),
}
"""{OTEL_EXPORTER_OTLP_PROTOCOL: the package that speaks it, and the extra that has the package}."""

_LIMITS = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
)
_BATCH_SIZES = ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "OTEL_BSP_MAX_QUEUE_SIZE")
_BATCH_TIMES = ("OTEL_BSP_EXPORT_TIMEOUT", "OTEL_BSP_SCHEDULE_DELAY")
_DAY = 86_400_000
"""Milliseconds; of what a thread waits for, since Python's threads can't wait 300 years."""
_NEVER_EMPTY = ("_COMPRESSION", "_DELAY", "_ENDPOINT", "_INSECURE", "_SIZE", "_TIMEOUT")
"""How the variables end that OpenTelemetry does not take for unset when they are empty."""
_UNUSED = {
    "OTEL_CONFIG_FILE": "OpenTelemetry's configuration files are not read; set its variables",
    "OTEL_EXPERIMENTAL_CONFIG_FILE": "OpenTelemetry's configuration files are not read; set its variables",
    "OTEL_TRACES_SAMPLER": "tracing.sampling_rate decides here; set it, and leave this out",
    "OTEL_TRACES_SAMPLER_ARG": "tracing.sampling_rate decides here; set it, and leave this out",
}

# What gRPC takes as the name of a header, and what OpenTelemetry's parser takes as its value.
_HEADER = re.compile(r"\s*[0-9A-Za-z_.-]+\s*=(?P<value>[\t !#-+\--:<-\[\]-~]*)")


def check(environ: Mapping[str, str] = os.environ) -> None:
    """Look at all variables that bear on traces.

    Raises:
        StartError: some can't be used; the text has a line for each.

    """
    checks = _CHECKS | _HTTP_CHECKS if protocol(environ) == "http/protobuf" else _CHECKS
    mistakes = [
        f"{variable}: {mistake}"
        for variable, find in checks.items()
        if environ.get(variable, "").strip() or (variable in environ and variable.endswith(_NEVER_EMPTY))
        for mistake in find(environ[variable].strip())
    ]
    mistakes += [
        f"{excerpt(name)}: is not UTF-8" for name, value in environ.items() if _is_broken(name, value)
    ]
    mistakes += _incomplete(environ)
    if mistakes:
        raise StartError("tracing can't start:\n" + "\n".join(mistakes))


def protocol(environ: Mapping[str, str] = os.environ) -> str:
    """Return how traces travel: what OTEL_EXPORTER_OTLP_TRACES_PROTOCOL says, or that for all, or grpc."""
    values = (environ.get(f"{prefix}_PROTOCOL", "").strip().lower() for prefix in reversed(_BOTH))
    return next(filter(None, values), "grpc")


def _is_broken(name: str, value: str) -> bool:
    """Return whether a value of OpenTelemetry can't be sent: os.environ has surrogates for stray bytes."""
    return name.startswith("OTEL_") and value != value.encode(errors="replace").decode()


def words(value: str) -> list[str]:
    """Return the parts of a list as OpenTelemetry's variables have them: `tracecontext,baggage`."""
    return [word.strip() for word in value.split(",") if word.strip()]


def _one_of(*allowed: str) -> _Check:
    def find(value: str) -> Iterator[str]:
        if value.lower() not in allowed:
            yield f'"{excerpt(value)}" can\'t be used; write {" or ".join(allowed)}'

    return find


def _list_of(known: Callable[[], set[str]]) -> _Check:
    def find(value: str) -> Iterator[str]:
        for word in words(value):
            if word not in known():
                yield f'"{excerpt(word)}" is not installed; there are {", ".join(sorted(known()))}'

    return find


def _plugins(group: str) -> set[str]:
    return {plugin.name for plugin in entry_points(group=group)}


def _endpoint(value: str) -> Iterator[str]:
    yield from _address(value, "write http://HOST:4317, or https://HOST:4317 for TLS", bare=True)


def _http_endpoint(value: str) -> Iterator[str]:
    yield from _address(value, "write http://HOST:4318, or https://HOST:4318 for TLS", bare=False)


def _address(value: str, example: str, *, bare: bool) -> Iterator[str]:
    """Yield what is wrong with a collector's address, which is `bare` if it has a port and no path.

    Only over HTTP there is a default port for each scheme, and a path.
    """
    try:
        url = urlsplit(value if "://" in value else f"http://{value}")
        has_port = url.port or url.scheme == "https" or not bare
        complete = bool(url.hostname and has_port and url.port != 0 and re.fullmatch("[!-~]+", value))
    except ValueError:
        yield example  # without the value: who knows where its password is
        return
    if "@" in value:
        yield f"has credentials in it; put them in OTEL_EXPORTER_OTLP_HEADERS, and {example}"
    elif url.scheme not in {"http", "https"} or not complete:
        yield f'"{excerpt(value)}" is no address of a collector; {example}'
    elif bare and (url.path.strip("/") or url.query or url.fragment):
        yield f"has a path or parameters, which gRPC does not; {example}"
    elif url.query or url.fragment:
        yield f"has parameters; put what the collector must know in OTEL_EXPORTER_OTLP_HEADERS, and {example}"


def _headers(value: str) -> Iterator[str]:
    for position, entry in enumerate(value.split(","), start=1):
        header = _HEADER.fullmatch(entry)
        if entry.strip() and not (header and re.fullmatch(r"[ -~]*", unquote(header["value"]).strip())):
            yield f"entry {position} is not name=value, in ASCII and URL-encoded"
        elif entry.partition("=")[0].strip().lower().endswith("-bin"):
            yield f"entry {position} is a header of bytes (-bin), which OpenTelemetry does not send"


def _attributes(value: str) -> Iterator[str]:
    for position, entry in enumerate(value.split(","), start=1):
        name, equals, _ = entry.partition("=")
        if entry.strip() and not (name.strip() and equals):
            yield f"entry {position} is not name=value"


def _seconds(value: str) -> Iterator[str]:
    try:
        good = math.isfinite(float(value)) and float(value) > 0
    except ValueError:
        good = False
    if not good:
        yield f'"{excerpt(value)}" is no number of seconds above 0'


def _integer(least: int, most: int | None = None) -> _Check:
    def find(value: str) -> Iterator[str]:
        if not re.fullmatch(r"[0-9]{1,18}", value) or not least <= int(value) <= (most or 10**18):
            yield f'"{excerpt(value)}" is no whole number from {least} {f"to {most}" if most else "on"}'

    return find


def _file(value: str) -> Iterator[str]:
    try:
        # Without O_NONBLOCK a named pipe would wait for somebody who writes to it.
        with open(os.open(value, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123 (of a descriptor)
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                yield f'"{excerpt(value)}" is a pipe or a device; name a regular file'
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        yield f'"{excerpt(value)}" can\'t be read: {reason}'


def _unused(instead: str) -> _Check:
    return lambda value: iter([f'"{excerpt(value)}" is not used: {instead}'])


def _incomplete(environ: Mapping[str, str]) -> Iterable[str]:
    """Yield what only two variables together show."""
    for prefix in _BOTH:
        key, certificate, ca = (
            f"{prefix}_{name}" for name in ("CLIENT_KEY", "CLIENT_CERTIFICATE", "CERTIFICATE")
        )
        given = {name for name in (key, certificate) if environ.get(name)}
        if given and not all(environ.get(name) for name in (key, certificate, ca)):
            yield f"{', '.join(sorted(given))}: needs all of {key}, {certificate} and {ca}"
        endpoint = environ.get(f"{prefix}_ENDPOINT", "").strip()
        if endpoint and "://" not in endpoint and not any(environ.get(f"{each}_INSECURE") for each in _BOTH):
            yield f"{prefix}_ENDPOINT: write http:// before it, or https:// for TLS"


_CHECKS: dict[str, _Check] = {
    **{f"{prefix}_CERTIFICATE": _file for prefix in _BOTH},
    **{f"{prefix}_CLIENT_CERTIFICATE": _file for prefix in _BOTH},
    **{f"{prefix}_CLIENT_KEY": _file for prefix in _BOTH},
    **{f"{prefix}_COMPRESSION": _one_of("gzip") for prefix in _BOTH},
    **{f"{prefix}_ENDPOINT": _endpoint for prefix in _BOTH},
    **{f"{prefix}_HEADERS": _headers for prefix in _BOTH},
    **{f"{prefix}_INSECURE": _one_of("true", "false") for prefix in _BOTH},
    **{f"{prefix}_PROTOCOL": _one_of(*EXPORTERS) for prefix in _BOTH},
    **{f"{prefix}_TIMEOUT": _seconds for prefix in _BOTH},
    **dict.fromkeys(_BATCH_SIZES, _integer(1)),
    **dict.fromkeys(_BATCH_TIMES, _integer(1, _DAY)),
    **dict.fromkeys(_LIMITS, _integer(0)),
    **{variable: _unused(instead) for variable, instead in _UNUSED.items()},
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": _list_of(lambda: _plugins("opentelemetry_resource_detector")),
    "OTEL_PROPAGATORS": _list_of(lambda: {"none", *_plugins("opentelemetry_propagator")}),
    "OTEL_PYTHON_CONTEXT": _list_of(lambda: _plugins("opentelemetry_context")),
    "OTEL_RESOURCE_ATTRIBUTES": _attributes,
    "OTEL_SDK_DISABLED": _one_of("true", "false"),
    "OTEL_TRACES_EXPORTER": _list_of(lambda: {"otlp", "console", "none"}),
}

_HTTP_CHECKS: dict[str, _Check] = {
    **{f"{prefix}_COMPRESSION": _one_of("gzip", "deflate", "none") for prefix in _BOTH},
    **{f"{prefix}_ENDPOINT": _http_endpoint for prefix in _BOTH},
    **{
        f"{prefix}_INSECURE": _unused("with http/protobuf the endpoint's http:// or https:// decides")
        for prefix in _BOTH
    },
}
"""What is otherwise with http/protobuf."""
