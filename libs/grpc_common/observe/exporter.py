"""The exporter of spans that OpenTelemetry's variables ask for, and what the log tells of it."""

import importlib
import logging
from collections.abc import Sequence
from typing import cast

import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from grpc_common.core.errors import StartError
from grpc_common.observe import otel_variables

log = structlog.get_logger()

_EXPORT_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",  # "Failed to export traces to ..."
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk._shared_internal",  # "Queue full, dropping Span."
)


def otlp_exporter() -> SpanExporter:
    """Return what speaks the protocol that the variables ask for; each is an extra of its own.

    Raises:
        StartError: it is not installed.

    """
    protocol = otel_variables.protocol()
    package, extra = otel_variables.EXPORTERS[protocol]
    try:
        module = importlib.import_module(f"{package}.trace_exporter")
    except ImportError as error:
        bazel = extra.replace("-", "_")
        raise StartError(
            f"traces over {protocol} need {package}: with Bazel depend on //libs/grpc_common:{bazel}, "
            f"with pip install grpc-on-kubernetes-common[{extra}]; "
            f"OTEL_EXPORTER_OTLP_PROTOCOL chooses between {' and '.join(otel_variables.EXPORTERS)} ({error})"
        ) from None
    return cast("SpanExporter", module.OTLPSpanExporter())


class Exporter(SpanExporter):
    """Has the first failure logged, and the recovery; OpenTelemetry would tell of each batch."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._failing = False
        for name in _EXPORT_LOGGERS:
            logging.getLogger(name).addFilter(self._is_news)

    def _is_news(self, _record: logging.LogRecord) -> bool:
        return not self._failing

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export spans, and tell of the first failure and of the recovery."""
        result = self._exporter.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if self._failing and not failed:
            log.info("spans are exported again")
        self._failing = failed
        return result

    def shutdown(self) -> None:
        """Export no more."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Wait for what is under way."""
        return self._exporter.force_flush(timeout_millis)

    def give_up(self) -> None:
        """Have an export that is under way fail."""
        log.warning("spans were lost, since they could not be exported in time")
        self._failing = True
        self._exporter.shutdown()

    def unmute(self) -> None:
        """Undo what this exporter does to OpenTelemetry's loggers."""
        for name in _EXPORT_LOGGERS:
            logging.getLogger(name).removeFilter(self._is_news)
