import os

import pytest

from grpc_common.core.errors import StartError
from grpc_common.observe.otel_variables import check, protocol

CANARY = "s3cr3t"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.default:4317"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://[::1]:4317/"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector.test"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317", "OTEL_EXPORTER_OTLP_INSECURE": "True"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "x-key=a%20b=c==, authorization = Basic QQ==,"},
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "0.5", "OTEL_BSP_SCHEDULE_DELAY": "10"},
        {"OTEL_PROPAGATORS": "tracecontext, baggage", "OTEL_TRACES_EXPORTER": "otlp,console"},
        {"OTEL_PROPAGATORS": "none", "OTEL_TRACES_EXPORTER": "none", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_ATTRIBUTE_COUNT_LIMIT": "", "OTEL_RESOURCE_ATTRIBUTES": "a=b,c=,"},
        {"OTEL_PROPAGATORS": "", "OTEL_TRACES_SAMPLER": "", "OTEL_EXPORTER_OTLP_CERTIFICATE": ""},
    ],
    ids=str,
)
def test_good_variables(environ):
    """What OpenTelemetry can use is let through, and so is what is empty where that means unset."""
    check(environ)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http", '"http" can\'t be used; write grpc or http/protobuf'),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "write grpc or http/protobuf"),
        (
            "OTEL_PROPAGATORS",
            "tracecontext,b3",
            '"b3" is not installed; there are baggage, none, tracecontext',
        ),
        ("OTEL_TRACES_EXPORTER", "zipkin", '"zipkin" is not installed; there are console, none, otlp'),
        ("OTEL_TRACES_SAMPLER", "always_on", "tracing.sampling_rate"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.5", "tracing.sampling_rate"),
        ("OTEL_CONFIG_FILE", "/etc/otel.yaml", "are not read"),
        ("OTEL_SDK_DISABLED", "yes", "write true or false"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "1", "write true or false"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "", "write true or false"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip", "write gzip"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "", "no address of a collector; write http://HOST:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "write http:// before it, or https://"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector", "no address of a collector"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:x", "write http://HOST:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:99999", "write http://HOST:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:0", "no address of a collector"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1:4317", "write http://HOST:4317"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://:4317", "no address of a collector"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://collector:4317", "no address of a collector"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317\nx", "write http://HOST:4317"),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "http://collector:4318/v1/traces",
            "has a path or parameters, which gRPC",
        ),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://collector:4317?token={CANARY}", "has a path or parameters"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://u:{CANARY}@collector:4317", "has credentials in it"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://u:{CANARY}@collector:port", "write http://HOST:4317"),
        ("OTEL_EXPORTER_OTLP_HEADERS", CANARY, "entry 1 is not name=value"),
        ("OTEL_EXPORTER_OTLP_HEADERS", f"a=b,key {CANARY}", "entry 2 is not name=value"),
        ("OTEL_EXPORTER_OTLP_HEADERS", f"a=b,=x{CANARY}", "entry 2 is not name=value"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", f"a={CANARY}%0Ab", "entry 1 is not name=value"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", '"soon" is no number of seconds above 0'),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "nan", "no number of seconds above 0"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "-1", "no number of seconds above 0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "", "no number of seconds above 0"),
        ("OTEL_BSP_SCHEDULE_DELAY", "5s", '"5s" is no whole number from 1 to 86400000'),
        ("OTEL_BSP_SCHEDULE_DELAY", "9" * 18, "no whole number from 1 to 86400000"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "no whole number from 1 on"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "9" * 5000, "no whole number from 1 to 86400000"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "-1", "no whole number from 0 on"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "many", "no whole number from 0 on"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/none/ca.crt", "can't be read: No such file or directory"),
        ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/etc", "can't be read: Is a directory"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "a\x00b", "can't be read: "),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", __file__, "needs all of "),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/dev/zero", "is a pipe or a device; name a regular file"),
        ("OTEL_EXPORTER_OTLP_HEADERS", f"a=b,X-Key-Bin={CANARY}", "entry 2 is a header of bytes (-bin)"),
        ("OTEL_SERVICE_NAME", "caf\udce9", "is not UTF-8"),
        ("OTEL_RESOURCE_ATTRIBUTES", "team=shop,prod", "entry 2 is not name=value"),
        ("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "moon", '"moon" is not installed'),
        ("OTEL_PYTHON_CONTEXT", "threads", '"threads" is not installed; there are contextvars_context'),
    ],
)
def test_bad_variables(variable, value, expected):
    """What can't be used is one line with the variable and what would be right, and without secrets."""
    with pytest.raises(StartError) as caught:
        check({variable: value})
    first, *lines = str(caught.value).splitlines()
    assert first == "tracing can't start:"
    (line,) = lines
    assert line.startswith(f"{variable}: ")
    assert expected in line
    assert len(line) < 500
    assert CANARY not in line


def test_name_that_steers_a_terminal():
    """A variable's name is shown as it is written, too."""
    with pytest.raises(StartError, match=r"OTEL_X\\x1b\[31m: is not UTF-8"):
        check({"OTEL_X\x1b[31m": "\udce9"})


HTTP = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector/otlp"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://collector.test/v1/traces"},
        {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "none"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20x"},
    ],
    ids=str,
)
def test_good_variables_over_http(environ):
    """Over HTTP an endpoint may have a path, and there are more compressions."""
    check(HTTP | environ)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "write http:// before it, or https://"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:0", "write http://HOST:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://collector:4318", "write http://HOST:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://collector:4318?token={CANARY}", "has parameters"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"http://u:{CANARY}@collector:4318", "has credentials in it"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip", "write gzip or deflate or none"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "true", "the endpoint's http:// or https:// decides"),
    ],
)
def test_bad_variables_over_http(variable, value, expected):
    """What HTTP can't use is told as for gRPC."""
    with pytest.raises(StartError) as caught:
        check(HTTP | {variable: value})
    _, line = str(caught.value).splitlines()
    assert line.startswith(f"{variable}: ")
    assert expected in line
    assert CANARY not in line


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "grpc"),
        (HTTP, "http/protobuf"),
        (HTTP | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": ""}, "http/protobuf"),
        (HTTP | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "grpc"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": " HTTP/protobuf "}, "http/protobuf"),
    ],
    ids=str,
)
def test_protocol(environ, expected):
    """The variable for traces overrules the one for all signals."""
    assert protocol(environ) == expected


def test_named_pipe(tmp_path):
    """A pipe in the place of a certificate is refused at once, though nobody writes to it."""
    os.mkfifo(tmp_path / "ca.crt")
    with pytest.raises(StartError, match="is a pipe or a device"):
        check({"OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "ca.crt")})


def test_all_mistakes_at_once():
    """Each mistake has its line."""
    with pytest.raises(StartError) as caught:
        check({"OTEL_PROPAGATORS": "b3,jaeger", "OTEL_BSP_SCHEDULE_DELAY": "x"})
    assert len(str(caught.value).splitlines()) == 4
